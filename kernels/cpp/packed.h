// Elements packed two to a byte, the first in the low half; missing lanes repeat the last one. A padded row begins with a byte.
template <int WIDTH> INLINE int32_t* load4(int32_t* buffer, const uint8_t* data, const Tile<WIDTH>& tile) {
  const uint8_t* const at = data + tile.start / 2;
  if (tile.is_whole()) {
    for (int j = 0; j < WIDTH / 2; ++j) buffer[2 * j] = at[j] & 15, buffer[2 * j + 1] = at[j] >> 4;
  } else if (tile.is_padded) {
    load_padded(buffer, tile, [&](int g, int k) { return (data[tile.byte[g] + k / 2] >> (k % 2 * 4)) & 15; });
  } else {
    for (int j = 0; j < tile.count; ++j) buffer[j] = (at[j / 2] >> (j % 2 * 4)) & 15;
    for (int j = tile.count; j < WIDTH; ++j) buffer[j] = buffer[tile.count - 1];
  }
  return buffer;
}
INLINE void pack(const int32_t* lanes, uint8_t* data, int count) {
  for (int j = 0; j < count; j += 2) data[j / 2] = uint8_t(lanes[j] | (j + 1 < count ? lanes[j + 1] << 4 : 0));
}
template <int WIDTH> INLINE void store4(const int32_t* buffer, uint8_t* data, const Tile<WIDTH>& tile) {
  uint8_t* const at = data + tile.start / 2;
  if (tile.is_whole())
    for (int j = 0; j < WIDTH / 2; ++j) at[j] = uint8_t(buffer[2 * j] | buffer[2 * j + 1] << 4);
  else if (tile.is_padded)
    for (int g = 0; g < tile.count / GROUP; ++g) pack(buffer + g * GROUP, data + tile.byte[g], tile.size[g]);
  else
    pack(buffer, at, tile.count);
}
