// Elements packed two to a byte, the first in the low half; missing lanes repeat the last one.
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
