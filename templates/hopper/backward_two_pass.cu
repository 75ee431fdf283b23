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
//% if !wide
  M_PART = BLOCK_M,
//% end
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
//% let product_n = wide * block_n + (1 - wide) * block_m
//%# Columns of a gradient's product: above 128, a kernel of 512 threads may not have them all in one instruction.
//% let value_first = wide * min(value_n, 128) + (1 - wide) * value_n
//% let value_rest = value_n - value_first
//% let key_first = wide * min(key_n, 128) + (1 - wide) * key_n
//% let key_rest = key_n - key_first
//% for i in 1 .. 33
//%   let wgmma_n = 8 * i
//%   let is_sum = wgmma_n == value_first || wgmma_n == value_rest || wgmma_n == key_first || wgmma_n == key_rest
//%   if is_sum || wgmma_n == product_n || wgmma_n == key_n || wgmma_n == dq_block_n
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
//% include "hopper/ring.h"
//% include "hopper/fragments.h"
//% include "hopper/backward_rows.h"
//% include "hopper/backward_query_rows.h"
//% if wide
//%   include "hopper/backward_wide_keys.h"
//% else
//%   include "cuda/backward_weights.h"
//%   include "hopper/backward_keys.h"
//% end
//% include "hopper/backward_queries.h"
