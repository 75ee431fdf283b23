/* Gradients to the caller's tensors. */
//% include "cuda/store.h"

/* 16 rows and TILES x 8 columns, from tile `first_tile` on, as mma holds them. */
template <int TILES, int DIM>
static __device__ __forceinline__ void store_gradient(const struct fa_tensor &to, u32 batch, u32 head, int first_row,
                                                      int rows, int first_tile, float (&gradient)[TILES][4], float scale)
{
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      gradient[n][e] *= scale;
  element *const of_head = (element *)to.data + head_offset(to, batch, head, 0);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    u32 at = first_row + threadIdx.x % 32 / 4 + 8 * h;
    store_row<TILES, DIM>(to, of_head + at * to.stride_row, at < (u32)rows, 8 * first_tile, gradient, h);
  }
}
