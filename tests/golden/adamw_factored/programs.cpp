
// averages for rule 1d2b6f696417 (exp_avg: int4:128, exp_avg_sq: factored; param float32)
constexpr int POINTERS = 4, NUMBERS = 2, DERIVED = 2, SHARED = 3, TILE = 512;

static void scalars(void* const* at, const double* numbers, double* derived) {
  const double c2 = double(numbers[0]);
  const double c3 = double(numbers[1]);
  const float c3_in_lanes = cast<float>(c3);
  derived[0] = double(c3_in_lanes);
  derived[1] = double(c2);
}

static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,
                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,
                     double* const* sums, const int64_t* first_sum) {
  const float c3_in_lanes = float(derived[0]);
  const double c2 = double(derived[1]);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t start = tile * TILE;
    const int count = int(least<int64_t>(TILE, numel - start));
    float grad_buffer[TILE];
    float* const grad_lanes = load(grad_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    float exp_avg_sq_rows_buffer[TILE];
    float* const exp_avg_sq_rows_lanes = exp_avg_sq_rows_buffer;
    float exp_avg_sq_columns_buffer[TILE];
    float* const exp_avg_sq_columns_lanes = exp_avg_sq_columns_buffer;
    float exp_avg_sq_mean_buffer[TILE];
    float* const exp_avg_sq_mean_lanes = exp_avg_sq_mean_buffer;
    for (int run = 0; run < 1; ++run) {
#pragma omp simd
      for (int lane = 0; lane < 512; ++lane) {
        const int j = run * 512 + lane;
        const float grad = grad_lanes[j];
        const float exp_avg_sq_rows = exp_avg_sq_rows_lanes[j];
        const float exp_avg_sq_columns = exp_avg_sq_columns_lanes[j];
        const float exp_avg_sq_mean = exp_avg_sq_mean_lanes[j];
        const float mul_tensor = (grad * grad);
        const float mul_tensor_1 = (mul_tensor * c3_in_lanes);
        exp_avg_sq_rows_lanes[j] = mul_tensor_1;
        exp_avg_sq_columns_lanes[j] = mul_tensor_1;
        exp_avg_sq_mean_lanes[j] = mul_tensor_1;
      }
    }
    accumulate(exp_avg_sq_rows_buffer, sums[0], first_sum[0], sharing + 0, start, count);
    accumulate(exp_avg_sq_columns_buffer, sums[1], first_sum[1], sharing + 2, start, count);
    accumulate(exp_avg_sq_mean_buffer, sums[2], first_sum[2], sharing + 4, start, count);
  }
}

static void finish(void* const* at, const double* derived, int s, const double* means, int64_t cycle) {
  float* values = nullptr;
  double decay = 0.0;
  if (s == 0) values = static_cast<float*>(at[1]), decay = derived[1];
  if (s == 1) values = static_cast<float*>(at[2]), decay = derived[1];
  if (s == 2) values = static_cast<float*>(at[3]), decay = derived[1];
  for (int64_t k = 0; values && k < cycle; ++k) values[k] = float(decay * double(values[k]) + means[k]);
}


// rule 50ff0845b0e7 (exp_avg: int4:128, exp_avg_sq: factored; param float32)
constexpr int POINTERS = 10, NUMBERS = 7, DERIVED = 6, SHARED = 3, TILE = 512;

