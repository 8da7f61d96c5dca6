// Read the data pointers of many tensors: see addresses.py.
#include <cstdint>

extern "C" void* PyList_GetItem(void* list, intptr_t index);

typedef char* const* Pointer;

// Prefetch Python object -> tensor -> storage, the path that `address` follows: kernels have emptied the caches. The
// storage is a tensor's first member after its vtable and reference counts; a wrong guess would cost only time.
// (g++ drops the function as one without effect unless it must inline it.)
constexpr int ahead = 16;
static inline __attribute__((always_inline)) void fetch(char* const* objects, int64_t offset) {
  __builtin_prefetch(objects[3 * ahead] + offset);
  const char* const tensor = *Pointer(objects[2 * ahead] + offset);
  for (int line = 0; line < 192; line += 64) __builtin_prefetch(tensor + line);
  const char* const storage = *Pointer(*Pointer(objects[ahead] + offset) + 16);
  for (int line = 0; line < 128; line += 64) __builtin_prefetch(storage + line);
}

// Copy `list` into column `passing` of `objects`, then set addresses[i] = address(objects[i]). Returns a sum of flags: 1 if
// an address has changed, 2 if one outside that column has, 4 if a tensor of the list is not contiguous.
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
