/* The product of dQ's pass that is its own, of a warpgroup's 64 rows of queries. */

/* Issue dQ += d_scores K. */
static __device__ __forceinline__ void add_grad_query(float (&grad_query)[DIM_K / 8][4],
                                                      const u32 (&d_scores)[BLOCK_N / 16][4], u32 keys)
{
  u64 b = matrix_descriptor(keys, BLOCK_N * 128, 1024, 128);
  keep_registers(flat(grad_query));
  wgmma_fence();
  wgmma_m64n${key_n}<BLOCK_N, 1>(flat(grad_query), d_scores, b, 1);
  wgmma_commit();
}