static void scalars(void* const* at, const double* numbers, double* derived) {
  const int32_t exp_avg_clock = int32_t(*static_cast<int32_t*>(at[5]));
  const int32_t exp_avg_salt = int32_t(numbers[0]);
  const float step = float(*static_cast<float*>(at[9]));
  const double c0 = double(numbers[1]);
  const double c1 = double(numbers[2]);
  const double c4 = double(numbers[3]);
  const double c5 = double(numbers[4]);
  const double c6 = double(numbers[5]);
  const double c7 = double(numbers[6]);
  const double step_value = cast<double>(step);
  const float c0_in_lanes = cast<float>(c0);
  const double lerp_abs = magnitude(c1);
  const bool lerp_lt = (lerp_abs < double(0.5));
  const double lerp_sub = (c1 - double(1.0));
  const double lerp_where = (lerp_lt ? c1 : lerp_sub);
  const float lerp_where_in_lanes = cast<float>(lerp_where);
  const double add_1 = (step_value + double(1));
  const double pow_1 = __builtin_pow(c4, add_1);
  const double sub = (double(1) - pow_1);
  const double sqrt_1 = __builtin_sqrt(sub);
  const double pow_2 = __builtin_pow(c5, add_1);
  const double sub_1 = (double(1) - pow_2);
  const double div = (c6 / sub_1);
  const double neg = (-div);
  const double mul_4 = (sqrt_1 * neg);
  const double inverse = (double(1) / mul_4);
  const float inverse_in_lanes = cast<float>(inverse);
  const double div_2 = (c7 / neg);
  const float div_2_in_lanes = cast<float>(div_2);
  const int32_t exp_avg_bitwise_right_shift = int32_t(exp_avg_clock >> int32_t(16));
  const int32_t exp_avg_bitwise_and = int32_t(exp_avg_bitwise_right_shift & int32_t(65535));
  const int32_t exp_avg_bitwise_xor = int32_t(exp_avg_clock ^ exp_avg_bitwise_and);
  const int32_t exp_avg_mul_2 = (exp_avg_bitwise_xor * int32_t(2146121005));
  const int32_t exp_avg_bitwise_right_shift_1 = int32_t(exp_avg_mul_2 >> int32_t(15));
  const int32_t exp_avg_bitwise_and_1 = int32_t(exp_avg_bitwise_right_shift_1 & int32_t(131071));
  const int32_t exp_avg_bitwise_xor_1 = int32_t(exp_avg_mul_2 ^ exp_avg_bitwise_and_1);
  const int32_t exp_avg_mul_3 = (exp_avg_bitwise_xor_1 * int32_t(-2073254261));
  const int32_t exp_avg_bitwise_right_shift_2 = int32_t(exp_avg_mul_3 >> int32_t(16));
  const int32_t exp_avg_bitwise_and_2 = int32_t(exp_avg_bitwise_right_shift_2 & int32_t(65535));
  const int32_t exp_avg_bitwise_xor_2 = int32_t(exp_avg_mul_3 ^ exp_avg_bitwise_and_2);
  const int32_t exp_avg_bitwise_xor_3 = int32_t(exp_avg_bitwise_xor_2 ^ exp_avg_salt);
  const int32_t exp_avg_bitwise_right_shift_3 = int32_t(exp_avg_bitwise_xor_3 >> int32_t(16));
  const int32_t exp_avg_bitwise_and_3 = int32_t(exp_avg_bitwise_right_shift_3 & int32_t(65535));
  const int32_t exp_avg_bitwise_xor_4 = int32_t(exp_avg_bitwise_xor_3 ^ exp_avg_bitwise_and_3);
  const int32_t exp_avg_mul_4 = (exp_avg_bitwise_xor_4 * int32_t(2146121005));
  const int32_t exp_avg_bitwise_right_shift_4 = int32_t(exp_avg_mul_4 >> int32_t(15));
  const int32_t exp_avg_bitwise_and_4 = int32_t(exp_avg_bitwise_right_shift_4 & int32_t(131071));
  const int32_t exp_avg_bitwise_xor_5 = int32_t(exp_avg_mul_4 ^ exp_avg_bitwise_and_4);
  const int32_t exp_avg_mul_5 = (exp_avg_bitwise_xor_5 * int32_t(-2073254261));
  const int32_t exp_avg_bitwise_right_shift_5 = int32_t(exp_avg_mul_5 >> int32_t(16));
  const int32_t exp_avg_bitwise_and_5 = int32_t(exp_avg_bitwise_right_shift_5 & int32_t(65535));
  const int32_t exp_avg_bitwise_xor_6 = int32_t(exp_avg_mul_5 ^ exp_avg_bitwise_and_5);
  const int32_t exp_avg_add = (exp_avg_clock + int32_t(1));
  const float step_new = cast<float>(add_1);
  *static_cast<int32_t*>(at[5]) = exp_avg_add;
  *static_cast<float*>(at[9]) = step_new;
  derived[0] = double(c0_in_lanes);
  derived[1] = double(lerp_lt);
  derived[2] = double(lerp_where_in_lanes);
  derived[3] = double(inverse_in_lanes);
  derived[4] = double(div_2_in_lanes);
  derived[5] = double(exp_avg_bitwise_xor_6);
}

