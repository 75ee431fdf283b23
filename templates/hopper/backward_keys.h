/*
 * dK and dV, in the first pass: a block of threads for BLOCK_N keys of one key/value head. It walks over the queries of
 * its group of heads, BLOCK_M at a time, always in the same order:
 *
 *     scores^T = K Q^T        weights^T = exp2((scores^T - row_max) * factor) / row_sum
 *     d_weights^T = V dO^T    d_scores^T = weights^T * (d_weights^T - delta)
 *     dV += weights^T dO      dK += d_scores^T Q
 *
 *     producer    one warp: TMA copies of K and V once, of Q, its statistics and dO for each step
 *     consumers   two warpgroups with 64 keys each
 *
 * Keys are the rows of all products, so that weights and d_scores are left operands as they come, in registers, and
 * warpgroups have nothing to tell each other.
 */
//% include "hopper/backward_shared.h"
//% include "hopper/backward_produce.h"
//% include "hopper/backward_products.h"
//% include "hopper/backward_steps.h"

/* Issue dK += d_scores^T Q. */
static __device__ __forceinline__ void add_grad_key(float (&grad_key)[DIM_K / 8][4],
                                                    const u32 (&d_scores)[BLOCK_M / 16][4], u32 queries)
{
  u64 b = matrix_descriptor(queries, BLOCK_M * 128, 1024, 128);
  keep_registers(flat(grad_key));
  wgmma_fence();
  wgmma_m64n${key_n}<BLOCK_M, 1>(flat(grad_key), d_scores, b, 1);
  wgmma_commit();
}

template <bool WEIGHTS, bool D_SCORES>
static __device__ __forceinline__ void weigh_tile(struct scores &scores, const struct row_stats *stats,
                                                  const struct work &w, const struct fa_params &params)
{
  weigh<WEIGHTS, D_SCORES>(reinterpret_cast<struct scores(&)[1]>(scores), stats, w, params);
}

/* From weights to d_scores, and dV under way. One array is the left operand of both products of gradients, by turns: two
 * would need 16 registers that are not there. The last step's dK has done with it first. */
static __device__ __forceinline__ void finish_scores(struct scores &scores, u32 (&left)[BLOCK_M / 16][4],
                                                     float (&grad_key)[DIM_K / 8][4], float (&grad_value)[DIM_V / 8][4],
                                                     const struct step &step, const struct fa_params &params,
                                                     const struct work &w, int warpgroup, const unsigned char *memory,
                                                     u32 shared)
{
  wait_full(shared + GRAD_FULL, step.stage);
  multiply_rows<DIM_VALUES, BLOCK_N>(scores.d_scores, shared + VALUES + warpgroup * 64 * 128,
                                     shared + GRADS + step.stage.stage * GRAD_BYTES);
  wgmma_wait<1>();
  keep_registers(flat(grad_key));
  if (step.number > 0)
    release(shared + QUERY_EMPTY, one_before(step.stage));
  begin_grad_value(grad_value, left, scores, step, shared);
  wgmma_wait<1>();
  keep_registers(flat(scores.d_scores));
  weigh_tile<false, true>(scores, find_stats(step, memory), w, params);
  mask_step<false, true>(scores, step, w);
  __syncwarp(); /* all lanes have read the statistics: one of them says so when it gives Q back */
}

/* dV is there, and dK under way. */
static __device__ __forceinline__ void begin_grad_key(float (&grad_key)[DIM_K / 8][4], float (&grad_value)[DIM_V / 8][4],
                                                      u32 (&left)[BLOCK_M / 16][4], const struct scores &scores,
                                                      const struct step &step, u32 shared)
{
  keep_registers(flat(grad_value));
  release(shared + GRAD_EMPTY, step.stage);
  pack_fragments(left, scores.d_scores);
  add_grad_key(grad_key, left, shared + QUERIES + step.stage.stage * QUERY_BYTES);
}

/* Products are issued long before they are needed, in the order d_weights and dV of a step, scores of the next, dK. */
static __device__ __forceinline__ void consume_steps(float (&grad_key)[DIM_K / 8][4], float (&grad_value)[DIM_V / 8][4],
                                                     const struct fa_params &params, const struct work &w,
                                                     const unsigned char *memory, u32 shared)
{
  const int warpgroup = warpgroup_index() - 1;
  struct step step = {0, {}, begin_steps(params, w)};
  struct scores scores;
  u32 left[BLOCK_M / 16][4];
  barrier_wait(shared + KEY_FULL, 0);
  begin_scores(scores, step, warpgroup, shared);
  wgmma_wait<0>();
  keep_registers(flat(scores.weights));
  weigh_tile<true, false>(scores, find_stats(step, memory), w, params);
  mask_step<true, false>(scores, step, w);
  while (step.number + 1 < w.num_steps) {
    struct step next = step;
    advance(next, params, w);
    finish_scores(scores, left, grad_key, grad_value, step, params, w, warpgroup, memory, shared);
    begin_scores(scores, next, warpgroup, shared);
    wgmma_wait<1>();
    begin_grad_key(grad_key, grad_value, left, scores, step, shared);
    wgmma_wait<1>();
    keep_registers(flat(scores.weights));
    weigh_tile<true, false>(scores, find_stats(next, memory), w, params);
    mask_step<true, false>(scores, next, w);
    step = next;
  }
  finish_scores(scores, left, grad_key, grad_value, step, params, w, warpgroup, memory, shared);
  wgmma_wait<0>();
  begin_grad_key(grad_key, grad_value, left, scores, step, shared);
  wgmma_wait<0>();
  keep_registers(flat(grad_key));
}

//% include "hopper/backward_consume.h"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward_keys(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
              const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
              const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  struct work w = find_work(params);
  if (!params.grad_key.data && !params.grad_value.data)
    return;
  if (threadIdx.x == 0)
    init_barriers(shared);
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_decrease<${producer_registers}>();
    if (threadIdx.x == 0)
      produce(params, w, &query_map, &key_map, &value_map, &grad_output_map, shared);
  } else {
    registers_increase<${consumer_registers}>();
    consume(params, w, memory, shared);
  }
}
