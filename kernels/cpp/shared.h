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
// Shared values as lanes. A tile within one set, or within one cycle of neighbours, needs no copy of its own.
template <int WIDTH, class T> struct Spread {
  T* const values;
  const int64_t* const sharing;
  int64_t held = -1;  // the set that fills the buffer
  T buffer[WIDTH];
  Spread(void* at, const int64_t* sharing) : values(static_cast<T*>(at)), sharing(sharing) {}
  T* lanes(const Tile<WIDTH>& tile) {
    const int64_t run = sharing[0], cycle = sharing[1], k = tile.start / run % cycle;
    if (tile.is_whole() && run == 1 && k + WIDTH <= cycle) return values + k;
    const bool is_one = tile.is_whole() && tile.start % run + WIDTH <= run;
    if (is_one && k == held) return buffer;
    held = is_one ? k : -1;
    if (!tile.is_padded) {
      spread(buffer, values, sharing, tile.start, tile.count);
      for (int j = tile.count; j < WIDTH; ++j) buffer[j] = buffer[tile.count - 1];
      return buffer;
    }
    T* lane = buffer;
    for (int g = 0; g < tile.count / GROUP; ++g, lane += GROUP) {
      spread(lane, values, sharing, tile.element[g], tile.size[g]);
      for (int i = tile.size[g]; i < GROUP; ++i) lane[i] = lane[i - 1];
    }
    for (; lane < buffer + WIDTH; ++lane) *lane = lane[-1];
    return buffer;
  }
};
// Asks for the elements of the tile after the next one. Adding up takes so few bytes for its time that the processor does not
// read ahead by itself: asked for, they made an average of gradients in memory 2.5 times as fast (AMD EPYC, 10M elements).
template <int WIDTH, class T> INLINE void read_ahead(const T* data, const int64_t* layout, const Tile<WIDTH>& tile) {
  constexpr int line = 64 / sizeof(T);
  if (layout || tile.is_padded) return;
  for (int j = 0; j < WIDTH; j += line) __builtin_prefetch(data + tile.start + 2 * WIDTH + j);
}
// The sums of sets: that of set k is sums[k - first]. No sums: they follow from those of another operand.
struct Sums {
  double* sums;
  int64_t first;
  const int64_t* sharing;
};
// Adds lanes of the same set, or of neighbours.
template <class T> static void add_set(const T* lanes, double* into, int count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < count; ++i) sum += double(lanes[i]);
  *into += sum;
}
template <class T> static void add_neighbours(const T* lanes, double* into, int count) {
  for (int i = 0; i < count; ++i) into[i] += double(lanes[i]);
}
template <class T> static void add_both(const T* lanes, double* into, double* neighbours, int count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < count; ++i) {
    const double value = double(lanes[i]);
    sum += value, neighbours[i] += value;
  }
  *into += sum;
}
// Adds `count` lanes, the elements from `start`, to the sums of N operands that average the same value.
template <int N, class T> static void accumulate(const T* lanes, const Sums (&sums)[N], int64_t start, int count) {
  for (int n; count > 0; lanes += n, start += n, count -= n) {
    double* set[N];  // where these n lanes go, neighbours last
    int sets = 0, neighbours = 0;
    n = count;
    for (const Sums& s : sums) {
      if (!s.sums) continue;
      const int64_t run = s.sharing[0], cycle = s.sharing[1], k = start / run % cycle;
      n = int(least<int64_t>(n, run == 1 ? cycle - k : run - start % run));
      double* const into = s.sums + (k - s.first);
      if (run == 1)
        set[N - ++neighbours] = into;
      else
        set[sets++] = into;
    }
    if (sets == 1 && neighbours == 1) {
      add_both(lanes, set[0], set[N - 1], n);
      continue;
    }
    for (int i = 0; i < sets; ++i) add_set(lanes, set[i], n);
    for (int i = 1; i <= neighbours; ++i) add_neighbours(lanes, set[N - i], n);
  }
}
// The larger of two numbers; NaN if one is.
template <class T> INLINE T more(T a, T b) { return a != a || a > b ? a : b; }
// Raises the only value to the largest of `count` lanes.
template <class T> static void keep_most(const T* lanes, double* most, int count) {
  T found = lanes[0];
  for (int i = 1; i < count; ++i) found = more(found, lanes[i]);
  *most = more(*most, double(found));
}
// The same for `count` lanes, the elements from `start`, of any number of sets.
template <class T> static void keep_most(const T* lanes, const Sums& most, int64_t start, int count) {
  const int64_t run = most.sharing[0], cycle = most.sharing[1];
  for (int n; count > 0; lanes += n, start += n, count -= n) {
    n = int(least<int64_t>(count, run - start % run));
    keep_most(lanes, most.sums + (start / run % cycle - most.first), n);
  }
}
template <int WIDTH, class T> static void keep_most(const T* lanes, const Sums (&sums)[1], const Tile<WIDTH>& tile) {
  if (!tile.is_padded) return keep_most(lanes, sums[0], tile.start, tile.count);
  for (int g = 0; g < tile.count / GROUP; ++g) keep_most(lanes + g * GROUP, sums[0], tile.element[g], tile.size[g]);
}
template <int WIDTH, int N, class T>
static void accumulate(const T* lanes, const Sums (&sums)[N], const Tile<WIDTH>& tile) {
  if (!tile.is_padded) return accumulate(lanes, sums, tile.start, tile.count);
  for (int g = 0; g < tile.count / GROUP; ++g) accumulate(lanes + g * GROUP, sums, tile.element[g], tile.size[g]);
}
