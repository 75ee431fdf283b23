/*
 * Backward on Hopper (sm_90a) at 16 bits, with wgmma, TMA and warps that have roles of their own (after FlashAttention-3,
 * arXiv:2407.08608): a block of threads for BLOCK_N keys of one key/value head. It walks over the queries of its group of
 * heads, BLOCK_M at a time:
 *
 *     scores^T = K Q^T        weights^T = exp2((scores^T - row_max) * factor) / row_sum
 *     d_weights^T = V dO^T    d_scores^T = weights^T * (d_weights^T - delta)
 *     dV += weights^T dO      dK += d_scores^T Q      dQ += d_scores K
 *
 *     producer    one warp: TMA copies of K and V once, of Q, its statistics and dO for each step
 *     consumers   CONSUMERS warpgroups with 64 keys each
 *
 * dQ of a step needs the d_scores of all warpgroups. It is computed a step later, from one of two tiles of d_scores, so
 * that a warpgroup may be a step ahead of the other. dQ is summed in the workspace, in fp32, in the order in which blocks
 * come to it.
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
  CONSUMERS = BLOCK_N / 64,
  WARPS = 4 * CONSUMERS,
  THREADS = 128 * (CONSUMERS + 1),
  QUERY_BOX = BLOCK_M, /* rows of a box of Q or dO, and of K or V, that TMA loads */
  KEY_BOX = BLOCK_N,
  M_PART = BLOCK_M,
  KEY_BYTES = CHUNKS_QK * BLOCK_N * 128,
  VALUE_BYTES = CHUNKS_V * BLOCK_N * 128,
  QUERY_BYTES = CHUNKS_QK * BLOCK_M * 128,
  GRAD_BYTES = CHUNKS_V * BLOCK_M * 128,
  D_SCORE_BYTES = BLOCK_M / 64 * BLOCK_N * 128,
  STATS_BYTES = BLOCK_M * 16,
};

//% include "cuda/ptx.h"
//% include "cuda/hopper.h"
//% for i in 0 .. 4
//%   let wgmma_n = (i == 0) * block_m + (i == 1) * value_n + (i == 2) * key_n + (i == 3) * dq_n
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
//% include "cuda/backward_work.h"
//% include "cuda/backward_weights.h"
//% include "hopper/ring.h"
//% include "hopper/backward_shared.h"
//% include "hopper/backward_produce.h"
//% include "hopper/fragments.h"
//% let product_n = block_m
//% include "hopper/backward_rows.h"
//% include "hopper/backward_products.h"
//% include "hopper/backward_d_scores.h"
//% include "hopper/backward_steps.h"

static __device__ __forceinline__ float *find_grad_query(const struct step &step)
{
  return step.at.at.grad_query + (long long)step.at.block * (BLOCK_M * DIM_QK);
}

/* To the tile that all warpgroups see. */
static __device__ __forceinline__ void publish_d_scores(const u32 (&d_scores)[BLOCK_M / 16][4], const struct step &step,
                                                        u32 shared)
{
  wait_empty(shared + D_SCORE_EMPTY, step.tiles);
  share_d_scores(shared + D_SCORES + step.tiles.stage * D_SCORE_BYTES, d_scores);
  fence_async_shared();
  __syncwarp();
  release(shared + D_SCORE_FULL, step.tiles);
}

/* From weights to d_scores, and dV under way. The last step's dK is there, too. */
static __device__ __forceinline__ void finish_scores(struct scores &scores, float (&grad_key)[DIM_K / 8][4],
                                                     float (&grad_value)[DIM_V / 8][4],
                                                     u32 (&weights)[BLOCK_M / 16][4], const struct step &step,
                                                     const struct fa_params &params, const struct work &w, int warpgroup,
                                                     const unsigned char *memory, u32 shared)
{
  u32 d_scores[BLOCK_M / 16][4];
  wait_full(shared + GRAD_FULL, step.stage);
  multiply_rows<DIM_VALUES, BLOCK_N>(scores.d_scores, shared + VALUES + warpgroup * 64 * 128,
                                     shared + GRADS + step.stage.stage * GRAD_BYTES);
//% if block_m == 64
  begin_grad_value(grad_value, weights, scores, step, shared);
  wgmma_wait<1>();
//% else
  wgmma_wait<0>();
//% end
  keep_registers(flat(scores.d_scores));
  keep_registers(flat(grad_key));
  weigh<false, true>(scores, find_stats(step, memory), w, params);
  mask_step<false, true>(scores, step, w);
  pack_fragments(d_scores, scores.d_scores);
  publish_d_scores(d_scores, step, shared);
//% if block_m > 64
  begin_grad_value(grad_value, weights, scores, step, shared); /* registers do not suffice to do that earlier */
//% end
}

