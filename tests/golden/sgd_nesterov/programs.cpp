
// rule e57e54f09d62 (momentum_buffer: softsign8; param float32)
constexpr int POINTERS = 5, NUMBERS = 5, DERIVED = 5, SHARED = 0, TILE = 512;

static void scalars(void* const* at, const double* numbers, double* derived) {
  const int32_t momentum_buffer_clock = int32_t(*static_cast<int32_t*>(at[4]));
  const int32_t momentum_buffer_salt = int32_t(numbers[0]);
  const double c0 = double(numbers[1]);
  const double c1 = double(numbers[2]);
  const double c2 = double(numbers[3]);
  const double c3 = double(numbers[4]);
  const float c0_in_lanes = cast<float>(c0);
  const float c1_in_lanes = cast<float>(c1);
  const float c2_in_lanes = cast<float>(c2);
  const float c3_in_lanes = cast<float>(c3);
  const int32_t momentum_buffer_bitwise_right_shift = int32_t(momentum_buffer_clock >> int32_t(16));
  const int32_t momentum_buffer_bitwise_and = int32_t(momentum_buffer_bitwise_right_shift & int32_t(65535));
  const int32_t momentum_buffer_bitwise_xor = int32_t(momentum_buffer_clock ^ momentum_buffer_bitwise_and);
  const int32_t momentum_buffer_mul_1 = (momentum_buffer_bitwise_xor * int32_t(2146121005));
  const int32_t momentum_buffer_bitwise_right_shift_1 = int32_t(momentum_buffer_mul_1 >> int32_t(15));
  const int32_t momentum_buffer_bitwise_and_1 = int32_t(momentum_buffer_bitwise_right_shift_1 & int32_t(131071));
  const int32_t momentum_buffer_bitwise_xor_1 = int32_t(momentum_buffer_mul_1 ^ momentum_buffer_bitwise_and_1);
  const int32_t momentum_buffer_mul_2 = (momentum_buffer_bitwise_xor_1 * int32_t(-2073254261));
  const int32_t momentum_buffer_bitwise_right_shift_2 = int32_t(momentum_buffer_mul_2 >> int32_t(16));
  const int32_t momentum_buffer_bitwise_and_2 = int32_t(momentum_buffer_bitwise_right_shift_2 & int32_t(65535));
  const int32_t momentum_buffer_bitwise_xor_2 = int32_t(momentum_buffer_mul_2 ^ momentum_buffer_bitwise_and_2);
  const int32_t momentum_buffer_bitwise_xor_3 = int32_t(momentum_buffer_bitwise_xor_2 ^ momentum_buffer_salt);
  const int32_t momentum_buffer_bitwise_right_shift_3 = int32_t(momentum_buffer_bitwise_xor_3 >> int32_t(16));
  const int32_t momentum_buffer_bitwise_and_3 = int32_t(momentum_buffer_bitwise_right_shift_3 & int32_t(65535));
  const int32_t momentum_buffer_bitwise_xor_4 = int32_t(momentum_buffer_bitwise_xor_3 ^ momentum_buffer_bitwise_and_3);
  const int32_t momentum_buffer_mul_3 = (momentum_buffer_bitwise_xor_4 * int32_t(2146121005));
  const int32_t momentum_buffer_bitwise_right_shift_4 = int32_t(momentum_buffer_mul_3 >> int32_t(15));
  const int32_t momentum_buffer_bitwise_and_4 = int32_t(momentum_buffer_bitwise_right_shift_4 & int32_t(131071));
  const int32_t momentum_buffer_bitwise_xor_5 = int32_t(momentum_buffer_mul_3 ^ momentum_buffer_bitwise_and_4);
  const int32_t momentum_buffer_mul_4 = (momentum_buffer_bitwise_xor_5 * int32_t(-2073254261));
  const int32_t momentum_buffer_bitwise_right_shift_5 = int32_t(momentum_buffer_mul_4 >> int32_t(16));
  const int32_t momentum_buffer_bitwise_and_5 = int32_t(momentum_buffer_bitwise_right_shift_5 & int32_t(65535));
  const int32_t momentum_buffer_bitwise_xor_6 = int32_t(momentum_buffer_mul_4 ^ momentum_buffer_bitwise_and_5);
  const int32_t momentum_buffer_add = (momentum_buffer_clock + int32_t(1));
  *static_cast<int32_t*>(at[4]) = momentum_buffer_add;
  derived[0] = double(c0_in_lanes);
  derived[1] = double(c1_in_lanes);
  derived[2] = double(c2_in_lanes);
  derived[3] = double(c3_in_lanes);
  derived[4] = double(momentum_buffer_bitwise_xor_6);
}

