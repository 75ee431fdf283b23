/*
 * Backward on a CPU (FlashAttention-2, arXiv:2307.08691, algorithm 2), one task per key/value head and split
 * of the keys.
 *
 * A task walks over the query blocks of every query head of its group and, inside, over its blocks of keys:
 *     scores[key][query]    = K * Q^T               weights = exp2((scores - row_max) * factor) / row_sum
 *     d_weights[key][query] = V * dO^T              d_scores = weights * (d_weights - delta)
 *     dQ^T[column][query]  += K^T * d_scores        kept for one block of queries
 *     dV[key][column]      += weights * dO          kept for all keys of the task
 *     dK[key][column]      += d_scores * Q
 * Queries lie along the lanes in the first three, columns in the last two, so that nothing is transposed but
 * the queries' side of the inputs, once per block. Sums meet in one fixed order whatever the number of
 * threads. With more than one split each leaves its part of dQ in the workspace, and a second phase adds them.
 */
//% include "common/params.h"
//% let dot = bf16_dot
//% let pair = 1 + dot
//% let tile_m = tile_vectors * lanes
//% let tiles = block_m / tile_m
//% let ld_qk = round_up(head_dim, lanes)
//% let ld_v = round_up(head_dim_v, lanes)
//% let ld_key_columns = (1 - dot) * ld_qk + dot * ceil_div(head_dim, 2)
//% let ld_value_columns = (1 - dot) * ld_v + dot * ceil_div(head_dim_v, 2)
//% let score_rows = block_n + max(gradient_rows_qk, gradient_rows_v)
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  TILE_M = ${tile_m}, /* queries whose sums stay in registers */
  TILES = ${tiles},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  SCORE_ROWS = ${score_rows}, /* BLOCK_N and what the last panel of gradient rows reaches beyond */
};

//% include "cpu/freestanding.h"
//% include "cpu/vector.h"
//% include "cpu/rows.h"
//% include "cpu/queries.h"

//%# Gradients of keys (side 0) and of values (side 1, where their columns differ): columns along the lanes, in
//%# groups of as many vectors as the registers hold.
//% let groups_qk = ceil_div(ld_qk / lanes, gradient_vectors_qk)
//% let groups_v = ceil_div(ld_v / lanes, gradient_vectors_v)
//% let last_vectors_qk = ld_qk / lanes - (groups_qk - 1) * gradient_vectors_qk
//% let last_vectors_v = ld_v / lanes - (groups_v - 1) * gradient_vectors_v
//% for side in 0 .. 1 + (head_dim_v != head_dim)
//%   let most_vectors = gradient_vectors_qk * (1 - side) + gradient_vectors_v * side
//%   let last_vectors = last_vectors_qk * (1 - side) + last_vectors_v * side
//%   for narrow in 0 .. 1 + (last_vectors < most_vectors)
//%     let name = "add_gradient"
//%     let chunk = 0
//%     let dim = head_dim * (1 - side) + head_dim_v * side
//%     let vectors = most_vectors * (1 - narrow) + last_vectors * narrow
//%     let tile_rows = gradient_rows_qk * (1 - side) + gradient_rows_v * side
//%     let rows = tile_rows
//%     let a_row = tile_m / pair
//%     let a_k = 1
//%     let b_k = ld_qk * (1 - side) + ld_v * side
//%     let c_row = b_k
//%     let update = "add"
//%     include "cpu/matmul.h"
//%   end
//% end

//% let vectors = tile_vectors
//% let b_k = tile_m
//% let c_row = tile_m
//%# Scores must come out bit for bit as in forward, so they are added in the same chunks.
//% let name = "multiply_keys"
//% let dim = head_dim
//% let chunk = score_chunk
//% let rows = block_n
//% let tile_rows = key_rows
//% let a_row = ld_key_columns
//% let a_k = 1
//% let update = "set"
//% include "cpu/matmul.h"

//% let name = "multiply_values"
//% let dim = head_dim_v
//% let a_row = ld_value_columns
//% include "cpu/matmul.h"

