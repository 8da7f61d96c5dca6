"""The C++ that every program shares: types, loads and stores of tensors of any layout, and the threaded driver."""

from __future__ import annotations

import torch

#: In memory.
MEMORY = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "uint16_t",
    torch.float16: "fp16",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
#: In computations. Small types take 32 bits there, so that the vectors of all have the same number of lanes.
TYPES = MEMORY | {torch.bfloat16: "bf16"} | dict.fromkeys((torch.int16, torch.int8, torch.uint8), "int32_t")

#: The standard library takes longer to read than a program to compile: only what is needed, no mathematics from it.
PRELUDE = """\
#include <cstdint>
#include <type_traits>

enum class bf16 : uint32_t {};  // its bits; a plain integer to the vectorizer
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

// layout of a strided tensor: {ndim, sizes..., strides...} in elements; null when contiguous
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
// `count` elements from `start`, as lanes; missing lanes repeat the last one
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
// a value for each of `groups` groups, of which the last block has only `have`
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
"""

SHARED = """
// a shared value for each lane: number (index / run) % cycle
template <class T> static T* spread(T* buffer, const void* at, const int64_t* sharing, int64_t start, int count, int width) {
  const T* const values = static_cast<const T*>(at);
  const int64_t run = sharing[0], cycle = sharing[1];
  int64_t k = start / run % cycle, left = run - start % run;
  for (int j = 0; j < count; left = run, k = k + 1 == cycle ? 0 : k + 1)
    for (const int end = int(least<int64_t>(count, j + left)); j < end; ++j) buffer[j] = values[k];
  for (int j = count; j < width; ++j) buffer[j] = buffer[count - 1];
  return buffer;
}
// adds lanes to the sums of their sets; sums[0] is that of set `first`
template <class T> static void accumulate(const T* lanes, double* sums, int64_t first, const int64_t* sharing,
                                          int64_t start, int count) {
  const int64_t run = sharing[0], cycle = sharing[1];
  int64_t k = start / run % cycle, left = run - start % run;
  for (int j = 0; j < count; left = run, k = k == cycle ? 0 : k) {
    if (run == 1) {
      const int n = int(least<int64_t>(count - j, cycle - k));
      double* const into = sums + (k - first);
      for (int i = 0; i < n; ++i) into[i] += double(lanes[j + i]);
      j += n, k += n;
    } else {
      const int n = int(least<int64_t>(count - j, left));
      double sum = 0.0;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < n; ++i) sum += double(lanes[j + i]);
      sums[k++ - first] += sum, j += n;
    }
  }
}
"""

PACKED = """
// two elements to a byte, the first in the low half; missing lanes repeat the last one
INLINE int32_t* load4(int32_t* buffer, const uint8_t* data, int64_t start, int count, int width) {
  data += start / 2;
  if (count == width) {
    for (int j = 0; j < width / 2; ++j) buffer[2 * j] = data[j] & 15, buffer[2 * j + 1] = data[j] >> 4;
  } else {
    for (int j = 0; j < count; ++j) buffer[j] = (data[j / 2] >> (j % 2 * 4)) & 15;
    for (int j = count; j < width; ++j) buffer[j] = buffer[count - 1];
  }
  return buffer;
}
INLINE void store4(const int32_t* buffer, uint8_t* data, int64_t start, int count, int width) {
  data += start / 2;
  if (count == width)
    for (int j = 0; j < width / 2; ++j) data[j] = uint8_t(buffer[2 * j] | buffer[2 * j + 1] << 4);
  else
    for (int j = 0; j < count; j += 2) data[j / 2] = uint8_t(buffer[j] | (j + 1 < count ? buffer[j + 1] << 4 : 0));
}
"""

ENTRIES = """
// a table of 16 in registers, its entries selected by the bits of their number: faster than a gather, and alike everywhere
template <class T> struct Entries {
  T e[16];
  INLINE_MEMBER explicit Entries(const T* t)
      : e{t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15]} {}
  INLINE_MEMBER T at(int32_t number) const {
    const bool b1 = number & 1, b2 = number & 2, b4 = number & 4, b8 = number & 8;
    const T f0 = b8 ? e[8] : e[0], f1 = b8 ? e[9] : e[1], f2 = b8 ? e[10] : e[2], f3 = b8 ? e[11] : e[3];
    const T f4 = b8 ? e[12] : e[4], f5 = b8 ? e[13] : e[5], f6 = b8 ? e[14] : e[6], f7 = b8 ? e[15] : e[7];
    const T g0 = b4 ? f4 : f0, g1 = b4 ? f5 : f1, g2 = b4 ? f6 : f2, g3 = b4 ? f7 : f3;
    const T h0 = b2 ? g2 : g0, h1 = b2 ? g3 : g1;
    return b1 ? h1 : h0;
  }
};
"""

