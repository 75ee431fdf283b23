/*
 * dQ, in the second pass: a block of threads takes BLOCK_M queries of one head at a time, as forward does, and walks
 * over the keys that they see, from the last to the first, BLOCK_N at a time:
 *
 *     scores = Q K^T          weights = exp2((scores - row_max) * factor) / row_sum
 *     d_weights = dO V^T      d_scores = weights * (d_weights - delta)
 *     dQ += d_scores K
 *
 *     producer    one warp: TMA copies of Q and dO for each tile, of K and V into rings
 *     consumers   two warpgroups with 64 rows of queries each
 *
 * Queries are the rows of all products, so that statistics are a thread's own, in registers, and d_scores are the left
 * operand of dQ as they come. All three products of a step are issued together: scores and d_weights of one block of
 * keys, dQ of the block before, whose K is still there. Exponentials of a block fall into its d_weights and that dQ.
 *
 * Names are those of the other pass with other sizes; hence the namespace.
 */
namespace queries_pass {

//% let key_n = round_up(head_dim, 8)
enum {
  BLOCK_M = 64 * CONSUMERS,
  BLOCK_N = ${dq_block_n},
  STAGES = ${dq_stages}, /* tiles of K: one more than of V, for dQ of the block before */
  VALUE_STAGES = STAGES - 1,
  QUERY_BYTES = CHUNKS_QK * BLOCK_M * 128,
  GRAD_BYTES = CHUNKS_V * BLOCK_M * 128,
  KEY_BYTES = CHUNKS_QK * BLOCK_N * 128,
  VALUE_BYTES = CHUNKS_V * BLOCK_N * 128,
  KEY_AND_VALUE_BYTES = (HEAD_DIM + HEAD_DIM_V) * 2, /* of one key in global memory */
};

/* Shared memory. Tiles begin at multiples of 1024 bytes, as the pattern of the swizzle does; a tile is chunks of 64
 * columns, a chunk is rows of 128 bytes. */
enum {
  QUERIES = 0,
  GRADS = QUERIES + QUERY_BYTES,
  KEYS = GRADS + GRAD_BYTES,
  VALUES = KEYS + STAGES * KEY_BYTES,
  QUERY_FULL = VALUES + VALUE_STAGES * VALUE_BYTES, /* barriers of 8 bytes, those of rings one for each stage */
  QUERY_EMPTY = QUERY_FULL + 8,                     /* of dO, too */
  GRAD_FULL = QUERY_EMPTY + 8,
  KEY_FULL = GRAD_FULL + 8,
  KEY_EMPTY = KEY_FULL + 8 * STAGES,
  VALUE_FULL = KEY_EMPTY + 8 * STAGES,
  VALUE_EMPTY = VALUE_FULL + 8 * VALUE_STAGES,
  SHARED_END = VALUE_EMPTY + 8 * VALUE_STAGES,
};
static_assert(SHARED_END == ${dq_shared_bytes}, "as the generator reckons");

//% include "hopper/forward_work.h"
//% include "hopper/backward_queries_produce.h"
//% let product_n = dq_block_n
//% include "hopper/backward_rows.h"
//% include "hopper/backward_queries_products.h"

static __device__ __forceinline__ void init_query_barriers(u32 shared)
{
  init_ring(shared + QUERY_FULL, shared + QUERY_EMPTY, 1, 4 * CONSUMERS);
  barrier_init(shared + GRAD_FULL, 1);
  init_ring(shared + KEY_FULL, shared + KEY_EMPTY, STAGES, 4 * CONSUMERS);
  init_ring(shared + VALUE_FULL, shared + VALUE_EMPTY, VALUE_STAGES, 4 * CONSUMERS);
  barrier_init_done();
}

/* d_weights of a block of keys become d_scores. */
static __device__ __forceinline__ void finish_d_scores(float (&d_scores)[BLOCK_N / 8][4],
                                                       const float (&weights)[BLOCK_N / 8][4], const struct rows &rows,
                                                       const struct work &w, int block)
{
  weigh_gradients(d_scores, weights, rows);
//% if causal
  const int first_hidden = min(w.first_query + (int)(threadIdx.x / 128 - 1) * 64 + 1, w.seqlen_k); /* from some row */
//% else
  const int first_hidden = w.seqlen_k;
//% end
  if ((block + 1) * BLOCK_N > first_hidden) /* whatever the weights have become */
    hide_keys(d_scores, rows, block * BLOCK_N, w.seqlen_k);
}

/* One tile of queries, as a consumer sees it. */
static __device__ __forceinline__ void differentiate(const struct fa_params &params, const struct work &w, u32 shared,
                                                     int warpgroup, struct ring<1> &queries, struct ring<STAGES> &keys,
                                                     struct ring<VALUE_STAGES> &values)
{
  u32 query_tile = shared + QUERIES + warpgroup * 64 * 128, grad_tile = shared + GRADS + warpgroup * 64 * 128;
  float grad_query[DIM_K / 8][4] = {}, scores[BLOCK_N / 8][4], d_scores[BLOCK_N / 8][4];
  u32 left[BLOCK_N / 16][4]; /* d_scores at 16 bits */
  struct rows rows = begin_rows(params);
  const int first_row = w.first_query + (threadIdx.x / 32 - 4) * 16; /* of the warp */
  read_rows(rows, find_workspace(params, w.batch, w.head).stats + first_row, first_row, (int)params.seqlen_q);
  int block = w.num_blocks - 1;

