// Loads a shared value for each lane: number (index / run) % cycle.
template <class T> static T* spread(T* buffer, const void* at, const int64_t* sharing, int64_t start, int count, int width) {
  const T* const values = static_cast<const T*>(at);
  const int64_t run = sharing[0], cycle = sharing[1];
  int64_t k = start / run % cycle, left = run - start % run;
  for (int j = 0; j < count; left = run, k = k + 1 == cycle ? 0 : k + 1)
    for (const int end = int(least<int64_t>(count, j + left)); j < end; ++j) buffer[j] = values[k];
  for (int j = count; j < width; ++j) buffer[j] = buffer[count - 1];
  return buffer;
}
// Adds lanes to the sums of their sets; sums[0] belongs to set `first`.
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
