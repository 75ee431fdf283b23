/*
 * dK and dV of backward on Hopper (sm_90a) at 16 bits, for head dims above 128: see hopper/backward_wide_keys.h. dQ is not
 * computed here. A call runs begin_queries (statistics and delta of each row, cuda/backward_begin.h), backward_keys.
 */
//% include "common/params.h"
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  DIM_QK = ${dim_qk}, /* columns that products sum over */
  DIM_VALUES = ${dim_v},
  CHUNKS_QK = ${ceil_div(head_dim, 64)}, /* of 64 columns, what the swizzle takes: 128 bytes of a row */
  CHUNKS_V = ${ceil_div(head_dim_v, 64)},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  STAGES = ${num_stages}, /* tiles of Q, of dO and of what a step's queries make of them, in shared memory */
  CONSUMERS = 2,
  WARPS = 4 * CONSUMERS,
  THREADS = 128 * (CONSUMERS + 1),
  M_PART = BLOCK_M,
};

//% include "cuda/ptx.h"
//% include "cuda/hopper.h"
//% let minor_n = round_up(max(head_dim, head_dim_v) - 128, 8)
//% for i in 0 .. 3
//%   let wgmma_n = (i == 0) * block_m + (i == 1) * 128 + (i == 2) * minor_n
//%   if i < 2 || (wgmma_n != block_m && wgmma_n != 128)
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
//% include "hopper/backward_rows.h"
//% include "hopper/backward_wide_shared.h"
//% include "hopper/backward_wide_produce.h"
//% include "hopper/backward_wide_products.h"
//% include "hopper/backward_wide_keys.h"