  wait_full(shared + QUERY_FULL, queries);
  wait_full(shared + KEY_FULL, keys);
  multiply_rows<DIM_QK, BLOCK_M>(scores, query_tile, shared + KEYS + keys.stage * KEY_BYTES);
  wait_full(shared + GRAD_FULL, queries);
  wait_full(shared + VALUE_FULL, values);
  multiply_rows<DIM_VALUES, BLOCK_M>(d_scores, grad_tile, shared + VALUES + values.stage * VALUE_BYTES);
  wgmma_wait<1>();
  keep_registers(flat(scores));
  weigh_keys(scores, rows);
  wgmma_wait<0>();
  keep_registers(flat(d_scores));
  release_and_advance(shared + VALUE_EMPTY, values);
  finish_d_scores(d_scores, scores, rows, w, block);
  pack_fragments(left, d_scores);
  for (block--; block >= 0; block--) {
    const struct ring<STAGES> last_keys = keys;
    advance(keys);
    forget_address(query_tile);
    forget_address(grad_tile);
//% if dq_stages == 2
    /* First what needs nothing new: K of the block before gives its place to that of the next one, which has the other
     * two products to come in. */
    add_grad_query(grad_query, left, shared + KEYS + last_keys.stage * KEY_BYTES);
//% end
    wait_full(shared + KEY_FULL, keys);
    multiply_rows<DIM_QK, BLOCK_M>(scores, query_tile, shared + KEYS + keys.stage * KEY_BYTES);
    wait_full(shared + VALUE_FULL, values);
    multiply_rows<DIM_VALUES, BLOCK_M>(d_scores, grad_tile, shared + VALUES + values.stage * VALUE_BYTES);
//% if dq_stages == 2
    wgmma_wait<2>();
    keep_registers(flat(grad_query));
    release(shared + KEY_EMPTY, last_keys);
    wgmma_wait<1>();
    keep_registers(flat(scores));
    weigh_keys(scores, rows);
    wgmma_wait<0>();
    keep_registers(flat(d_scores));
    release_and_advance(shared + VALUE_EMPTY, values);
    finish_d_scores(d_scores, scores, rows, w, block);
//% else
    add_grad_query(grad_query, left, shared + KEYS + last_keys.stage * KEY_BYTES);
    wgmma_wait<2>();
    keep_registers(flat(scores));
    weigh_keys(scores, rows);
    wgmma_wait<1>();
    keep_registers(flat(d_scores));
    release_and_advance(shared + VALUE_EMPTY, values);
    finish_d_scores(d_scores, scores, rows, w, block);
    wgmma_wait<0>();
    keep_registers(flat(grad_query));
    release(shared + KEY_EMPTY, last_keys);
//% end
    pack_fragments(left, d_scores);
  }
  release_and_advance(shared + QUERY_EMPTY, queries);
  add_grad_query(grad_query, left, shared + KEYS + keys.stage * KEY_BYTES);
  wgmma_wait<0>();
  keep_registers(flat(grad_query));
  release_and_advance(shared + KEY_EMPTY, keys);
  store_gradient<DIM_K / 8, HEAD_DIM>(params.grad_query, w.batch, w.head, first_row, (int)params.seqlen_q, 0, grad_query,
                                      (float)params.softmax_scale);
}

static __device__ __forceinline__ void consume_tiles(const struct fa_params &params, u32 shared)
{
  const int warpgroup = warpgroup_index() - 1;
  struct ring<1> queries = {};
  struct ring<STAGES> keys = {};
  struct ring<VALUE_STAGES> values = {};
  struct work w;
  for (u32 round = 0; next_work(params, round, w);)
    differentiate(params, w, shared, warpgroup, queries, keys, values);
}

} // namespace queries_pass

extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward_queries(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
                 const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
                 const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  if (!params.grad_query.data)
    return;
  if (threadIdx.x == 0)
    queries_pass::init_query_barriers(shared);
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_decrease<${producer_registers}>();
    if (threadIdx.x == 0)
      queries_pass::produce_tiles(params, &query_map, &key_map, &value_map, &grad_output_map, shared);
  } else {
    registers_increase<${consumer_registers}>();
    queries_pass::consume_tiles(params, shared);
  }
}
