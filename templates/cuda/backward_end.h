/* Gradients to the caller's tensors. */
//% include "cuda/store.h"

/* 16 rows and UNITS x 16 columns, from unit `first_unit` on, as mma holds them. */
template <int UNITS, int DIM>
static __device__ __forceinline__ void store_gradient(const struct fa_tensor &to, int batch, int head, int first_row,
                                                      int rows, int first_unit, const float (&gradient)[2 * UNITS][4],
                                                      float scale)
{
  int lane = threadIdx.x % 32;
  bool pairs = has_pairs(to);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int at = first_row + lane / 4 + 8 * h;
    if (at >= rows)
      continue;
    element *row = (element *)to.data + head_offset(to, batch, head, at);
#pragma unroll
    for (int n = 0; n < 2 * UNITS; n++)
      store_two(to, row, first_unit * 16 + n * 8 + lane % 4 * 2, DIM, pairs, gradient[n][2 * h] * scale,
                gradient[n][2 * h + 1] * scale);
  }
}

enum { END_THREADS = ${end_threads} };

/* Last phase, a block of threads for BLOCK_M queries: dQ from the workspace. */
extern "C" __global__ void __launch_bounds__(END_THREADS) end_queries(const __grid_constant__ struct fa_params params)
{
  int per_head = query_blocks(params), index = blockIdx.x / per_head, block = blockIdx.x % per_head;
  int batch = index / (int)params.heads_q, head = index % (int)params.heads_q;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const struct fa_tensor &to = params.grad_query;
  if (!to.data)
    return;
  struct workspace w = find_workspace(params, batch, head);
  const float *sums = w.grad_query + (long long)block * (BLOCK_M * DIM_QK);
  float scale = (float)params.softmax_scale;
  bool pairs = has_pairs(to);
  for (int tile = warp; tile < BLOCK_M / 16 * (DIM_QK / 8); tile += END_THREADS / 32) {
    int row_tile = tile / (DIM_QK / 8), column_tile = tile % (DIM_QK / 8);
    float4 sum = *(const float4 *)(sums + dq_offset(row_tile, column_tile, lane));
    int query = block * BLOCK_M + row_tile * 16 + lane / 4, col = column_tile * 8 + lane % 4 * 2;
    element *row = (element *)to.data + head_offset(to, batch, head, query);
    if (query < (int)params.seqlen_q)
      store_two(to, row, col, HEAD_DIM, pairs, sum.x * scale, sum.y * scale);
    if (query + 8 < (int)params.seqlen_q)
      store_two(to, row + 8 * to.stride_row, col, HEAD_DIM, pairs, sum.z * scale, sum.w * scale);
  }
}
