/*
//% if precision == "reduced"
 * Forward on Hopper (sm_90a) in fp32, where one product may stand for three: the kernel of 16 bits with operands that are
 * rounded to 11 bits (fp16), as TF32's are, after scaling by powers of two. A phase before, split_operands, does that
 * with K and V (forward_fp32_split.h), the consumers with Q (forward_one_queries.h). It keeps no statistics of rows: what
 * backward needs comes of three products.
 *
//% end
 * Forward on Hopper (sm_90a) at 16 bits, with wgmma, TMA and warps that have roles of their own (FlashAttention-3,
 * arXiv:2407.08608). A block of threads takes BLOCK_M queries of one head at a time:
 *
 *     producer    one warp: TMA copies of Q, K and V into shared memory, K and V into rings
 *     consumers   CONSUMERS warpgroups with 64 rows of queries each: products and softmax
 *
 * A tile in shared memory has a barrier that its copy completes (FULL) and one at which the consumers say that they
 * have done with it (EMPTY). A warpgroup has two products under way while it computes a softmax: Q K^T of one block of
 * keys, whose scores that softmax takes, and P V of the block before. Warpgroups take turns at issuing products, so
 * that the softmax of one falls into the products of another.
 *
 * A launch has no more blocks of threads than the GPU holds at once; each takes one tile of queries after another, and
 * its producer loads ahead into the next.
 */
//% include "common/params.h"
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  DIM_QK = ${round_up(head_dim, 16)}, /* columns that are computed with: what wgmma takes */
  DIM_V = ${round_up(head_dim_v, 8)},
  CHUNKS_QK = ${ceil_div(head_dim, 64)}, /* of 64 columns, what the swizzle takes: 128 bytes of a row */
  CHUNKS_V = ${ceil_div(head_dim_v, 64)},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  QUERY_STAGES = ${query_stages}, /* tiles of Q in shared memory */
  STAGES = ${num_stages},         /* tiles of K, and of V */
  CONSUMERS = BLOCK_M / 64,
  THREADS = 128 * (CONSUMERS + 1),
  M_TILES = 1, /* 16 rows of a warp */
  N_TILES = BLOCK_N / 8,
  V_TILES = DIM_V / 8,
  QUERY_BYTES = CHUNKS_QK * BLOCK_M * 128,
  KEY_BYTES = CHUNKS_QK * BLOCK_N * 128,
  VALUE_BYTES = CHUNKS_V * BLOCK_N * 128,
//% if precision == "reduced"
  WIDTH_V = 64, /* columns of V's chunks */
  KEY_AND_VALUE_BYTES = (CHUNKS_QK + CHUNKS_V) * 128, /* of one key in global memory */
//% else
  KEY_AND_VALUE_BYTES = (HEAD_DIM + HEAD_DIM_V) * 2, /* of one key in global memory */
//% end
};

//% include "cuda/ptx.h"
//% include "cuda/hopper.h"
//% let value_n = round_up(head_dim_v, 8)
//% for i in 0 .. 1 + (value_n != block_n)
//%   let wgmma_n = i * value_n + (1 - i) * block_n
//%   include "cuda/wgmma.h"
//% end
//% include "cuda/tile.h"
//% include "cuda/factor.h"
//% if precision == "reduced"
typedef float element;
//%   include "cuda/split.h"
//% else
typedef half_bits element;
//% end
//% include "cuda/softmax.h"
//% include "cuda/forward_end.h"
//% include "hopper/forward_work.h"
//% include "hopper/ring.h"
//% include "hopper/forward_shared.h"
//% include "hopper/forward_turns.h"
//% if precision == "reduced"
//%   include "hopper/forward_one_softmax.h"
//%   include "hopper/forward_fp32_split.h"
//%   include "hopper/forward_one_queries.h"
//%   include "hopper/forward_one_produce.h"
//% else
//%   include "hopper/forward_produce.h"
//% end
//% include "hopper/fragments.h"
//% include "hopper/forward_products.h"

/* A block of keys that none of this warpgroup's queries sees, though those of another may. Given back before it is full, or
 * before all lanes know that it is, a stage could be taken for the one before or after it. */
static __device__ __forceinline__ void skip_block(int warpgroup, u32 shared, struct ring<STAGES> &keys,
                                                  struct ring<STAGES> &values)
{
  take_turn(warpgroup);
  give_turn(warpgroup);
  wait_full(shared + KEY_FULL, keys);
  __syncwarp();
  release_and_advance(shared + KEY_EMPTY, keys);
  wait_full(shared + VALUE_FULL, values);
  __syncwarp();
  release_and_advance(shared + VALUE_EMPTY, values);
}

