/* What the products of backward read: a block of queries with all that belongs to its rows, and a block of keys. */

/* 32 rows in pairs: row i of tile out[group of columns * apart][part][half of the columns] is rows i and i + 16. */
static inline __attribute__((always_inline)) void pack_pair_tiles(tile *out, long apart, const element *in,
                                                                  long long stride_row, long long stride_col, int dim,
                                                                  long rows)
{
  for (int column = 0; column < (dim + 31) / 32 * 32; column += 16)
    for (int i = 0; i < 16; i++) {
      vec low = {0}, high = {0};
      if (column < dim && i < rows)
        low = load_columns(in + i * stride_row, stride_col, column, dim);
      if (column < dim && i + 16 < rows)
        high = load_columns(in + (i + 16) * stride_row, stride_col, column, dim);
      store_pairs(out + column / 32 * apart + column / 16 % 2, 2, i, low, high);
    }
}

/* Everything that a block of queries brings along. */
static void load_queries(struct work *w, long long first, long rows)
{
  struct scratch *s = w->s;
  const struct fa_tensor *query = &w->params->query, *d_output = &w->params->grad_output, *output = &w->params->output;
  const float *lse = w->params->lse + ((w->batch * w->params->heads_q + w->head) * w->params->seqlen_q + first) * 2;
  /* Rows beyond the last query get weight 0 by a row_scale of 0. */
  for (int i = 0; i < BLOCK_M; i++) {
    s->row_max[i] = i < rows ? lse[2 * i] : 0.0f;
    s->row_scale[i] = i < rows ? 1.0f / lse[2 * i + 1] : 0.0f;
  }
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++) {
    long first_row = tile * TILE_M, left = rows - first_row;
    const element *q = at(query, w->batch, w->head, first + first_row);
    const element *d_o = at(d_output, w->batch, w->head, first + first_row);
    pack_transposed(s->columns, q, query->stride_row, query->stride_col, HEAD_DIM, left);
    normalise_queries(s->columns, w->params->softmax_scale, s->factor + first_row);
    pack_transposed_tiles(s->queries_t[tile], s->columns, HEAD_DIM);
    pack_transposed(s->columns, d_o, d_output->stride_row, d_output->stride_col, HEAD_DIM_V, left);
    pack_transposed_tiles(s->d_outputs_t[tile], s->columns, HEAD_DIM_V);
    pack_pair_tiles(s->queries[0] + tile * PARTS * 2, TILES * PARTS * 2, q, query->stride_row, query->stride_col,
                    HEAD_DIM, left);
    pack_pair_tiles(s->d_outputs[0] + tile * PARTS * 2, TILES * PARTS * 2, d_o, d_output->stride_row,
                    d_output->stride_col, HEAD_DIM_V, left);
    /* delta = rowsum(dO * O), computed as V * dO is: where one key has all the weight, O is its V and d_weights - delta is
     * exactly 0. It is the diagonal of the products of all rows. */
    pack_row_tiles(s->outputs, at(output, w->batch, w->head, first + first_row), output->stride_row, output->stride_col,
                   HEAD_DIM_V, left, 32);
    multiply_values(s->outputs, s->d_outputs_t[tile], s->sums);
    for (int i = 0; i < 32; i++)
      s->delta[first_row + i] = i < left ? s->sums[i / 16 * 3].row[i % 16][i % 16] : 0.0f;
    clear(s->d_queries_t[tile], GROUPS_QK * 32 * TILE_M);
  }
}

static void load_keys(struct work *w, long long first, long keys)
{
  struct scratch *s = w->s;
  const struct fa_tensor *key = &w->params->key, *value = &w->params->value;
  const element *k = at(key, w->batch, w->kv_head, first), *v = at(value, w->batch, w->kv_head, first);
  long groups = (keys + 31) / 32;
  pack_row_tiles(s->keys, k, key->stride_row, key->stride_col, HEAD_DIM, keys, 32 * groups);
  pack_row_tiles(s->values, v, value->stride_row, value->stride_col, HEAD_DIM_V, keys, 32 * groups);
  if (w->want_d_query)
    pack_column_tiles(s->keys_t, 2 * GROUPS_QK, k, key->stride_row, key->stride_col, HEAD_DIM, keys, groups);
}