DRIVER = """
// tensors: how many. at, layouts: [tensors][{pointers}]. numbers: [tensors][{numbers}]. derived: scratch, [tensors][{derived}].
// first_block: [tensors + 1], prefix sum of each tensor's blocks. first_index: global index of each first element.
// sharing: [tensors][{shared}][2], run and cycle of shared values.
extern "C" void run(int64_t tensors, void* const* at, const int64_t* const* layouts, const double* numbers,
                    double* derived, const int64_t* numel, const int64_t* first_block, const int64_t* first_index,
                    const int64_t* sharing, int threads) {{
  for (int64_t t = 0; t < tensors; ++t) scalars(at + t * {pointers}, numbers + t * {numbers}, derived + t * {derived});
  const int64_t blocks = first_block[tensors];
  const int64_t share = (blocks + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {{
    int64_t block = thread * share;
    const int64_t end = least(blocks, block + share);
    int64_t t = 0;
    while (t < tensors && first_block[t + 1] <= block) ++t;
    for (; block < end; ++t) {{
      const int64_t stop = least(end, first_block[t + 1]);
      elements(at + t * {pointers}, layouts + t * {pointers}, derived + t * {derived}, numel[t],
               block - first_block[t], stop - first_block[t], first_index[t], sharing + t * {shared} * 2, 0, 0);
      block = stop;
    }}
  }}
}}
"""

AVERAGE_HEADERS = "#include <algorithm>\n#include <vector>\n"

# Sums are taken over chunks whose bounds depend on the tensor alone, and added in their order: any number of threads
# gives the same bits. A chunk spans many cycles, so that its sums are few beside its elements.
AVERAGE_DRIVER = """
struct Chunk {{
  int64_t tensor, first, last;
  double* sums[{shared}];
  int64_t first_sum[{shared}], count[{shared}];
}};
// As for a step; see there. The shared values become decay * value + mean.
extern "C" void run(int64_t tensors, void* const* at, const int64_t* const* layouts, const double* numbers,
                    double* derived, const int64_t* numel, const int64_t* first_block, const int64_t* first_index,
                    const int64_t* sharing, int threads) {{
  for (int64_t t = 0; t < tensors; ++t) scalars(at + t * {pointers}, numbers + t * {numbers}, derived + t * {derived});
  std::vector<Chunk> chunks;
  std::vector<int64_t> first_chunk(tensors + 1);
  int64_t total = 0;
  for (int64_t t = 0; t < tensors; ++t) {{
    const int64_t blocks = first_block[t + 1] - first_block[t];
    int64_t size = std::max<int64_t>({{16384 / {width}, (blocks + 15) / 16, 1}});
    for (int s = 0; s < {shared}; ++s) {{
      const int64_t* const set = sharing + (t * {shared} + s) * 2;
      if (set[0] * set[1] < numel[t]) size = std::max<int64_t>(size, (64 * set[0] * set[1] + {width} - 1) / {width});
    }}
    for (int64_t first = 0; first < blocks; first += size) {{
      Chunk chunk{{t, first, std::min(blocks, first + size), {{}}, {{}}, {{}}}};
      for (int s = 0; s < {shared}; ++s) {{
        const int64_t* const set = sharing + (t * {shared} + s) * 2;
        const bool whole = set[0] * set[1] < numel[t];  // every set is met again and again
        chunk.first_sum[s] = whole ? 0 : chunk.first * {width} / set[0];
        const int64_t end = std::min(numel[t], chunk.last * {width});
        chunk.count[s] = whole ? set[1] : (end - 1) / set[0] + 1 - chunk.first_sum[s];
        total += chunk.count[s];
      }}
      chunks.push_back(chunk);
    }}
    first_chunk[t + 1] = chunks.size();
  }}
  std::vector<double> sums(total);
  double* next = sums.data();
  for (Chunk& chunk : chunks)
    for (int s = 0; s < {shared}; ++s) chunk.sums[s] = next, next += chunk.count[s];
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (size_t c = 0; c < chunks.size(); ++c) {{
    const Chunk& chunk = chunks[c];
    const int64_t t = chunk.tensor;
    elements(at + t * {pointers}, layouts + t * {pointers}, derived + t * {derived}, numel[t], chunk.first, chunk.last,
             first_index[t], sharing + t * {shared} * 2, chunk.sums, chunk.first_sum);
  }}
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t t = 0; t < tensors; ++t) {{
    for (int s = 0; s < {shared} && numel[t] > 0; ++s) {{
      const int64_t cycle = sharing[(t * {shared} + s) * 2 + 1];
      std::vector<double> means(cycle);
      for (int64_t c = first_chunk[t]; c < first_chunk[t + 1]; ++c)
        for (int64_t k = 0; k < chunks[c].count[s]; ++k) means[chunks[c].first_sum[s] + k] += chunks[c].sums[s][k];
      for (double& mean : means) mean /= double(numel[t] / cycle);
      finish(at + t * {pointers}, derived + t * {derived}, s, means.data(), cycle);
    }}
  }}
}}
"""
