/* The loads, by one thread. dO of a stage is given back before its Q, so it is the first to come. */
struct maps {
  const struct tensor_map *query, *key, *value, *grad_output;
};

/* The next step to load. */
struct loader {
  int step;
  struct ring<STAGES> stage;
  struct cursor at;
};

static __device__ __forceinline__ void load_keys(const struct maps &maps, const struct work &w, u32 shared)
{
  barrier_expect(shared + KEY_FULL, KEY_BYTES + VALUE_BYTES);
  load_rows<BLOCK_N, CHUNKS_QK, KEY_BOX>(shared + KEYS, maps.key, shared + KEY_FULL, w.first_key, w.kv_head, w.batch);
  load_rows<BLOCK_N, CHUNKS_V, KEY_BOX>(shared + VALUES, maps.value, shared + KEY_FULL, w.first_key, w.kv_head, w.batch);
}

static __device__ __forceinline__ void load_step(struct loader &next, const struct maps &maps,
                                                 const struct fa_params &params, const struct work &w, u32 shared)
{
  if (next.step == w.num_steps)
    return;
  const int first_query = next.at.block * BLOCK_M, stage = next.stage.stage;
  u32 full = shared + GRAD_FULL + 8 * stage;
  wait_empty(shared + GRAD_EMPTY, next.stage);
  barrier_expect(full, GRAD_BYTES);
  load_rows<BLOCK_M, CHUNKS_V, QUERY_BOX>(shared + GRADS + stage * GRAD_BYTES, maps.grad_output, full, first_query,
                                          next.at.head, w.batch);
  full = shared + QUERY_FULL + 8 * stage;
  wait_empty(shared + QUERY_EMPTY, next.stage);
  barrier_expect(full, QUERY_BYTES + STATS_BYTES);
  load_rows<BLOCK_M, CHUNKS_QK, QUERY_BOX>(shared + QUERIES + stage * QUERY_BYTES, maps.query, full, first_query,
                                           next.at.head, w.batch);
  bulk_load(shared + STATS + stage * STATS_BYTES, next.at.at.stats + first_query, STATS_BYTES, full);
  next.step++;
  advance(next.stage);
  advance(next.at, params, w);
}
