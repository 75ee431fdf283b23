/* One tile of queries against one block of keys: weights, d_scores, and their part of the three gradients. */

/*
 * Scores become weights and d_weights d_scores, in place. Keys from first_masked on may be hidden: key j is
 * seen by query i where i + diagonal >= j.
 */
static __attribute__((noinline)) void softmax_tile(float *scores, float *d_scores, long keys, long first_masked,
                                                   long diagonal, const float *factor, const float *row_max,
                                                   const float *row_scale, const float *delta)
{
//% for v in 0 .. tile_vectors
  vec factor_${v} = load(factor + ${v} * LANES), max_${v} = load(row_max + ${v} * LANES);
  vec scale_${v} = load(row_scale + ${v} * LANES), delta_${v} = load(delta + ${v} * LANES);
//% end
  for (long key = 0; key < keys; key++) {
//% for v in 0 .. tile_vectors
    float *x_${v} = scores + key * TILE_M + ${v} * LANES, *dx_${v} = d_scores + key * TILE_M + ${v} * LANES;
    vec p_${v} = exp2_units((load(x_${v}) - max_${v}) * factor_${v}) * scale_${v};
    vec ds_${v} = p_${v} * (load(dx_${v}) - delta_${v});
    store(x_${v}, p_${v});
    store(dx_${v}, ds_${v});
//% end
  }
//% if causal
  for (long key = first_masked; key < keys; key++) {
//%   for v in 0 .. tile_vectors
    float *x_${v} = scores + key * TILE_M + ${v} * LANES, *dx_${v} = d_scores + key * TILE_M + ${v} * LANES;
    ivec seen_${v} = lane_index() + (int)(${v} * LANES + diagonal - key) >= 0;
    store(x_${v}, blend(seen_${v}, load(x_${v}), (vec){0}));
    store(dx_${v}, blend(seen_${v}, load(dx_${v}), (vec){0}));
//%   end
  }
//% else
  (void)first_masked, (void)diagonal;
//% end
}

/* Weights and d_scores of one tile of queries and one block of keys; returns how many of the keys the tile sees. */
static long weigh(struct work *w, int tile, long long first_query, long long first_key, long keys)
{
  struct scratch *s = w->s;
  long tile_keys = keys, first_masked = keys;
//% if causal
  long diagonal = first_query + tile * TILE_M - first_key;
  tile_keys = diagonal + TILE_M < keys ? diagonal + TILE_M : keys;
  if (tile_keys <= 0)
    return 0;
  first_masked = diagonal + 1 < 0 ? 0 : diagonal + 1 < tile_keys ? diagonal + 1 : tile_keys;
//% else
  long diagonal = 0;
  (void)first_query, (void)first_key;
//% end
  long panels = round_up_to(tile_keys, ${key_rows});
  multiply_keys_${head_dim}_${tile_vectors}v(s->keys, s->queries_t[tile], s->scores, panels,
                                                   ${ceil_div(head_dim, pair)});
  multiply_values_${head_dim_v}_${tile_vectors}v(s->values, s->d_outputs_t[tile], s->d_scores, panels,
                                                       ${ceil_div(head_dim_v, pair)});
  softmax_tile(s->scores, s->d_scores, tile_keys, first_masked, diagonal, s->factor + tile * TILE_M,
               s->row_max + tile * TILE_M, s->row_scale + tile * TILE_M, s->delta + tile * TILE_M);
  return tile_keys;
}

/* One tile of queries against one block of keys: its part of all three gradients. */
static void attend(struct work *w, int tile, long long first_query, long long first_key, long keys)
{
  struct scratch *s = w->s;
  float *scores = s->scores, *d_scores = s->d_scores;
  long tile_keys = weigh(w, tile, first_query, first_key, keys);
  if (tile_keys == 0)
    return;
  if (w->want_d_query) {
//% if dot
    fold_rounded_pairs(s->d_score_pairs, d_scores, tile_keys);
    add_query_gradient_${head_dim}_${tile_vectors}v(s->key_pairs, s->d_score_pairs, s->d_queries_t[tile], HEAD_DIM,
                                           (tile_keys + 1) / 2);
//% else
    add_query_gradient_${head_dim}_${tile_vectors}v(s->keys, d_scores, s->d_queries_t[tile], HEAD_DIM, tile_keys);
//% end
  }

  /* Keys beyond the tile's, up to a whole panel of gradient rows, add nothing. */
  long rows_qk = round_up_to(tile_keys, ${gradient_rows_qk}), rows_v = round_up_to(tile_keys, ${gradient_rows_v});
  for (long i = tile_keys * TILE_M; i < (rows_qk > rows_v ? rows_qk : rows_v) * TILE_M; i += LANES) {
    store(scores + i, (vec){0});
    store(d_scores + i, (vec){0});
  }
//% if dot
  /* Neighbouring queries pair up: the same order in half the room, so that rounding can be done in place. */
  for (long i = 0; i < (rows_qk > rows_v ? rows_qk : rows_v) * TILE_M; i += LANES) {
    store_elements((element *)scores + i, load(scores + i));
    store_elements((element *)d_scores + i, load(d_scores + i));
  }
//% end
  if (w->want_d_value) {
    const float *d_outputs = s->d_outputs + tile * ${tile_m / pair * ld_v};
//% for group in 0 .. groups_v
//%   let column = group * gradient_vectors_v * lanes
//%   let group_vectors = min(gradient_vectors_v, ld_v / lanes - group * gradient_vectors_v)
    add_gradient_${head_dim_v}_${group_vectors}v(scores, d_outputs + ${column}, s->block_d_values + ${column}, rows_v,
                                                 ${tile_m / pair});
//% end
  }
  if (w->want_d_key) {
    const float *queries = s->queries + tile * ${tile_m / pair * ld_qk};
//% for group in 0 .. groups_qk
//%   let column = group * gradient_vectors_qk * lanes
//%   let group_vectors = min(gradient_vectors_qk, ld_qk / lanes - group * gradient_vectors_qk)
    add_gradient_${head_dim}_${group_vectors}v(d_scores, queries + ${column}, s->block_d_keys + ${column}, rows_qk,
                                               ${tile_m / pair});
//% end
  }
}
