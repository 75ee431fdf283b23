/*
 * Forward on CUDA with mma.sync (FlashAttention-2, arXiv:2307.08691, algorithm 1): a block of threads for BLOCK_M
 * queries of one head. A warp has its own rows of queries and walks over the keys, BLOCK_N at a time:
 *
 *     scores = Q K^T        weights = exp2((scores - row_max) * factor)        O = O * rescale + weights V
 *
 * Scores, weights and O stay in registers: the accumulator of the first product is the left operand of the second.
 * Tiles of K and V come through shared memory by asynchronous copies, while those before them are worked on.
//% if dtype == "fp32"
 * Products are three of fp16 (split.h). Tensor cores truncate sums, so that QK^T is summed in pieces of 16 columns and
 * PV in pieces of ${min(block_n, sum_keys)} keys, and the pieces are added in fp32.
//%   if direct
 * Each block of threads splits K and V as it reads them, without a first phase.
//%   end
//% end
//% if split_blocks
 * Where tiles of queries are few, each is worked on by several blocks of threads, with a part of the keys each, and a
 * last phase puts their results together (forward_splits.h).
//% end
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
  STAGES = ${num_stages}, /* tiles of K, and of V, in shared memory */
  WARPS = ${num_warps},
  THREADS = WARPS * 32,
  M_TILES = BLOCK_M / (WARPS * 16), /* 16 rows each, of a warp */
  N_TILES = BLOCK_N / 8,
  V_TILES = ${tiles_v}, /* 8 columns of V each */
  PARTS = ${1 + split},
  QUERY_TILE = PARTS * BLOCK_M * DIM_QK, /* elements in shared memory */
  KEY_TILE = PARTS * BLOCK_N * DIM_QK,
  VALUE_TILE = PARTS * BLOCK_N * DIM_V,
  SHARED_BYTES = ${shared_bytes},
};

//% include "cuda/ptx.h"
//% include "cuda/tile.h"
//% include "cuda/factor.h"
//% if split
typedef float element;
//%   include "cuda/split.h"
//%   include "cuda/split_tile.h"
//%   if !direct
//%     include "cuda/split_keys.h"
//%   end
//%   include "cuda/softmax.h"
//%   include "cuda/split_products.h"
//% else
typedef half_bits element;
//%   include "cuda/softmax.h"
//%   include "cuda/products.h"
//% end
//% include "cuda/forward_end.h"
//% if split_blocks
//%   include "cuda/forward_splits.h"
//% end

/* What a block works on. */
struct work {
  int batch, head, kv_head, first_query;
  int seqlen_k, end_block; /* of keys that it looks at */
//% if split_blocks
  int split, first_block; /* which part of them */
//% end
};

static __device__ __forceinline__ struct work find_work(const struct fa_params &params)
{
  int query_blocks = ceil_div((int)params.seqlen_q, BLOCK_M);
  int index = blockIdx.x / query_blocks, block = blockIdx.x % query_blocks;
  struct work w;
//% if split_blocks
  int heads = (int)(params.batch * params.heads_q);
  w.split = index / heads;
  index %= heads;
//% end
//% if causal
  block = query_blocks - 1 - block; /* those with the most keys come first */
//% end
  w.batch = index / (int)params.heads_q;
  w.head = index % (int)params.heads_q;
  w.kv_head = w.head / (int)(params.heads_q / params.heads_kv);
  w.first_query = block * BLOCK_M;
  w.seqlen_k = (int)params.seqlen_k;
//% if causal
  int end = w.first_query + BLOCK_M;
  w.end_block = ceil_div(end < w.seqlen_k ? end : w.seqlen_k, BLOCK_N);
//% else
  w.end_block = ceil_div(w.seqlen_k, BLOCK_N);
//% end
//% if split_blocks
  int blocks = w.end_block; /* of which the first part has the first one, and others none if they are more parts */
  w.first_block = (int)(((long long)blocks * w.split + params.num_splits - 1) / params.num_splits);
  w.end_block = (int)(((long long)blocks * (w.split + 1) + params.num_splits - 1) / params.num_splits);
//% end
  return w;
}

