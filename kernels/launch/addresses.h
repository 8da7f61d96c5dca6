// Where many tensors lie in memory, and marking them as written: see addresses.py.
#include <cstdint>

extern "C" void* PyList_GetItem(void* list, intptr_t index);

typedef char* const* Pointer;

// Python object -> tensor -> storage, the way that `address` will go: the kernels have emptied the caches. The storage is
// the first member of a tensor behind its table of functions and its counts; if it were not, nothing but time were lost.
// (Unless it has to be inlined, g++ takes this for a function without effect.)
constexpr int ahead = 16;
static inline __attribute__((always_inline)) void fetch(char* const* objects, int64_t offset) {
  __builtin_prefetch(objects[3 * ahead] + offset);
  const char* const tensor = *Pointer(objects[2 * ahead] + offset);
  for (int line = 0; line < 192; line += 64) __builtin_prefetch(tensor + line);
  const char* const storage = *Pointer(*Pointer(objects[ahead] + offset) + 16);
  for (int line = 0; line < 128; line += 64) __builtin_prefetch(storage + line);
}

// addresses[i] becomes address(objects[i]), after column `passing` of `objects` has been taken from a list. Returns 1 if an
// address has changed, 2 more if one of another column has, and 4 more if a tensor of the list is not contiguous.
extern "C" int look(void* (*address)(void* object), int (*is_contiguous)(void* tensor, bool* result), int64_t offset,
                    int64_t rows, int64_t columns, int64_t passing, void* list, char** objects, void** addresses) {
  const int64_t size = rows * columns;
  for (int64_t row = 0; passing >= 0 && row < rows; ++row)
    objects[row * columns + passing] = static_cast<char*>(PyList_GetItem(list, row));
  int found = 0;
  for (int64_t row = 0, i = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column, ++i) {
      if (i + 3 * ahead < size) fetch(objects + i, offset);
      void* const now = address(objects[i]);
      if (now != addresses[i]) found |= column == passing ? 1 : 3;
      addresses[i] = now;
      if (column == passing) {
        bool contiguous = false;
        is_contiguous(objects[i] + offset, &contiguous);
        if (!contiguous) found |= 4;
      }
    }
  return found;
}

extern "C" void mark(void (*bump_version)(void* tensor), int64_t offset, int64_t size, char* const* objects) {
  for (int64_t i = 0; i < size; ++i) {
    try {
      bump_version(objects[i] + offset);
    } catch (...) {  // a tensor made in inference mode has no version
    }
  }
}