static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,
                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,
                     double* const* sums, const int64_t* first_sum) {
  const float c0_in_lanes = float(derived[0]);
  const float c1_in_lanes = float(derived[1]);
  const float c2_in_lanes = float(derived[2]);
  const float c3_in_lanes = float(derived[3]);
  const int32_t momentum_buffer_bitwise_xor_6 = int32_t(derived[4]);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t start = tile * TILE;
    const int count = int(least<int64_t>(TILE, numel - start));
    const int64_t index = first_index + start;
    const int32_t low = int32_t(uint32_t(index)), page = int32_t(index >> 32) * int32_t(0x85EBCA6B);
    float param_buffer[TILE];
    float* const param_lanes = load(param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    float grad_buffer[TILE];
    float* const grad_lanes = load(grad_buffer, static_cast<float*>(at[1]), layouts[1], start, count, TILE);
    int32_t momentum_buffer_codes_buffer[TILE];
    int32_t* const momentum_buffer_codes_lanes = load(momentum_buffer_codes_buffer, static_cast<int8_t*>(at[2]), layouts[2], start, count, TILE);
    float add_kept[TILE];
    float add_1_kept[TILE];
    bf16 momentum_buffer_scales_of[16];
    load_groups(momentum_buffer_scales_of, static_cast<uint16_t*>(at[3]) + tile * 16, (count - 1) / 32 + 1, 16);
    int32_t group_index_32_of[16];
    float momentum_buffer_to_copy_1_of[16];
    int32_t momentum_buffer_amax_of[16];
    for (int32_t& value : momentum_buffer_amax_of) value = INT32_MIN;
    float momentum_buffer_mul_11_of[16];
    float momentum_buffer_mul_12_of[16];
    float momentum_buffer_where_5_of[16];
    float momentum_buffer_where_6_of[16];
    bf16 momentum_buffer_view_6_of[16];
#pragma omp simd
    for (int i = 0; i < 16; ++i) {
      const bf16 momentum_buffer_scales = momentum_buffer_scales_of[i];
      const int32_t group_index_32 = (low + i * 32) ^ page;
      const float momentum_buffer_to_copy_1 = cast<float>(momentum_buffer_scales);
      const int32_t momentum_buffer_bitwise_xor_9 = int32_t(group_index_32 ^ int32_t(1013904242));
      const int32_t momentum_buffer_bitwise_right_shift_7 = int32_t(momentum_buffer_bitwise_xor_9 >> int32_t(16));
      const int32_t momentum_buffer_bitwise_and_7 = int32_t(momentum_buffer_bitwise_right_shift_7 & int32_t(65535));
      const int32_t momentum_buffer_bitwise_xor_10 = int32_t(momentum_buffer_bitwise_xor_9 ^ momentum_buffer_bitwise_and_7);
      const int32_t momentum_buffer_mul_7 = (momentum_buffer_bitwise_xor_10 * int32_t(2146121005));
      const int32_t momentum_buffer_bitwise_right_shift_8 = int32_t(momentum_buffer_mul_7 >> int32_t(15));
      const int32_t momentum_buffer_bitwise_and_8 = int32_t(momentum_buffer_bitwise_right_shift_8 & int32_t(131071));
      const int32_t momentum_buffer_bitwise_xor_11 = int32_t(momentum_buffer_mul_7 ^ momentum_buffer_bitwise_and_8);
      const int32_t momentum_buffer_mul_8 = (momentum_buffer_bitwise_xor_11 * int32_t(-2073254261));
      const int32_t momentum_buffer_bitwise_right_shift_9 = int32_t(momentum_buffer_mul_8 >> int32_t(16));
      const int32_t momentum_buffer_bitwise_and_9 = int32_t(momentum_buffer_bitwise_right_shift_9 & int32_t(65535));
      const int32_t momentum_buffer_bitwise_xor_12 = int32_t(momentum_buffer_mul_8 ^ momentum_buffer_bitwise_and_9);
      const int32_t momentum_buffer_bitwise_xor_13 = int32_t(momentum_buffer_bitwise_xor_12 ^ momentum_buffer_bitwise_xor_6);
      const int32_t momentum_buffer_bitwise_right_shift_10 = int32_t(momentum_buffer_bitwise_xor_13 >> int32_t(16));
      const int32_t momentum_buffer_bitwise_and_10 = int32_t(momentum_buffer_bitwise_right_shift_10 & int32_t(65535));
      const int32_t momentum_buffer_bitwise_xor_14 = int32_t(momentum_buffer_bitwise_xor_13 ^ momentum_buffer_bitwise_and_10);
      const int32_t momentum_buffer_mul_9 = (momentum_buffer_bitwise_xor_14 * int32_t(2146121005));
      const int32_t momentum_buffer_bitwise_right_shift_11 = int32_t(momentum_buffer_mul_9 >> int32_t(15));
      const int32_t momentum_buffer_bitwise_and_11 = int32_t(momentum_buffer_bitwise_right_shift_11 & int32_t(131071));
      const int32_t momentum_buffer_bitwise_xor_15 = int32_t(momentum_buffer_mul_9 ^ momentum_buffer_bitwise_and_11);
      const int32_t momentum_buffer_mul_10 = (momentum_buffer_bitwise_xor_15 * int32_t(-2073254261));
      const int32_t momentum_buffer_bitwise_right_shift_12 = int32_t(momentum_buffer_mul_10 >> int32_t(16));
      const int32_t momentum_buffer_bitwise_and_12 = int32_t(momentum_buffer_bitwise_right_shift_12 & int32_t(65535));
      const int32_t momentum_buffer_bitwise_xor_16 = int32_t(momentum_buffer_mul_10 ^ momentum_buffer_bitwise_and_12);
      const int32_t momentum_buffer_bitwise_right_shift_13 = int32_t(momentum_buffer_bitwise_xor_16 >> int32_t(8));
      const int32_t momentum_buffer_bitwise_and_14 = int32_t(momentum_buffer_bitwise_right_shift_13 & int32_t(16777215));
      const float momentum_buffer_to_copy_2 = cast<float>(momentum_buffer_bitwise_and_14);
      const float momentum_buffer_mul_11 = (momentum_buffer_to_copy_2 * float(5.960464477539063e-08));
      group_index_32_of[i] = group_index_32;
      momentum_buffer_to_copy_1_of[i] = momentum_buffer_to_copy_1;
      momentum_buffer_mul_11_of[i] = momentum_buffer_mul_11;
    }
    for (int run = 0; run < 16; ++run) {
      const float momentum_buffer_to_copy_1 = momentum_buffer_to_copy_1_of[run / 1];
      int32_t momentum_buffer_amax = momentum_buffer_amax_of[run / 1];
#pragma omp simd reduction(max : momentum_buffer_amax)
      for (int lane = 0; lane < 32; ++lane) {
        const int j = run * 32 + lane;
        const float param_2 = param_lanes[j];
        const float grad = grad_lanes[j];
        const int32_t momentum_buffer_codes = momentum_buffer_codes_lanes[j];
        const float momentum_buffer_to_copy = cast<float>(momentum_buffer_codes);
        const float momentum_buffer_abs_1 = magnitude(momentum_buffer_to_copy);
        const float momentum_buffer_rsub = (float(254.0) - momentum_buffer_abs_1);
        const float momentum_buffer_div = (momentum_buffer_to_copy / momentum_buffer_rsub);
        const float momentum_buffer_mul = (momentum_buffer_div * momentum_buffer_to_copy_1);
        const bool momentum_buffer_eq = (momentum_buffer_codes == int32_t(-128));
        const float momentum_buffer_where = (momentum_buffer_eq ? float(__builtin_nan("")) : momentum_buffer_mul);
        const float mul = (param_2 * c0_in_lanes);
        const float add = (grad + mul);
        add_kept[j] = add;
        const float mul_1 = (momentum_buffer_where * c1_in_lanes);
        const float add_1 = (mul_1 + add);
        add_1_kept[j] = add_1;
        const float momentum_buffer_abs_2 = magnitude(add_1);
        const bool momentum_buffer_gt = (momentum_buffer_abs_2 > float(0.0));
        const float momentum_buffer_where_1 = (momentum_buffer_gt ? momentum_buffer_abs_2 : float(0.0));
        const int32_t momentum_buffer_view = bits_as<int32_t>(momentum_buffer_where_1);
        momentum_buffer_amax = momentum_buffer_amax < momentum_buffer_view ? momentum_buffer_view : momentum_buffer_amax;
      }
      momentum_buffer_amax_of[run / 1] = momentum_buffer_amax;
    }
#pragma omp simd
    for (int i = 0; i < 16; ++i) {
      const int32_t momentum_buffer_amax = momentum_buffer_amax_of[i];
      const float momentum_buffer_mul_11 = momentum_buffer_mul_11_of[i];
      const float momentum_buffer_view_1 = bits_as<float>(momentum_buffer_amax);
      const float momentum_buffer_clamp_min = ((momentum_buffer_view_1 != momentum_buffer_view_1 || momentum_buffer_view_1 > float(1.1754943508222875e-38)) ? momentum_buffer_view_1 : float(1.1754943508222875e-38));
      const int32_t momentum_buffer_view_2 = bits_as<int32_t>(momentum_buffer_clamp_min);
      const int32_t momentum_buffer_bitwise_and_13 = int32_t(momentum_buffer_view_2 & int32_t(-65536));
      const bool momentum_buffer_eq_1 = (momentum_buffer_view_2 == momentum_buffer_bitwise_and_13);
      const int32_t momentum_buffer_add_1 = (momentum_buffer_bitwise_and_13 + int32_t(65536));
      const int32_t momentum_buffer_where_2 = (momentum_buffer_eq_1 ? momentum_buffer_bitwise_and_13 : momentum_buffer_add_1);
      const float momentum_buffer_view_3 = bits_as<float>(momentum_buffer_bitwise_and_13);
      const float momentum_buffer_view_4 = bits_as<float>(momentum_buffer_where_2);
      const float momentum_buffer_sub = (momentum_buffer_clamp_min - momentum_buffer_view_3);
      const float momentum_buffer_sub_1 = (momentum_buffer_view_4 - momentum_buffer_view_3);
      const float momentum_buffer_div_1 = (momentum_buffer_sub / momentum_buffer_sub_1);
      const bool momentum_buffer_lt = (momentum_buffer_mul_11 < momentum_buffer_div_1);
      const float momentum_buffer_where_3 = (momentum_buffer_lt ? momentum_buffer_view_4 : momentum_buffer_view_3);
      const float momentum_buffer_reciprocal = (float(1) / momentum_buffer_where_3);
      const float momentum_buffer_mul_12 = (momentum_buffer_reciprocal * float(1.0));
      const float momentum_buffer_mul_14 = (momentum_buffer_view_1 * momentum_buffer_mul_12);
      const float momentum_buffer_mul_15 = (momentum_buffer_view_3 * momentum_buffer_mul_12);
      const bool momentum_buffer_gt_1 = (momentum_buffer_where_3 > momentum_buffer_view_3);
      const float momentum_buffer_rsub_1 = (float(1.0) - momentum_buffer_mul_15);
      const bool momentum_buffer_lt_1 = (momentum_buffer_mul_15 < momentum_buffer_mul_14);
      const float momentum_buffer_where_4 = (momentum_buffer_lt_1 ? momentum_buffer_mul_15 : momentum_buffer_mul_14);
      const float momentum_buffer_sub_2 = (momentum_buffer_mul_14 - momentum_buffer_where_4);
      const float momentum_buffer_div_2 = (momentum_buffer_rsub_1 / momentum_buffer_sub_2);
      const float momentum_buffer_where_5 = (momentum_buffer_gt_1 ? momentum_buffer_div_2 : float(1.0));
      const float momentum_buffer_where_6 = (momentum_buffer_gt_1 ? momentum_buffer_mul_14 : float(__builtin_inf()));
      const int32_t momentum_buffer_view_5 = bits_as<int32_t>(momentum_buffer_where_3);
      const int32_t momentum_buffer_bitwise_right_shift_15 = int32_t(momentum_buffer_view_5 >> int32_t(16));
      const int32_t momentum_buffer_to_copy_5 = cast<int32_t>(momentum_buffer_bitwise_right_shift_15);
      const bf16 momentum_buffer_view_6 = bf16(momentum_buffer_to_copy_5);
      momentum_buffer_mul_12_of[i] = momentum_buffer_mul_12;
      momentum_buffer_where_5_of[i] = momentum_buffer_where_5;
      momentum_buffer_where_6_of[i] = momentum_buffer_where_6;
      momentum_buffer_view_6_of[i] = momentum_buffer_view_6;
    }
    for (int run = 0; run < 16; ++run) {
      const float momentum_buffer_mul_12 = momentum_buffer_mul_12_of[run / 1];
      const float momentum_buffer_where_6 = momentum_buffer_where_6_of[run / 1];
      const float momentum_buffer_where_5 = momentum_buffer_where_5_of[run / 1];
#pragma omp simd
      for (int lane = 0; lane < 32; ++lane) {
        const int j = run * 32 + lane;
        const float param_2 = param_lanes[j];
        const float add = add_kept[j];
        const float add_1 = add_1_kept[j];
        const float momentum_buffer_abs_2 = magnitude(add_1);
        const int32_t index_2 = (low + j) ^ page;
        const float mul_2 = (add_1 * c2_in_lanes);
        const float add_2 = (add + mul_2);
        const float mul_3 = (add_2 * c3_in_lanes);
        const float add_3 = (param_2 + mul_3);
        const int32_t momentum_buffer_mul_5 = (index_2 * int32_t(2146121005));
        const int32_t momentum_buffer_bitwise_right_shift_6 = int32_t(momentum_buffer_mul_5 >> int32_t(15));
        const int32_t momentum_buffer_bitwise_and_6 = int32_t(momentum_buffer_bitwise_right_shift_6 & int32_t(131071));
        const int32_t momentum_buffer_bitwise_xor_7 = int32_t(momentum_buffer_mul_5 ^ momentum_buffer_bitwise_and_6);
        const int32_t momentum_buffer_bitwise_xor_8 = int32_t(momentum_buffer_bitwise_xor_7 ^ momentum_buffer_bitwise_xor_6);
        const int32_t momentum_buffer_mul_6 = (momentum_buffer_bitwise_xor_8 * int32_t(-2073254261));
        const float momentum_buffer_mul_13 = (momentum_buffer_abs_2 * momentum_buffer_mul_12);
        const float momentum_buffer_sub_3 = (momentum_buffer_where_6 - momentum_buffer_mul_13);
        const float momentum_buffer_mul_16 = (momentum_buffer_sub_3 * momentum_buffer_where_5);
        const float momentum_buffer_rsub_2 = (float(1.0) - momentum_buffer_mul_16);
        const bool momentum_buffer_gt_2 = (momentum_buffer_mul_13 > momentum_buffer_rsub_2);
        const float momentum_buffer_where_7 = (momentum_buffer_gt_2 ? momentum_buffer_mul_13 : momentum_buffer_rsub_2);
        const bool momentum_buffer_lt_2 = (momentum_buffer_where_7 < float(1.0));
        const float momentum_buffer_where_8 = (momentum_buffer_lt_2 ? momentum_buffer_where_7 : float(1.0));
        const float momentum_buffer_mul_17 = (momentum_buffer_where_8 * float(254.00024223327637));
        const float momentum_buffer_add_2 = (momentum_buffer_where_8 + float(1.0));
        const float momentum_buffer_div_3 = (momentum_buffer_mul_17 / momentum_buffer_add_2);
        const float momentum_buffer_floor = __builtin_floorf(momentum_buffer_div_3);
        const float momentum_buffer_rsub_3 = (float(253.0) - momentum_buffer_floor);
        const float momentum_buffer_add_3 = (momentum_buffer_rsub_3 + float(1.0));
        const float momentum_buffer_mul_18 = (momentum_buffer_where_8 * momentum_buffer_add_3);
        const float momentum_buffer_sub_4 = (momentum_buffer_mul_18 - momentum_buffer_floor);
        const float momentum_buffer_mul_19 = (momentum_buffer_sub_4 * momentum_buffer_rsub_3);
        const float momentum_buffer_mul_20 = (momentum_buffer_floor * momentum_buffer_rsub_3);
        const int32_t momentum_buffer_bitwise_right_shift_14 = int32_t(momentum_buffer_mul_6 >> int32_t(8));
        const int32_t momentum_buffer_bitwise_and_15 = int32_t(momentum_buffer_bitwise_right_shift_14 & int32_t(16777215));
        const float momentum_buffer_to_copy_3 = cast<float>(momentum_buffer_bitwise_and_15);
        const float momentum_buffer_mul_21 = (momentum_buffer_to_copy_3 * float(1.5139579772949219e-05));
        const float momentum_buffer_mul_22 = (momentum_buffer_mul_20 * float(9.5367431640625e-07));
        const bool momentum_buffer_gt_3 = (momentum_buffer_mul_21 > momentum_buffer_mul_22);
        const float momentum_buffer_where_9 = (momentum_buffer_gt_3 ? momentum_buffer_mul_21 : momentum_buffer_mul_22);
        const bool momentum_buffer_lt_3 = (momentum_buffer_where_9 < momentum_buffer_mul_19);
        const float momentum_buffer_add_4 = (momentum_buffer_floor + float(1.0));
        const float momentum_buffer_where_10 = (momentum_buffer_lt_3 ? momentum_buffer_add_4 : momentum_buffer_floor);
        const bool momentum_buffer_isnan = (add_1 != add_1);
        const float momentum_buffer_copysign = __builtin_copysignf(momentum_buffer_where_10, add_1);
        const float momentum_buffer_where_11 = (momentum_buffer_isnan ? float(-128.0) : momentum_buffer_copysign);
        const int32_t momentum_buffer_to_copy_4 = cast<int32_t>(momentum_buffer_where_11);
        param_lanes[j] = add_3;
        momentum_buffer_codes_lanes[j] = momentum_buffer_to_copy_4;
      }
    }
    store_groups(momentum_buffer_view_6_of, static_cast<uint16_t*>(at[3]) + tile * 16, (count - 1) / 32 + 1, 16);
    store(param_lanes, param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    store(momentum_buffer_codes_lanes, momentum_buffer_codes_buffer, static_cast<int8_t*>(at[2]), layouts[2], start, count, TILE);
  }
}


// rule e57e54f09d62 (momentum_buffer: fp32; param float32)
constexpr int POINTERS = 3, NUMBERS = 4, DERIVED = 4, SHARED = 0, TILE = 512;

static void scalars(void* const* at, const double* numbers, double* derived) {
  const double c0 = double(numbers[0]);
  const double c1 = double(numbers[1]);
  const double c2 = double(numbers[2]);
  const double c3 = double(numbers[3]);
  const float c0_in_lanes = cast<float>(c0);
  const float c1_in_lanes = cast<float>(c1);
  const float c2_in_lanes = cast<float>(c2);
  const float c3_in_lanes = cast<float>(c3);
  derived[0] = double(c0_in_lanes);
  derived[1] = double(c1_in_lanes);
  derived[2] = double(c2_in_lanes);
  derived[3] = double(c3_in_lanes);
}

static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,
                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,
                     double* const* sums, const int64_t* first_sum) {
  const float c0_in_lanes = float(derived[0]);
  const float c1_in_lanes = float(derived[1]);
  const float c2_in_lanes = float(derived[2]);
  const float c3_in_lanes = float(derived[3]);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t start = tile * TILE;
    const int count = int(least<int64_t>(TILE, numel - start));
    float param_buffer[TILE];
    float* const param_lanes = load(param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    float grad_buffer[TILE];
    float* const grad_lanes = load(grad_buffer, static_cast<float*>(at[1]), layouts[1], start, count, TILE);
    float momentum_buffer_values_buffer[TILE];
    float* const momentum_buffer_values_lanes = load(momentum_buffer_values_buffer, static_cast<float*>(at[2]), layouts[2], start, count, TILE);
    for (int run = 0; run < 1; ++run) {
#pragma omp simd
      for (int lane = 0; lane < 512; ++lane) {
        const int j = run * 512 + lane;
        const float param_2 = param_lanes[j];
        const float grad = grad_lanes[j];
        const float momentum_buffer_values = momentum_buffer_values_lanes[j];
        const float mul = (param_2 * c0_in_lanes);
        const float add = (grad + mul);
        const float mul_1 = (momentum_buffer_values * c1_in_lanes);
        const float add_1 = (mul_1 + add);
        const float mul_2 = (add_1 * c2_in_lanes);
        const float add_2 = (add + mul_2);
        const float mul_3 = (add_2 * c3_in_lanes);
        const float add_3 = (param_2 + mul_3);
        param_lanes[j] = add_3;
        momentum_buffer_values_lanes[j] = add_1;
      }
    }
    store(param_lanes, param_buffer, static_cast<float*>(at[0]), layouts[0], start, count, TILE);
    store(momentum_buffer_values_lanes, momentum_buffer_values_buffer, static_cast<float*>(at[2]), layouts[2], start, count, TILE);
  }
}
