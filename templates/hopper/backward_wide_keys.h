/*
 * dK and dV of head dims above 128: a block of threads for 64 keys of one key/value head, which walks over the queries of
 * its group of heads, 64 at a time, by warpgroups with a role each (roles_shared.h): loads, scores, dV, dK. The same call
 * gives the same bits.
 */
//% let many_tiles = 0
//% let key_stages = 1
//% include "hopper/roles_shared.h"
//% include "hopper/roles_load.h"
//% include "hopper/roles_scores.h"
//% include "hopper/roles_sums.h"

extern "C" __global__ void __launch_bounds__(${wide_threads}, 1)
backward_keys(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
              const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
              const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  if (!params.grad_key.data && !params.grad_value.data)
    return;
  if (threadIdx.x == 0)
    init_barriers(shared, 1, 1);
  __syncthreads();
  const int warpgroup = warpgroup_index();
  if (warpgroup == 0) {
    registers_decrease<${producer_registers}>();
    if (threadIdx.x == 0) {
      const struct maps maps = {&query_map, &key_map, &value_map, &grad_output_map};
      struct loader next = {};
      struct work w;
      u32 round = 0;
      if (next_work(params, round, w))
        load_keys({}, maps, w, shared);
      do
        load_step(next, maps, params, shared);
      while (next.left > 0);
    }
  } else if (warpgroup == 1) {
    registers_increase<${score_registers}>();
    make_scores<PARTS>(params, 0, memory, shared);
  } else {
    registers_increase<${sum_registers}>();
//% if head_dim == head_dim_v
    sum_gradient<HEAD_DIM, DIM_K>(warpgroup == 2 ? values_of(params, shared) : keys_of(params, shared), params);
//% else
    if (warpgroup == 2)
      sum_gradient<HEAD_DIM_V, DIM_V>(values_of(params, shared), params);
    else
      sum_gradient<HEAD_DIM, DIM_K>(keys_of(params, shared), params);
//% end
  }
}
