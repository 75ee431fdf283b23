/*
 * Backward on a CPU with AMX (FlashAttention-2, arXiv:2307.08691, algorithm 2), one task per key/value head and split of
 * the keys.
 *
 * The steps and their order are those of cpu/backward.c; here they are tile products, 32 queries by 32 keys at a time:
 *     scores[key][query]    = K * Q^T               weights = exp2((scores - row_max) * factor) / row_sum
 *     d_weights[key][query] = V * dO^T              d_scores = weights * (d_weights - delta)
 *     dQ^T[column][query]  += K^T * d_scores        kept for one block of queries
 *     dV[key][column]      += weights * dO          kept for all keys of the task
 *     dK[key][column]      += d_scores * Q
 */
//% include "common/params.h"
//% let groups_qk = ceil_div(head_dim, 32)
//% let groups_v = ceil_div(head_dim_v, 32)
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  TILE_M = 32, /* queries that are worked on at a time */
  TILES = ${block_m / 32},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  GROUPS = ${block_n / 32}, /* groups of keys in a block */
  PARTS = ${parts}, /* bf16 that a number is split into */
  GROUPS_QK = ${groups_qk}, /* groups of 32 columns */
  GROUPS_V = ${groups_v},
};

//% include "cpu/freestanding.h"
//% include "cpu/vector.h"
//% include "cpu/rows.h"
//% include "cpu/queries.h"
//% include "cpu/amx_tiles.h"
//% include "cpu/amx_rows.h"

//% let beside = ""
//% let units = 0
//% let m_tiles = 2
//%# Scores must come out bit for bit as in forward: the same products in the same order.
//% let name = "multiply_keys"
//% let count = groups_qk
//% let a_m = groups_qk * parts
//% let a_k = parts
//% include "cpu/amx_multiply.h"

//% let name = "multiply_values"
//% let count = groups_v
//% let a_m = groups_v * parts
//% include "cpu/amx_multiply.h"

//%# 32 keys by 32 columns over tiles of queries, and 32 columns by 32 queries over groups of keys.
//% let count = 0
//% let name = "multiply_gradient"
//% let a_m = parts
//% let a_k = 2 * parts
//% include "cpu/amx_multiply.h"

//% let name = "multiply_query_gradient"
//% let a_k = 2 * groups_qk * parts
//% include "cpu/amx_multiply.h"

/* The memory of one worker; the sums of dK and dV for the keys of a task follow. */
struct scratch {
  /* Queries and dO, as right sides of the products with K and V and of those with weights. */
  tile queries_t[TILES][GROUPS_QK * PARTS * 2], d_outputs_t[TILES][GROUPS_V * PARTS * 2];
  tile queries[GROUPS_QK][TILES * PARTS * 2], d_outputs[GROUPS_V][TILES * PARTS * 2];
  tile outputs[2 * GROUPS_V * PARTS];
  float d_queries_t[TILES][GROUPS_QK * 32 * TILE_M];
  float factor[BLOCK_M], row_max[BLOCK_M], row_scale[BLOCK_M], delta[BLOCK_M];
  tile keys[GROUPS * 2 * GROUPS_QK * PARTS], values[GROUPS * 2 * GROUPS_V * PARTS];
  tile keys_t[GROUPS * 2 * GROUPS_QK * PARTS];
  tile scores[4], d_scores[4], sums[4];
  tile weight_rows[TILES][2 * PARTS], d_score_rows[TILES][2 * PARTS]; /* left sides, of one group of keys */
  tile d_score_pairs[TILES][GROUPS * PARTS * 2];                      /* right sides, of all of a block */
  float columns[${max(head_dim, head_dim_v)} * TILE_M];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct scratch) <= ${scratch_bytes}, "the launcher gives a worker this much");

//% include "cpu/backward_work.h"

/* Where split `split` keeps its part of dQ for one block of queries. */
static inline float *partial_d_query(const struct fa_params *params, long long split, long long batch, long long head,
                                     long long block)
{
  long long index = ((split * params->batch + batch) * params->heads_q + head) * query_blocks(params) + block;
  return (float *)params->workspace + index * (BLOCK_M * GROUPS_QK * 32);
}

/* sums[row][column] += a 32 x 32 block of tiles. */
static inline void add_tiles(float *sums, long leading, const tile *tiles)
{
  for (int i = 0; i < 32; i++)
    for (int half = 0; half < 2; half++) {
      float *to = sums + i * leading + half * LANES;
      store(to, load(to) + load(tiles[i / 16 * 2 + half].row[i % 16]));
    }
}

