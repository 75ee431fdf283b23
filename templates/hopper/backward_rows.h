/* Issue product = rows (64 x DIM) times columns^T (BLOCK_M x DIM): K Q^T or V dO^T. */
template <int DIM, int CHUNK_ROWS>
static __device__ __forceinline__ void multiply_rows(float (&product)[BLOCK_M / 8][4], u32 rows, u32 columns)
{
  u64 a = matrix_descriptor(rows, 0, 1024, 128), b = matrix_descriptor(columns, 0, 1024, 128);
  keep_registers(flat(product));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < DIM; k += 16)
    wgmma_m64n${block_m}k16<0, 0>(flat(product), a + (k / 64 * CHUNK_ROWS * 128 + k % 64 * 2) / 16,
                                  b + (k / 64 * BLOCK_M * 128 + k % 64 * 2) / 16, k > 0);
  wgmma_commit();
}
