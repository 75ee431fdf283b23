/* The products of dQ's pass, of a warpgroup's 64 rows of queries. */

/* Issue product = rows (64 x DIM) times columns^T (BLOCK_N x DIM): Q K^T or dO V^T. */
template <int DIM>
static __device__ __forceinline__ void multiply_columns(float (&product)[BLOCK_N / 8][4], u32 rows, u32 columns)
{
  u64 a = matrix_descriptor(rows, 0, 1024, 128), b = matrix_descriptor(columns, 0, 1024, 128);
  keep_registers(flat(product));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < DIM; k += 16)
    wgmma_m64n${dq_block_n}k16<0, 0>(flat(product), a + (k / 64 * BLOCK_M * 128 + k % 64 * 2) / 16,
                                     b + (k / 64 * BLOCK_N * 128 + k % 64 * 2) / 16, k > 0);
  wgmma_commit();
}

/* Issue dQ += d_scores K. */
static __device__ __forceinline__ void add_grad_query(float (&grad_query)[DIM_K / 8][4],
                                                      const u32 (&d_scores)[BLOCK_N / 16][4], u32 keys)
{
  u64 b = matrix_descriptor(keys, BLOCK_N * 128, 1024, 128);
  keep_registers(flat(grad_query));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_N; k += 16)
    wgmma_m64n${key_n}k16<1>(flat(grad_query), d_scores[k / 16], b + k * 128 / 16, 1);
  wgmma_commit();
}
