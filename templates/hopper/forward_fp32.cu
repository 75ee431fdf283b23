/*
 * Forward on Hopper (sm_90a) in fp32: products are three of fp16 (cuda/split.h), by wgmma. Two phases:
 *
 *     split_operands   Q, K and V as fp16 parts in the workspace, laid out as shared memory is to hold them
 *     forward          a block of threads takes BLOCK_M queries of one head at a time:
 *
 *         producer     one thread: bulk copies of Q, and of panels of K and V, into shared memory
 *         consumers    CONSUMERS warpgroups with 64 rows of queries each: products and softmax
 *
 * A panel is 64 columns of a block of keys, high and low parts. All panels, of K and of V, go through one ring, in the
 * order in which they are used. Tensor cores truncate sums, so that Q K^T is summed in pieces of 64 columns and P V in
 * pieces of ${sum_keys} keys, each from zero, and the pieces are added in fp32.
 *
 * Three products take so long that a warpgroup's softmax fits into the products of another. Warpgroups take turns at
 * issuing them: two turns for a block of keys, one for Q K^T and one for P V, so that they work on the same panels; or,
 * with a softmax that is longer than one product, one turn for P V and Q K^T of the next block, half a block apart.
 */
//% include "common/params.h"
//% let chunks_v = ceil_div(head_dim_v, 64)
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  DIM_QK = ${round_up(head_dim, 16)}, /* columns that are computed with: what wgmma takes */
  DIM_V = ${chunks_v * width_v},
  CHUNKS_QK = ${ceil_div(head_dim, 64)}, /* of 64 columns, what the swizzle takes: 128 bytes of a row */
  CHUNKS_V = ${chunks_v},
  WIDTH_V = ${width_v}, /* columns of V's chunks */
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  SUM_KEYS = ${sum_keys}, /* whose terms tensor cores sum: they cut off the bits behind 25 at each step */
  PIECES_AT_ONCE = ${pieces_at_once}, /* of P V, in registers */
  STAGES = ${num_stages}, /* panels in shared memory */
  TURNS = ${turns}, /* of a warpgroup at each block of keys */
  CONSUMERS = BLOCK_M / 64,
  THREADS = 128 * (CONSUMERS + 1),
  M_TILES = 1, /* 16 rows of a warp */
  N_TILES = BLOCK_N / 8,
  V_TILES = DIM_V / 8,
  QUERY_BYTES = CHUNKS_QK * BLOCK_M * 256,
  PANEL_BYTES = BLOCK_N * 256,
  KEY_BYTES = CHUNKS_QK * PANEL_BYTES, /* of a block of keys */
  VALUE_BYTES = CHUNKS_V * PANEL_BYTES,
  KEY_AND_VALUE_BYTES = (CHUNKS_QK + CHUNKS_V) * 256, /* of one key in global memory */
};

//% include "cuda/ptx.h"
//% include "cuda/hopper.h"
//% for i in 0 .. 1 + (width_v != block_n)
//%   let wgmma_n = i * width_v + (1 - i) * block_n
//%   include "cuda/wgmma.h"
//% end
//% include "cuda/tile.h"
//% include "cuda/factor.h"
typedef float element;
//% include "cuda/split.h"
//% include "cuda/softmax.h"
//% include "cuda/forward_end.h"
//% include "hopper/forward_work.h"
//% include "hopper/ring.h"
//% include "hopper/forward_turns.h"
//% include "hopper/forward_fp32_split.h"
//% include "hopper/forward_fp32_shared.h"
//% include "hopper/forward_fp32_produce.h"
//% include "hopper/fragments.h"
//% include "hopper/forward_fp32_products.h"

//% if block_n <= 64
/* Panels that this warpgroup does not need go back as soon as all lanes know that they are there. */
static __device__ __forceinline__ void skip_panels(int count, u32 shared, struct panels &panels)
{
  for (int panel = 0; panel < count; panel++) {
    take_panel(shared, panels);
    __syncwarp();
    release_panel(shared, panels);
  }
}

/* A block of keys that none of this warpgroup's queries sees: turns are passed on. The ring may be too small for K and V
 * together, so K goes back before the turn of P V, which another gives when it has all of V. (With larger blocks there is
 * less to pass over, and ptxas makes the main loop 5 % slower at d 64.) */
static __device__ __forceinline__ void skip_block(int warpgroup, bool is_first, u32 shared, struct panels &panels)
{
  if (TURNS == 2 || is_first)
    take_turn(warpgroup);
  give_turn(warpgroup);
  skip_panels(CHUNKS_QK, shared, panels);
  take_turn(warpgroup);
  if (TURNS == 2)
    give_turn(warpgroup);
  skip_panels(CHUNKS_V, shared, panels);
}

//% end
/* One tile of queries, as a consumer sees it. */
static __device__ __forceinline__ void attend(const struct fa_params &params, const struct work &w, u32 shared,
                                              struct ring<1> &queries, struct panels &panels)
{
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const struct operands from = find_operands(params, w);
  float output[M_TILES][V_TILES][4] = {}, scores[M_TILES][N_TILES][4];
  struct weights weights;
  struct rows rows;
  const int row = 64 * warpgroup + 16 * warp + lane / 4, first_key = lane % 4 * 2;
  begin_rows(rows, params, w.first_query + row, from.query_factors + row);
  const u32 tile = shared + QUERIES + warpgroup * 64 * 128;

  wait_full(shared + QUERY_FULL, queries);
  int block = w.num_blocks - 1;
//% if block_n <= 64
  for (const int keys_seen = find_keys_seen(params, w, warpgroup); block * BLOCK_N >= keys_seen; block--)
    skip_block(warpgroup, block == w.num_blocks - 1, shared, panels);
//% end
  for (; block >= 0; block--) {
    const float2 factors = from.key_factors[block]; /* long before they are needed */
    if (TURNS == 2 || block == w.num_blocks - 1)
      take_turn(warpgroup);
    multiply_keys(scores, tile, shared, panels, warpgroup);
    rows.key_factor = factors.x;
    softmax(scores, rows, block * BLOCK_N + first_key, w.seqlen_k);
    split_weights(weights, scores);
    take_turn(warpgroup);
    multiply_values(output, weights, rows, factors.y, shared, panels);
    if (TURNS == 2 || block == 0)
      give_turn(warpgroup);
  }
  release_and_advance(shared + QUERY_EMPTY, queries);
  finish_rows(rows);
  store_output(params, w.batch, w.head, output, rows);
}

static __device__ __forceinline__ void consume(const struct fa_params &params, u32 shared)
{
  struct ring<1> queries = {};
  struct panels panels = {};
  if (CONSUMERS > 1 && threadIdx.x / 128 == CONSUMERS)
    give_turn(CONSUMERS - 1);
  struct work w;
  for (u32 round = 0; next_work(params, round, w);)
    attend(params, w, shared, queries, panels);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const __grid_constant__ struct fa_params params)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  if (threadIdx.x == 0)
    init_barriers(shared);
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_decrease<${producer_registers}>();
    if (threadIdx.x == 0)
      produce(params, shared);
  } else {
    registers_increase<${consumer_registers}>();
    consume(params, shared);
  }
}
