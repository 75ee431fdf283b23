/* Issue product = rows (64 x DIM) times columns^T (${product_n} x DIM): K Q^T or V dO^T, in dQ's pass Q K^T or dO V^T. A
 * chunk of rows has CHUNK_ROWS of them. */
template <int DIM, int CHUNK_ROWS>
static __device__ __forceinline__ void multiply_rows(float (&product)[${product_n / 8}][4], u32 rows, u32 columns)
{
  u64 a = matrix_descriptor(rows, 0, 1024, 128), b = matrix_descriptor(columns, 0, 1024, 128);
  keep_registers(flat(product));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < DIM; k += 16)
    wgmma_m64n${product_n}k16<0, 0>(flat(product), a + (k / 64 * CHUNK_ROWS * 128 + k % 64 * 2) / 16,
                                    b + (k / 64 * ${product_n} * 128 + k % 64 * 2) / 16, k > 0);
  wgmma_commit();
}