static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,
                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,
                     double* const* sums, const int64_t* first_sum) {
  const float c0_in_lanes = float(derived[0]);
  const bool lerp_lt = bool(derived[1]);
  const float lerp_where_in_lanes = float(derived[2]);
  const float inverse_in_lanes = float(derived[3]);
  const float div_2_in_lanes = float(derived[4]);
  const int32_t exp_avg_bitwise_xor_6 = int32_t(derived[5]);
  const int16_t* const exp_avg_levels_codebook = static_cast<int16_t*>(at[4]);
  float exp_avg_to_copy_1_codebook[16];
  for (int i = 0; i < 16; ++i) {
    const int32_t exp_avg_levels = exp_avg_levels_codebook[i];
    exp_avg_to_copy_1_codebook[i] = cast<float>(exp_avg_levels);
  }
  float exp_avg_mul_codebook[16];
  for (int i = 0; i < 16; ++i) {
    const float exp_avg_to_copy_1 = exp_avg_to_copy_1_codebook[i];
    exp_avg_mul_codebook[i] = (exp_avg_to_copy_1 * float(0.00048828125));
  }
  const Entries<float> exp_avg_mul_entries(exp_avg_mul_codebook);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t start = tile * TILE;
    const int count = int(least<int64_t>(TILE, numel - start));
    const int64_t index = first_index + start;
    const int32_t low = int32_t(uint32_t(index)), page = int32_t(index >> 32) * int32_t(0x85EBCA6B);
    float param_buffer[TILE];
    float* const param_lanes = load(param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    float grad_buffer[TILE];
    float* const grad_lanes = load(grad_buffer, static_cast<float*>(at[1]), layouts[1], start, count, TILE);
    int32_t exp_avg_codes_buffer[TILE];
    int32_t* const exp_avg_codes_lanes = load4(exp_avg_codes_buffer, static_cast<uint8_t*>(at[2]), start, count, TILE);
    float exp_avg_sq_rows_buffer[TILE];
    float* const exp_avg_sq_rows_lanes = spread(exp_avg_sq_rows_buffer, at[6], sharing + 0, start, count, TILE);
    float exp_avg_sq_columns_buffer[TILE];
    float* const exp_avg_sq_columns_lanes = spread(exp_avg_sq_columns_buffer, at[7], sharing + 2, start, count, TILE);
    float exp_avg_sq_mean_buffer[TILE];
    float* const exp_avg_sq_mean_lanes = spread(exp_avg_sq_mean_buffer, at[8], sharing + 4, start, count, TILE);
    float lerp_add_kept[TILE];
    bf16 exp_avg_scales_of[4];
    load_groups(exp_avg_scales_of, static_cast<uint16_t*>(at[3]) + tile * 4, (count - 1) / 128 + 1, 4);
    int32_t group_index_128_of[4];
    float exp_avg_to_copy_of[4];
    float exp_avg_where_of[4];
    int32_t exp_avg_amax_of[4];
    for (int32_t& value : exp_avg_amax_of) value = INT32_MIN;
    float exp_avg_mul_12_of[4];
    float exp_avg_mul_13_of[4];
    float exp_avg_where_6_of[4];
    float exp_avg_where_7_of[4];
    int32_t exp_avg_amax_1_of[4];
    for (int32_t& value : exp_avg_amax_1_of) value = INT32_MIN;
    bf16 exp_avg_view_7_of[4];
#pragma omp simd
    for (int i = 0; i < 4; ++i) {
      const bf16 exp_avg_scales = exp_avg_scales_of[i];
      const int32_t group_index_128 = (low + i * 128) ^ page;
      const float exp_avg_to_copy = cast<float>(exp_avg_scales);
      const bool exp_avg_isinf = (magnitude(exp_avg_to_copy) == float(__builtin_inf()));
      const float exp_avg_where = (exp_avg_isinf ? float(1.0) : float(0.0));
      const int32_t exp_avg_bitwise_xor_9 = int32_t(group_index_128 ^ int32_t(1013904242));
      const int32_t exp_avg_bitwise_right_shift_7 = int32_t(exp_avg_bitwise_xor_9 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_7 = int32_t(exp_avg_bitwise_right_shift_7 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_10 = int32_t(exp_avg_bitwise_xor_9 ^ exp_avg_bitwise_and_7);
      const int32_t exp_avg_mul_8 = (exp_avg_bitwise_xor_10 * int32_t(2146121005));
      const int32_t exp_avg_bitwise_right_shift_8 = int32_t(exp_avg_mul_8 >> int32_t(15));
      const int32_t exp_avg_bitwise_and_8 = int32_t(exp_avg_bitwise_right_shift_8 & int32_t(131071));
      const int32_t exp_avg_bitwise_xor_11 = int32_t(exp_avg_mul_8 ^ exp_avg_bitwise_and_8);
      const int32_t exp_avg_mul_9 = (exp_avg_bitwise_xor_11 * int32_t(-2073254261));
      const int32_t exp_avg_bitwise_right_shift_9 = int32_t(exp_avg_mul_9 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_9 = int32_t(exp_avg_bitwise_right_shift_9 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_12 = int32_t(exp_avg_mul_9 ^ exp_avg_bitwise_and_9);
      const int32_t exp_avg_bitwise_xor_13 = int32_t(exp_avg_bitwise_xor_12 ^ exp_avg_bitwise_xor_6);
      const int32_t exp_avg_bitwise_right_shift_10 = int32_t(exp_avg_bitwise_xor_13 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_10 = int32_t(exp_avg_bitwise_right_shift_10 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_14 = int32_t(exp_avg_bitwise_xor_13 ^ exp_avg_bitwise_and_10);
      const int32_t exp_avg_mul_10 = (exp_avg_bitwise_xor_14 * int32_t(2146121005));
      const int32_t exp_avg_bitwise_right_shift_11 = int32_t(exp_avg_mul_10 >> int32_t(15));
      const int32_t exp_avg_bitwise_and_11 = int32_t(exp_avg_bitwise_right_shift_11 & int32_t(131071));
      const int32_t exp_avg_bitwise_xor_15 = int32_t(exp_avg_mul_10 ^ exp_avg_bitwise_and_11);
      const int32_t exp_avg_mul_11 = (exp_avg_bitwise_xor_15 * int32_t(-2073254261));
      const int32_t exp_avg_bitwise_right_shift_12 = int32_t(exp_avg_mul_11 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_12 = int32_t(exp_avg_bitwise_right_shift_12 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_16 = int32_t(exp_avg_mul_11 ^ exp_avg_bitwise_and_12);
      const int32_t exp_avg_bitwise_right_shift_13 = int32_t(exp_avg_bitwise_xor_16 >> int32_t(8));
      const int32_t exp_avg_bitwise_and_14 = int32_t(exp_avg_bitwise_right_shift_13 & int32_t(16777215));
      const float exp_avg_to_copy_4 = cast<float>(exp_avg_bitwise_and_14);
      const float exp_avg_mul_12 = (exp_avg_to_copy_4 * float(5.960464477539063e-08));
      group_index_128_of[i] = group_index_128;
      exp_avg_to_copy_of[i] = exp_avg_to_copy;
      exp_avg_where_of[i] = exp_avg_where;
      exp_avg_mul_12_of[i] = exp_avg_mul_12;
    }
    for (int run = 0; run < 4; ++run) {
      const float exp_avg_where = exp_avg_where_of[run / 1];
      const float exp_avg_to_copy = exp_avg_to_copy_of[run / 1];
      int32_t exp_avg_amax = exp_avg_amax_of[run / 1];
      int32_t exp_avg_amax_1 = exp_avg_amax_1_of[run / 1];
#pragma omp simd reduction(max : exp_avg_amax, exp_avg_amax_1)
      for (int lane = 0; lane < 128; ++lane) {
        const int j = run * 128 + lane;
        const float grad = grad_lanes[j];
        const int32_t exp_avg_codes = exp_avg_codes_lanes[j];
        const int32_t exp_avg_to_copy_2 = cast<int32_t>(exp_avg_codes);
        const int32_t exp_avg_clamp_max = ((exp_avg_to_copy_2 != exp_avg_to_copy_2 || exp_avg_to_copy_2 < int32_t(15)) ? exp_avg_to_copy_2 : int32_t(15));
        const int64_t exp_avg_to_copy_3 = cast<int64_t>(exp_avg_clamp_max);
        const float exp_avg_take = exp_avg_mul_entries.at(exp_avg_clamp_max);
        const float exp_avg_abs_1 = magnitude(exp_avg_take);
        const bool exp_avg_lt = (exp_avg_abs_1 < exp_avg_where);
        const float exp_avg_mul_1 = (exp_avg_take * exp_avg_to_copy);
        const float exp_avg_where_1 = (exp_avg_lt ? float(__builtin_nan("")) : exp_avg_mul_1);
        const float lerp_sub_1 = (grad - exp_avg_where_1);
        const float lerp_where_1 = (lerp_lt ? exp_avg_where_1 : grad);
        const float lerp_mul = (lerp_sub_1 * lerp_where_in_lanes);
        const float lerp_add = (lerp_where_1 + lerp_mul);
        lerp_add_kept[j] = lerp_add;
        const float exp_avg_abs_2 = magnitude(lerp_add);
        const bool exp_avg_gt = (exp_avg_abs_2 > float(0.0));
        const float exp_avg_where_2 = (exp_avg_gt ? exp_avg_abs_2 : float(0.0));
        const int32_t exp_avg_view = bits_as<int32_t>(exp_avg_where_2);
        const bool exp_avg_isnan = (lerp_add != lerp_add);
        const int32_t exp_avg_to_copy_12 = cast<int32_t>(exp_avg_isnan);
        exp_avg_amax = exp_avg_amax < exp_avg_view ? exp_avg_view : exp_avg_amax;
        exp_avg_amax_1 = exp_avg_amax_1 < exp_avg_to_copy_12 ? exp_avg_to_copy_12 : exp_avg_amax_1;
      }
      exp_avg_amax_of[run / 1] = exp_avg_amax;
      exp_avg_amax_1_of[run / 1] = exp_avg_amax_1;
    }
#pragma omp simd
    for (int i = 0; i < 4; ++i) {
      const int32_t exp_avg_amax = exp_avg_amax_of[i];
      const float exp_avg_mul_12 = exp_avg_mul_12_of[i];
      const int32_t exp_avg_amax_1 = exp_avg_amax_1_of[i];
      const float exp_avg_view_1 = bits_as<float>(exp_avg_amax);
      const float exp_avg_clamp_min = ((exp_avg_view_1 != exp_avg_view_1 || exp_avg_view_1 > float(1.1754943508222875e-38)) ? exp_avg_view_1 : float(1.1754943508222875e-38));
      const int32_t exp_avg_view_2 = bits_as<int32_t>(exp_avg_clamp_min);
      const int32_t exp_avg_bitwise_and_13 = int32_t(exp_avg_view_2 & int32_t(-65536));
      const bool exp_avg_eq = (exp_avg_view_2 == exp_avg_bitwise_and_13);
      const int32_t exp_avg_add_1 = (exp_avg_bitwise_and_13 + int32_t(65536));
      const int32_t exp_avg_where_3 = (exp_avg_eq ? exp_avg_bitwise_and_13 : exp_avg_add_1);
      const float exp_avg_view_3 = bits_as<float>(exp_avg_bitwise_and_13);
      const float exp_avg_view_4 = bits_as<float>(exp_avg_where_3);
      const float exp_avg_sub = (exp_avg_clamp_min - exp_avg_view_3);
      const float exp_avg_sub_1 = (exp_avg_view_4 - exp_avg_view_3);
      const float exp_avg_div = (exp_avg_sub / exp_avg_sub_1);
      const bool exp_avg_lt_1 = (exp_avg_mul_12 < exp_avg_div);
      const float exp_avg_where_4 = (exp_avg_lt_1 ? exp_avg_view_4 : exp_avg_view_3);
      const float exp_avg_reciprocal = (float(1) / exp_avg_where_4);
      const float exp_avg_mul_13 = (exp_avg_reciprocal * float(1.0));
      const float exp_avg_mul_15 = (exp_avg_view_1 * exp_avg_mul_13);
      const float exp_avg_mul_16 = (exp_avg_view_3 * exp_avg_mul_13);
      const bool exp_avg_gt_1 = (exp_avg_where_4 > exp_avg_view_3);
      const float exp_avg_rsub = (float(1.0) - exp_avg_mul_16);
      const bool exp_avg_lt_2 = (exp_avg_mul_16 < exp_avg_mul_15);
      const float exp_avg_where_5 = (exp_avg_lt_2 ? exp_avg_mul_16 : exp_avg_mul_15);
      const float exp_avg_sub_2 = (exp_avg_mul_15 - exp_avg_where_5);
      const float exp_avg_div_1 = (exp_avg_rsub / exp_avg_sub_2);
      const float exp_avg_where_6 = (exp_avg_gt_1 ? exp_avg_div_1 : float(1.0));
      const float exp_avg_where_7 = (exp_avg_gt_1 ? exp_avg_mul_15 : float(__builtin_inf()));
      const bool exp_avg_gt_4 = (exp_avg_amax_1 > int32_t(0));
      const float exp_avg_where_17 = (exp_avg_gt_4 ? float(__builtin_nan("")) : exp_avg_where_4);
      const int32_t exp_avg_view_6 = bits_as<int32_t>(exp_avg_where_17);
      const int32_t exp_avg_bitwise_right_shift_15 = int32_t(exp_avg_view_6 >> int32_t(16));
      const int32_t exp_avg_to_copy_14 = cast<int32_t>(exp_avg_bitwise_right_shift_15);
      const bf16 exp_avg_view_7 = bf16(exp_avg_to_copy_14);
      exp_avg_mul_13_of[i] = exp_avg_mul_13;
      exp_avg_where_6_of[i] = exp_avg_where_6;
      exp_avg_where_7_of[i] = exp_avg_where_7;
      exp_avg_view_7_of[i] = exp_avg_view_7;
    }
    for (int run = 0; run < 4; ++run) {
      const float exp_avg_mul_13 = exp_avg_mul_13_of[run / 1];
      const float exp_avg_where_7 = exp_avg_where_7_of[run / 1];
      const float exp_avg_where_6 = exp_avg_where_6_of[run / 1];
#pragma omp simd
      for (int lane = 0; lane < 128; ++lane) {
        const int j = run * 128 + lane;
        const float lerp_add = lerp_add_kept[j];
        const float exp_avg_abs_2 = magnitude(lerp_add);
        const bool exp_avg_isnan = (lerp_add != lerp_add);
        const float param_2 = param_lanes[j];
        const float exp_avg_sq_rows = exp_avg_sq_rows_lanes[j];
        const float exp_avg_sq_columns = exp_avg_sq_columns_lanes[j];
        const float exp_avg_sq_mean = exp_avg_sq_mean_lanes[j];
        const int32_t index_2 = (low + j) ^ page;
        const bool exp_avg_sq_gt = (exp_avg_sq_mean > float(0.0));
        const float exp_avg_sq_where = (exp_avg_sq_gt ? exp_avg_sq_mean : float(1.0));
        const float exp_avg_sq_div = (exp_avg_sq_rows / exp_avg_sq_where);
        const float exp_avg_sq_mul = (exp_avg_sq_div * exp_avg_sq_columns);
        const float mul = (param_2 * c0_in_lanes);
        const float sqrt = __builtin_sqrtf(exp_avg_sq_mul);
        const float quotient = (sqrt * inverse_in_lanes);
        const float add_2 = (quotient + div_2_in_lanes);
        const float quotient_1 = (lerp_add / add_2);
        const float add_3 = (mul + quotient_1);
        const int32_t exp_avg_mul_6 = (index_2 * int32_t(2146121005));
        const int32_t exp_avg_bitwise_right_shift_6 = int32_t(exp_avg_mul_6 >> int32_t(15));
        const int32_t exp_avg_bitwise_and_6 = int32_t(exp_avg_bitwise_right_shift_6 & int32_t(131071));
        const int32_t exp_avg_bitwise_xor_7 = int32_t(exp_avg_mul_6 ^ exp_avg_bitwise_and_6);
        const int32_t exp_avg_bitwise_xor_8 = int32_t(exp_avg_bitwise_xor_7 ^ exp_avg_bitwise_xor_6);
        const int32_t exp_avg_mul_7 = (exp_avg_bitwise_xor_8 * int32_t(-2073254261));
        const float exp_avg_mul_14 = (exp_avg_abs_2 * exp_avg_mul_13);
        const float exp_avg_sub_3 = (exp_avg_where_7 - exp_avg_mul_14);
        const float exp_avg_mul_17 = (exp_avg_sub_3 * exp_avg_where_6);
        const float exp_avg_rsub_1 = (float(1.0) - exp_avg_mul_17);
        const bool exp_avg_gt_2 = (exp_avg_mul_14 > exp_avg_rsub_1);
        const float exp_avg_where_8 = (exp_avg_gt_2 ? exp_avg_mul_14 : exp_avg_rsub_1);
        const bool exp_avg_lt_3 = (exp_avg_where_8 < float(1.0));
        const float exp_avg_where_9 = (exp_avg_lt_3 ? exp_avg_where_8 : float(1.0));
        const float exp_avg_copysign = __builtin_copysignf(exp_avg_where_9, lerp_add);
        const float exp_avg_mul_18 = (exp_avg_where_9 * float(9.5367431640625e-07));
        const float exp_avg_add_2 = (exp_avg_copysign + exp_avg_mul_18);
        const int32_t exp_avg_view_5 = bits_as<int32_t>(exp_avg_add_2);
        const int32_t exp_avg_bitwise_and_15 = int32_t(exp_avg_view_5 & int32_t(0));
        const int32_t exp_avg_add_3 = (exp_avg_bitwise_and_15 + int32_t(8));
        const int32_t exp_avg_clamp_max_1 = ((exp_avg_add_3 != exp_avg_add_3 || exp_avg_add_3 < int32_t(15)) ? exp_avg_add_3 : int32_t(15));
        const int64_t exp_avg_to_copy_5 = cast<int64_t>(exp_avg_clamp_max_1);
        const float exp_avg_take_1 = exp_avg_mul_entries.at(exp_avg_clamp_max_1);
        const bool exp_avg_le = (exp_avg_take_1 <= exp_avg_add_2);
        const int32_t exp_avg_where_10 = (exp_avg_le ? exp_avg_clamp_max_1 : exp_avg_bitwise_and_15);
        const int32_t exp_avg_add_4 = (exp_avg_where_10 + int32_t(4));
        const int32_t exp_avg_clamp_max_2 = ((exp_avg_add_4 != exp_avg_add_4 || exp_avg_add_4 < int32_t(15)) ? exp_avg_add_4 : int32_t(15));
        const int64_t exp_avg_to_copy_6 = cast<int64_t>(exp_avg_clamp_max_2);
        const float exp_avg_take_2 = exp_avg_mul_entries.at(exp_avg_clamp_max_2);
        const bool exp_avg_le_1 = (exp_avg_take_2 <= exp_avg_add_2);
        const int32_t exp_avg_where_11 = (exp_avg_le_1 ? exp_avg_clamp_max_2 : exp_avg_where_10);
        const int32_t exp_avg_add_5 = (exp_avg_where_11 + int32_t(2));
        const int32_t exp_avg_clamp_max_3 = ((exp_avg_add_5 != exp_avg_add_5 || exp_avg_add_5 < int32_t(15)) ? exp_avg_add_5 : int32_t(15));
        const int64_t exp_avg_to_copy_7 = cast<int64_t>(exp_avg_clamp_max_3);
        const float exp_avg_take_3 = exp_avg_mul_entries.at(exp_avg_clamp_max_3);
        const bool exp_avg_le_2 = (exp_avg_take_3 <= exp_avg_add_2);
        const int32_t exp_avg_where_12 = (exp_avg_le_2 ? exp_avg_clamp_max_3 : exp_avg_where_11);
        const int32_t exp_avg_add_6 = (exp_avg_where_12 + int32_t(1));
        const int32_t exp_avg_clamp_max_4 = ((exp_avg_add_6 != exp_avg_add_6 || exp_avg_add_6 < int32_t(15)) ? exp_avg_add_6 : int32_t(15));
        const int64_t exp_avg_to_copy_8 = cast<int64_t>(exp_avg_clamp_max_4);
        const float exp_avg_take_4 = exp_avg_mul_entries.at(exp_avg_clamp_max_4);
        const bool exp_avg_le_3 = (exp_avg_take_4 <= exp_avg_add_2);
        const int32_t exp_avg_where_13 = (exp_avg_le_3 ? exp_avg_clamp_max_4 : exp_avg_where_12);
        const int32_t exp_avg_add_7 = (exp_avg_where_13 + int32_t(1));
        const int32_t exp_avg_clamp_max_5 = ((exp_avg_add_7 != exp_avg_add_7 || exp_avg_add_7 < int32_t(15)) ? exp_avg_add_7 : int32_t(15));
        const int64_t exp_avg_to_copy_9 = cast<int64_t>(exp_avg_where_13);
        const float exp_avg_take_5 = exp_avg_mul_entries.at(exp_avg_where_13);
        const float exp_avg_mul_19 = (exp_avg_take_5 * float(1.0));
        const int64_t exp_avg_to_copy_10 = cast<int64_t>(exp_avg_clamp_max_5);
        const float exp_avg_take_6 = exp_avg_mul_entries.at(exp_avg_clamp_max_5);
        const float exp_avg_mul_20 = (exp_avg_take_6 * float(1.0));
        const float exp_avg_sub_4 = (exp_avg_copysign - exp_avg_mul_19);
        const float exp_avg_sub_5 = (exp_avg_mul_20 - exp_avg_mul_19);
        const float exp_avg_mul_21 = (exp_avg_sub_5 * float(5.960464477539063e-08));
        const int32_t exp_avg_bitwise_right_shift_14 = int32_t(exp_avg_mul_7 >> int32_t(8));
        const int32_t exp_avg_bitwise_and_16 = int32_t(exp_avg_bitwise_right_shift_14 & int32_t(16777215));
        const float exp_avg_to_copy_11 = cast<float>(exp_avg_bitwise_and_16);
        const float exp_avg_mul_22 = (exp_avg_to_copy_11 * exp_avg_mul_21);
        const bool exp_avg_gt_3 = (exp_avg_mul_22 > exp_avg_mul_18);
        const float exp_avg_where_14 = (exp_avg_gt_3 ? exp_avg_mul_22 : exp_avg_mul_18);
        const bool exp_avg_lt_4 = (exp_avg_where_14 < exp_avg_sub_4);
        const int32_t exp_avg_where_15 = (exp_avg_lt_4 ? exp_avg_clamp_max_5 : exp_avg_where_13);
        const int32_t exp_avg_where_16 = (exp_avg_isnan ? int32_t(15) : exp_avg_where_15);
        const int32_t exp_avg_to_copy_13 = cast<int32_t>(exp_avg_where_16);
        param_lanes[j] = add_3;
        exp_avg_codes_lanes[j] = exp_avg_to_copy_13;
      }
    }
    store_groups(exp_avg_view_7_of, static_cast<uint16_t*>(at[3]) + tile * 4, (count - 1) / 128 + 1, 4);
    store(param_lanes, param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    store4(exp_avg_codes_buffer, static_cast<uint8_t*>(at[2]), start, count, TILE);
  }
}


// rule 0049feddb4c4 (exp_avg: fp32, exp_avg_sq: fp32; param float32)
constexpr int POINTERS = 5, NUMBERS = 8, DERIVED = 7, SHARED = 0, TILE = 512;

static void scalars(void* const* at, const double* numbers, double* derived) {
  const float step = float(*static_cast<float*>(at[4]));
  const double c0 = double(numbers[0]);
  const double c1 = double(numbers[1]);
  const double c2 = double(numbers[2]);
  const double c3 = double(numbers[3]);
  const double c4 = double(numbers[4]);
  const double c5 = double(numbers[5]);
  const double c6 = double(numbers[6]);
  const double c7 = double(numbers[7]);
  const double step_value = cast<double>(step);
  const float c0_in_lanes = cast<float>(c0);
  const double lerp_abs = magnitude(c1);
  const bool lerp_lt = (lerp_abs < double(0.5));
  const double lerp_sub = (c1 - double(1.0));
  const double lerp_where = (lerp_lt ? c1 : lerp_sub);
  const float lerp_where_in_lanes = cast<float>(lerp_where);
  const float c2_in_lanes = cast<float>(c2);
  const float c3_in_lanes = cast<float>(c3);
  const double add_1 = (step_value + double(1));
  const double pow_1 = __builtin_pow(c4, add_1);
  const double sub = (double(1) - pow_1);
  const double sqrt_1 = __builtin_sqrt(sub);
  const double pow_2 = __builtin_pow(c5, add_1);
  const double sub_1 = (double(1) - pow_2);
  const double div = (c6 / sub_1);
  const double neg = (-div);
  const double mul_4 = (sqrt_1 * neg);
  const double inverse = (double(1) / mul_4);
  const float inverse_in_lanes = cast<float>(inverse);
  const double div_2 = (c7 / neg);
  const float div_2_in_lanes = cast<float>(div_2);
  const float step_new = cast<float>(add_1);
  *static_cast<float*>(at[4]) = step_new;
  derived[0] = double(c0_in_lanes);
  derived[1] = double(lerp_lt);
  derived[2] = double(lerp_where_in_lanes);
  derived[3] = double(c2_in_lanes);
  derived[4] = double(c3_in_lanes);
  derived[5] = double(inverse_in_lanes);
  derived[6] = double(div_2_in_lanes);
}

static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,
                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,
                     double* const* sums, const int64_t* first_sum) {
  const float c0_in_lanes = float(derived[0]);
  const bool lerp_lt = bool(derived[1]);
  const float lerp_where_in_lanes = float(derived[2]);
  const float c2_in_lanes = float(derived[3]);
  const float c3_in_lanes = float(derived[4]);
  const float inverse_in_lanes = float(derived[5]);
  const float div_2_in_lanes = float(derived[6]);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t start = tile * TILE;
    const int count = int(least<int64_t>(TILE, numel - start));
    float param_buffer[TILE];
    float* const param_lanes = load(param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    float grad_buffer[TILE];
    float* const grad_lanes = load(grad_buffer, static_cast<float*>(at[1]), layouts[1], start, count, TILE);
    float exp_avg_values_buffer[TILE];
    float* const exp_avg_values_lanes = load(exp_avg_values_buffer, static_cast<float*>(at[2]), layouts[2], start, count, TILE);
    float exp_avg_sq_values_buffer[TILE];
    float* const exp_avg_sq_values_lanes = load(exp_avg_sq_values_buffer, static_cast<float*>(at[3]), layouts[3], start, count, TILE);
    for (int run = 0; run < 1; ++run) {
#pragma omp simd
      for (int lane = 0; lane < 512; ++lane) {
        const int j = run * 512 + lane;
        const float param_2 = param_lanes[j];
        const float grad = grad_lanes[j];
        const float exp_avg_values = exp_avg_values_lanes[j];
        const float exp_avg_sq_values = exp_avg_sq_values_lanes[j];
        const float mul = (param_2 * c0_in_lanes);
        const float lerp_sub_1 = (grad - exp_avg_values);
        const float lerp_where_1 = (lerp_lt ? exp_avg_values : grad);
        const float lerp_mul = (lerp_sub_1 * lerp_where_in_lanes);
        const float lerp_add = (lerp_where_1 + lerp_mul);
        const float mul_1 = (exp_avg_sq_values * c2_in_lanes);
        const float mul_2 = (grad * grad);
        const float mul_3 = (mul_2 * c3_in_lanes);
        const float add = (mul_3 + mul_1);
        const float sqrt = __builtin_sqrtf(add);
        const float quotient = (sqrt * inverse_in_lanes);
        const float add_2 = (quotient + div_2_in_lanes);
        const float quotient_1 = (lerp_add / add_2);
        const float add_3 = (mul + quotient_1);
        param_lanes[j] = add_3;
        exp_avg_values_lanes[j] = lerp_add;
        exp_avg_sq_values_lanes[j] = add;
      }
    }
    store(param_lanes, param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    store(exp_avg_values_lanes, exp_avg_values_buffer, static_cast<float*>(at[2]), layouts[2], start, count, TILE);
    store(exp_avg_sq_values_lanes, exp_avg_sq_values_buffer, static_cast<float*>(at[3]), layouts[3], start, count, TILE);
  }
}
