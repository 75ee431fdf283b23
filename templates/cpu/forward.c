/*
 * Forward on a CPU, one task per block of ${block_m} queries.
 *
 * Queries lie along the lanes of the vectors. A block of keys gives scores[key][query] = K * Q^T, the softmax
 * turns them into weights in place, and output^T[column][query] += V^T * weights. K and V are only ever
 * broadcast, an element at a time, so they need no transposing; queries are transposed once per task and
 * outputs back once.
 */
//% include "common/params.h"
//% let dot = bf16_dot
//% let vectors = tile_vectors
//% let tile_m = vectors * lanes
//% let tiles = block_m / tile_m
//% let ld_qk = round_up(head_dim, lanes)
//%# An odd number of vectors: rows a power of two apart would fall into a few sets of the L1 cache.
//% let ld_v = round_up(head_dim_v, lanes) + lanes * (1 - ceil_div(head_dim_v, lanes) % 2)
//% let pair = 1 + dot
//% let ld_keys = (1 - dot) * ld_qk + dot * ceil_div(head_dim, 2)
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  TILE_M = ${tile_m}, /* queries whose sums stay in registers */
  TILES = ${tiles},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
};

//% include "cpu/freestanding.h"
//% include "cpu/vector.h"
//% include "cpu/rows.h"
//% include "cpu/queries.h"
//% include "cpu/softmax.h"

//% let name = "multiply_keys"
//% let chunk = score_chunk
//% let dim = head_dim
//% let rows = block_n
//% let tile_rows = key_rows
//% let a_row = ld_keys
//% let a_k = 1
//% let b_k = tile_m
//% let c_row = tile_m
//% let update = "set"
//% include "cpu/matmul.h"

//% let name = "multiply_values"
//% let chunk = 0
//% let dim = head_dim_v
//% let rows = head_dim_v
//% let tile_rows = value_rows
//% let a_row = 1
//% let a_k = ld_v
//% let update = "rescale"
//% include "cpu/matmul.h"

/* The memory of one worker, in the order in which a task uses it. */
struct scratch {
  float queries[TILES][HEAD_DIM * TILE_M];
  float outputs[TILES][HEAD_DIM_V * TILE_M];
  float factor[BLOCK_M], row_max[BLOCK_M], row_sum[BLOCK_M];
  float keys[BLOCK_N * ${ld_keys}];
  float values[${block_n / pair} * ${ld_v}];
  float scores[BLOCK_N * TILE_M];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct scratch) <= ${scratch_bytes}, "the launcher gives a worker this much");

/* Keys rounded up to what multiply_keys takes at a time (a divisor of BLOCK_N). */
static inline long whole_panels(long keys) { return (keys + ${key_rows - 1}) / ${key_rows} * ${key_rows}; }

static void load_queries(struct scratch *s, const struct fa_params *params, long long batch, long long head,
                         long long first, long rows)
{
  const struct fa_tensor *query = &params->query;
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++) {
    pack_transposed(s->queries[tile], at(query, batch, head, first + tile * TILE_M), query->stride_row,
                    query->stride_col, HEAD_DIM, rows - tile * TILE_M);
    normalise_queries(s->queries[tile], params->softmax_scale, s->factor + tile * TILE_M);
//% if dot
    fold_exact_pairs(s->queries[tile], HEAD_DIM);
//% end
    for (int i = 0; i < HEAD_DIM_V * TILE_M; i += LANES)
      store(s->outputs[tile] + i, (vec){0});
  }
  for (int i = 0; i < BLOCK_M; i += LANES) {
    store(s->row_max + i, splat(LOWEST));
    store(s->row_sum + i, (vec){0});
  }
}

/* All queries of the block against keys first .. first + keys - 1. */
static void attend(struct scratch *s, long rows, long long first_query, long long first_key, long keys)
{
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++) {
//% if causal
    long diagonal = first_query + tile * TILE_M - first_key;
    long tile_keys = diagonal + TILE_M < keys ? diagonal + TILE_M : keys;
    if (tile_keys <= 0)
      continue;
    long first_masked = diagonal + 1 < 0 ? 0 : diagonal + 1 < tile_keys ? diagonal + 1 : tile_keys;
//% else
    long diagonal = 0, tile_keys = keys, first_masked = keys;
    (void)first_query, (void)first_key;
//% end
    vec rescale[${vectors}];
    multiply_keys_${head_dim}_${vectors}v(s->keys, s->queries[tile], s->scores, whole_panels(tile_keys),
                                          ${ceil_div(head_dim, pair)});
    softmax_tile(s->scores, tile_keys, first_masked, diagonal, s->factor + tile * TILE_M, s->row_max + tile * TILE_M,
                 s->row_sum + tile * TILE_M, rescale);
//% if dot
    fold_rounded_pairs(s->scores, s->scores, tile_keys);
    multiply_values_${head_dim_v}_${vectors}v(s->values, s->scores, s->outputs[tile], HEAD_DIM_V,
                                              (tile_keys + 1) / 2, rescale);
//% else
    multiply_values_${head_dim_v}_${vectors}v(s->values, s->scores, s->outputs[tile], HEAD_DIM_V, tile_keys, rescale);
//% end
  }
}

//% include "cpu/forward_end.h"

void forward(const struct fa_params *params, long long task, void *scratch)
{
  struct scratch *s = scratch;
  /* Neighbouring tasks are different heads; causal blocks with the most keys come first, so that no long task is
   * left for the end. */
  long long heads = params->batch * params->heads_q;
  long long block = task / heads;
  long long batch = task % heads / params->heads_q, head = task % params->heads_q;
  long long kv_head = head / (params->heads_q / params->heads_kv);
//% if causal
  block = (params->seqlen_q + BLOCK_M - 1) / BLOCK_M - 1 - block;
//% end
  long long first_query = block * BLOCK_M;
  long rows = params->seqlen_q - first_query < BLOCK_M ? params->seqlen_q - first_query : BLOCK_M;
  long long end_key = params->seqlen_k;
//% if causal
  end_key = first_query + rows < end_key ? first_query + rows : end_key;
//% end

  load_queries(s, params, batch, head, first_query, rows);
  for (long long first_key = 0; first_key < end_key; first_key += BLOCK_N) {
    long keys = end_key - first_key < BLOCK_N ? end_key - first_key : BLOCK_N;
    const struct fa_tensor *key = &params->key, *value = &params->value;
    const element *k = at(key, batch, kv_head, first_key), *v = at(value, batch, kv_head, first_key);
//% if dot
    pack_column_pairs(s->keys, ${ld_keys}, k, key->stride_row, key->stride_col, HEAD_DIM, keys, whole_panels(keys));
    pack_row_pairs(s->values, ${ld_v}, v, value->stride_row, value->stride_col, HEAD_DIM_V, keys, 0);
//% else
    pack_rows(s->keys, ${ld_keys}, k, key->stride_row, key->stride_col, HEAD_DIM, keys, whole_panels(keys));
    pack_rows(s->values, ${ld_v}, v, value->stride_row, value->stride_col, HEAD_DIM_V, keys, 0);
//% end
    attend(s, rows, first_query, first_key, keys);
  }
  store_outputs(s, params, batch, head, first_query, rows);
}