extern "C" __global__ void __launch_bounds__(THREADS, ${min_blocks})
forward(const __grid_constant__ struct fa_params params)
{
  extern __shared__ __align__(128) unsigned char shared[];
  half_bits *queries = (half_bits *)shared, *keys = queries + QUERY_TILE, *values = keys + STAGES * KEY_TILE;
  struct work w = find_work(params);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

//% let read_columns = 8 + 8 * split
//% if head_dim % read_columns != 0 || head_dim_v % read_columns != 0
  clear_shared(shared, SHARED_BYTES);
  __syncthreads();
//% end
  /* The ring of tiles: keys of the last block, its values, keys of the block before, ... A tile is loaded into the room
   * of the one that was used last, once every warp is past it; a group of copies is closed for each, also where none is
   * left, so that counting groups counts tiles. */
//% if direct
  u32 *largest = (u32 *)(query_factors(queries) + BLOCK_M);
  const float *key = (const float *)params.key.data + head_offset(params.key, w.batch, w.kv_head, 0);
  const float *value = (const float *)params.value.data + head_offset(params.value, w.batch, w.kv_head, 0);
//%   if causal
  /* What no query sees must not show in the scale of others. */
  const int seqlen_k = min(w.seqlen_k, (int)params.seqlen_q);
//%   else
  const int seqlen_k = w.seqlen_k;
//%   end
#define LOAD_KEYS(block)                                                                                               \
  float key_factor = split_tile_directly<THREADS, BLOCK_N, HEAD_DIM, DIM_QK, MOST_OF_SCORES>(                          \
      keys, key + (long long)(block) * BLOCK_N * params.key.stride_row, params.key, seqlen_k - (block) * BLOCK_N,      \
      largest)
#define LOAD_VALUES(block)                                                                                             \
  float value_factor = split_tile_directly<THREADS, BLOCK_N, HEAD_DIM_V, DIM_V, MOST_OF_VALUES>(                       \
      values, value + (long long)(block) * BLOCK_N * params.value.stride_row, params.value,                            \
      seqlen_k - (block) * BLOCK_N, largest + WARPS)
//% elif split
  struct split_tiles tiles = find_split_tiles(params, w.batch, w.kv_head);
#define LOAD_KEYS(block) load_split<BLOCK_N, DIM_QK>(keys + (block) % STAGES * KEY_TILE, tiles.keys, block)
#define LOAD_VALUES(block) load_split<BLOCK_N, DIM_V>(values + (block) % STAGES * VALUE_TILE, tiles.values, block)
//% else
  bool key_aligned = is_aligned(params.key, ${load_bytes_qk}), value_aligned = is_aligned(params.value, ${load_bytes_v});
  const half_bits *key = (const half_bits *)params.key.data + head_offset(params.key, w.batch, w.kv_head, 0);
  const half_bits *value = (const half_bits *)params.value.data + head_offset(params.value, w.batch, w.kv_head, 0);
#define LOAD_KEYS(block)                                                                                               \
  load_tile<BLOCK_N, HEAD_DIM, DIM_QK, ${load_bytes_qk}>(                                                              \
      keys + (block) % STAGES * KEY_TILE, key + (long long)(block) * BLOCK_N * params.key.stride_row, params.key,      \
      w.seqlen_k - (block) * BLOCK_N, key_aligned)
#define LOAD_VALUES(block)                                                                                             \
  load_tile<BLOCK_N, HEAD_DIM_V, DIM_V, ${load_bytes_v}>(                                                              \
      values + (block) % STAGES * VALUE_TILE, value + (long long)(block) * BLOCK_N * params.value.stride_row,          \
      params.value, w.seqlen_k - (block) * BLOCK_N, value_aligned)
//% end
//% if split_blocks
  const int first_block = w.first_block;
//% else
  constexpr int first_block = 0;
//% end
//% if split && !direct
  int block = w.end_block - 1;
  LOAD_KEYS(block); /* on their way while queries are split */
  load_queries(queries, params, w.batch, w.head, w.first_query);
//% else
  load_queries(queries, params, w.batch, w.head, w.first_query);
  int block = w.end_block - 1;
//%   if !direct
  LOAD_KEYS(block);
//%   end
//% end
//% if !direct
  copy_commit();
#pragma unroll
  for (int ahead = 0; ahead < STAGES - 1; ahead++) {
    if (block - ahead >= first_block)
      LOAD_VALUES(block - ahead);
    copy_commit();
    if (block - ahead - 1 >= first_block)
      LOAD_KEYS(block - ahead - 1);
    copy_commit();
  }
//% end

  struct rows rows;
//% if split
  __syncwarp();
  begin_rows(rows, params, w.first_query + warp * 16 * M_TILES + lane / 4,
             query_factors(queries) + warp * 16 * M_TILES + lane / 4);
//% else
  begin_rows(rows, params, w.first_query + warp * 16 * M_TILES + lane / 4);
//% end
  float output[M_TILES][V_TILES][4] = {};
  for (; block >= first_block; block--) {
    float scores[M_TILES][N_TILES][4];
//% if split && !direct
    float key_factor = tiles.key_factors[block], value_factor = tiles.value_factors[block];
//% end
//% if direct
    LOAD_KEYS(block); /* which waits for all warps before it writes, as they agree on a scale */
    LOAD_VALUES(block);
    __syncthreads();
//% else
    copy_wait<2 * STAGES - 2>();
    __syncthreads();
    if (block - STAGES + 1 >= first_block)
      LOAD_VALUES(block - STAGES + 1);
    copy_commit();
//% end
//% if !split
    if (block == w.end_block - 1 && is_negative(params.softmax_scale))
      negate_queries(queries);
//% end
    multiply_keys(scores, queries + warp * 16 * M_TILES * DIM_QK, keys + block % STAGES * KEY_TILE);
//% if split
    rows.key_factor = key_factor;
    softmax(scores, rows, block * BLOCK_N + lane % 4 * 2, w.seqlen_k);
//% else
    mask_block(scores, rows, block * BLOCK_N + lane % 4 * 2, w.seqlen_k);
    follow_largest(scores, rows, output);
    weigh_scores(scores, rows);
//% end
//% if !direct
    copy_wait<2 * STAGES - 2>();
    __syncthreads();
    if (block - STAGES >= first_block)
      LOAD_KEYS(block - STAGES);
    copy_commit();
//% end
//% if split
    multiply_values(output, scores, rows, value_factor, values + block % STAGES * VALUE_TILE);
//% else
    multiply_values(output, scores, values + block % STAGES * VALUE_TILE);
//% end
  }
  finish_rows(rows);
//% if split_blocks
  if (params.num_splits > 1) {
//%   if !direct
    copy_wait<0>(); /* a part without blocks has waited for nothing */
//%   end
    store_split(params, w.split, w.batch, w.head, output, rows);
    return;
  }
//% end
  store_output(params, w.batch, w.head, output, rows);
}
