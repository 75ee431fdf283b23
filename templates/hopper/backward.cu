/*
 * Backward on Hopper (sm_90a) at 16 bits, with wgmma, TMA and warpgroups that have roles of their own: a block of threads for
 * BLOCK_N keys of one key/value head, or, persistent, for several such tiles, one after the other. It walks over the queries
 * of its group of heads, BLOCK_M at a time:
 *
 *     scores = Q K^T          weights = exp2((scores - row_max) * factor) / row_sum
 *     d_weights = dO V^T      d_scores = weights * (d_weights - delta)
 *     dV += weights^T dO      dK += d_scores^T Q      dQ += d_scores K
 *
 *     scores      one warpgroup, or, with narrow heads, whose products are short for their exponentials, one for each 64 keys
 *     dV, dK      a warpgroup each, or, with narrow heads, one for both
 *     dQ          a warpgroup, which adds it to the sums in the workspace, in fp32, in the order in which blocks come to
 *                 them; one of its threads loads
 *
 * What roles share is in roles_shared.h.
 *
 * A call runs begin_queries (statistics and delta of each row), backward, end_queries (dQ to the caller's tensor): the
 * first and the last are those of the portable kernels (cuda/backward_begin.h, cuda/backward_end.h).
 */
//% include "common/params.h"
//% let value_n = round_up(head_dim_v, 8)
//% let key_n = round_up(head_dim, 8)
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  DIM_QK = ${dim_qk}, /* columns that products sum over, and those of dQ */
  DIM_VALUES = ${dim_v},
  DIM_K = ${key_n}, /* columns of dK and dV: what wgmma takes */
  DIM_V = ${value_n},
  CHUNKS_QK = ${ceil_div(head_dim, 64)}, /* of 64 columns, what the swizzle takes: 128 bytes of a row */
  CHUNKS_V = ${ceil_div(head_dim_v, 64)},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  STAGES = ${num_stages}, /* tiles of Q, and of dO, in shared memory */
  THREADS = ${main_threads},
  WARPS = THREADS / 32,
  QUERY_BOX = BLOCK_M, /* rows of a box of Q or dO, and of K or V, that TMA loads */
  KEY_BOX = BLOCK_N,
  KEY_BYTES = CHUNKS_QK * BLOCK_N * 128,
  VALUE_BYTES = CHUNKS_V * BLOCK_N * 128,
  QUERY_BYTES = CHUNKS_QK * BLOCK_M * 128,
  GRAD_BYTES = CHUNKS_V * BLOCK_M * 128,
  STATS_BYTES = BLOCK_M * 16,
};

//% include "cuda/ptx.h"
//% include "cuda/hopper.h"
//% for i in 1 .. 17
//%   let wgmma_n = 8 * i
//%   if wgmma_n == 64 || wgmma_n == value_n || wgmma_n == key_n
//%     include "cuda/wgmma.h"
//%   end
//% end
//% include "cuda/tile.h"
typedef half_bits element;
//% include "cuda/factor.h"
//% include "cuda/workspace.h"
//% include "cuda/backward_begin.h"
//% include "cuda/backward_end.h"
//% include "cuda/backward_work.h"
//% include "hopper/ring.h"
//% include "hopper/fragments.h"
//% include "hopper/backward_query_rows.h"
//% let many_tiles = persistent
//% include "hopper/roles_shared.h"
//% include "hopper/roles_load.h"
//% include "hopper/roles_scores.h"
//% let value_first = value_n
//% let value_rest = 0
//% let key_first = key_n
//% let key_rest = 0
//% include "hopper/roles_sums.h"
//% include "hopper/roles_grad_query.h"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
         const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
         const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  if (threadIdx.x == 0)
    init_barriers(shared, ${scorers}, 2);
  __syncthreads();
  const int warpgroup = warpgroup_index();
  if (warpgroup == 0) {
    registers_decrease<${dq_registers}>();
    sum_grad_query(params, {&query_map, &key_map, &value_map, &grad_output_map}, shared);
  } else if (warpgroup <= ${scorers}) {
    registers_decrease<${score_registers}>();
    make_scores<PARTS / ${scorers}>(params, (warpgroup - 1) % ${scorers}, memory, shared);
  } else {
    registers_increase<${sum_registers}>();
//% if scorers > 1
    sum_keys_and_values(params, shared);
//% elif head_dim == head_dim_v
    sum_gradient<HEAD_DIM, DIM_K>(warpgroup == 2 ? values_of(params, shared) : keys_of(params, shared), params);
//% else
    if (warpgroup == 2)
      sum_gradient<HEAD_DIM_V, DIM_V>(values_of(params, shared), params);
    else
      sum_gradient<HEAD_DIM, DIM_K>(keys_of(params, shared), params);
//% end
  }
}
