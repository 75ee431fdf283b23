/*
 * First phase, a block of threads for BLOCK_M queries: delta = rowsum(dO * O) (FlashAttention-2, algorithm 2), the
 * statistics that forward left in the form that the next phase reads, and a clean start for dQ.
//% if dtype == "fp32"
 * It also splits Q and dO into fp16 parts.
//% end
 */
enum { BEGIN_THREADS = ${begin_threads} };

static __device__ __forceinline__ float element_to_float(element x)
{
//% if dtype == "fp32"
  return x;
//% else
  return to_float(x);
//% end
}

extern "C" __global__ void __launch_bounds__(BEGIN_THREADS)
begin_queries(const __grid_constant__ struct fa_params params)
{
  int per_head = query_blocks(params), index = blockIdx.x / per_head, block = blockIdx.x % per_head;
  int batch = index / (int)params.heads_q, head = index % (int)params.heads_q, first = block * BLOCK_M;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, seqlen_q = (int)params.seqlen_q;
  struct workspace w = find_workspace(params, batch, head);
  const element *output = (const element *)params.output.data + head_offset(params.output, batch, head, first);
  const element *grad = (const element *)params.grad_output.data + head_offset(params.grad_output, batch, head, first);
  for (int row = warp; row < BLOCK_M; row += BEGIN_THREADS / 32) {
    struct row_stats stats = {0, 0, 0, 0};
    if (first + row < seqlen_q) {
      float delta = 0;
#pragma unroll
      for (int col = lane; col < HEAD_DIM_V; col += 32)
        delta += element_to_float(output[row * params.output.stride_row + col * params.output.stride_col]) *
                 element_to_float(grad[row * params.grad_output.stride_row + col * params.grad_output.stride_col]);
#pragma unroll
      for (int other = 16; other > 0; other /= 2)
        delta += __shfl_xor_sync(0xffffffffu, delta, other);
      const float *lse = params.lse + ((batch * params.heads_q + head) * params.seqlen_q + first + row) * 2;
      stats = {lse[0], 1 / lse[1], delta, 0};
    }
    if (lane == 0)
      w.stats[block * BLOCK_M + row] = stats;
  }
//% if ordered
  if (threadIdx.x < WARPS)
    w.turns[block * WARPS + threadIdx.x] = 0;
//% else
  float4 *grad_query = (float4 *)(w.grad_query + (long long)block * (BLOCK_M * DIM_QK));
  for (int i = threadIdx.x; i < BLOCK_M * DIM_QK / 4; i += BEGIN_THREADS)
    grad_query[i] = make_float4(0, 0, 0, 0);
//% end
//% if dtype == "fp32"
  __shared__ u32 largest[2][BEGIN_THREADS / 32];
  float query_factor = split_tile<BEGIN_THREADS, BLOCK_M, HEAD_DIM, DIM_QK>(
      w.queries + (long long)block * (2 * BLOCK_M * DIM_QK),
      (const float *)params.query.data + head_offset(params.query, batch, head, first), params.query, seqlen_q - first,
      largest[0]);
  float grad_factor = split_tile<BEGIN_THREADS, BLOCK_M, HEAD_DIM_V, DIM_V>(
      w.grad_outputs + (long long)block * (2 * BLOCK_M * DIM_V), grad, params.grad_output, seqlen_q - first, largest[1]);
  if (threadIdx.x == 0) {
    w.query_factors[block] = query_factor;
    w.grad_factors[block] = grad_factor;
  }
//% end
}
