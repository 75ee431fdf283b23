/*
 * Backward on Hopper (sm_90a) at 16 bits, where sums have a fixed order: in two passes, each of which keeps its sums in
 * registers. That takes seven products where one pass takes five, but nothing is added in global memory. A call runs
 *
 *     begin_queries      statistics and delta of each row, to the workspace (cuda/backward_begin.h)
 *     backward_keys      dK and dV, by blocks of keys (backward_keys.h; with a head dim above 128, backward_wide_keys.h)
 *     backward_queries   dQ, by tiles of queries (backward_queries.h)
 */
//% include "common/params.h"
//% let value_n = round_up(head_dim_v, 8)
//% let key_n = round_up(head_dim, 8)
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  DIM_QK = ${dim_qk}, /* columns that products sum over */
  DIM_VALUES = ${dim_v},
  DIM_K = ${key_n}, /* columns of gradients: what wgmma takes */
  DIM_V = ${value_n},
  CHUNKS_QK = ${ceil_div(head_dim, 64)}, /* of 64 columns, what the swizzle takes: 128 bytes of a row */
  CHUNKS_V = ${ceil_div(head_dim_v, 64)},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  STAGES = ${num_stages}, /* tiles of Q, and of dO, in shared memory */
  CONSUMERS = 2, /* warpgroups that compute */
  THREADS = 128 * (CONSUMERS + 1),
  M_PART = BLOCK_M,
  QUERY_BOX = ${query_box}, /* rows of a box of Q or dO, and of K or V, that TMA loads */
  KEY_BOX = ${key_box},
  KEY_BYTES = CHUNKS_QK * BLOCK_N * 128,
  VALUE_BYTES = CHUNKS_V * BLOCK_N * 128,
  QUERY_BYTES = CHUNKS_QK * BLOCK_M * 128,
  GRAD_BYTES = CHUNKS_V * BLOCK_M * 128,
  STATS_BYTES = BLOCK_M * 16,
};

//% include "cuda/ptx.h"
//% include "cuda/hopper.h"
//% let minor_n = wide * round_up(max(head_dim, head_dim_v) - 128, 8)
//% let first_n = wide * 128 + (1 - wide) * value_n
//% let second_n = wide * minor_n + (1 - wide) * key_n
//% for i in 0 .. 5
//%   let wgmma_n = (i == 0) * block_m + (i == 1) * first_n + (i == 2) * second_n + (i == 3) * key_n + (i == 4) * dq_block_n
//%   let known = i > 0 && wgmma_n == block_m || i > 1 && wgmma_n == first_n || i > 2 && wgmma_n == second_n || i > 3 && wgmma_n == key_n
//%   if !known
//%     include "cuda/wgmma.h"
//%   end
//% end
//% include "cuda/tile.h"
typedef half_bits element;
//% include "cuda/factor.h"
//% include "cuda/workspace.h"
//% include "cuda/backward_begin.h"
//% include "cuda/backward_gradient.h"
//% include "cuda/backward_work.h"
//% include "cuda/backward_weights.h"
//% include "hopper/ring.h"
//% include "hopper/fragments.h"
//% let product_n = block_m
//% include "hopper/backward_rows.h"
//% if wide
//%   include "hopper/backward_wide_shared.h"
//%   include "hopper/backward_wide_produce.h"
//%   include "hopper/backward_wide_products.h"
//%   include "hopper/backward_wide_keys.h"
//% else
//%   include "hopper/backward_keys.h"
//% end
//% include "hopper/backward_queries.h"
