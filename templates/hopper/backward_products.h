/* The products of a step that have keys as rows, 64 of a warpgroup: scores and d_weights, and dV, whose left operand,
 * weights, comes of scores in registers. */

/* Issue dV += weights^T dO. */
static __device__ __forceinline__ void add_grad_value(float (&grad_value)[DIM_V / 8][4],
                                                      const u32 (&weights)[BLOCK_M / 16][4], u32 grads)
{
  u64 b = matrix_descriptor(grads, BLOCK_M * 128, 1024, 128);
  keep_registers(flat(grad_value));
  wgmma_fence();
  wgmma_m64n${value_n}<BLOCK_M, 1>(flat(grad_value), weights, b, 1);
  wgmma_commit();
}
