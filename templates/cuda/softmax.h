/*
 * The online softmax of a warp's rows. A thread holds of each 16-row tile the rows g and g + 8 (g = lane / 4), and of
 * these every fourth pair of keys; four neighbouring lanes hold a row.
 */
//% if dtype != "fp32"

/* A score of -inf comes from an infinity in the input (or, in bf16, from numbers whose product is beyond fp32). It would get
 * weight 0 and vanish; it makes the row NaN instead, as +inf and NaN do by themselves. */
//% end
struct rows {
//% if dtype == "fp32"
  float max[M_TILES][2];     /* largest score so far; -inf before the first key that is seen */
//% else
  float max[M_TILES][2];     /* a score not far below the largest so far; -inf before the first key that is seen */
//% end
  float sum[M_TILES][2];     /* of the weights, this thread's part */
  float rescale[M_TILES][2]; /* what the sums of before must be multiplied by */
  int first;                 /* query of row [0][0]; row [m][h] is 16 m + 8 h behind it */
  float factor;              /* from scores to exponents of 2 */
//% if dtype == "fp32"
  float query_factor[M_TILES][2]; /* 2^-k of the row of Q; the largest score is kept in units of MAX_UNIT times it */
  float key_factor;               /* 2^-k of this block of K */
//%   if precision == "reduced"
  float value_factor; /* 2^-k of this block of V */
  float output_unit;  /* the largest of them so far: sums of the output are in this unit */
//%   end
//% else
  u32 poisoned; /* bit 2 m + h: row [m][h] has had a score of -inf, as far as this thread knows */
//% end
//% if dtype != "fp32" || precision == "reduced"
  bool moved; /* rescale is not 1 in all rows of the warp; else it may be anything */
//% end
};

//% if dtype != "fp32"
#define SLACK 8.0f /* see must_move */
//% end
//% if dtype == "fp32"
/* Weights are multiplied by 2^14: fp16 then holds their high and low parts down to 2^-38. Sums of the output are in
 * units of 2^20 so that no average of finite values overflows on the way. */
#define WEIGHT_UNIT 0x1p14f
#define WEIGHT_EXPONENT 14
#define OUTPUT_UNIT 0x1p-20f
//% elif dtype == "bf16"
/* Weights, which are at most 2^SLACK, are multiplied by 2^-28, so that no average of finite values overflows on the way. */
#define WEIGHT_UNIT 0x1p-28f
#define WEIGHT_EXPONENT (-28)
#define OUTPUT_UNIT WEIGHT_UNIT
//% else
#define WEIGHT_UNIT 1.0f
#define WEIGHT_EXPONENT 0
#define OUTPUT_UNIT WEIGHT_UNIT
//% end

//% if dtype == "fp32"
/* The score of a key that a row does not see. No other is -inf: an infinity in the input makes NaN (split.h). */
#define LOWEST (-INF)

/* A score, scaled, is at most 2^38, and K's factor 2^113: in this unit their product is a float. */
#define MAX_UNIT 0x1p40f

/* A factor of scores that is neither infinite nor, however small, 0: that times LOWEST would be NaN. */
static __device__ __forceinline__ float bounded(float factor) { return fminf(fmaxf(factor, 0x1p-126f), 0x1p127f); }

//% else
/* Below every score but -inf, and even times the least factor far below: the score of a key that a row does not see. */
#define LOWEST (-0x1.fffffep127f)

//% end
//% if dtype != "fp32" || precision == "reduced"
/* Does the rounding of a largest score times the factor count? The score is then subtracted first. Below it is at most
 * 2^-15, with bf16's WEIGHT_EXPONENT 2^-13.4: as parts of a weight far less than 16 bits keep, so that nothing makes up
 * for it in rescales and in lse. */
static __device__ __forceinline__ bool is_large(float product) { return fabsf(product) > 0x1p10f; }

//% end
static __device__ __forceinline__ void begin_rows(struct rows &rows, const struct fa_params &params, int first
//% if dtype == "fp32" && precision == "full"
                                                  , const float *query_factors
//% end
)
{
  rows.first = first;
  rows.factor = softmax_factor(params);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      rows.max[m][h] = -INF;
      rows.sum[m][h] = 0;
//% if dtype == "fp32" && precision == "full"
      rows.query_factor[m][h] = query_factors[16 * m + 8 * h];
//% end
    }
//% if dtype != "fp32"
  rows.poisoned = 0;
//% elif precision == "reduced"
  rows.output_unit = 0;
//% end
}

/* Hide keys that a row does not see: score [m][n][2 h + e] belongs to row [m][h] and key first_key + 8 n + e. Those of tiles
 * before FIRST are all seen. (Selected, not assigned if hidden: the same code, compiled in 6 % less time at d 128.) */