/* Issue dQ of a step whose d_scores come from all warpgroups. */
static __device__ __forceinline__ void begin_grad_query(float (&grad_query)[${dq_n / 8}][4], const struct ring<2> &tiles,
                                                        int warpgroup, u32 shared)
{
  wait_full(shared + D_SCORE_FULL, tiles);
  multiply_d_scores(grad_query, shared + D_SCORES + tiles.stage * D_SCORE_BYTES, shared + KEYS, warpgroup);
}

/* Add dQ to the sums in the workspace. */
static __device__ __forceinline__ void end_grad_query(float (&grad_query)[${dq_n / 8}][4], float *sums,
                                                      const struct ring<2> &tiles, u32 shared)
{
  release(shared + D_SCORE_EMPTY, tiles);
  if (sums)
    add_grad_query(sums, grad_query);
}

/* Products are issued long before they are needed, in the order d_weights and dV of a step, dQ of the one before, scores of
 * the next, dK. dQ is a step late, so that no warpgroup waits for the others' d_scores. It is added while the next scores
 * are under way, long before d_weights take its registers: a reduction reads them late. */
static __device__ __forceinline__ void consume_steps(float (&grad_key)[DIM_K / 8][4], float (&grad_value)[DIM_V / 8][4],
                                                     const struct fa_params &params, const struct work &w,
                                                     const unsigned char *memory, u32 shared)
{
  const int warpgroup = warpgroup_index() - 1;
  struct step step = {0, {}, {}, begin_steps(params, w)};
  struct scores scores;
  u32 weights[BLOCK_M / 16][4];
  float grad_query[${dq_n / 8}][4], *sums = 0;
  barrier_wait(shared + KEY_FULL, 0);
  begin_scores(scores, step, warpgroup, shared);
  wgmma_wait<0>();
  keep_registers(flat(scores.weights));
  weigh<true, false>(scores, find_stats(step, memory), w, params);
  mask_step<true, false>(scores, step, w);
  while (step.number + 1 < w.num_steps) {
    struct step next = step;
    advance(next, params, w);
    const struct ring<2> last_tiles = one_before(step.tiles);
    finish_scores(scores, grad_key, grad_value, weights, step, params, w, warpgroup, memory, shared);
    if (step.number > 0) {
      release(shared + QUERY_EMPTY, one_before(step.stage));
      wait_full(shared + D_SCORE_FULL, last_tiles);
    }
    /* The first step has no last one: a product of anything, which goes nowhere, costs less than a loop of its own. */
    multiply_d_scores(grad_query, step.number > 0 ? shared + D_SCORES + last_tiles.stage * D_SCORE_BYTES : shared + KEYS,
                      shared + KEYS, warpgroup);
    wgmma_wait<1>();
    keep_registers(flat(grad_value));
    release(shared + GRAD_EMPTY, step.stage);
    begin_scores(scores, next, warpgroup, shared);
    add_grad_key(grad_key, shared + D_SCORES + step.tiles.stage * D_SCORE_BYTES,
                 shared + QUERIES + step.stage.stage * QUERY_BYTES, warpgroup);
    wgmma_wait<2>();
    keep_registers(flat(grad_query));
    if (step.number > 0)
      end_grad_query(grad_query, sums, last_tiles, shared);
    wgmma_wait<1>();
    keep_registers(flat(scores.weights));
    weigh<true, false>(scores, find_stats(next, memory), w, params);
    mask_step<true, false>(scores, next, w);
    sums = params.grad_query.data ? find_grad_query(step) : 0;
    step = next;
  }
  finish_scores(scores, grad_key, grad_value, weights, step, params, w, warpgroup, memory, shared);
  add_grad_key(grad_key, shared + D_SCORES + step.tiles.stage * D_SCORE_BYTES,
               shared + QUERIES + step.stage.stage * QUERY_BYTES, warpgroup);
  wgmma_wait<0>();
  keep_registers(flat(grad_value));
  keep_registers(flat(grad_key));
  if (step.number > 0) {
    begin_grad_query(grad_query, one_before(step.tiles), warpgroup, shared);
    wgmma_wait<0>();
    keep_registers(flat(grad_query));
    end_grad_query(grad_query, sums, one_before(step.tiles), shared);
  }
  begin_grad_query(grad_query, step.tiles, warpgroup, shared);
  wgmma_wait<0>();
  keep_registers(flat(grad_query));
  if (params.grad_query.data)
    add_grad_query(find_grad_query(step), grad_query);
}

//% include "hopper/backward_consume.h"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
         const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
         const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  struct work w = find_work(params);
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
