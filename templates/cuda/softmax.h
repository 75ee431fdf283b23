/*
 * The online softmax of a warp's rows. A thread holds of each 16-row tile the rows g and g + 8 (g = lane / 4), and of
 * these every fourth pair of keys; four neighbouring lanes hold a row.
 */
//% if dtype != "fp32"

/* A score of -inf comes only from an infinity in the input. It would get weight 0 and vanish; it makes the row NaN
 * instead, as +inf and NaN do by themselves. Scores are looked at for that before they are masked. */
//% end
struct rows {
  float max[M_TILES][2];     /* largest score so far; -inf before the first key that is seen */
  float sum[M_TILES][2];     /* of the weights, this thread's part */
  float rescale[M_TILES][2]; /* what the sums of before must be multiplied by */
  int first;                 /* query of row [0][0]; row [m][h] is 16 m + 8 h behind it */
  float factor;              /* from scores to exponents of 2 */
//% if dtype == "fp32"
  float query_factor[M_TILES][2]; /* 2^-k of the row of Q; the largest score is kept in units of it */
  float key_factor;               /* 2^-k of this block of K */
//% else
  float low[M_TILES][2]; /* smallest score so far, or 0 */
//% end
};

//% if dtype == "fp32"
/* Weights are multiplied by 2^14: fp16 then holds their high and low parts down to 2^-38. Sums of the output are in
 * units of 2^20 so that no average of finite values overflows on the way. */
#define WEIGHT_UNIT 0x1p14f
#define WEIGHT_EXPONENT 14
#define OUTPUT_UNIT 0x1p-20f
//% elif dtype == "bf16"
/* Weights are multiplied by 2^-20, so that no average of finite values overflows on the way. */
#define WEIGHT_UNIT 0x1p-20f
#define WEIGHT_EXPONENT (-20)
#define OUTPUT_UNIT WEIGHT_UNIT
//% else
#define WEIGHT_UNIT 1.0f
#define WEIGHT_EXPONENT 0
#define OUTPUT_UNIT WEIGHT_UNIT
//% end

static __device__ __forceinline__ void begin_rows(struct rows &rows, const struct fa_params &params, int first
//% if dtype == "fp32"
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
//% if dtype == "fp32"
      rows.query_factor[m][h] = query_factors[16 * m + 8 * h];
//% else
      rows.low[m][h] = 0;
//% end
    }
}

/* Scores become weights in place, and rows say what the sums must be multiplied by. Score [m][n][2 h + e] belongs to row
 * [m][h] and key first_key + 8 n + e. */
template <bool MASKED>
static __device__ __forceinline__ void softmax_block(float (&scores)[M_TILES][N_TILES][4], struct rows &rows,
                                                     int first_key, int seqlen_k)
{
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float high = -INF;
      int last_key = seqlen_k - 1;
//% if causal
      int query = rows.first + 16 * m + 8 * h;
      last_key = query < last_key ? query : last_key;
//% end
      last_key -= first_key;
#pragma unroll
      for (int n = 0; n < N_TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &x = scores[m][n][2 * h + e];
          bool seen = !MASKED || 8 * n + e <= last_key;
//% if dtype != "fp32"
          rows.low[m][h] = fminf(rows.low[m][h], seen ? x : 0.0f);
//% end
          x = seen ? x : -INF;
          high = fmaxf(high, x);
        }
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
//% if dtype == "fp32"
      float old_max = rows.max[m][h], new_max = fmaxf(old_max, high * rows.key_factor), sum = 0;
      rows.max[m][h] = new_max;
      new_max = new_max == -INF ? 0.0f : new_max;
      float factor = fminf(rows.factor * rows.query_factor[m][h], 0x1p127f);
      rows.rescale[m][h] = exp2_approx((old_max - new_max) * factor);
      float origin = new_max * inverse_power(rows.key_factor);
      factor = fminf(factor * rows.key_factor, 0x1p127f);
#pragma unroll
      for (int n = 0; n < N_TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &x = scores[m][n][2 * h + e];
          x = exp2_approx(fmaf(x - origin, factor, (float)WEIGHT_EXPONENT));
          sum += x;
        }
//% else
      float factor = rows.factor, old_max = rows.max[m][h], new_max = fmaxf(old_max, high), sum = 0;
      rows.max[m][h] = new_max;
      new_max = new_max == -INF ? 0.0f : new_max;
      float origin = __fmul_rn(new_max, factor);
      /* One rounding less where the product is so large that its rounding would count: then subtract first. */
      if (__any_sync(0xffffffffu, fabsf(origin) > 0x1p21f)) {
        rows.rescale[m][h] = exp2_approx((old_max - new_max) * factor);
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &x = scores[m][n][2 * h + e];
            x = exp2_approx(fmaf(x - new_max, factor, (float)WEIGHT_EXPONENT));
            sum += x;
          }
      } else {
        rows.rescale[m][h] = exp2_approx(__fmul_rn(old_max, factor) - origin); /* as origin was rounded then */
        origin -= WEIGHT_EXPONENT;
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &x = scores[m][n][2 * h + e];
            x = exp2_approx(fmaf(x, factor, -origin));
            sum += x;
          }
      }
//% end
      rows.sum[m][h] = rows.sum[m][h] * rows.rescale[m][h] + sum;
    }
}

static __device__ __forceinline__ void softmax(float (&scores)[M_TILES][N_TILES][4], struct rows &rows, int first_key,
                                               int seqlen_k)
{
  int end = first_key / BLOCK_N * BLOCK_N + BLOCK_N; /* keys before it are in this block */
  bool masked = end > seqlen_k;
//% if causal
  masked = masked || end > rows.first / 16 * 16 + 1;
//% end
  if (masked)
    softmax_block<true>(scores, rows, first_key, seqlen_k);
  else
    softmax_block<false>(scores, rows, first_key, seqlen_k);
}

/* Sums of whole rows. */
static __device__ __forceinline__ void finish_rows(struct rows &rows)
{
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = rows.sum[m][h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
//% if dtype != "fp32"
      float low = rows.low[m][h];
      low = fminf(low, __shfl_xor_sync(0xffffffffu, low, 1));
      low = fminf(low, __shfl_xor_sync(0xffffffffu, low, 2));
      sum = low == -INF ? NOT_A_NUMBER : sum;
//% end
      rows.sum[m][h] = sum * (1 / WEIGHT_UNIT);
    }
}