template <int FIRST, int TILES>
static __device__ __forceinline__ void mask_scores(float (&scores)[M_TILES][TILES][4], const struct rows &rows,
                                                   int first_key, int seqlen_k)
{
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int last_key = seqlen_k - 1;
//% if causal
      last_key = min(last_key, rows.first + 16 * m + 8 * h);
//% end
      last_key -= first_key;
#pragma unroll
      for (int n = FIRST; n < TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          scores[m][n][2 * h + e] = 8 * n + e > last_key ? LOWEST : scores[m][n][2 * h + e];
    }
}

/* The largest of a row from what its four lanes have; -inf where no key is seen. */
static __device__ __forceinline__ float largest_of_lanes(float high)
{
  high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
  high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
  return high == LOWEST ? -INF : high;
}

//% let by_bits = max_of_three && (dtype != "fp32" || precision == "reduced")
//% if by_bits
/* The largest score of each row in this block of keys, where that is not negative; else something negative. Bits of
 * floats are ordered as integers are: without sign upwards, with it downwards. So the largest signed one is the largest
 * score unless all are negative, and the largest unsigned one is -inf if there is one. */
//% else
/* The largest score of each row in this block of keys; -inf where none is seen. */
//% end
template <int TILES>
static __device__ __forceinline__ void find_largest(float (&largest)[M_TILES][2],
                                                    const float (&scores)[M_TILES][TILES][4], struct rows &rows)
{
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
//% if by_bits
      int highest = (int)0x80000000u;
//%   if dtype != "fp32"
      u32 lowest = 0;
//%   end
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        u32 x = __float_as_uint(scores[m][n][2 * h]), y = __float_as_uint(scores[m][n][2 * h + 1]);
        highest = __vimax3_s32(highest, (int)x, (int)y);
//%   if dtype != "fp32"
        lowest = __vimax3_u32(lowest, x, y);
//%   end
      }
//%   if dtype != "fp32"
      rows.poisoned |= lowest >= 0xff800000u ? 1u << (2 * m + h) : 0;
//%   end
      float high = __int_as_float(highest);
//% else
      float high = LOWEST;
//%   if dtype != "fp32"
      float low = 0;
//%   end
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          high = fmaxf(high, scores[m][n][2 * h + e]);
//%   if dtype != "fp32"
          low = fminf(low, scores[m][n][2 * h + e]);
//%   end
        }
//%   if dtype != "fp32"
      rows.poisoned |= low == -INF ? 1u << (2 * m + h) : 0;
//%   end
//% end
      largest[m][h] = largest_of_lanes(high);
    }
}
//% if by_bits

/* The same of rows where it is negative. */
template <int TILES>
static __device__ __forceinline__ void find_largest_negative(float (&largest)[M_TILES][2],
                                                             const float (&scores)[M_TILES][TILES][4])
{
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float high = LOWEST;
#pragma unroll
      for (int n = 0; n < TILES; n++)
        high = fmaxf(high, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
      largest[m][h] = largest_of_lanes(high);
    }
}
//% end

/* Hide keys where the block has any that some row does not see. */
template <int FIRST = 0, int TILES>
static __device__ __forceinline__ void mask_block(float (&scores)[M_TILES][TILES][4], const struct rows &rows,
                                                  int first_key, int seqlen_k)
{
  int end = first_key / BLOCK_N * BLOCK_N + BLOCK_N; /* keys before it are in this block */
  bool masked = end > seqlen_k;
//% if causal
  masked = masked || end > rows.first / 16 * 16 + 1;
//% end
  if (masked)
    mask_scores<FIRST>(scores, rows, first_key, seqlen_k);
}

//% if dtype != "fp32" || precision == "reduced"
/* Of rows whose origin is so large that its rounding would count the largest score is subtracted first; of the others
 * `largest` is 0. */
template <int TILES>
static __device__ __forceinline__ void subtract_largest(float (&scores)[M_TILES][TILES][4],
                                                        const float (&largest)[M_TILES][2], bool large)
{
  if (__any_sync(0xffffffffu, large))
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
      for (int i = 0; i < 4 * TILES; i++)
        scores[m][i / 4][i % 4] -= largest[m][i / 2 % 2];
}

//% end
//% if dtype != "fp32"
/* The score that exponents of a row count from stays what it is until a weight would be larger than 2^SLACK (conditional
 * rescaling, FlashAttention-4, arXiv:2603.05451): after the first block of keys it hardly ever moves. Weights are floats and
 * keep all their bits, and fp16 has room for them. */
static __device__ __forceinline__ bool must_move(float max, float largest, float factor)
{
  return (largest - max) * factor > SLACK;
}

