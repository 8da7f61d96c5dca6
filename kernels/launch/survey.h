// Look at an optimizer's parameters, gradients, 0-dim tensors and dictionaries: see survey.py, host_numbers.py and
// held_objects.py.
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" {
intptr_t PyList_Size(void* list);
void* PyList_GetItem(void* list, intptr_t index);
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

// Kernels have emptied the caches, so what comes next is fetched ahead of its use. A tensor's implementation begins with its
// table of functions, two counts, its storage and autograd's data; a wrong guess would cost only time. (g++ drops functions
// without effect unless it must inline them.)
constexpr int ahead = 12;
static inline __attribute__((always_inline)) void fetch_tensor(const char* implementation) {
  for (int line = 0; line < 192; line += 64) __builtin_prefetch(implementation + line);
}
static inline __attribute__((always_inline)) void fetch_parts(const char* implementation) {
  __builtin_prefetch(*Pointer(implementation + 16));
  __builtin_prefetch(*Pointer(implementation + 24));
}

// Read the addresses of `size` parameters and their gradients. Return a sum: 1 if the address of a parameter has changed, 2 if
// a gradient is absent, 4 if one is not contiguous, 8 if one is odd.
// grads: scratch, [size].
extern "C" int look_at_gradients(const Functions* torch, int64_t size, char* const* objects, const int32_t* dtypes,
                                 int32_t strided_layout, Pointer* grads, void** param_at, void** grad_at, uint8_t* flags,
                                 bool* present) {
  int found = 0;
  const int64_t offset = torch->offset;
  for (int64_t i = 0; i < size; ++i) {
    if (i + 3 * ahead < size) __builtin_prefetch(objects[i + 3 * ahead] + offset);
    if (i + 2 * ahead < size) fetch_tensor(*Pointer(objects[i + 2 * ahead] + offset));
    if (i + ahead < size) fetch_parts(*Pointer(objects[i + ahead] + offset));
    void* const now = torch->address(objects[i]);
    if (now != param_at[i]) found |= 1, param_at[i] = now;
    grads[i] = torch->grad(*Pointer(objects[i] + offset));
  }
  for (int64_t i = 0; i < size; ++i) {
    if (i + 2 * ahead < size) fetch_tensor(*grads[i + 2 * ahead]);
    if (i + ahead < size) fetch_parts(*grads[i + ahead]);
    const Pointer grad = grads[i];
    flags[i] = 0;
    if (!(present[i] = *grad != torch->nothing)) {
      found |= 2;
      continue;
    }
    bool contiguous = false;
    int32_t dtype = -1, layout = -1;
    void* data = nullptr;
    if (torch->layout(grad, &layout) || layout != strided_layout || torch->dtype(grad, &dtype) || dtype != dtypes[i] ||
        torch->is_contiguous(grad, &contiguous) || torch->data(grad, &data)) {
      flags[i] = PRESENT | ODD;
      found |= 8;
      continue;
    }
    grad_at[i] = data;
    flags[i] = uint8_t(PRESENT | (contiguous ? 0 : STRIDED));
    if (!contiguous) found |= 4;
  }
  return found;
}

// Read `size` 0-dim tensors on the host: kinds are 0 for float, 1 for double, 2 for int64, 3 for int32.
extern "C" void read_numbers(const Functions* torch, int64_t size, char* const* objects, const uint8_t* kinds, void** at,
                             double* values) {
  for (int64_t i = 0; i < size; ++i) {
    if (i + 3 * ahead < size) __builtin_prefetch(objects[i + 3 * ahead] + torch->offset);
    if (i + 2 * ahead < size) fetch_tensor(*Pointer(objects[i + 2 * ahead] + torch->offset));
    if (i + ahead < size) fetch_parts(*Pointer(objects[i + ahead] + torch->offset));
    const void* const p = at[i] = torch->address(objects[i]);
    values[i] = kinds[i] == 0   ? double(*static_cast<const float*>(p))
                : kinds[i] == 1 ? *static_cast<const double*>(p)
                : kinds[i] == 2 ? double(*static_cast<const int64_t*>(p))
                                : double(*static_cast<const int32_t*>(p));
  }
}

// Find the distinct ones, bit by bit, of the values at `size` positions. Write them to `found` in order of appearance, and to
// `which` which of them each is. Return how many there are.
extern "C" int64_t find_distinct(int64_t size, const int64_t* positions, const double* values, double* found, int64_t* which) {
  int bits = 1;
  while ((int64_t(1) << bits) < 2 * size) ++bits;
  std::vector<int64_t> slots(size_t(1) << bits, -1);  // by hash, linear probing
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint64_t now, known;
    std::memcpy(&now, values + positions[i], 8);
    size_t slot = size_t(now * 0x9E3779B97F4A7C15 >> (64 - bits));
    for (;; slot = (slot + 1) & (slots.size() - 1)) {
      if (slots[slot] < 0) {
        slots[slot] = count;
        found[count++] = values[positions[i]];
        break;
      }
      std::memcpy(&known, found + slots[slot], 8);
      if (known == now) break;
    }
    which[i] = slots[slot];
  }
  return count;
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
// tag: where a dictionary has a number that every change of it changes, in bytes; -1 if nowhere. tags: the last ones, 0 at first.
extern "C" int64_t compare_dictionaries(int64_t size, char* const* dictionaries, const int64_t* first, void* const* held,
                                        int64_t tag, uint64_t* tags, int64_t* changed) {
  int64_t count = 0;
  for (int64_t d = 0; d < size; ++d) {
    if (d + 2 * ahead < size) __builtin_prefetch(dictionaries[d + 2 * ahead]);
    // a dictionary has its keys and entries behind a pointer in its fifth word
    if (tag < 0 && d + ahead < size) fetch_tensor(*Pointer(dictionaries[d + ahead] + 32));
    uint64_t now = 0;
    if (tag >= 0) std::memcpy(&now, dictionaries[d] + tag, 8);
    if (tag >= 0 && now == tags[d]) continue;
    intptr_t position = 0;
    void *key, *value;
    int64_t k = first[d];
    bool same = true;
    while (same && PyDict_Next(dictionaries[d], &position, &key, &value)) {
      same = k < first[d + 1] && held[2 * k] == key && held[2 * k + 1] == value;
      ++k;
    }
    if (same && k == first[d + 1]) tags[d] = now;
    else changed[count++] = d;
  }
  return count;
}

// The same for lists and their entries. Return whether any differs.
extern "C" int compare_lists(int64_t size, void* const* lists, const int64_t* first, void* const* held) {
  for (int64_t l = 0; l < size; ++l) {
    const int64_t length = first[l + 1] - first[l];
    if (PyList_Size(lists[l]) != length) return 1;
    for (int64_t k = 0; k < length; ++k)
      if (PyList_GetItem(lists[l], k) != held[first[l] + k]) return 1;
  }
  return 0;
}

// Bump the version counters of these tensors, or of those that are `present`.
extern "C" void mark(const Functions* torch, int64_t size, char* const* objects, const bool* present) {
  for (int64_t i = 0; i < size; ++i) {
    if (present && !present[i]) continue;
    try {
      torch->bump_version(objects[i] + torch->offset);
    } catch (...) {  // a tensor made in inference mode has no version
    }
  }
}
