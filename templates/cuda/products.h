/* The two products of forward at 16 bits, and the queries' tile. */

static __device__ __forceinline__ void load_queries(half_bits *tile, const struct fa_params &params, int batch, int head,
                                                    int first_query)
{
  const half_bits *from = (const half_bits *)params.query.data + head_offset(params.query, batch, head, first_query);
  load_tile<BLOCK_M, HEAD_DIM, DIM_QK, ${load_bytes_qk}>(tile, from, params.query, (int)params.seqlen_q - first_query,
                                                         is_aligned(params.query, ${load_bytes_qk}));
}

/* A negative scale becomes a positive one of -Q: the largest score is then still the one that weighs most. */
static __device__ __noinline__ void negate_queries(half_bits *tile)
{
  for (int i = threadIdx.x; i < BLOCK_M * (DIM_QK / 2); i += THREADS)
    ((u32 *)tile)[i] ^= 0x80008000u;
  __syncthreads();
}

static __device__ __forceinline__ void multiply_keys(float (&scores)[M_TILES][N_TILES][4], u32 queries, u32 keys)
{
  forget_address(queries);
  forget_address(keys);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        scores[m][n][e] = 0;
#pragma unroll
  for (int k = 0; k < DIM_QK; k += 16) {
    u32 a[M_TILES][4];
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
      ldmatrix_x4(a[m], at_column<DIM_QK>(queries, k) + m * 16 * DIM_QK * 2);
#pragma unroll
    for (int n = 0; n < N_TILES; n += 2) {
      u32 b[4];
      ldmatrix_x4(b, at_column<DIM_QK>(keys, k) + n * 8 * DIM_QK * 2);
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
        mma_m16n8k16(scores[m][n], a[m], b[0], b[1]);
        mma_m16n8k16(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/* output = output * rescale + weights V. */
static __device__ __forceinline__ void multiply_values(float (&output)[M_TILES][DIM_V / 8][4],
                                                       const float (&weights)[M_TILES][N_TILES][4],
                                                       const struct rows &rows, u32 values)
{
  bool changed = false; /* after the first blocks of keys, maxima seldom do */
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
    changed = changed || rows.rescale[m][0] != 1 || rows.rescale[m][1] != 1;
  if (__any_sync(0xffffffffu, changed))
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
      for (int n = 0; n < DIM_V / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          output[m][n][e] *= rows.rescale[m][e / 2];
  forget_address(values);
#pragma unroll
  for (int k = 0; k < BLOCK_N; k += 16) {
    u32 a[M_TILES][4];
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        a[m][i] = pack(weights[m][k / 8 + i / 2][i % 2 * 2], weights[m][k / 8 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < DIM_V / 8; n += 2) {
      u32 b[4];
      ldmatrix_x4_trans(b, at_column<DIM_V>(values, n * 8) + k * DIM_V * 2);
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
        mma_m16n8k16(output[m][n], a[m], b[0], b[1]);
        mma_m16n8k16(output[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}
