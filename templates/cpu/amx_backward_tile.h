/* A block of queries against a block of keys: its part of the three gradients. */

struct row_state {
  vec factor[2], max[2], scale[2], delta[2];
};

/* Weights and d_scores of 32 keys and 32 queries, as operands of the gradients' products. Where `mask`, key j of the
 * group is seen by query i only if i + diagonal >= j and j < keys. */
static inline __attribute__((always_inline)) void weigh(struct scratch *s, int tile, long group,
                                                        const struct row_state *state, long diagonal, long keys,
                                                        _Bool mask)
{
  for (int i = 0; i < 16; i++) {
    vec p[4], ds[4];
//% for n in 0 .. 4
//%   let half = n % 2
    p[${n}] = exp2_units((load(s->scores[${n}].row[i]) - state->max[${half}]) * state->factor[${half}]) * state->scale[${half}];
    ds[${n}] = p[${n}] * (load(s->d_scores[${n}].row[i]) - state->delta[${half}]);
    if (mask) {
      long key = i + ${n / 2 * 16};
      ivec seen = lane_index() + (int)(${half} * LANES + diagonal - key) >= (key < keys ? 0 : 1 << 30);
      p[${n}] = blend(seen, p[${n}], (vec){0});
      ds[${n}] = blend(seen, ds[${n}], (vec){0});
    }
//% end
    store_computed_pairs(s->weight_rows[tile], 1, i, p[0], p[1]);
    store_computed_pairs(s->weight_rows[tile] + PARTS, 1, i, p[2], p[3]);
    store_computed_pairs(s->d_score_rows[tile], 1, i, ds[0], ds[1]);
    store_computed_pairs(s->d_score_rows[tile] + PARTS, 1, i, ds[2], ds[3]);
    store_computed_pairs(s->d_score_pairs[tile] + group * PARTS * 2, 2, i, ds[0], ds[2]);
    store_computed_pairs(s->d_score_pairs[tile] + group * PARTS * 2 + 1, 2, i, ds[1], ds[3]);
  }
}

static __attribute__((noinline)) void weigh_group(struct scratch *s, int tile, long group,
                                                  const struct row_state *state)
{
  weigh(s, tile, group, state, 0, 0, 0);
}

static __attribute__((noinline)) void weigh_masked_group(struct scratch *s, int tile, long group,
                                                         const struct row_state *state, long diagonal, long keys)
{
  weigh(s, tile, group, state, diagonal, keys, 1);
}

/* The part that a group of 32 keys has in dV and dK, from `tiles` tiles of queries from first_tile on. */
static void add_key_gradients(struct work *w, long long row, int first_tile, int tiles)
{
  struct scratch *s = w->s;
  for (int column = 0; column < GROUPS_V && w->want_d_value; column++) {
    multiply_gradient(s->weight_rows[first_tile], s->d_outputs[column] + first_tile * PARTS * 2, s->sums, tiles);
    add_tiles(w->d_values + row * (GROUPS_V * 32) + column * 32, GROUPS_V * 32, s->sums);
  }
  for (int column = 0; column < GROUPS_QK && w->want_d_key; column++) {
    multiply_gradient(s->d_score_rows[first_tile], s->queries[column] + first_tile * PARTS * 2, s->sums, tiles);
    add_tiles(w->d_keys + row * (GROUPS_QK * 32) + column * 32, GROUPS_QK * 32, s->sums);
  }
}

static void attend(struct work *w, long rows, long long first_query, long long first_key, long keys)
{
  struct scratch *s = w->s;
  int tiles = (int)((rows + TILE_M - 1) / TILE_M);
  for (long group = 0; group * 32 < keys; group++) {
    int first_tile = 0;
    long left = keys - group * 32;
//% if causal
    long long below = first_key + group * 32 - first_query; /* queries of the block before the first key */
    first_tile = below > 0 ? (int)(below / TILE_M) : 0;
//% else
    (void)first_query;
//% end
    for (int tile = first_tile; tile < tiles; tile++) {
      long row = tile * TILE_M;
      struct row_state state;
      for (int half = 0; half < 2; half++) {
        state.factor[half] = load(s->factor + row + half * LANES);
        state.max[half] = load(s->row_max + row + half * LANES);
        state.scale[half] = load(s->row_scale + row + half * LANES);
        state.delta[half] = load(s->delta + row + half * LANES);
      }
      multiply_keys(s->keys + group * 2 * GROUPS_QK * PARTS, s->queries_t[tile], s->scores);
      multiply_values(s->values + group * 2 * GROUPS_V * PARTS, s->d_outputs_t[tile], s->d_scores);
      long diagonal = 32;
//% if causal
      if (row - below < diagonal)
        diagonal = row - below;
//% end
      if (left < 32 || diagonal < 31)
        weigh_masked_group(s, tile, group, &state, diagonal, left);
      else
        weigh_group(s, tile, group, &state);
    }
    if (first_tile < tiles)
      add_key_gradients(w, first_key - w->begin_key + group * 32, first_tile, tiles - first_tile);
  }
  for (int tile = 0; tile < tiles && w->want_d_query; tile++) {
    long groups = (keys + 31) / 32;
//% if causal
    long long seen = (first_query + (tile + 1) * TILE_M - first_key) / 32;
    groups = seen < groups ? seen : groups;
    if (first_query + (tile + 1) * TILE_M <= first_key)
      continue;
//% end
    for (int column = 0; column < GROUPS_QK; column++) {
      multiply_query_gradient(s->keys_t + column * 2 * PARTS, s->d_score_pairs[tile], s->sums, groups);
      add_tiles(s->d_queries_t[tile] + column * 32 * TILE_M, TILE_M, s->sums);
    }
  }
}
