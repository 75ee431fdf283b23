/*
 * Backward on CUDA with mma.sync (FlashAttention-2, arXiv:2307.08691, algorithm 2): a block of threads for BLOCK_N keys
 * of one key/value head. It walks over the queries of its group of heads, BLOCK_M at a time:
 *
 *     scores^T = K Q^T        weights^T = exp2((scores^T - row_max) * factor) / row_sum
 *     d_weights^T = V dO^T    d_scores^T = weights^T * (d_weights^T - delta)
 *     dV += weights^T dO      dK += d_scores^T Q      dQ += d_scores K
 *
 * A group of D_SPLITS warps has WARP_KEYS keys. Keys are the rows of all but the last product, so that weights and d_scores
 * are left operands as they come, in registers (D_SPLITS = 1) or through shared memory (each warp of a group then works
 * on a part of the queries first and of the columns of dK and dV later). dQ is summed in the workspace, in fp32.
//% if ordered
 * Its parts are added in one fixed order: each waits for its turn.
//% end
//% if dtype == "fp32"
 * Products are three of fp16 (split.h); every product of 16 (scores) or BLOCK_M (dK, dV) terms is added in fp32.
//% end
 *
 * A step is a block of queries: its scores, a barrier, its gradients.
//% if num_stages > 2
 * No other: scores of the next step go to other tiles than this step's, and its queries have come before the barrier.
 * So warps with less to do in one half of a step are ahead in the other, and while some exponentiate, others multiply.
//%   if dtype == "fp32" && d_splits > 1
 * (fp32 has one more among the scores, where warps that share keys look for their largest.)
//%   end
//% end
 *
 * A call runs: begin_queries (statistics and delta of each row, see backward_begin.h),
//% if dtype == "fp32"
 * split_keys (K and V as fp16 parts),
//% end
 * backward, end_queries (dQ from the workspace to the caller's tensor).
 */
//% include "common/params.h"
//% let split = dtype == "fp32"
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  DIM_QK = ${dim_qk}, /* head dims, rounded up to what mma takes */
  DIM_V = ${dim_v},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  STAGES = ${num_stages}, /* tiles of Q, and of dO, in shared memory */
  WARPS = ${num_warps},
  THREADS = WARPS * 32,
  WARP_KEYS = ${warp_keys},
  KEY_TILES = WARP_KEYS / 16, /* what a warp reads from the tiles of queries serves so many products */
  GROUPS = BLOCK_N / WARP_KEYS,
  D_SPLITS = WARPS / GROUPS,
  M_PART = BLOCK_M / D_SPLITS, /* queries whose scores a warp computes */
  TILES_QK = ${tiles_qk}, /* of 8 columns of dK, of a warp */
  TILES_V = ${tiles_v},
  PARTS = ${1 + split},
  QUERY_TILE = PARTS * BLOCK_M * DIM_QK, /* elements in shared memory */
  GRAD_TILE = PARTS * BLOCK_M * DIM_V,
  KEY_TILE = PARTS * BLOCK_N * DIM_QK,
  VALUE_TILE = PARTS * BLOCK_N * DIM_V,
  SCORE_TILE = PARTS * BLOCK_N * BLOCK_M,
  SCORE_TILES = ${min(d_splits, 2)}, /* d_scores, and weights where warps exchange them */
  SCORE_STAGES = ${1 + (num_stages > 2)}, /* sets of them in shared memory */
};
static_assert(WARPS == GROUPS * D_SPLITS && M_PART % 8 == 0, "the generator lets only such configs through");

//% include "cuda/ptx.h"
//% include "cuda/tile.h"
//% if split
typedef float element;
//%   include "cuda/split.h"
//%   include "cuda/split_tile.h"
//%   include "cuda/split_keys.h"
//% else
typedef half_bits element;
//% end
//% include "cuda/factor.h"
//% include "cuda/workspace.h"
//% include "cuda/backward_begin.h"
//% include "cuda/backward_end.h"
//% include "cuda/fragment.h"
//% include "cuda/backward_warps.h"
//% include "cuda/backward_work.h"
//% include "cuda/backward_weights.h"
//% include "cuda/backward_scores.h"
//% include "cuda/backward_gradients.h"

extern "C" __global__ void __launch_bounds__(THREADS, ${min_blocks})
backward(const __grid_constant__ struct fa_params params)
{
  extern __shared__ __align__(128) unsigned char shared[];
  struct tiles tiles = lay_out(shared);
  struct work w = find_work(params);

//% if head_dim % 16 != 0 || head_dim_v % 16 != 0
  clear_shared(shared, ${shared_bytes});
  __syncthreads();
//% end
  float grad_key[KEY_TILES][TILES_QK][4] = {}, grad_value[KEY_TILES][TILES_V][4] = {};
  struct cursor now = begin_steps(params, w), next = now;
  if (w.num_steps > 0)
    load_key_values(tiles, params, w);
#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < w.num_steps) {
      load_queries(tiles, params, w, next);
      advance(next, params, w);
    }
    copy_commit();
  }
//% if num_stages > 2
  copy_wait<STAGES - 2>();
  __syncthreads();
//% end
  for (int step = 0; step < w.num_steps; step++) {
//% if num_stages == 1
    __syncthreads(); /* every warp is past the tiles */
    load_queries(tiles, params, w, now);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
//% elif num_stages == 2
    copy_wait<0>();
    __syncthreads(); /* every warp is past the tiles of the last step */
    if (step + 1 < w.num_steps) {
      load_queries(tiles, params, w, next);
      advance(next, params, w);
    }
    copy_commit();
//% end
    struct scores scores[KEY_TILES];
    compute_scores(scores, tiles, params, w, now);
    share_scores(scores, tiles);
//% if num_stages > 2
    copy_wait<STAGES - 3>();
//% end
    __syncthreads();
//% if num_stages > 2
    if (step + STAGES - 1 < w.num_steps) { /* every warp is past the tiles of the last step */
      load_queries(tiles, params, w, next);
      advance(next, params, w);
    }
    copy_commit();
//% end
    if (params.grad_value.data)
      add_grad_value(grad_value, scores, tiles, now.stage);
    if (params.grad_key.data)
      add_grad_key(grad_key, scores, tiles, now.stage);
    if (params.grad_query.data)
      add_grad_query(tiles, w, now);
    advance(now, params, w);
//% if num_stages > 2
    use_other_scores(tiles, step);
//% end
  }
  int part = threadIdx.x / 32 % D_SPLITS;
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++) {
    int first_key = w.first_key + threadIdx.x / 32 / D_SPLITS * WARP_KEYS + t * 16;
    if (params.grad_key.data)
      store_gradient<TILES_QK, HEAD_DIM>(params.grad_key, w.batch, w.kv_head, first_key, w.seqlen_k, part * TILES_QK,
                                         grad_key[t], (float)params.softmax_scale);
    if (params.grad_value.data)
      store_gradient<TILES_V, HEAD_DIM_V>(params.grad_value, w.batch, w.kv_head, first_key, w.seqlen_k, part * TILES_V,
                                          grad_value[t], 1.0f);
  }
}