/* All that is seldom: of some row the largest score is too large for `max`, or was not found, or `max` is far from 0. */
template <class... Sums>
static __device__ __forceinline__ void move_rows(float (&scores)[M_TILES][N_TILES][4], struct rows &rows,
                                                 float (&largest)[M_TILES][2], Sums &...sums)
{
  bool large = false, moved = false;
//%   if by_bits
  bool negative = false;
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
    negative |= largest[m][0] < 0 || largest[m][1] < 0;
  if (__any_sync(0xffffffffu, negative))
    find_largest_negative(largest, scores);
//%   end
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float old_max = rows.max[m][h];
      float new_max = must_move(old_max, largest[m][h], rows.factor) ? largest[m][h] : old_max;
      rows.max[m][h] = new_max;
      new_max = new_max == -INF ? 0.0f : new_max;
      bool mine = is_large(__fmul_rn(new_max, rows.factor));
      large = large || mine;
      largest[m][h] = mine ? new_max : 0.0f;
      rows.rescale[m][h] = exp2_approx((old_max - new_max) * rows.factor);
      rows.sum[m][h] *= rows.rescale[m][h];
      moved = moved || rows.rescale[m][h] != 1;
    }
  rows.moved = __any_sync(0xffffffffu, moved);
  (rescale_output(sums, rows), ...);
  subtract_largest(scores, largest, large);
}

/* What exponents of this block of keys count from. If that has moved (rows.moved), sums of the output must be rescaled:
 * here, where they are given, or as soon as that can be. */
template <class... Sums>
static __device__ __forceinline__ void follow_largest(float (&scores)[M_TILES][N_TILES][4], struct rows &rows,
                                                      Sums &...sums)
{
  float largest[M_TILES][2];
  find_largest(largest, scores, rows);
  bool seldom = false;
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      seldom |= must_move(rows.max[m][h], largest[m][h], rows.factor);
      seldom |= is_large(__fmul_rn(rows.max[m][h], rows.factor));
//%   if by_bits
      seldom |= largest[m][h] < 0; /* find_largest has not found it */
//%   end
    }
  rows.moved = false;
  if (__any_sync(0xffffffffu, seldom))
    move_rows(scores, rows, largest, sums...);
}

/* Scores become weights in place. */
template <int TILES>
static __device__ __forceinline__ void weigh_scores(float (&scores)[M_TILES][TILES][4], struct rows &rows)
{
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = 0, product = __fmul_rn(rows.max[m][h], rows.factor);
      float start = WEIGHT_EXPONENT - (is_large(product) ? 0.0f : product); /* large ones are subtracted: move_rows */
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &x = scores[m][n][2 * h + e];
          x = exp2_approx(fmaf(x, rows.factor, start));
          sum += x;
        }
      rows.sum[m][h] += sum;
    }
}

//% elif precision == "full"
/* Scores become weights in place, and rows say what the sums must be multiplied by. */
static __device__ __forceinline__ void softmax(float (&scores)[M_TILES][N_TILES][4], struct rows &rows, int first_key,
                                               int seqlen_k)
{
  mask_block(scores, rows, first_key, seqlen_k);
  float largest[M_TILES][2], origin[M_TILES][2];
  find_largest(largest, scores, rows);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float unit = rows.key_factor / MAX_UNIT, old_max = rows.max[m][h];
      float new_max = fmaxf(old_max, largest[m][h] * unit);
      rows.max[m][h] = new_max;
      new_max = new_max == -INF ? 0.0f : new_max;
      rows.rescale[m][h] = exp2_approx((old_max - new_max) * rows.factor * MAX_UNIT * rows.query_factor[m][h]);
      origin[m][h] = new_max * inverse_power(unit);
    }
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = 0;
      float factor = bounded(rows.factor * (rows.query_factor[m][h] * rows.key_factor));
#pragma unroll
      for (int n = 0; n < N_TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &x = scores[m][n][2 * h + e];
          x = exp2_approx(fmaf(x - origin[m][h], factor, (float)WEIGHT_EXPONENT));
          sum += x;
        }
      rows.sum[m][h] = rows.sum[m][h] * rows.rescale[m][h] + sum;
    }
}

//% end
/* Sums of whole rows. */
static __device__ __forceinline__ void finish_rows(struct rows &rows)
{
//% if dtype != "fp32"
  rows.poisoned |= __shfl_xor_sync(0xffffffffu, rows.poisoned, 1);
  rows.poisoned |= __shfl_xor_sync(0xffffffffu, rows.poisoned, 2);
//% end
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = rows.sum[m][h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
//% if dtype != "fp32"
      sum = rows.poisoned >> (2 * m + h) & 1 ? NOT_A_NUMBER : sum;
//% end
      rows.sum[m][h] = sum * (1 / WEIGHT_UNIT);
    }
}
