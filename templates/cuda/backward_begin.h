/*
 * First phase, a block of threads for BLOCK_M queries: delta = rowsum(dO * O) (FlashAttention-2, algorithm 2), the
 * statistics that forward left in the form that the next phases read.
//% if dq_sums
 * It also makes a clean start for the sums of dQ.
//% end
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

/* Products of a lane's columns of a row of O and of dO, one of LANES lanes: every LANES-th column, or pieces of eight. */
template <int LANES, bool PIECES>
static __device__ __forceinline__ float multiply_columns(const struct fa_params &params, const element *output,
                                                         const element *grad, int lane)
{
  float delta = 0;
  if constexpr (PIECES) {
    if (lane < HEAD_DIM_V / 8) {
      uint4 x = *(const uint4 *)(output + 8 * lane), y = *(const uint4 *)(grad + 8 * lane);
      const u32 of_output[4] = {x.x, x.y, x.z, x.w}, of_grad[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 8; i++)
        delta += element_to_float((element)(of_output[i / 2] >> i % 2 * 16)) *
                 element_to_float((element)(of_grad[i / 2] >> i % 2 * 16));
    }
  } else {
#pragma unroll
    for (int col = lane; col < HEAD_DIM_V; col += LANES)
      delta += element_to_float(output[col * params.output.stride_col]) *
               element_to_float(grad[col * params.grad_output.stride_col]);
  }
  return delta;
}

/* The statistics of the block's rows, a row by LANES lanes. */
template <int LANES, bool PIECES>
static __device__ __forceinline__ void write_statistics(const struct fa_params &params, struct row_stats *to, int batch,
                                                        int head, int first)
{
  static_assert(LANES >= 4 && BLOCK_M % 8 == 0, "the lanes of a warp come to the shuffles together");
  const int lane = threadIdx.x % LANES;
  const element *output = (const element *)params.output.data + head_offset(params.output, batch, head, first);
  const element *grad = (const element *)params.grad_output.data + head_offset(params.grad_output, batch, head, first);
  const float *lse = params.lse + ((batch * params.heads_q + head) * params.seqlen_q + first) * 2;
  const int rows = (int)params.seqlen_q - first;
  for (int row = threadIdx.x / LANES; row < BLOCK_M; row += BEGIN_THREADS / LANES) {
    float delta = 0;
    if (row < rows)
      delta = multiply_columns<LANES, PIECES>(params, output + row * params.output.stride_row,
                                              grad + row * params.grad_output.stride_row, lane);
#pragma unroll
    for (int other = LANES / 2; other > 0; other /= 2)
      delta += __shfl_xor_sync(0xffffffffu, delta, other);
    if (lane == 0)
//% if log2_sums
      to[row] = row < rows ? row_stats{lse[2 * row], log2f(lse[2 * row + 1]), delta, 0}
                           : row_stats{0, __uint_as_float(0x7f800000u), 0, 0};
//% else
      to[row] = row < rows ? row_stats{lse[2 * row], 1 / lse[2 * row + 1], delta, 0} : row_stats{0, 0, 0, 0};
//% end
  }
}

extern "C" __global__ void __launch_bounds__(BEGIN_THREADS)
begin_queries(const __grid_constant__ struct fa_params params)
{
  int per_head = query_blocks(params), index = blockIdx.x / per_head, block = blockIdx.x % per_head;
  int batch = index / (int)params.heads_q, head = index % (int)params.heads_q, first = block * BLOCK_M;
  struct workspace w = find_workspace(params, batch, head);
//% if dtype != "fp32" && head_dim_v % 8 == 0
  constexpr int LANES = next_power(HEAD_DIM_V / 8) < 4 ? 4 : next_power(HEAD_DIM_V / 8);
  if (is_aligned(params.output, 16) && is_aligned(params.grad_output, 16))
    write_statistics<LANES, true>(params, w.stats + block * BLOCK_M, batch, head, first);
  else
//% end
    write_statistics<32, false>(params, w.stats + block * BLOCK_M, batch, head, first);
//% if dq_sums && ordered
  if (threadIdx.x < WARPS)
    w.turns[block * WARPS + threadIdx.x] = 0;
//% elif dq_sums
  float4 *grad_query = (float4 *)(w.grad_query + (long long)block * (BLOCK_M * DIM_QK));
  for (int i = threadIdx.x; i < BLOCK_M * DIM_QK / 4; i += BEGIN_THREADS)
    grad_query[i] = make_float4(0, 0, 0, 0);
//% end
//% if dtype == "fp32"
  __shared__ u32 largest[2][BEGIN_THREADS / 32];
  float query_factor = split_tile<BEGIN_THREADS, BLOCK_M, HEAD_DIM, DIM_QK, MOST_OF_SCORES>(
      w.queries + (long long)block * (2 * BLOCK_M * DIM_QK),
      (const float *)params.query.data + head_offset(params.query, batch, head, first), params.query,
      (int)params.seqlen_q - first, largest[0]);
  float grad_factor = split_tile<BEGIN_THREADS, BLOCK_M, HEAD_DIM_V, DIM_V, MOST_OF_VALUES>(
      w.grad_outputs + (long long)block * (2 * BLOCK_M * DIM_V),
      (const float *)params.grad_output.data + head_offset(params.grad_output, batch, head, first), params.grad_output,
      (int)params.seqlen_q - first, largest[1]);
  if (threadIdx.x == 0) {
    w.query_factors[block] = query_factor;
    w.grad_factors[block] = grad_factor;
  }
//% end
}
