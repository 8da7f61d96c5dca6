
// rule 0937c494156c (exp_avg: softsign8; param float32)
constexpr int POINTERS = 5, NUMBERS = 7, DERIVED = 7, SHARED = 0, TILE = 512;

static void scalars(void* const* at, const double* numbers, double* derived) {
  const int32_t exp_avg_clock = int32_t(*static_cast<int32_t*>(at[4]));
  const int32_t exp_avg_salt = int32_t(numbers[0]);
  const double c0 = double(numbers[1]);
  const double c1 = double(numbers[2]);
  const double c2 = double(numbers[3]);
  const double c3 = double(numbers[4]);
  const double c4 = double(numbers[5]);
  const double c5 = double(numbers[6]);
  const float c0_in_lanes = cast<float>(c0);
  const float c1_in_lanes = cast<float>(c1);
  const float c2_in_lanes = cast<float>(c2);
  const float c3_in_lanes = cast<float>(c3);
  const float c4_in_lanes = cast<float>(c4);
  const float c5_in_lanes = cast<float>(c5);
  const int32_t exp_avg_bitwise_right_shift = int32_t(exp_avg_clock >> int32_t(16));
  const int32_t exp_avg_bitwise_and = int32_t(exp_avg_bitwise_right_shift & int32_t(65535));
  const int32_t exp_avg_bitwise_xor = int32_t(exp_avg_clock ^ exp_avg_bitwise_and);
  const int32_t exp_avg_mul_1 = (exp_avg_bitwise_xor * int32_t(2146121005));
  const int32_t exp_avg_bitwise_right_shift_1 = int32_t(exp_avg_mul_1 >> int32_t(15));
  const int32_t exp_avg_bitwise_and_1 = int32_t(exp_avg_bitwise_right_shift_1 & int32_t(131071));
  const int32_t exp_avg_bitwise_xor_1 = int32_t(exp_avg_mul_1 ^ exp_avg_bitwise_and_1);
  const int32_t exp_avg_mul_2 = (exp_avg_bitwise_xor_1 * int32_t(-2073254261));
  const int32_t exp_avg_bitwise_right_shift_2 = int32_t(exp_avg_mul_2 >> int32_t(16));
  const int32_t exp_avg_bitwise_and_2 = int32_t(exp_avg_bitwise_right_shift_2 & int32_t(65535));
  const int32_t exp_avg_bitwise_xor_2 = int32_t(exp_avg_mul_2 ^ exp_avg_bitwise_and_2);
  const int32_t exp_avg_bitwise_xor_3 = int32_t(exp_avg_bitwise_xor_2 ^ exp_avg_salt);
  const int32_t exp_avg_bitwise_right_shift_3 = int32_t(exp_avg_bitwise_xor_3 >> int32_t(16));
  const int32_t exp_avg_bitwise_and_3 = int32_t(exp_avg_bitwise_right_shift_3 & int32_t(65535));
  const int32_t exp_avg_bitwise_xor_4 = int32_t(exp_avg_bitwise_xor_3 ^ exp_avg_bitwise_and_3);
  const int32_t exp_avg_mul_3 = (exp_avg_bitwise_xor_4 * int32_t(2146121005));
  const int32_t exp_avg_bitwise_right_shift_4 = int32_t(exp_avg_mul_3 >> int32_t(15));
  const int32_t exp_avg_bitwise_and_4 = int32_t(exp_avg_bitwise_right_shift_4 & int32_t(131071));
  const int32_t exp_avg_bitwise_xor_5 = int32_t(exp_avg_mul_3 ^ exp_avg_bitwise_and_4);
  const int32_t exp_avg_mul_4 = (exp_avg_bitwise_xor_5 * int32_t(-2073254261));
  const int32_t exp_avg_bitwise_right_shift_5 = int32_t(exp_avg_mul_4 >> int32_t(16));
  const int32_t exp_avg_bitwise_and_5 = int32_t(exp_avg_bitwise_right_shift_5 & int32_t(65535));
  const int32_t exp_avg_bitwise_xor_6 = int32_t(exp_avg_mul_4 ^ exp_avg_bitwise_and_5);
  const int32_t exp_avg_add = (exp_avg_clock + int32_t(1));
  *static_cast<int32_t*>(at[4]) = exp_avg_add;
  derived[0] = double(c0_in_lanes);
  derived[1] = double(c1_in_lanes);
  derived[2] = double(c2_in_lanes);
  derived[3] = double(c3_in_lanes);
  derived[4] = double(c4_in_lanes);
  derived[5] = double(c5_in_lanes);
  derived[6] = double(exp_avg_bitwise_xor_6);
}

