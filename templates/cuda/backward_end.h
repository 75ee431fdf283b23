/* The last phase: dQ from the workspace to the caller's tensor. */
//% include "cuda/backward_gradient.h"

enum { END_THREADS = ${end_threads} };

/* A block of threads for BLOCK_M queries, 16 rows and 32 columns of a warp at a time. */
extern "C" __global__ void __launch_bounds__(END_THREADS) end_queries(const __grid_constant__ struct fa_params params)
{
  constexpr int TILES = ceil_div(HEAD_DIM, 8), GROUPS_OF_4 = ceil_div(TILES, 4);
  int per_head = query_blocks(params), index = blockIdx.x / per_head, block = blockIdx.x % per_head;
  int batch = index / (int)params.heads_q, head = index % (int)params.heads_q;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (!params.grad_query.data)
    return;
  struct workspace w = find_workspace(params, batch, head);
  const float *sums = w.grad_query + (long long)block * (BLOCK_M * DIM_QK);
  for (int i = warp; i < BLOCK_M / 16 * GROUPS_OF_4; i += END_THREADS / 32) {
    int row_tile = i / GROUPS_OF_4, first_tile = i % GROUPS_OF_4 * 4;
    float gradient[4][4] = {};
#pragma unroll
    for (int n = 0; n < 4; n++)
      if (TILES % 4 == 0 || first_tile + n < TILES) {
        float4 sum = *(const float4 *)(sums + dq_offset(row_tile, first_tile + n, lane));
        gradient[n][0] = sum.x, gradient[n][1] = sum.y, gradient[n][2] = sum.z, gradient[n][3] = sum.w;
      }
    store_gradient<4, HEAD_DIM>(params.grad_query, batch, head, block * BLOCK_M + row_tile * 16, (int)params.seqlen_q,
                                first_tile, gradient, (float)params.softmax_scale);
  }
}
