/*
 * Forward on a CPU with AMX, one task per block of ${block_m} queries.
 *
 * Queries lie along the columns of the tiles. A block of keys gives scores[key][query] = K * Q^T, the softmax turns them
 * into weights, and output^T[column][query] += V^T * weights, 32 queries at a time. While the tile unit multiplies one
 * tile of queries, the vector units compute the weights of the tile before it.
 */
//% include "common/params.h"
//% let groups_qk = ceil_div(head_dim, 32)
//% let tiles_v = ceil_div(head_dim_v, 16)
enum {
  HEAD_DIM = ${head_dim},
  HEAD_DIM_V = ${head_dim_v},
  TILE_M = 32, /* queries that are worked on at a time */
  TILES = ${block_m / 32},
  BLOCK_M = ${block_m},
  BLOCK_N = ${block_n},
  GROUPS = ${block_n / 32}, /* groups of keys in a block */
  PARTS = ${parts}, /* bf16 that a number is split into */
  COLUMN_GROUPS = ${groups_qk},
  VALUE_TILES = ${tiles_v},
  OUTPUT_ROWS = ${round_up(head_dim_v, 32)},
};

//% include "cpu/freestanding.h"
//% include "cpu/vector.h"
//% include "cpu/rows.h"
//% include "cpu/queries.h"
//% include "cpu/amx_tiles.h"
//% include "cpu/amx_rows.h"
//% include "cpu/amx_softmax.h"

//%# Scores of 32 keys, alone and beside the weights of the tile before.
//% let m_tiles = 2
//% let count = groups_qk
//% let a_m = groups_qk * parts
//% let a_k = parts
//% let name = "multiply_keys"
//% let beside = ""
//% let units = 0
//% include "cpu/amx_multiply.h"

//%# With AMX at work FMAs have one port of two. One product per group is over too soon to be worth that.
//% let beside = "weigh"
//% let name = "multiply_keys_and_weigh"
//% let units = 16 * (parts > 1)
//% if parts > 1
//%   include "cpu/amx_multiply.h"
//% end

/* Sums of weights * V for 32 columns of a tile's outputs, not added yet. */
struct add_work {
  float *outputs;
  const tile *sums;
  vec rescale[2];
};

static inline __attribute__((always_inline)) void add(const struct add_work *work, int i)
{
//% for half in 0 .. 2
  float *to_${half} = work->outputs + i * TILE_M + ${half} * LANES;
  store(to_${half}, load(to_${half}) * work->rescale[${half}] + load(work->sums[i / 16 * 2 + ${half}].row[i % 16]));
//% end
}

//%# 32 columns of the output, and the 16 that may be left, beside adding the 32 columns before.
//% let count = 0
//% let a_m = parts
//% let a_k = tiles_v * parts
//% let beside = "add"
//% let units = 32
//% let name = "multiply_values"
//% if tiles_v > 1
//%   include "cpu/amx_multiply.h"
//% end
//% let m_tiles = 1
//% let name = "multiply_last_values"
//% if tiles_v % 2
//%   include "cpu/amx_multiply.h"
//% end

/* The memory of one worker, in the order in which a task uses it. */
struct scratch {
  tile queries[TILES][COLUMN_GROUPS * PARTS * 2];
  float outputs[TILES + 1][OUTPUT_ROWS * TILE_M]; /* the last is where what is not there yet is added */
  float factor[BLOCK_M], row_max[BLOCK_M], row_sum[BLOCK_M];
  tile keys[GROUPS * 2 * COLUMN_GROUPS * PARTS];
  tile values[GROUPS * VALUE_TILES * PARTS];
  tile scores[2][GROUPS * 4];
  tile weights[GROUPS * PARTS * 2];
  tile sums[2][4];
  float queries_t[HEAD_DIM * TILE_M];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct scratch) <= ${scratch_bytes}, "the launcher gives a worker this much");

static void load_queries(struct scratch *s, const struct fa_params *params, long long batch, long long head,
                         long long first, long rows)
{
  const struct fa_tensor *query = &params->query;
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++) {
    pack_transposed(s->queries_t, at(query, batch, head, first + tile * TILE_M), query->stride_row, query->stride_col,
                    HEAD_DIM, rows - tile * TILE_M);
    normalise_queries(s->queries_t, params->softmax_scale, s->factor + tile * TILE_M);
    pack_transposed_tiles(s->queries[tile], s->queries_t, HEAD_DIM);
    for (int i = 0; i < OUTPUT_ROWS * TILE_M; i += LANES)
      store(s->outputs[tile] + i, (vec){0});
  }
  for (int i = 0; i < 16; i++)
    for (int t = 0; t < 4; t++)
      store(s->sums[0][t].row[i], (vec){0}), store(s->sums[1][t].row[i], (vec){0});
  for (int i = 0; i < BLOCK_M; i += LANES) {
    store(s->row_max + i, splat(LOWEST));
    store(s->row_sum + i, (vec){0});
  }
}

/* What a tile of queries sees of a block of keys: how many groups, how many of them without a mask. */
struct view {
  long groups, whole_groups, diagonal, keys;
};

