// Look at an optimizer's parameters, gradients, 0-dim tensors and dictionaries: see survey.py.
#include <cstdint>

extern "C" {
int PyDict_Next(void* dictionary, intptr_t* position, void** key, void** value);
}

typedef char* const* Pointer;

struct Functions {  // of torch; a tensor is a pointer to its implementation
  void* (*address)(void* object);                      // of a Python tensor
  const Pointer (*grad)(const void* implementation);   // of a parameter: a tensor, which may be undefined
  int (*is_contiguous)(const void* tensor, bool* result);
  int (*dtype)(const void* tensor, int32_t* result);
  int (*layout)(const void* tensor, int32_t* result);
  int (*data)(const void* tensor, void** result);
  void (*bump_version)(const void* tensor);
  int64_t offset;      // from a Python tensor to its tensor
  const void* nothing; // the implementation of the undefined tensor
};

enum { PRESENT = 1, STRIDED = 2, ODD = 4 };

// The path to a gradient: object -> parameter -> autograd's data -> gradient -> its storage. Kernels have emptied the caches.
constexpr int ahead = 12;
static inline __attribute__((always_inline)) void fetch(char* const* objects, int64_t i, int64_t size, int64_t offset) {
  if (i + 2 * ahead < size) __builtin_prefetch(objects[i + 2 * ahead] + offset);
  if (i + ahead < size) {
    const char* const tensor = *Pointer(objects[i + ahead] + offset);
    for (int line = 0; line < 192; line += 64) __builtin_prefetch(tensor + line);
  }
}

// Read the addresses of `size` parameters and their gradients. Return 1 if the address of a parameter has changed.
extern "C" int look_at_gradients(const Functions* torch, int64_t size, char* const* objects, const int32_t* dtypes,
                                 int32_t strided_layout, void** param_at, void** grad_at, uint8_t* flags) {
  int moved = 0;
  for (int64_t i = 0; i < size; ++i) {
    fetch(objects, i, size, torch->offset);
    void* const now = torch->address(objects[i]);
    if (now != param_at[i]) moved = 1, param_at[i] = now;
    const Pointer grad = torch->grad(*Pointer(objects[i] + torch->offset));
    flags[i] = 0;
    if (*grad == torch->nothing) continue;
    bool contiguous = false;
    int32_t dtype = -1, layout = -1;
    void* data = nullptr;
    if (torch->layout(grad, &layout) || layout != strided_layout || torch->dtype(grad, &dtype) || dtype != dtypes[i] ||
        torch->is_contiguous(grad, &contiguous) || torch->data(grad, &data)) {
      flags[i] = PRESENT | ODD;
      continue;
    }
    grad_at[i] = data;
    flags[i] = uint8_t(PRESENT | (contiguous ? 0 : STRIDED));
  }
  return moved;
}

// Read `size` 0-dim tensors on the host: kinds are 0 for float, 1 for double, 2 for int64, 3 for int32.
extern "C" void read_numbers(const Functions* torch, int64_t size, char* const* objects, const uint8_t* kinds, void** at,
                             double* values) {
  for (int64_t i = 0; i < size; ++i) {
    if (i + ahead < size) __builtin_prefetch(*Pointer(objects[i + ahead] + torch->offset));
    const void* const p = at[i] = torch->address(objects[i]);
    values[i] = kinds[i] == 0   ? double(*static_cast<const float*>(p))
                : kinds[i] == 1 ? *static_cast<const double*>(p)
                : kinds[i] == 2 ? double(*static_cast<const int64_t*>(p))
                                : double(*static_cast<const int32_t*>(p));
  }
}

// Write the numbers at these positions.
extern "C" void write_numbers(int64_t size, const int64_t* positions, const uint8_t* kinds, void* const* at,
                              const double* values) {
  for (int64_t k = 0; k < size; ++k) {
    const int64_t i = positions[k];
    void* const p = at[i];
    if (kinds[i] == 0) *static_cast<float*>(p) = float(values[k]);
    else if (kinds[i] == 1) *static_cast<double*>(p) = values[k];
    else if (kinds[i] == 2) *static_cast<int64_t*>(p) = int64_t(values[k]);
    else *static_cast<int32_t*>(p) = int32_t(values[k]);
  }
}

// Compare dictionaries with what they held: `held` has the keys and values of each, `first` where those of each begin.
// Write the numbers of those that differ to `changed`, and return how many do.
extern "C" int64_t compare_dictionaries(int64_t size, void* const* dictionaries, const int64_t* first, void* const* held,
                                        int64_t* changed) {
  int64_t count = 0;
  for (int64_t d = 0; d < size; ++d) {
    intptr_t position = 0;
    void *key, *value;
    int64_t k = first[d];
    bool same = true;
    while (same && PyDict_Next(dictionaries[d], &position, &key, &value)) {
      same = k < first[d + 1] && held[2 * k] == key && held[2 * k + 1] == value;
      ++k;
    }
    if (!same || k != first[d + 1]) changed[count++] = d;
  }
  return count;
}

extern "C" void mark(const Functions* torch, int64_t size, char* const* objects) {
  for (int64_t i = 0; i < size; ++i) {
    try {
      torch->bump_version(objects[i] + torch->offset);
    } catch (...) {  // a tensor made in inference mode has no version
    }
  }
}
