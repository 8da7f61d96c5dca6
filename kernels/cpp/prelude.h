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
// Rows of a tensor may be padded with lanes that have no element, so that each has whole groups. `columns`: elements of such a
// row; 0 if none is padded, so that lanes are elements.
constexpr int GROUP = 32;
static inline int64_t padded(int64_t columns) { return (columns + GROUP - 1) / GROUP * GROUP; }
static inline int64_t elements_before(int64_t lane, int64_t columns) {
  if (!columns) return lane;
  const int64_t width = padded(columns);
  return lane / width * columns + least(lane % width, columns);
}
// `count` lanes from number `start`. If rows are padded: first element, size and first byte of 4-bit codes of each group.
template <int WIDTH> struct Tile {
  int64_t start;
  int count;
  bool is_padded;
  int64_t element[WIDTH / GROUP], byte[WIDTH / GROUP];
  int size[WIDTH / GROUP];
  INLINE_MEMBER Tile(int64_t start, int64_t lanes, int64_t columns)
      : start(start), count(int(least<int64_t>(WIDTH, lanes - start))), is_padded(columns != 0) {
    if (!columns) return;
    int64_t row = start / padded(columns), column = start % padded(columns);
    for (int g = 0; g < count / GROUP; ++g) {
      element[g] = row * columns + column;
      byte[g] = row * ((columns + 1) / 2) + column / 2;
      size[g] = int(least<int64_t>(GROUP, columns - column));
      if ((column += GROUP) >= columns) column = 0, ++row;
    }
  }
  INLINE_MEMBER bool is_whole() const { return !is_padded && count == WIDTH; }
};
// Sets lanes with get(g, k), k-th element of group g; lanes without an element repeat the last one.
template <int WIDTH, class Lane, class Get> INLINE void load_padded(Lane* buffer, const Tile<WIDTH>& tile, Get get) {
  Lane* lane = buffer;
  for (int g = 0; g < tile.count / GROUP; ++g, lane += GROUP) {
    for (int k = 0; k < tile.size[g]; ++k) lane[k] = get(g, k);
    for (int k = tile.size[g]; k < GROUP; ++k) lane[k] = lane[k - 1];
  }
  for (; lane < buffer + WIDTH; ++lane) *lane = lane[-1];
}
// Loads the tile's elements as lanes; missing lanes repeat the last one.
template <int WIDTH, class Lane, class T>
INLINE Lane* load(Lane* buffer, T* data, const int64_t* layout, const Tile<WIDTH>& tile) {
  const int64_t start = tile.start;
  if (!layout && tile.is_whole()) {
    if constexpr (std::is_same_v<Lane, T>) return data + start;
#pragma omp simd
    for (int j = 0; j < WIDTH; ++j) buffer[j] = static_cast<Lane>(data[start + j]);
    return buffer;
  }
  if (tile.is_padded) {
    if (!layout)
      load_padded(buffer, tile, [&](int g, int k) { return static_cast<Lane>(data[tile.element[g] + k]); });
    else
      load_padded(buffer, tile, [&](int g, int k) { return static_cast<Lane>(data[offset_of(layout, tile.element[g] + k)]); });
    return buffer;
  }
  if (!layout)
    for (int j = 0; j < tile.count; ++j) buffer[j] = static_cast<Lane>(data[start + j]);
  else
    for (int j = 0; j < tile.count; ++j) buffer[j] = static_cast<Lane>(data[offset_of(layout, start + j)]);
  for (int j = tile.count; j < WIDTH; ++j) buffer[j] = buffer[tile.count - 1];
  return buffer;
}
template <int WIDTH, class Lane, class T>
INLINE Lane* destination(Lane* buffer, T* data, const int64_t* layout, const Tile<WIDTH>& tile) {
  if constexpr (std::is_same_v<Lane, T>)
    if (!layout && tile.is_whole()) return data + tile.start;
  return buffer;
}
template <int WIDTH, class Lane, class T>
INLINE void store(const Lane* lanes, const Lane* buffer, T* data, const int64_t* layout, const Tile<WIDTH>& tile) {
  if (lanes != buffer) return;
  const int64_t start = tile.start;
  if (!layout && tile.is_whole()) {
#pragma omp simd
    for (int j = 0; j < WIDTH; ++j) data[start + j] = static_cast<T>(buffer[j]);
  } else if (tile.is_padded) {
    for (int g = 0; g < tile.count / GROUP; ++g)
      for (int k = 0; k < tile.size[g]; ++k) {
        const int64_t index = tile.element[g] + k;
        data[layout ? offset_of(layout, index) : index] = static_cast<T>(buffer[g * GROUP + k]);
      }
  } else if (!layout)
    for (int j = 0; j < tile.count; ++j) data[start + j] = static_cast<T>(buffer[j]);
  else
    for (int j = 0; j < tile.count; ++j) data[offset_of(layout, start + j)] = static_cast<T>(buffer[j]);
}
// Loads a value for each group; missing groups repeat the last one.
template <int WIDTH, class Lane, class T> INLINE void load_groups(Lane* values, const T* data, const Tile<WIDTH>& tile) {
  constexpr int groups = WIDTH / GROUP;
  data += tile.start / GROUP;
  if (tile.count == WIDTH) {
#pragma omp simd
    for (int i = 0; i < groups; ++i) values[i] = static_cast<Lane>(data[i]);
  } else
    for (int i = 0; i < groups; ++i) values[i] = static_cast<Lane>(data[least(i, (tile.count - 1) / GROUP)]);
}
template <int WIDTH, class Lane, class T> INLINE void store_groups(const Lane* values, T* data, const Tile<WIDTH>& tile) {
  data += tile.start / GROUP;
  if (tile.count == WIDTH) {
#pragma omp simd
    for (int i = 0; i < WIDTH / GROUP; ++i) data[i] = static_cast<T>(values[i]);
  } else
    for (int i = 0; i <= (tile.count - 1) / GROUP; ++i) data[i] = static_cast<T>(values[i]);
}
// Sets most[g] to the largest of the SIZE lanes of group g. All groups are folded together, which takes fewer shuffles than
// one after the other.
template <int GROUPS, int SIZE> INLINE void fold(const int32_t* lanes, int32_t* most) {
  if constexpr (SIZE == 1) {
    for (int g = 0; g < GROUPS; ++g) most[g] = lanes[g];
  } else {
    int32_t folded[GROUPS * SIZE / 2];
    if constexpr (SIZE > 16) {
      for (int g = 0; g < GROUPS; ++g) {
        const int32_t *const low = lanes + g * SIZE, *const high = low + SIZE / 2;
#pragma omp simd
        for (int j = 0; j < SIZE / 2; ++j) folded[g * (SIZE / 2) + j] = low[j] > high[j] ? low[j] : high[j];
      }
    } else {
#pragma omp simd
      for (int k = 0; k < GROUPS * SIZE / 2; ++k) folded[k] = lanes[2 * k] > lanes[2 * k + 1] ? lanes[2 * k] : lanes[2 * k + 1];
    }
    fold<GROUPS, SIZE / 2>(folded, most);
  }
}
template <int WIDTH> INLINE void most_of_groups(int32_t* lanes, int32_t* most, const Tile<WIDTH>& tile) {
  if (!tile.is_whole())  // lanes without an element count for nothing
    for (int g = 0; g < WIDTH / GROUP; ++g) {
      const int size = tile.is_padded ? (g < tile.count / GROUP ? tile.size[g] : 0) : least(tile.count - g * GROUP, GROUP);
      for (int k = size < 0 ? 0 : size; k < GROUP; ++k) lanes[g * GROUP + k] = INT32_MIN;
    }
  fold<WIDTH / GROUP, GROUP>(lanes, most);
}
