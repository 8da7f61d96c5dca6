#include <algorithm>
#include <vector>

// Each chunk is summed, and the chunks' sums are added in order. The bounds of chunks depend on the tensor alone, so
// any number of threads gives the same bits. A chunk spans many cycles, so it has far fewer sums than elements.
// SAME[s]: the first operand that averages the same value as s. The mean of all elements is then that of another's means.
struct Chunk {
  int64_t tensor, first, last;
  double* sums[SHARED];
  int64_t first_sum[SHARED], count[SHARED];
};
static int finer(int s, const int64_t* sharing) {
  for (int other = SAME[s]; other < SHARED && sharing[2 * s + 1] == 1; ++other)
    if (SAME[other] == SAME[s] && sharing[2 * other + 1] > 1) return other;
  return s;
}
// Folds values into shared ones: decay * shared + mean, a mean, or a maximum. The arguments are those of a step, see driver.h.
extern "C" void run(int64_t tensors, void* const* at, const int64_t* const* layouts, const double* numbers,
                    double* derived, const int64_t* lanes, const int64_t* columns, const int64_t* first_tile,
                    const int64_t* first_index, const int64_t* sharing, int threads) {
  for (int64_t t = 0; t < tensors; ++t)
    if (lanes[t] >= 0) scalars(at + t * POINTERS, numbers + t * NUMBERS, derived + t * DERIVED);
  std::vector<Chunk> chunks;
  std::vector<int64_t> first_chunk(tensors + 1);
  int64_t total = 0;
  for (int64_t t = 0; t < tensors; ++t) {
    const int64_t tiles = first_tile[t + 1] - first_tile[t], elements = elements_before(lanes[t], columns[t]);
    int64_t size = std::max<int64_t>({16384 / TILE, (tiles + 15) / 16, 1});
    for (int s = 0; s < SHARED; ++s) {
      const int64_t* const set = sharing + (t * SHARED + s) * 2;
      if (set[0] * set[1] < elements) size = std::max<int64_t>(size, (64 * set[0] * set[1] + TILE - 1) / TILE);
    }
    for (int64_t first = 0; first < tiles; first += size) {
      Chunk chunk{t, first, std::min(tiles, first + size), {}, {}, {}};
      for (int s = 0; s < SHARED; ++s) {
        const int64_t* const set = sharing + (t * SHARED + s) * 2;
        const bool whole = set[0] * set[1] < elements;  // every set recurs
        chunk.first_sum[s] = whole ? 0 : elements_before(chunk.first * TILE, columns[t]) / set[0];
        const int64_t end = elements_before(std::min(lanes[t], chunk.last * TILE), columns[t]);
        chunk.count[s] = whole ? set[1] : (end - 1) / set[0] + 1 - chunk.first_sum[s];
        if (finer(s, sharing + t * SHARED * 2) != s) chunk.count[s] = 0;
        total += chunk.count[s];
      }
      chunks.push_back(chunk);
    }
    first_chunk[t + 1] = chunks.size();
  }
  std::vector<double> sums(total);
  double* next = sums.data();
  for (Chunk& chunk : chunks)
    for (int s = 0; s < SHARED; ++s) {
      chunk.sums[s] = chunk.count[s] ? next : nullptr, next += chunk.count[s];
      if (MOST[s]) std::fill_n(chunk.sums[s], chunk.count[s], -__builtin_inf());
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (size_t c = 0; c < chunks.size(); ++c) {
    const Chunk& chunk = chunks[c];
    const int64_t t = chunk.tensor;
    elements(at + t * POINTERS, layouts + t * POINTERS, derived + t * DERIVED, lanes[t], columns[t], chunk.first, chunk.last,
             first_index[t], sharing + t * SHARED * 2, chunk.sums, chunk.first_sum);
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t t = 0; t < tensors; ++t) {
    std::vector<double> means[SHARED];
    for (int s = 0; s < SHARED && lanes[t] > 0; ++s) {
      const int64_t cycle = sharing[(t * SHARED + s) * 2 + 1];
      means[s].assign(cycle, MOST[s] ? -__builtin_inf() : 0.0);
      for (int64_t c = first_chunk[t]; c < first_chunk[t + 1]; ++c)
        for (int64_t k = 0; k < chunks[c].count[s]; ++k) {
          double& mean = means[s][chunks[c].first_sum[s] + k];
          mean = MOST[s] ? more(chunks[c].sums[s][k], mean) : mean + chunks[c].sums[s][k];
        }
      if (MOST[s]) continue;
      const double each = double(elements_before(lanes[t], columns[t]) / cycle);
      for (double& mean : means[s]) mean /= each;
    }
    for (int s = 0; s < SHARED && lanes[t] > 0; ++s) {
      const int other = finer(s, sharing + t * SHARED * 2);
      if (other != s) {
        for (const double mean : means[other]) means[s][0] += mean;
        means[s][0] /= double(means[other].size());
      }
      finish(at + t * POINTERS, derived + t * DERIVED, s, means[s].data(), int64_t(means[s].size()));
    }
  }
}
