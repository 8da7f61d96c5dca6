// Integers wrap around, so a sum of two as an index would keep a loop from being vectorized: the loops below have one each.

// Sets `count` lanes to the shared values of elements from `start`: number (index / run) % cycle.
template <class T> static void spread(T* lanes, const T* values, const int64_t* sharing, int64_t start, int count) {
  const int64_t run = sharing[0], cycle = sharing[1];
  int64_t k = start / run % cycle, left = run - start % run;
  for (T *lane = lanes, *const end = lanes + count; lane < end; left = run) {
    const int n = int(least<int64_t>(end - lane, run == 1 ? cycle - k : left));
    const T* const from = values + k;
    if (run == 1)
      for (int i = 0; i < n; ++i) lane[i] = from[i];
    else
      for (int i = 0; i < n; ++i) lane[i] = *from;
    lane += n, k += run == 1 ? n : 1;
    if (k == cycle) k = 0;
  }
}
template <int WIDTH, class T> static T* spread(T* buffer, const void* at, const int64_t* sharing, const Tile<WIDTH>& tile) {
  const T* const values = static_cast<const T*>(at);
  if (!tile.is_padded) {
    spread(buffer, values, sharing, tile.start, tile.count);
    for (int j = tile.count; j < WIDTH; ++j) buffer[j] = buffer[tile.count - 1];
    return buffer;
  }
  T* lane = buffer;
  for (int g = 0; g < tile.count / GROUP; ++g, lane += GROUP) {
    spread(lane, values, sharing, tile.element[g], tile.size[g]);
    for (int k = tile.size[g]; k < GROUP; ++k) lane[k] = lane[k - 1];
  }
  for (; lane < buffer + WIDTH; ++lane) *lane = lane[-1];
  return buffer;
}
// Adds lanes to the sums of their sets; sums[0] belongs to set `first`.
template <class T> static void accumulate(const T* lanes, double* sums, int64_t first, const int64_t* sharing,
                                          int64_t start, int count) {
  const int64_t run = sharing[0], cycle = sharing[1];
  int64_t k = start / run % cycle, left = run - start % run;
  for (const T *lane = lanes, *const end = lanes + count; lane < end; left = run) {
    const int n = int(least<int64_t>(end - lane, run == 1 ? cycle - k : left));
    double* const into = sums + (k - first);
    if (run == 1) {
      for (int i = 0; i < n; ++i) into[i] += double(lane[i]);
    } else {
      double sum = 0.0;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < n; ++i) sum += double(lane[i]);
      *into += sum;
    }
    lane += n, k += run == 1 ? n : 1;
    if (k == cycle) k = 0;
  }
}
template <int WIDTH, class T>
static void accumulate(const T* lanes, double* sums, int64_t first, const int64_t* sharing, const Tile<WIDTH>& tile) {
  if (!tile.is_padded) return accumulate(lanes, sums, first, sharing, tile.start, tile.count);
  for (int g = 0; g < tile.count / GROUP; ++g)
    accumulate(lanes + g * GROUP, sums, first, sharing, tile.element[g], tile.size[g]);
}