static inline struct view view_of(int tile, long rows, long long first_query, long long first_key, long keys)
{
  struct view view = {.diagonal = 2 * BLOCK_N, .keys = keys};
  if (tile * TILE_M >= rows)
    return (struct view){0};
//% if causal
  if (first_query + tile * TILE_M - first_key < view.diagonal)
    view.diagonal = first_query + tile * TILE_M - first_key;
  if (view.diagonal + TILE_M < keys)
    view.keys = view.diagonal + TILE_M;
  if (view.keys < 0)
    view.keys = 0;
//% else
  (void)first_query, (void)first_key;
//% end
  view.groups = (view.keys + 31) / 32;
  view.whole_groups = view.keys / 32;
//% if causal
  long whole = view.diagonal + 1 < 0 ? 0 : (view.diagonal + 1) / 32;
  view.whole_groups = whole < view.whole_groups ? whole : view.whole_groups;
//% end
  return view;
}

/* output = output * rescale + weights * V, all columns of a tile of queries; the last are left to be added. */
static void add_values(struct scratch *s, float *outputs, long groups, const vec *rescale, struct add_work *work)
{
  for (int column = 0; column < VALUE_TILES; column += 2) {
    tile *sums = s->sums[work->sums == s->sums[0]];
//% if tiles_v % 2
    if (column + 1 == VALUE_TILES)
      multiply_last_values(s->values + column * PARTS, s->weights, sums, groups, work);
//%   if tiles_v > 1
    else
//%   end
//% end
//% if tiles_v > 1
      multiply_values(s->values + column * PARTS, s->weights, sums, groups, work);
//% end
    work->outputs = outputs + column * 16 * TILE_M;
    work->sums = sums;
    work->rescale[0] = rescale[0];
    work->rescale[1] = rescale[1];
  }
}

/* All queries of the block against keys first .. first + keys - 1. */
static void attend(struct scratch *s, long rows, long long first_query, long long first_key, long keys)
{
  const long key_tiles = 2 * COLUMN_GROUPS * PARTS;
  struct add_work add_work = {.outputs = s->outputs[TILES], .sums = s->sums[0]};
  struct view next = view_of(0, rows, first_query, first_key, keys);
  long multiplied = 0; /* groups of scores that are there */
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++) {
    struct view view = next;
    struct tile *scores = s->scores[tile & 1];
//% if parts > 1
    struct tile *next_scores = s->scores[(tile + 1) & 1];
//% end
    for (long group = multiplied; group < view.groups; group++)
      multiply_keys(s->keys + group * key_tiles, s->queries[tile], scores + group * 4);
    next = tile + 1 < TILES ? view_of(tile + 1, rows, first_query, first_key, keys) : (struct view){0};
    multiplied = 0;
    if (view.groups == 0)
      continue;

    float *row_max = s->row_max + tile * TILE_M, *row_sum = s->row_sum + tile * TILE_M;
    struct weigh_work work;
    vec high[2] = {splat(LOWEST), splat(LOWEST)}, rescale[2], sum[2] = {{0}, {0}};
    for (long group = 0; group < view.groups; group++) {
      work.scores = scores + group * 4;
      work.diagonal = view.diagonal - 32 * group;
      work.keys = view.keys - 32 * group;
      find_largest(&work, high, group >= view.whole_groups);
    }
    for (int half = 0; half < 2; half++) {
      vec old_max = load(row_max + half * LANES);
      work.factor[half] = load(s->factor + tile * TILE_M + half * LANES);
      work.max[half] = larger(high[half], old_max);
      rescale[half] = exp2_units((old_max - work.max[half]) * work.factor[half]) * (1.0f / UNIT);
      store(row_max + half * LANES, work.max[half]);
    }
    for (long group = 0; group < view.groups; group++) {
      work.scores = scores + group * 4;
      work.weights = s->weights + group * PARTS * 2;
      for (int i = 0; i < 4; i++)
        work.sums[i] = (vec){0};
      if (group >= view.whole_groups) {
        work.diagonal = view.diagonal - 32 * group;
        work.keys = view.keys - 32 * group;
        weigh_masked_group(&work);
//% if parts > 1
      } else if (group < next.groups) {
        multiply_keys_and_weigh(s->keys + group * key_tiles, s->queries[tile + 1], next_scores + group * 4, &work);
        multiplied = group + 1;
//% end
      } else {
        weigh_group(&work);
      }
      for (int half = 0; half < 2; half++)
        sum[half] += work.sums[half] + work.sums[2 + half];
    }
    for (int half = 0; half < 2; half++)
      store(row_sum + half * LANES, load(row_sum + half * LANES) * rescale[half] + sum[half]);
    add_values(s, s->outputs[tile], view.groups, rescale, &add_work);
  }
  for (int i = 0; i < 32; i++)
    add(&add_work, i);
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

  begin_tiles();
  unsigned mode = begin_flushing();
  load_queries(s, params, batch, head, first_query, rows);
  for (long long first_key = 0; first_key < end_key; first_key += BLOCK_N) {
    long keys = end_key - first_key < BLOCK_N ? end_key - first_key : BLOCK_N;
    const struct fa_tensor *key = &params->key, *value = &params->value;
    const element *k = at(key, batch, kv_head, first_key), *v = at(value, batch, kv_head, first_key);
    long groups = (keys + 31) / 32;
    pack_row_tiles(s->keys, k, key->stride_row, key->stride_col, HEAD_DIM, keys, 32 * groups);
    pack_column_tiles(s->values, VALUE_TILES, v, value->stride_row, value->stride_col, HEAD_DIM_V, keys, groups);
    attend(s, rows, first_query, first_key, keys);
  }
  end_flushing(mode);
  end_tiles();
  store_outputs(s, params, batch, head, first_query, rows);
}