static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,
                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,
                     double* const* sums, const int64_t* first_sum) {
  const float c0_in_lanes = float(derived[0]);
  const float c1_in_lanes = float(derived[1]);
  const float c2_in_lanes = float(derived[2]);
  const float c3_in_lanes = float(derived[3]);
  const float c4_in_lanes = float(derived[4]);
  const float c5_in_lanes = float(derived[5]);
  const int32_t exp_avg_bitwise_xor_6 = int32_t(derived[6]);
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
    int32_t* const exp_avg_codes_lanes = load(exp_avg_codes_buffer, static_cast<int8_t*>(at[2]), layouts[2], start, count, TILE);
    float exp_avg_where_kept[TILE];
    float add_2_kept[TILE];
    bf16 exp_avg_scales_of[16];
    load_groups(exp_avg_scales_of, static_cast<uint16_t*>(at[3]) + tile * 16, (count - 1) / 32 + 1, 16);
    int32_t group_index_32_of[16];
    float exp_avg_to_copy_1_of[16];
    int32_t exp_avg_amax_of[16];
    for (int32_t& value : exp_avg_amax_of) value = INT32_MIN;
    float exp_avg_mul_11_of[16];
    float exp_avg_mul_12_of[16];
    float exp_avg_where_5_of[16];
    float exp_avg_where_6_of[16];
    bf16 exp_avg_view_6_of[16];
#pragma omp simd
    for (int i = 0; i < 16; ++i) {
      const bf16 exp_avg_scales = exp_avg_scales_of[i];
      const int32_t group_index_32 = (low + i * 32) ^ page;
      const float exp_avg_to_copy_1 = cast<float>(exp_avg_scales);
      const int32_t exp_avg_bitwise_xor_9 = int32_t(group_index_32 ^ int32_t(1013904242));
      const int32_t exp_avg_bitwise_right_shift_7 = int32_t(exp_avg_bitwise_xor_9 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_7 = int32_t(exp_avg_bitwise_right_shift_7 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_10 = int32_t(exp_avg_bitwise_xor_9 ^ exp_avg_bitwise_and_7);
      const int32_t exp_avg_mul_7 = (exp_avg_bitwise_xor_10 * int32_t(2146121005));
      const int32_t exp_avg_bitwise_right_shift_8 = int32_t(exp_avg_mul_7 >> int32_t(15));
      const int32_t exp_avg_bitwise_and_8 = int32_t(exp_avg_bitwise_right_shift_8 & int32_t(131071));
      const int32_t exp_avg_bitwise_xor_11 = int32_t(exp_avg_mul_7 ^ exp_avg_bitwise_and_8);
      const int32_t exp_avg_mul_8 = (exp_avg_bitwise_xor_11 * int32_t(-2073254261));
      const int32_t exp_avg_bitwise_right_shift_9 = int32_t(exp_avg_mul_8 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_9 = int32_t(exp_avg_bitwise_right_shift_9 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_12 = int32_t(exp_avg_mul_8 ^ exp_avg_bitwise_and_9);
      const int32_t exp_avg_bitwise_xor_13 = int32_t(exp_avg_bitwise_xor_12 ^ exp_avg_bitwise_xor_6);
      const int32_t exp_avg_bitwise_right_shift_10 = int32_t(exp_avg_bitwise_xor_13 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_10 = int32_t(exp_avg_bitwise_right_shift_10 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_14 = int32_t(exp_avg_bitwise_xor_13 ^ exp_avg_bitwise_and_10);
      const int32_t exp_avg_mul_9 = (exp_avg_bitwise_xor_14 * int32_t(2146121005));
      const int32_t exp_avg_bitwise_right_shift_11 = int32_t(exp_avg_mul_9 >> int32_t(15));
      const int32_t exp_avg_bitwise_and_11 = int32_t(exp_avg_bitwise_right_shift_11 & int32_t(131071));
      const int32_t exp_avg_bitwise_xor_15 = int32_t(exp_avg_mul_9 ^ exp_avg_bitwise_and_11);
      const int32_t exp_avg_mul_10 = (exp_avg_bitwise_xor_15 * int32_t(-2073254261));
      const int32_t exp_avg_bitwise_right_shift_12 = int32_t(exp_avg_mul_10 >> int32_t(16));
      const int32_t exp_avg_bitwise_and_12 = int32_t(exp_avg_bitwise_right_shift_12 & int32_t(65535));
      const int32_t exp_avg_bitwise_xor_16 = int32_t(exp_avg_mul_10 ^ exp_avg_bitwise_and_12);
      const int32_t exp_avg_bitwise_right_shift_13 = int32_t(exp_avg_bitwise_xor_16 >> int32_t(8));
      const int32_t exp_avg_bitwise_and_14 = int32_t(exp_avg_bitwise_right_shift_13 & int32_t(16777215));
      const float exp_avg_to_copy_2 = cast<float>(exp_avg_bitwise_and_14);
      const float exp_avg_mul_11 = (exp_avg_to_copy_2 * float(5.960464477539063e-08));
      group_index_32_of[i] = group_index_32;
      exp_avg_to_copy_1_of[i] = exp_avg_to_copy_1;
      exp_avg_mul_11_of[i] = exp_avg_mul_11;
    }
    for (int run = 0; run < 16; ++run) {
      const float exp_avg_to_copy_1 = exp_avg_to_copy_1_of[run / 1];
      int32_t exp_avg_amax = exp_avg_amax_of[run / 1];
#pragma omp simd reduction(max : exp_avg_amax)
      for (int lane = 0; lane < 32; ++lane) {
        const int j = run * 32 + lane;
        const float grad = grad_lanes[j];
        const int32_t exp_avg_codes = exp_avg_codes_lanes[j];
        const float exp_avg_to_copy = cast<float>(exp_avg_codes);
        const float exp_avg_abs_1 = magnitude(exp_avg_to_copy);
        const float exp_avg_rsub = (float(254.0) - exp_avg_abs_1);
        const float exp_avg_div = (exp_avg_to_copy / exp_avg_rsub);
        const float exp_avg_mul = (exp_avg_div * exp_avg_to_copy_1);
        const bool exp_avg_eq = (exp_avg_codes == int32_t(-128));
        const float exp_avg_where = (exp_avg_eq ? float(__builtin_nan("")) : exp_avg_mul);
        exp_avg_where_kept[j] = exp_avg_where;
        const float mul_4 = (exp_avg_where * c4_in_lanes);
        const float mul_5 = (grad * c5_in_lanes);
        const float add_2 = (mul_4 + mul_5);
        add_2_kept[j] = add_2;
        const float exp_avg_abs_2 = magnitude(add_2);
        const bool exp_avg_gt = (exp_avg_abs_2 > float(0.0));
        const float exp_avg_where_1 = (exp_avg_gt ? exp_avg_abs_2 : float(0.0));
        const int32_t exp_avg_view = bits_as<int32_t>(exp_avg_where_1);
        exp_avg_amax = exp_avg_amax < exp_avg_view ? exp_avg_view : exp_avg_amax;
      }
      exp_avg_amax_of[run / 1] = exp_avg_amax;
    }
#pragma omp simd
    for (int i = 0; i < 16; ++i) {
      const int32_t exp_avg_amax = exp_avg_amax_of[i];
      const float exp_avg_mul_11 = exp_avg_mul_11_of[i];
      const float exp_avg_view_1 = bits_as<float>(exp_avg_amax);
      const float exp_avg_clamp_min = ((exp_avg_view_1 != exp_avg_view_1 || exp_avg_view_1 > float(1.1754943508222875e-38)) ? exp_avg_view_1 : float(1.1754943508222875e-38));
      const int32_t exp_avg_view_2 = bits_as<int32_t>(exp_avg_clamp_min);
      const int32_t exp_avg_bitwise_and_13 = int32_t(exp_avg_view_2 & int32_t(-65536));
      const bool exp_avg_eq_1 = (exp_avg_view_2 == exp_avg_bitwise_and_13);
      const int32_t exp_avg_add_1 = (exp_avg_bitwise_and_13 + int32_t(65536));
      const int32_t exp_avg_where_2 = (exp_avg_eq_1 ? exp_avg_bitwise_and_13 : exp_avg_add_1);
      const float exp_avg_view_3 = bits_as<float>(exp_avg_bitwise_and_13);
      const float exp_avg_view_4 = bits_as<float>(exp_avg_where_2);
      const float exp_avg_sub = (exp_avg_clamp_min - exp_avg_view_3);
      const float exp_avg_sub_1 = (exp_avg_view_4 - exp_avg_view_3);
      const float exp_avg_div_1 = (exp_avg_sub / exp_avg_sub_1);
      const bool exp_avg_lt = (exp_avg_mul_11 < exp_avg_div_1);
      const float exp_avg_where_3 = (exp_avg_lt ? exp_avg_view_4 : exp_avg_view_3);
      const float exp_avg_reciprocal = (float(1) / exp_avg_where_3);
      const float exp_avg_mul_12 = (exp_avg_reciprocal * float(1.0));
      const float exp_avg_mul_14 = (exp_avg_view_1 * exp_avg_mul_12);
      const float exp_avg_mul_15 = (exp_avg_view_3 * exp_avg_mul_12);
      const bool exp_avg_gt_1 = (exp_avg_where_3 > exp_avg_view_3);
      const float exp_avg_rsub_1 = (float(1.0) - exp_avg_mul_15);
      const bool exp_avg_lt_1 = (exp_avg_mul_15 < exp_avg_mul_14);
      const float exp_avg_where_4 = (exp_avg_lt_1 ? exp_avg_mul_15 : exp_avg_mul_14);
      const float exp_avg_sub_2 = (exp_avg_mul_14 - exp_avg_where_4);
      const float exp_avg_div_2 = (exp_avg_rsub_1 / exp_avg_sub_2);
      const float exp_avg_where_5 = (exp_avg_gt_1 ? exp_avg_div_2 : float(1.0));
      const float exp_avg_where_6 = (exp_avg_gt_1 ? exp_avg_mul_14 : float(__builtin_inf()));
      const int32_t exp_avg_view_5 = bits_as<int32_t>(exp_avg_where_3);
      const int32_t exp_avg_bitwise_right_shift_15 = int32_t(exp_avg_view_5 >> int32_t(16));
      const int32_t exp_avg_to_copy_5 = cast<int32_t>(exp_avg_bitwise_right_shift_15);
      const bf16 exp_avg_view_6 = bf16(exp_avg_to_copy_5);
      exp_avg_mul_12_of[i] = exp_avg_mul_12;
      exp_avg_where_5_of[i] = exp_avg_where_5;
      exp_avg_where_6_of[i] = exp_avg_where_6;
      exp_avg_view_6_of[i] = exp_avg_view_6;
    }
    for (int run = 0; run < 16; ++run) {
      const float exp_avg_mul_12 = exp_avg_mul_12_of[run / 1];
      const float exp_avg_where_6 = exp_avg_where_6_of[run / 1];
      const float exp_avg_where_5 = exp_avg_where_5_of[run / 1];
#pragma omp simd
      for (int lane = 0; lane < 32; ++lane) {
        const int j = run * 32 + lane;
        const float grad = grad_lanes[j];
        const float exp_avg_where = exp_avg_where_kept[j];
        const float add_2 = add_2_kept[j];
        const float exp_avg_abs_2 = magnitude(add_2);
        const float param_2 = param_lanes[j];
        const int32_t index_2 = (low + j) ^ page;
        const float mul = (param_2 * c0_in_lanes);
        const float mul_1 = (exp_avg_where * c1_in_lanes);
        const float mul_2 = (grad * c2_in_lanes);
        const float add = (mul_1 + mul_2);
        const float sign = float((add > 0) - (add < 0));
        const float mul_3 = (sign * c3_in_lanes);
        const float add_1 = (mul + mul_3);
        const int32_t exp_avg_mul_5 = (index_2 * int32_t(2146121005));
        const int32_t exp_avg_bitwise_right_shift_6 = int32_t(exp_avg_mul_5 >> int32_t(15));
        const int32_t exp_avg_bitwise_and_6 = int32_t(exp_avg_bitwise_right_shift_6 & int32_t(131071));
        const int32_t exp_avg_bitwise_xor_7 = int32_t(exp_avg_mul_5 ^ exp_avg_bitwise_and_6);
        const int32_t exp_avg_bitwise_xor_8 = int32_t(exp_avg_bitwise_xor_7 ^ exp_avg_bitwise_xor_6);
        const int32_t exp_avg_mul_6 = (exp_avg_bitwise_xor_8 * int32_t(-2073254261));
        const float exp_avg_mul_13 = (exp_avg_abs_2 * exp_avg_mul_12);
        const float exp_avg_sub_3 = (exp_avg_where_6 - exp_avg_mul_13);
        const float exp_avg_mul_16 = (exp_avg_sub_3 * exp_avg_where_5);
        const float exp_avg_rsub_2 = (float(1.0) - exp_avg_mul_16);
        const bool exp_avg_gt_2 = (exp_avg_mul_13 > exp_avg_rsub_2);
        const float exp_avg_where_7 = (exp_avg_gt_2 ? exp_avg_mul_13 : exp_avg_rsub_2);
        const bool exp_avg_lt_2 = (exp_avg_where_7 < float(1.0));
        const float exp_avg_where_8 = (exp_avg_lt_2 ? exp_avg_where_7 : float(1.0));
        const float exp_avg_mul_17 = (exp_avg_where_8 * float(254.00024223327637));
        const float exp_avg_add_2 = (exp_avg_where_8 + float(1.0));
        const float exp_avg_div_3 = (exp_avg_mul_17 / exp_avg_add_2);
        const float exp_avg_floor = __builtin_floorf(exp_avg_div_3);
        const float exp_avg_rsub_3 = (float(253.0) - exp_avg_floor);
        const float exp_avg_add_3 = (exp_avg_rsub_3 + float(1.0));
        const float exp_avg_mul_18 = (exp_avg_where_8 * exp_avg_add_3);
        const float exp_avg_sub_4 = (exp_avg_mul_18 - exp_avg_floor);
        const float exp_avg_mul_19 = (exp_avg_sub_4 * exp_avg_rsub_3);
        const float exp_avg_mul_20 = (exp_avg_floor * exp_avg_rsub_3);
        const int32_t exp_avg_bitwise_right_shift_14 = int32_t(exp_avg_mul_6 >> int32_t(8));
        const int32_t exp_avg_bitwise_and_15 = int32_t(exp_avg_bitwise_right_shift_14 & int32_t(16777215));
        const float exp_avg_to_copy_3 = cast<float>(exp_avg_bitwise_and_15);
        const float exp_avg_mul_21 = (exp_avg_to_copy_3 * float(1.5139579772949219e-05));
        const float exp_avg_mul_22 = (exp_avg_mul_20 * float(9.5367431640625e-07));
        const bool exp_avg_gt_3 = (exp_avg_mul_21 > exp_avg_mul_22);
        const float exp_avg_where_9 = (exp_avg_gt_3 ? exp_avg_mul_21 : exp_avg_mul_22);
        const bool exp_avg_lt_3 = (exp_avg_where_9 < exp_avg_mul_19);
        const float exp_avg_add_4 = (exp_avg_floor + float(1.0));
        const float exp_avg_where_10 = (exp_avg_lt_3 ? exp_avg_add_4 : exp_avg_floor);
        const bool exp_avg_isnan = (add_2 != add_2);
        const float exp_avg_copysign = __builtin_copysignf(exp_avg_where_10, add_2);
        const float exp_avg_where_11 = (exp_avg_isnan ? float(-128.0) : exp_avg_copysign);
        const int32_t exp_avg_to_copy_4 = cast<int32_t>(exp_avg_where_11);
        param_lanes[j] = add_1;
        exp_avg_codes_lanes[j] = exp_avg_to_copy_4;
      }
    }
    store_groups(exp_avg_view_6_of, static_cast<uint16_t*>(at[3]) + tile * 16, (count - 1) / 32 + 1, 16);
    store(param_lanes, param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    store(exp_avg_codes_lanes, exp_avg_codes_buffer, static_cast<int8_t*>(at[2]), layouts[2], start, count, TILE);
  }
}


// rule 0937c494156c (exp_avg: fp32; param float32)
constexpr int POINTERS = 3, NUMBERS = 6, DERIVED = 6, SHARED = 0, TILE = 512;

static void scalars(void* const* at, const double* numbers, double* derived) {
  const double c0 = double(numbers[0]);
  const double c1 = double(numbers[1]);
  const double c2 = double(numbers[2]);
  const double c3 = double(numbers[3]);
  const double c4 = double(numbers[4]);
  const double c5 = double(numbers[5]);
  const float c0_in_lanes = cast<float>(c0);
  const float c1_in_lanes = cast<float>(c1);
  const float c2_in_lanes = cast<float>(c2);
  const float c3_in_lanes = cast<float>(c3);
  const float c4_in_lanes = cast<float>(c4);
  const float c5_in_lanes = cast<float>(c5);
  derived[0] = double(c0_in_lanes);
  derived[1] = double(c1_in_lanes);
  derived[2] = double(c2_in_lanes);
  derived[3] = double(c3_in_lanes);
  derived[4] = double(c4_in_lanes);
  derived[5] = double(c5_in_lanes);
}

static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,
                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,
                     double* const* sums, const int64_t* first_sum) {
  const float c0_in_lanes = float(derived[0]);
  const float c1_in_lanes = float(derived[1]);
  const float c2_in_lanes = float(derived[2]);
  const float c3_in_lanes = float(derived[3]);
  const float c4_in_lanes = float(derived[4]);
  const float c5_in_lanes = float(derived[5]);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t start = tile * TILE;
    const int count = int(least<int64_t>(TILE, numel - start));
    float param_buffer[TILE];
    float* const param_lanes = load(param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    float grad_buffer[TILE];
    float* const grad_lanes = load(grad_buffer, static_cast<float*>(at[1]), layouts[1], start, count, TILE);
    float exp_avg_values_buffer[TILE];
    float* const exp_avg_values_lanes = load(exp_avg_values_buffer, static_cast<float*>(at[2]), layouts[2], start, count, TILE);
    for (int run = 0; run < 1; ++run) {
#pragma omp simd
      for (int lane = 0; lane < 512; ++lane) {
        const int j = run * 512 + lane;
        const float param_2 = param_lanes[j];
        const float grad = grad_lanes[j];
        const float exp_avg_values = exp_avg_values_lanes[j];
        const float mul = (param_2 * c0_in_lanes);
        const float mul_1 = (exp_avg_values * c1_in_lanes);
        const float mul_2 = (grad * c2_in_lanes);
        const float add = (mul_1 + mul_2);
        const float sign = float((add > 0) - (add < 0));
        const float mul_3 = (sign * c3_in_lanes);
        const float add_1 = (mul + mul_3);
        const float mul_4 = (exp_avg_values * c4_in_lanes);
        const float mul_5 = (grad * c5_in_lanes);
        const float add_2 = (mul_4 + mul_5);
        param_lanes[j] = add_1;
        exp_avg_values_lanes[j] = add_2;
      }
    }
    store(param_lanes, param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    store(exp_avg_values_lanes, exp_avg_values_buffer, static_cast<float*>(at[2]), layouts[2], start, count, TILE);
  }
}
