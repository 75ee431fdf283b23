/* The loads, by one thread. dO of a stage is given back before its Q, so it is the first to come. */
struct maps {
  const struct tensor_map *query, *key, *value, *grad_output;
};

/* The next step to load, and how many are left of its tile. */
struct loader {
  u32 round;
  struct work w;
  int left;
  struct ring<STAGES> stage;
  struct cursor at;
};

/* K and V of a tile. */
static __device__ __forceinline__ void load_keys(const struct ring<KEY_STAGES> &at, const struct maps &maps,
                                                 const struct work &w, u32 shared)
{
  const u32 full = shared + KEY_FULL + 8 * at.stage;
  wait_empty(shared + KEY_EMPTY, at);
  barrier_expect(full, KEY_BYTES + VALUE_BYTES);
  load_rows<BLOCK_N, CHUNKS_QK, KEY_BOX>(shared + KEYS + at.stage * KEY_BYTES, maps.key, full, w.first_key, w.kv_head,
                                         w.batch);
  load_rows<BLOCK_N, CHUNKS_V, KEY_BOX>(shared + VALUES + at.stage * VALUE_BYTES, maps.value, full, w.first_key, w.kv_head,
                                        w.batch);
}

/* What a step needs, if there is one: from a tile's last on to the next tile's first. */
static __device__ __forceinline__ void load_step(struct loader &next, const struct maps &maps,
                                                 const struct fa_params &params, u32 shared)
{
  if (next.left == 0) {
    if (!next_work(params, next.round, next.w))
      return;
    next.left = next.w.num_steps;
    next.at = begin_steps(params, next.w);
  }
  const int first_query = next.at.block * BLOCK_M, stage = next.stage.stage;
  u32 full = shared + GRAD_FULL + 8 * stage;
  wait_empty(shared + GRAD_EMPTY, next.stage);
  barrier_expect(full, GRAD_BYTES);
  load_rows<BLOCK_M, CHUNKS_V, QUERY_BOX>(shared + GRADS + stage * GRAD_BYTES, maps.grad_output, full, first_query,
                                          next.at.head, next.w.batch);
  full = shared + QUERY_FULL + 8 * stage;
  wait_empty(shared + QUERY_EMPTY, next.stage);
  barrier_expect(full, QUERY_BYTES + STATS_BYTES);
  load_rows<BLOCK_M, CHUNKS_QK, QUERY_BOX>(shared + QUERIES + stage * QUERY_BYTES, maps.query, full, first_query,
                                           next.at.head, next.w.batch);
  const struct row_stats *stats = find_workspace(params, next.w.batch, next.at.head).stats; /* no register keeps it */
  bulk_load(shared + STATS + stage * STATS_BYTES, stats + first_query, STATS_BYTES, full);
  next.left--;
  advance(next.stage);
  advance(next.at, params, next.w);
}
