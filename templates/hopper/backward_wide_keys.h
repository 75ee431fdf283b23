/*
 * dK and dV of head dims above 128: a block of threads for 64 keys of one key/value head, which walks over the queries of
 * its group of heads, 64 at a time:
 *
 *     scores = Q K^T          weights = exp2((scores - row_max) * factor) / row_sum
 *     d_weights = dO V^T      d_scores = weights * (d_weights - delta)
 *     dV += weights^T dO      dK += d_scores^T Q
 *
 *     producer    one warp: TMA copies of K and V once, of dO, Q and its statistics for each step
 *     scores      a warpgroup: weights and d_scores of each step, into shared memory
 *     dV, dK      a warpgroup each: adds up one gradient, in registers, in the order of the steps: the same call gives the
 *                 same bits
 *
 * So nothing is computed twice, and a step's exponentials fall into the products that add up the step before.
 */
//% include "hopper/backward_wide_shared.h"
//% include "hopper/backward_wide_produce.h"
//% include "hopper/backward_wide_scores.h"
//% include "hopper/backward_wide_sums.h"

extern "C" __global__ void __launch_bounds__(wide::THREADS, 1)
backward_keys(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
              const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
              const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  if (!params.grad_key.data && !params.grad_value.data)
    return;
  struct work w = find_work(params);
  if (threadIdx.x == 0)
    init_wide_barriers(shared);
  __syncthreads();
  const int warpgroup = warpgroup_index();
  if (warpgroup == 0) {
    registers_decrease<${producer_registers}>();
    if (threadIdx.x == 0)
      produce_wide(params, w, &query_map, &key_map, &value_map, &grad_output_map, shared);
  } else if (warpgroup == 1) {
    registers_increase<${score_registers}>();
    if (w.num_steps > 0)
      make_scores(params, w, memory, shared);
  } else {
    registers_increase<${sum_registers}>();
    if (warpgroup == 2)
      sum_grad_value(params, w, shared);
    else
      sum_grad_key(params, w, shared);
  }
}
