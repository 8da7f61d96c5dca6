// tensors: number of tensors. lanes: theirs; tensors with fewer than 0 are left alone. columns: elements of a padded row, or 0.
// at, layouts: [tensors][POINTERS]. numbers: [tensors][NUMBERS].
// derived: scratch, [tensors][DERIVED]. first_tile: [tensors + 1], prefix sums of the tensors' tiles.
// first_index: global number of each first lane. sharing: [tensors][SHARED][2], run and cycle of shared values.
extern "C" void run(int64_t tensors, void* const* at, const int64_t* const* layouts, const double* numbers,
                    double* derived, const int64_t* lanes, const int64_t* columns, const int64_t* first_tile,
                    const int64_t* first_index, const int64_t* sharing, int threads) {
  for (int64_t t = 0; t < tensors; ++t)
    if (lanes[t] >= 0) scalars(at + t * POINTERS, numbers + t * NUMBERS, derived + t * DERIVED);
  const int64_t tiles = first_tile[tensors];
  const int64_t share = (tiles + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    int64_t tile = thread * share;
    const int64_t end = least(tiles, tile + share);
    int64_t t = 0;
    while (t < tensors && first_tile[t + 1] <= tile) ++t;
    for (; tile < end; ++t) {
      const int64_t stop = least(end, first_tile[t + 1]);
      elements(at + t * POINTERS, layouts + t * POINTERS, derived + t * DERIVED, lanes[t], columns[t],
               tile - first_tile[t], stop - first_tile[t], first_index[t], sharing + t * SHARED * 2, 0, 0);
      tile = stop;
    }
  }
}
