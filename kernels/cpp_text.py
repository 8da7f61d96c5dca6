"""The C++ that every program shares: types, loads and stores of tensors of any layout, and the threaded driver."""

from __future__ import annotations

import torch

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}

PRELUDE = """\
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

enum class bf16 : uint16_t {};  // its bits; a plain integer to the vectorizer
typedef _Float16 fp16;

template <class To, class From> static inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To result;
  std::memcpy(&result, &value, sizeof(To));
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

// layout of a strided tensor: {ndim, sizes..., strides...} in elements; null when contiguous
static inline int64_t offset_of(const int64_t* layout, int64_t index) {
  int64_t offset = 0;
  for (int64_t d = layout[0]; d >= 1; --d) {
    offset += index % layout[d] * layout[layout[0] + d];
    index /= layout[d];
  }
  return offset;
}
// `count` elements from `start`; missing lanes repeat the last one
template <class T> static T* load(T* buffer, void* at, const int64_t* layout, int64_t start, int count, int width) {
  T* const data = static_cast<T*>(at);
  if (!layout && count == width) return data + start;
  for (int j = 0; j < width; ++j) {
    const int64_t index = start + std::min(j, count - 1);
    buffer[j] = data[layout ? offset_of(layout, index) : index];
  }
  return buffer;
}
template <class T> static T* destination(T* buffer, void* at, const int64_t* layout, int64_t start, int count, int width) {
  return !layout && count == width ? static_cast<T*>(at) + start : buffer;
}
template <class T> static void store(const T* lanes, const T* buffer, void* at, const int64_t* layout, int64_t start, int count) {
  if (lanes != buffer) return;
  T* const data = static_cast<T*>(at);
  for (int j = 0; j < count; ++j) data[layout ? offset_of(layout, start + j) : start + j] = buffer[j];
}
"""

DRIVER = """
// tensors: how many. at, layouts: [tensors][{pointers}]. numbers: [tensors][{numbers}]. derived: scratch, [tensors][{derived}].
// first_block: [tensors + 1], prefix sum of each tensor's blocks.
extern "C" void run(int64_t tensors, void* const* at, const int64_t* const* layouts, const double* numbers,
                    double* derived, const int64_t* numel, const int64_t* first_block, int threads) {{
  for (int64_t t = 0; t < tensors; ++t) scalars(at + t * {pointers}, numbers + t * {numbers}, derived + t * {derived});
  const int64_t blocks = first_block[tensors];
  const int64_t share = (blocks + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {{
    int64_t block = thread * share;
    const int64_t end = std::min(blocks, block + share);
    int64_t t = std::upper_bound(first_block, first_block + tensors + 1, block) - first_block - 1;
    for (; block < end; ++t) {{
      const int64_t stop = std::min(end, first_block[t + 1]);
      elements(at + t * {pointers}, layouts + t * {pointers}, derived + t * {derived}, numel[t],
               block - first_block[t], stop - first_block[t]);
      block = stop;
    }}
  }}
}}
"""
