/*
 * Backward on Hopper (sm_90a) at 16 bits, where sums have a fixed order: in two passes, each of which keeps its sums in
 * registers. That takes seven products where one pass takes five, but nothing is added in global memory. A call runs
 *
 *     begin_queries      statistics and delta of each row, to the workspace (cuda/backward_begin.h)
 *     backward_keys      dK and dV, by blocks of keys (backward_keys.h)
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
  CONSUMERS = BLOCK_N / 64,
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
//% for i in 0 .. 4
//%   let wgmma_n = (i == 0) * block_m + (i == 1) * value_n + (i == 2) * key_n + (i == 3) * dq_block_n
//%   if (i < 1 || wgmma_n != block_m) && (i < 2 || wgmma_n != value_n) && (i < 3 || wgmma_n != key_n)
//%     include "cuda/wgmma.h"
//%   end
//% end
//% include "cuda/tile.h"
typedef half_bits element;
//% include "cuda/factor.h"
//% include "cuda/workspace.h"
//% include "cuda/backward_begin.h"
//% include "cuda/backward_end.h"
//% include "hopper/ring.h"
//% include "hopper/fragments.h"
//% if keys_pass == "narrow"
//%   include "hopper/backward_keys.h"
//% end
//% include "hopper/backward_queries.h"