/* One tile of queries, as a consumer sees it. */
static __device__ __forceinline__ void attend(const struct fa_params &params, const struct work &w, u32 shared,
//% if precision == "reduced"
                                              unsigned char *queries,
//% else
                                              struct ring<QUERY_STAGES> &queries,
//% end
                                              struct ring<STAGES> &keys, struct ring<STAGES> &values)
{
  const int warpgroup = warpgroup_index() - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  float output[M_TILES][V_TILES][4] = {}, scores[M_TILES][N_TILES][4];
  u32 weights[BLOCK_N / 16][4];
  struct rows rows;
  begin_rows(rows, params, w.first_query + 64 * warpgroup + 16 * warp + lane / 4);
  const int first_key = lane % 4 * 2;
  int block = w.num_blocks - 1;
  const int keys_seen = find_keys_seen(params, w, warpgroup);
  for (; block * BLOCK_N >= keys_seen; block--)
    skip_block(warpgroup, shared, keys, values);
//% if precision == "reduced"
  const float2 *factors = find_operands(params, w).key_factors;
  const u32 tile = shared + QUERIES + warpgroup * 64 * 128;
  round_queries(rows, queries, params, w);
//% else
  const u32 tile = shared + QUERIES + queries.stage * QUERY_BYTES + warpgroup * 64 * 128;
  wait_full(shared + QUERY_FULL, queries);
//% end

  wait_full(shared + KEY_FULL, keys);
  take_turn(warpgroup);
  multiply_keys(scores, tile, shared + KEYS + keys.stage * KEY_BYTES);
  give_turn(warpgroup);
  wgmma_wait<0>();
  keep_registers(flat(scores[0]));
  release_and_advance(shared + KEY_EMPTY, keys);
//% if precision == "reduced"
  use_factors(rows, factors[block]);
  softmax(scores, rows, block * BLOCK_N + first_key, w.seqlen_k);
//% else
  negate_scores(scores, params);
//%   if causal && block_n % 128 == 0
  begin_softmax(scores, rows, block * BLOCK_N + first_key, w.seqlen_k, keys_seen - block * BLOCK_N);
//%   else
  mask_block(scores, rows, block * BLOCK_N + first_key, w.seqlen_k);
  begin_softmax(scores, rows);
//%   end
//% end
  pack_fragments(weights, scores[0]);
  for (block--; block >= 0; block--) {
    wait_full(shared + KEY_FULL, keys);
    take_turn(warpgroup);
    multiply_keys(scores, tile, shared + KEYS + keys.stage * KEY_BYTES);
    wait_full(shared + VALUE_FULL, values);
    multiply_values(output, weights, shared + VALUES + values.stage * VALUE_BYTES);
    give_turn(warpgroup);
    wgmma_wait<1>();
    keep_registers(flat(scores[0]));
    release_and_advance(shared + KEY_EMPTY, keys);
//% if precision == "reduced"
    use_factors(rows, factors[block]);
    softmax(scores, rows, block * BLOCK_N + first_key, w.seqlen_k);
//% else
    negate_scores(scores, params);
//%   if causal && block_n % 64 != 0
    mask_block(scores, rows, block * BLOCK_N + first_key, w.seqlen_k); /* else the first is the only one to be masked */
//%   end
    softmax(scores, rows);
//% end
    wgmma_wait<0>();
    keep_registers(flat(output[0]));
    release_and_advance(shared + VALUE_EMPTY, values);
    rescale_output(output, rows);
    pack_fragments(weights, scores[0]);
  }
//% if precision == "full"
  release_and_advance(shared + QUERY_EMPTY, queries);
//% end
  wait_full(shared + VALUE_FULL, values);
  multiply_values(output, weights, shared + VALUES + values.stage * VALUE_BYTES);
  finish_rows(rows);
  wgmma_wait<0>();
  keep_registers(flat(output[0]));
  release_and_advance(shared + VALUE_EMPTY, values);
  store_output(params, w.batch, w.head, output, rows);
}

static __device__ __forceinline__ void consume(const struct fa_params &params, u32 shared, unsigned char *memory)
{
//% if precision == "reduced"
  unsigned char *queries = memory + QUERIES;
//% else
  struct ring<QUERY_STAGES> queries = {};
//% end
  struct ring<STAGES> keys = {}, values = {};
  if (CONSUMERS > 1 && threadIdx.x / 128 == CONSUMERS)
    give_turn(CONSUMERS - 1);
  struct work w;
  for (u32 round = 0; next_work(params, round, w);)
    attend(params, w, shared, queries, keys, values);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const __grid_constant__ struct fa_params params
//% if precision == "full"
        , const __grid_constant__ struct tensor_map query_map, const __grid_constant__ struct tensor_map key_map,
        const __grid_constant__ struct tensor_map value_map
//% end
)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  if (threadIdx.x == 0)
    init_barriers(shared);
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_decrease<${producer_registers}>();
    if (threadIdx.x == 0)
//% if precision == "reduced"
      produce(params, shared);
//% else
      produce(params, &query_map, &key_map, &value_map, shared);
//% end
  } else {
    registers_increase<${consumer_registers}>();
    consume(params, shared, memory);
  }
}
