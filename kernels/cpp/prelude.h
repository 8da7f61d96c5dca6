// The basis of every program: types, and loads and stores for tensors of any layout.
// Standard headers take longer to read than a program takes to compile: include only these, and no mathematics.
#include <cstdint>
#include <type_traits>

enum class bf16 : uint32_t {};  // holds the bits; a plain integer to the vectorizer
typedef _Float16 fp16;

template <class To, class From> static inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}
template <class To, class From> static inline To cast(From value) { return static_cast<To>(value); }
template <> inline float cast<float, bf16>(bf16 value) { return bits_as<float>(uint32_t(value) << 16); }
template <> inline double cast<double, bf16>(bf16 value) { return cast<float>(value); }
template <> inline bf16 cast<bf16, float>(float value) {  // round to nearest, ties to even
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return bf16(value != value ? 0x7FC0 : rounded);
}

template <class T> static inline T least(T a, T b) { return b < a ? b : a; }
static inline float magnitude(float x) { return __builtin_fabsf(x); }
static inline double magnitude(double x) { return __builtin_fabs(x); }
template <class T> static inline T magnitude(T x) { return x < 0 ? -x : x; }

// Offset of an element. Layout of a strided tensor: {ndim, sizes..., strides...}, in elements; null if contiguous.
static inline int64_t offset_of(const int64_t* layout, int64_t index) {
  int64_t offset = 0;
  for (int64_t d = layout[0]; d >= 1; --d) {
    offset += index % layout[d] * layout[layout[0] + d];
    index /= layout[d];
  }
  return offset;
}
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER
// Loads `count` elements from `start` as lanes; missing lanes repeat the last one.
template <class Lane, class T>
INLINE Lane* load(Lane* buffer, T* data, const int64_t* layout, int64_t start, int count, int width) {
  if (!layout && count == width) {
    if constexpr (std::is_same_v<Lane, T>) return data + start;
#pragma omp simd
    for (int j = 0; j < width; ++j) buffer[j] = static_cast<Lane>(data[start + j]);
    return buffer;
  }
  if (!layout)
    for (int j = 0; j < count; ++j) buffer[j] = static_cast<Lane>(data[start + j]);
  else
    for (int j = 0; j < count; ++j) buffer[j] = static_cast<Lane>(data[offset_of(layout, start + j)]);
  for (int j = count; j < width; ++j) buffer[j] = buffer[count - 1];
  return buffer;
}
template <class Lane, class T>
INLINE Lane* destination(Lane* buffer, T* data, const int64_t* layout, int64_t start, int count, int width) {
  if constexpr (std::is_same_v<Lane, T>)
    if (!layout && count == width) return data + start;
  return buffer;
}
template <class Lane, class T>
INLINE void store(const Lane* lanes, const Lane* buffer, T* data, const int64_t* layout, int64_t start, int count,
                  int width) {
  if (lanes != buffer) return;
  if (!layout && count == width) {
#pragma omp simd
    for (int j = 0; j < width; ++j) data[start + j] = static_cast<T>(buffer[j]);
  } else if (!layout)
    for (int j = 0; j < count; ++j) data[start + j] = static_cast<T>(buffer[j]);
  else
    for (int j = 0; j < count; ++j) data[offset_of(layout, start + j)] = static_cast<T>(buffer[j]);
}
// Loads a value for each of `groups` groups; the last tile has only `have` of them.
template <class Lane, class T> INLINE void load_groups(Lane* values, const T* data, int have, int groups) {
  if (have == groups) {
#pragma omp simd
    for (int i = 0; i < groups; ++i) values[i] = static_cast<Lane>(data[i]);
  } else
    for (int i = 0; i < groups; ++i) values[i] = static_cast<Lane>(data[least(i, have - 1)]);
}
template <class Lane, class T> INLINE void store_groups(const Lane* values, T* data, int have, int groups) {
  if (have == groups) {
#pragma omp simd
    for (int i = 0; i < groups; ++i) data[i] = static_cast<T>(values[i]);
  } else
    for (int i = 0; i < have; ++i) data[i] = static_cast<T>(values[i]);
}
