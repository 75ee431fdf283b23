/* Weights and their gradients, from the two products of keys and values with a step's queries. */

/* 16 keys and M_PART queries, of a warp. */
struct scores {
  float weights[M_PART / 8][4], d_scores[M_PART / 8][4];
};

template <bool WEIGHTS>
static __device__ __forceinline__ float (&products(struct scores &s))[M_PART / 8][4]
{
  return WEIGHTS ? s.weights : s.d_scores;
}

/* Hide keys that a query does not see, in the tiles of a warp: in weights (WEIGHTS), in d_scores (D_SCORES). */
template <bool WEIGHTS, bool D_SCORES>
static __device__ __forceinline__ void mask_scores(struct scores &s, const struct work &w, int first_key, int first_query)
{
#pragma unroll
  for (int n = 0; n < M_PART / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int key = first_key + e / 2 * 8;
      bool hidden = key >= w.seqlen_k;
//% if causal
      int query = first_query + n * 8 + e % 2; /* one behind the last sees nothing, though it would in its place */
      hidden = hidden || key > query || query >= w.seqlen_q;
//% end
      if constexpr (WEIGHTS)
        s.weights[n][e] = hidden ? 0 : s.weights[n][e];
      if constexpr (D_SCORES)
        s.d_scores[n][e] = hidden ? 0 : s.d_scores[n][e];
    }
}

/* From products to weights (WEIGHTS) and, from these, to d_scores (D_SCORES), of TILES times 16 keys; `stats` are those of
 * this thread's first two queries.
//% if dtype == "fp32"
 * The products are in units of `unit` and `d_unit`.
//% end
 */
template <bool WEIGHTS, bool D_SCORES, int TILES>
static __device__ __forceinline__ void weigh(struct scores (&s)[TILES], const struct row_stats *stats, const struct work &w,
                                             const struct fa_params &params
//% if dtype == "fp32"
                                             , float unit, float d_unit
//% end
)
{
  float factor = w.factor, sign = params.softmax_scale < 0 ? -1.0f : 1.0f;
//% if dtype == "fp32"
  float inverse_unit = inverse_power(unit);
  factor = fminf(factor * unit, 0x1p127f);
//% end
#pragma unroll
  for (int n = 0; n < M_PART / 8; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      struct row_stats row = stats[n * 8 + e];
#pragma unroll
      for (int h = 0; h < 2 * TILES; h++) {
        float &x = s[h / 2].weights[n][h % 2 * 2 + e], &dx = s[h / 2].d_scores[n][h % 2 * 2 + e];
//% if dtype == "fp32"
        if constexpr (WEIGHTS)
          x = exp2_approx((x * sign - row.max * inverse_unit) * factor) * row.inverse_sum;
        if constexpr (D_SCORES)
          dx = x * (dx * d_unit - row.delta);
//% else
        if constexpr (WEIGHTS)
//%   if log2_sums
          x = exp2_approx(fmaf(x * sign - row.max, factor, -row.log2_sum));
//%   else
          x = exp2_approx((x * sign - row.max) * factor) * row.inverse_sum;
//%   end
        if constexpr (D_SCORES)
          dx = x * (dx - row.delta);
//% end
      }
    }
}