//% let name = "add_query_gradient"
//% let chunk = 0
//% let dim = head_dim
//% let rows = head_dim
//% let tile_rows = query_rows
//% let a_row = 1
//% let a_k = ld_qk
//% let update = "add"
//% include "cpu/matmul.h"

/* The memory of one worker; the sums of dK and dV for the keys of a task follow. */
struct scratch {
  float queries_t[TILES][HEAD_DIM * TILE_M], d_outputs_t[TILES][HEAD_DIM_V * TILE_M];
  float d_queries_t[TILES][HEAD_DIM * TILE_M], outputs_t[HEAD_DIM_V * TILE_M];
  float queries[${block_m / pair} * ${ld_qk}], d_outputs[${block_m / pair} * ${ld_v}];
  float factor[BLOCK_M], row_max[BLOCK_M], row_scale[BLOCK_M], delta[BLOCK_M];
  float keys[BLOCK_N * ${ld_key_columns}], values[BLOCK_N * ${ld_value_columns}];
//% if dot
  float key_pairs[BLOCK_N / 2 * ${ld_qk}];
  float d_score_pairs[BLOCK_N / 2 * TILE_M];
//% end
  float scores[SCORE_ROWS * TILE_M], d_scores[SCORE_ROWS * TILE_M];
  float block_d_keys[SCORE_ROWS * ${ld_qk}], block_d_values[SCORE_ROWS * ${ld_v}];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct scratch) <= ${scratch_bytes}, "the launcher gives a worker this much");

//% include "cpu/backward_work.h"

static inline long round_up_to(long x, long multiple) { return (x + multiple - 1) / multiple * multiple; }

/* Where split `split` keeps its part of dQ for one block of queries. */
static inline float *partial_d_query(const struct fa_params *params, long long split, long long batch, long long head,
                                     long long block)
{
  long long index = ((split * params->batch + batch) * params->heads_q + head) * query_blocks(params) + block;
//% if exact_delta
  index += (params->batch * params->heads_q * params->seqlen_q + BLOCK_M * HEAD_DIM - 1) / (BLOCK_M * HEAD_DIM);
//% end
  return (float *)params->workspace + index * (BLOCK_M * HEAD_DIM);
}

//% if exact_delta
/* The deltas that the first phase leaves at the head of the workspace. */
static inline float *row_deltas(const struct fa_params *params, long long batch, long long head, long long row)
{
  return (float *)params->workspace + (batch * params->heads_q + head) * params->seqlen_q + row;
}

//% end

//% include "cpu/backward_inputs.h"
//% include "cpu/backward_tile.h"

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
                      HEAD_DIM, rows - tile * TILE_M, d_query_t + tile * HEAD_DIM * TILE_M, scale);
}

static inline void add_to(float *sums, const float *parts, long count)
{
  for (long i = 0; i < count; i += LANES)
    store(sums + i, load(sums + i) + load(parts + i));
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
    /* Tiles are summed for this block of queries first: over long sequences that is far more accurate than one long
     * chain of additions. */
    clear(s->block_d_keys, keys * ${ld_qk});
    clear(s->block_d_values, keys * ${ld_v});
    for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++)
      attend(w, tile, first_query, first_key, keys);
    add_to(w->d_keys + (first_key - w->begin_key) * ${ld_qk}, s->block_d_keys, keys * ${ld_qk});
    add_to(w->d_values + (first_key - w->begin_key) * ${ld_v}, s->block_d_values, keys * ${ld_v});
  }
  if (!w->want_d_query)
    return;
  if (params->num_splits == 1) {
    store_d_query(params, w->batch, w->head, first_query, rows, s->d_queries_t[0]);
    return;
  }
  float *partial = partial_d_query(params, split, w->batch, w->head, block);
  for (int i = 0; i < BLOCK_M * HEAD_DIM; i += LANES)
    store(partial + i, load(s->d_queries_t[0] + i));
}

