/* Weights and their gradients where queries are the rows of products, so that statistics are a thread's own: two rows of
 * 64, 8 apart. */
struct rows {
  int first; /* of the two */
  float max[2], log2_sum[2], delta[2];
  float factor, sign; /* from scores to exponents of 2; of the scale */
  int end;            /* how many rows the head has */
};

static __device__ __forceinline__ struct rows begin_rows(const struct fa_params &params)
{
  struct rows rows = {};
  rows.factor = softmax_factor(params);
  rows.sign = params.softmax_scale < 0 ? -1.0f : 1.0f;
  rows.end = (int)params.seqlen_q;
  return rows;
}

/* `stats` are those of the warp's 16 rows, from `first_row` on. Those from `end` on are not read: they go nowhere. */
static __device__ __forceinline__ void read_rows(struct rows &rows, const struct row_stats *stats, int first_row, int end)
{
  const int row_of_warp = threadIdx.x % 32 / 4;
  rows.first = first_row + row_of_warp;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const bool is_there = rows.first + 8 * h < end;
    const struct row_stats row = is_there ? stats[row_of_warp + 8 * h] : row_stats{};
    rows.max[h] = row.max;
    rows.log2_sum[h] = row.log2_sum;
    rows.delta[h] = row.delta;
  }
}

/* Scores become weights. */
template <int N>
static __device__ __forceinline__ void weigh_keys(float (&scores)[N][4], const struct rows &rows)
{
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      scores[n][e] =
          exp2_approx(fmaf(fmaf(scores[n][e], rows.sign, -rows.max[e / 2]), rows.factor, -rows.log2_sum[e / 2]));
}

/* d_weights become d_scores. */
template <int N>
static __device__ __forceinline__ void weigh_gradients(float (&d_scores)[N][4], const float (&weights)[N][4],
                                                       const struct rows &rows)
{
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      d_scores[n][e] = weights[n][e] * (d_scores[n][e] - rows.delta[e / 2]);
}

/* Keys that a row does not see get 0, whatever came of them. */
template <int N>
static __device__ __forceinline__ void hide_keys(float (&values)[N][4], const struct rows &rows, int first_key,
                                                 int seqlen_k)
{
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int last = seqlen_k - 1; /* that the row sees */
//% if causal
    last = rows.first + 8 * h < rows.end ? min(last, rows.first + 8 * h) : -1; /* a row that is not there sees none */
//% end
    last -= first_key + threadIdx.x % 4 * 2; /* from this thread's first */
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        values[n][2 * h + e] = n * 8 + e > last ? 0 : values[n][2 * h + e];
  }
}
