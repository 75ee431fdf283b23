/* What a task of backward is about (the keys of one key/value head that are one split's), and where its sums are. */
struct work {
  const struct fa_params *params;
  struct scratch *s;
  long long batch, kv_head, head; /* head: of the queries, the one being worked on */
  long long split, begin_key, end_key;
  float *d_keys, *d_values; /* (end_key - begin_key, columns), filled in by the caller */
  _Bool want_d_query, want_d_key, want_d_value;
};

static inline long long query_blocks(const struct fa_params *params)
{
  return (params->seqlen_q + BLOCK_M - 1) / BLOCK_M;
}

static inline struct work begin_work(const struct fa_params *params, long long task, void *scratch)
{
  long long splits = params->num_splits;
  long long blocks = (params->seqlen_k + BLOCK_N - 1) / BLOCK_N, split_blocks = (blocks + splits - 1) / splits;
  /* Neighbouring tasks are different heads; causal splits with the most queries come first. */
  long long heads = params->batch * params->heads_kv, split = task / heads;
  long long begin = split * split_blocks * BLOCK_N, end = begin + split_blocks * BLOCK_N;
  begin = begin < params->seqlen_k ? begin : params->seqlen_k;
  end = end < params->seqlen_k ? end : params->seqlen_k;
  return (struct work){
      .params = params,
      .s = scratch,
      .batch = task % heads / params->heads_kv,
      .kv_head = task % params->heads_kv,
      .split = split,
      .begin_key = begin,
      .end_key = end,
      .want_d_query = params->grad_query.data != 0,
      .want_d_key = params->grad_key.data != 0,
      .want_d_value = params->grad_value.data != 0,
  };
}

static inline void clear(float *sums, long count)
{
  for (long i = 0; i < count; i += LANES)
    store(sums + i, (vec){0});
}

static void store_gradient(const struct fa_tensor *to, const struct work *w, const float *sums, int leading, int dim,
                           float scale)
{
  for (long long key = w->begin_key; key < w->end_key; key++)
    for (int column = 0; column < dim; column += LANES)
      store_row(at(to, w->batch, w->kv_head, key), to->stride_col, column, dim,
                load(sums + (key - w->begin_key) * leading + column) * scale);
}