//% include "cpu/amx_backward_inputs.h"
//% include "cpu/amx_backward_tile.h"

/* dQ^T of one block to the caller's tensor. */
static void store_d_query(const struct fa_params *params, long long batch, long long head, long long first, long rows,
                          const float *d_query_t)
{
  const struct fa_tensor *d_query = &params->grad_query;
  float scale[TILE_M];
  for (int i = 0; i < TILE_M; i++)
    scale[i] = (float)params->softmax_scale;
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++)
    unpack_transposed(at(d_query, batch, head, first + tile * TILE_M), d_query->stride_row, d_query->stride_col,
                      HEAD_DIM, rows - tile * TILE_M, d_query_t + tile * GROUPS_QK * 32 * TILE_M, scale);
}

static void query_block(struct work *w, long long split, long long block)
{
  const struct fa_params *params = w->params;
  struct scratch *s = w->s;
  long long first_query = block * BLOCK_M;
  long rows = params->seqlen_q - first_query < BLOCK_M ? params->seqlen_q - first_query : BLOCK_M;
  long long end_key = w->end_key;
//% if causal
  end_key = first_query + rows < end_key ? first_query + rows : end_key;
//% end
  load_queries(w, first_query, rows);
  for (long long first_key = w->begin_key; first_key < end_key; first_key += BLOCK_N) {
    long keys = end_key - first_key < BLOCK_N ? end_key - first_key : BLOCK_N;
    load_keys(w, first_key, keys);
    attend(w, rows, first_query, first_key, keys);
  }
  if (!w->want_d_query)
    return;
  if (params->num_splits == 1) {
    store_d_query(params, w->batch, w->head, first_query, rows, s->d_queries_t[0]);
    return;
  }
  float *partial = partial_d_query(params, split, w->batch, w->head, block);
  for (int i = 0; i < BLOCK_M * GROUPS_QK * 32; i += LANES)
    store(partial + i, load(s->d_queries_t[0] + i));
}

void backward(const struct fa_params *params, long long task, void *scratch)
{
  struct work w = begin_work(params, task, scratch);
  long long groups = params->heads_q / params->heads_kv;
  long long sum_rows = (w.end_key - w.begin_key + 31) / 32 * 32;
  w.d_keys = (float *)((char *)scratch + ${scratch_bytes});
  w.d_values = w.d_keys + sum_rows * (GROUPS_QK * 32);
  clear(w.d_keys, sum_rows * ((GROUPS_QK + GROUPS_V) * 32));
  begin_tiles();
  unsigned mode = begin_flushing();
  for (w.head = w.kv_head * groups; w.head < (w.kv_head + 1) * groups; w.head++)
//% if causal
    for (long long block = w.begin_key / BLOCK_M; block < query_blocks(params); block++)
//% else
    for (long long block = 0; block < query_blocks(params); block++)
//% end
      query_block(&w, w.split, block);
  end_flushing(mode);
  end_tiles();
  if (w.want_d_key)
    store_gradient(&params->grad_key, &w, w.d_keys, GROUPS_QK * 32, HEAD_DIM, (float)params->softmax_scale);
  if (w.want_d_value)
    store_gradient(&params->grad_value, &w, w.d_values, GROUPS_V * 32, HEAD_DIM_V, 1.0f);
}

/* Last phase, one task per block of queries: the splits' parts of dQ, added in order. */
void backward_sum(const struct fa_params *params, long long task, void *scratch)
{
  struct scratch *s = scratch;
  long long per_head = query_blocks(params), head = task / per_head % params->heads_q;
  long long batch = task / per_head / params->heads_q, block = task % per_head;
  long long first_query = block * BLOCK_M;
  long rows = params->seqlen_q - first_query < BLOCK_M ? params->seqlen_q - first_query : BLOCK_M;
//% if causal
  long long blocks = (params->seqlen_k + BLOCK_N - 1) / BLOCK_N;
  long long split_keys = (blocks + params->num_splits - 1) / params->num_splits * BLOCK_N;
//% end
  float *sum = s->d_queries_t[0];
  clear(sum, BLOCK_M * GROUPS_QK * 32);
  for (long long split = 0; split < params->num_splits; split++) {
//% if causal
    if (split * split_keys / BLOCK_M > block)
      break; /* these queries see none of its keys, and it has left nothing */
//% end
    const float *partial = partial_d_query(params, split, batch, head, block);
    for (long i = 0; i < BLOCK_M * GROUPS_QK * 32; i += LANES)
      store(sum + i, load(sum + i) + load(partial + i));
  }
  store_d_query(params, batch, head, first_query, rows, sum);
}
