/* Issue product = rows (64 x DIM) times columns^T (${product_n} x DIM): K Q^T or V dO^T, in dQ's pass Q K^T or dO V^T. A
 * chunk of rows has CHUNK_ROWS of them. */
template <int DIM, int CHUNK_ROWS>
static __device__ __forceinline__ void multiply_rows(float (&product)[${product_n / 8}][4], u32 rows, u32 columns)
{
  u64 a = matrix_descriptor(rows, 0, 1024, 128), b = matrix_descriptor(columns, 0, 1024, 128);
  keep_registers(flat(product));
  wgmma_fence();
  wgmma_m64n${product_n}<DIM, 0, 0, CHUNK_ROWS * 128, ${product_n} * 128>(flat(product), a, b, 0);
  wgmma_commit();
}
