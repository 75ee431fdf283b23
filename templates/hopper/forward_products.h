/* The two products of a warpgroup's 64 rows, and what its registers need between them. */

/* Issue scores = Q K^T. */
static __device__ __forceinline__ void multiply_keys(float (&scores)[M_TILES][N_TILES][4], u32 queries, u32 keys)
{
  u64 a = matrix_descriptor(queries, 0, 1024, 128), b = matrix_descriptor(keys, 0, 1024, 128);
  keep_registers(flat(scores[0]));
  wgmma_fence();
  wgmma_m64n${block_n}<DIM_QK, 0, 0, BLOCK_M * 128, BLOCK_N * 128>(flat(scores[0]), a, b, 0);
  wgmma_commit();
}

/* Issue output += weights V. V's next 64 columns are a chunk away. */
static __device__ __forceinline__ void multiply_values(float (&output)[M_TILES][V_TILES][4],
                                                       const u32 (&weights)[BLOCK_N / 16][4], u32 values)
{
  u64 b = matrix_descriptor(values, BLOCK_N * 128, 1024, 128);
  keep_registers(flat(output[0]));
  wgmma_fence();
  wgmma_m64n${round_up(head_dim_v, 8)}<BLOCK_N, 1>(flat(output[0]), weights, b, 1);
  wgmma_commit();
}

/* A negative scale becomes a positive one of -scores: the largest is then still the one that weighs most. */
static __device__ __forceinline__ void negate_scores(float (&scores)[M_TILES][N_TILES][4],
                                                     const struct fa_params &params)
{
  if (is_negative(params.softmax_scale))
#pragma unroll
    for (int i = 0; i < 4 * N_TILES; i++)
      flat(scores[0])[i] = -flat(scores[0])[i];
}

//% if precision == "full"
/* The softmax of a tile's first block of keys: exponents count from its largest scores, and there are no sums yet. */
template <int TILES>
static __device__ __forceinline__ void begin_softmax(float (&scores)[M_TILES][TILES][4], struct rows &rows)
{
  find_largest(rows.max, scores, rows);
  bool seldom = false;
#pragma unroll
  for (int h = 0; h < 2; h++)
    seldom |= rows.max[0][h] < 0 || is_large(__fmul_rn(rows.max[0][h], rows.factor));
  if (__any_sync(0xffffffffu, seldom)) { /* as in move_rows */
    find_largest_negative(rows.max, scores);
    float largest[M_TILES][2];
    bool large = false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      bool mine = rows.max[0][h] != -INF && is_large(__fmul_rn(rows.max[0][h], rows.factor));
      large = large || mine;
      largest[0][h] = mine ? rows.max[0][h] : 0.0f;
    }
    subtract_largest(scores, largest, large);
  }
  weigh_scores(scores, rows);
}

//%   if causal && block_n % 128 == 0
/* Keys of a tile's first block of which this warpgroup's queries see none of the second half, or all of the first. */
static __device__ __forceinline__ void begin_softmax(float (&scores)[M_TILES][N_TILES][4], struct rows &rows,
                                                     int first_key, int seqlen_k, int keys_seen)
{
  constexpr int HALF = N_TILES / 2;
  if (keys_seen > BLOCK_N / 2) {
    mask_block<HALF>(scores, rows, first_key, seqlen_k);
    begin_softmax(scores, rows);
    return;
  }
  auto &half = reinterpret_cast<float(&)[M_TILES][HALF][4]>(scores);
  mask_scores<0>(half, rows, first_key, seqlen_k);
  begin_softmax(half, rows);
#pragma unroll
  for (int i = 4 * HALF; i < 4 * N_TILES; i++)
    flat(scores[0])[i] = 0;
}

//%   end
/* That of the others. The output is rescaled later: it is still being summed. */
static __device__ __forceinline__ void softmax(float (&scores)[M_TILES][N_TILES][4], struct rows &rows)
{
  follow_largest(scores, rows);
  weigh_scores(scores, rows);
}

//% end
static __device__ __forceinline__ void rescale_output(float (&output)[M_TILES][V_TILES][4], const struct rows &rows)
{
  if (!rows.moved)
    return;
#pragma unroll
  for (int n = 0; n < V_TILES; n++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      output[0][n][e] *= rows.rescale[0][e / 2];
}
