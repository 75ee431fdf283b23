/* What the products of backward read: a block of queries with all that belongs to its rows, and a block of keys. */

//% if !exact_delta
/*
 * delta = rowsum(dO * O), term by term as multiply_values adds V * dO: where one key has all the weight, O is
 * its V and d_weights - delta is exactly 0.
 */
static void sum_products(float *delta, const float *d_outputs_t, const float *outputs_t)
{
  for (int lanes = 0; lanes < TILE_M; lanes += LANES) {
    vec sum = {0};
//% let chunk_terms = score_chunk + 256 * (score_chunk == 0)
    for (int begin = 0; begin < ${ceil_div(head_dim_v, pair)}; begin += ${chunk_terms}) {
      vec part = {0};
      for (int i = begin; i < ${ceil_div(head_dim_v, pair)} && i < begin + ${chunk_terms}; i++) {
        vec d_o = load(d_outputs_t + i * TILE_M + lanes), o = load(outputs_t + i * TILE_M + lanes);
//% if dot
        asm("vdpbf16ps %2, %1, %0" : "+v"(part) : "v"(o), "v"(d_o));
//% else
        part += o * d_o;
//% end
      }
      sum += part;
    }
    store(delta + lanes, sum);
  }
}

//% end
/* Everything that a block of queries brings along. */
static void load_queries(struct work *w, long long first, long rows)
{
  struct scratch *s = w->s;
  const struct fa_tensor *query = &w->params->query, *d_output = &w->params->grad_output;
  const element *q = at(query, w->batch, w->head, first), *d_o = at(d_output, w->batch, w->head, first);
//% if exact_delta
  const float *delta = row_deltas(w->params, w->batch, w->head, first);
//% else
  const struct fa_tensor *output = &w->params->output;
  const element *o = at(output, w->batch, w->head, first);
//% end
  const float *lse = w->params->lse + ((w->batch * w->params->heads_q + w->head) * w->params->seqlen_q + first) * 2;
  /* Rows beyond the last query get weight 0 by a row_scale of 0. */
  for (int i = 0; i < BLOCK_M; i++) {
    s->row_max[i] = i < rows ? lse[2 * i] : 0.0f;
    s->row_scale[i] = i < rows ? 1.0f / lse[2 * i + 1] : 0.0f;
  }
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++) {
    long first_row = tile * TILE_M;
    pack_transposed(s->queries_t[tile], q + first_row * query->stride_row, query->stride_row, query->stride_col,
                    HEAD_DIM, rows - first_row);
    normalise_queries(s->queries_t[tile], w->params->softmax_scale, s->factor + first_row);
    pack_transposed(s->d_outputs_t[tile], d_o + first_row * d_output->stride_row, d_output->stride_row,
                    d_output->stride_col, HEAD_DIM_V, rows - first_row);
//% if dot
    fold_exact_pairs(s->queries_t[tile], HEAD_DIM);
    fold_exact_pairs(s->d_outputs_t[tile], HEAD_DIM_V);
//% end
//% if exact_delta
    for (int i = first_row; i < first_row + TILE_M; i++)
      s->delta[i] = i < rows ? delta[i] : 0.0f;
//% else
    pack_transposed(s->outputs_t, o + first_row * output->stride_row, output->stride_row, output->stride_col,
                    HEAD_DIM_V, rows - first_row);
//%   if dot
    fold_exact_pairs(s->outputs_t, HEAD_DIM_V);
//%   end
    sum_products(s->delta + first_row, s->d_outputs_t[tile], s->outputs_t);
//% end
    for (int i = 0; i < HEAD_DIM * TILE_M; i += LANES)
      store(s->d_queries_t[tile] + i, (vec){0});
  }
//% if dot
  pack_row_pairs(s->queries, ${ld_qk}, q, query->stride_row, query->stride_col, HEAD_DIM, rows, BLOCK_M / 2);
  pack_row_pairs(s->d_outputs, ${ld_v}, d_o, d_output->stride_row, d_output->stride_col, HEAD_DIM_V, rows, BLOCK_M / 2);
//% else
  pack_rows(s->queries, ${ld_qk}, q, query->stride_row, query->stride_col, HEAD_DIM, rows, BLOCK_M);
  pack_rows(s->d_outputs, ${ld_v}, d_o, d_output->stride_row, d_output->stride_col, HEAD_DIM_V, rows, BLOCK_M);
//% end
}

static void load_keys(struct work *w, long long first, long keys)
{
  struct scratch *s = w->s;
  const struct fa_tensor *key = &w->params->key, *value = &w->params->value;
  const element *k = at(key, w->batch, w->kv_head, first), *v = at(value, w->batch, w->kv_head, first);
  long padded = round_up_to(keys, ${key_rows});
//% if dot
  pack_column_pairs(s->keys, ${ld_key_columns}, k, key->stride_row, key->stride_col, HEAD_DIM, keys, padded);
  pack_column_pairs(s->values, ${ld_value_columns}, v, value->stride_row, value->stride_col, HEAD_DIM_V, keys, padded);
  if (w->want_d_query)
    pack_row_pairs(s->key_pairs, ${ld_qk}, k, key->stride_row, key->stride_col, HEAD_DIM, keys, 0);
//% else
  pack_rows(s->keys, ${ld_key_columns}, k, key->stride_row, key->stride_col, HEAD_DIM, keys, padded);
  pack_rows(s->values, ${ld_value_columns}, v, value->stride_row, value->stride_col, HEAD_DIM_V, keys, padded);
//% end
}