void backward(const struct fa_params *params, long long task, void *scratch)
{
  struct work w = begin_work(params, task, scratch);
  long long groups = params->heads_q / params->heads_kv;
  w.d_keys = (float *)((char *)scratch + ${scratch_bytes});
  w.d_values = w.d_keys + (w.end_key - w.begin_key) * ${ld_qk};
  clear(w.d_keys, (w.end_key - w.begin_key) * ${ld_qk + ld_v});
  for (w.head = w.kv_head * groups; w.head < (w.kv_head + 1) * groups; w.head++)
//% if causal
    for (long long block = w.begin_key / BLOCK_M; block < query_blocks(params); block++)
//% else
    for (long long block = 0; block < query_blocks(params); block++)
//% end
      query_block(&w, w.split, block);
  if (w.want_d_key)
    store_gradient(&params->grad_key, &w, w.d_keys, ${ld_qk}, HEAD_DIM, (float)params->softmax_scale);
  if (w.want_d_value)
    store_gradient(&params->grad_value, &w, w.d_values, ${ld_v}, HEAD_DIM_V, 1.0f);
}

//% if exact_delta
/*
 * First phase, one task per block of queries: delta = sum over keys of weights * d_weights. It equals
 * rowsum(dO * O), which is what the other kernels take; but O has been rounded to 16 bits, and PyTorch, whose fused
 * kernel does not take a head_dim of its own for V, does not lose that much.
 */
void backward_delta(const struct fa_params *params, long long task, void *scratch)
{
  struct scratch *s = scratch;
  long long per_head = query_blocks(params), block = task % per_head, head = task / per_head % params->heads_q;
  struct work w = {
      .params = params,
      .s = s,
      .batch = task / per_head / params->heads_q,
      .kv_head = head / (params->heads_q / params->heads_kv),
      .head = head,
  };
  long long first_query = block * BLOCK_M, end_key = params->seqlen_k;
  long rows = params->seqlen_q - first_query < BLOCK_M ? params->seqlen_q - first_query : BLOCK_M;
//%   if causal
  end_key = first_query + rows < end_key ? first_query + rows : end_key;
//%   end
  float *deltas = row_deltas(params, w.batch, head, first_query);
  for (long i = 0; i < rows; i++)
    deltas[i] = 0.0f;
  load_queries(&w, first_query, rows);
  for (long long first_key = 0; first_key < end_key; first_key += BLOCK_N) {
    long keys = end_key - first_key < BLOCK_N ? end_key - first_key : BLOCK_N;
    load_keys(&w, first_key, keys);
    for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++) {
      long tile_keys = weigh(&w, tile, first_query, first_key, keys);
      for (long i = 0; i < TILE_M && tile * TILE_M + i < rows; i += LANES) {
        vec sum = {0};
        for (long key = 0; key < tile_keys; key++)
          sum += load(s->d_scores + key * TILE_M + i);
        for (long lane = 0; lane < LANES && tile * TILE_M + i + lane < rows; lane++)
          deltas[tile * TILE_M + i + lane] += sum[lane];
      }
    }
  }
}

//% end
/* Last phase, one task per block of queries: the splits' parts of dQ, added in order. */
void backward_sum(const struct fa_params *params, long long task, void *scratch)
{
  struct scratch *s = scratch;
  long long per_head = query_blocks(params), head = task / per_head % params->heads_q;
  long long batch = task / per_head / params->heads_q, block = task % per_head;
  long long first_query = block * BLOCK_M;
  long rows = params->seqlen_q - first_query < BLOCK_M ? params->seqlen_q - first_query : BLOCK_M;
  long long blocks = (params->seqlen_k + BLOCK_N - 1) / BLOCK_N;
  long long split_keys = (blocks + params->num_splits - 1) / params->num_splits * BLOCK_N;
  float *sum = s->d_queries_t[0];
  clear(sum, BLOCK_M * HEAD_DIM);
  for (long long split = 0; split < params->num_splits; split++) {
//% if causal
    if (split * split_keys / BLOCK_M > block)
      break; /* these queries see none of its keys, and it has left nothing */
//% end
    const float *partial = partial_d_query(params, split, batch, head, block);
    add_to(sum, partial, BLOCK_M * HEAD_DIM);
  }
  (void)split_keys;
  store_d_query(params, batch, head, first_query, rows, sum);
}
