/* The producer: one thread that loads the block's keys and values, and what each step needs. */
static __device__ __forceinline__ void produce(const struct fa_params &params, const struct work &w,
                                               const struct tensor_map *query_map, const struct tensor_map *key_map,
                                               const struct tensor_map *value_map,
                                               const struct tensor_map *grad_output_map, u32 shared)
{
  struct ring<STAGES> queries = {}, grads = {};
  struct cursor now = begin_steps(params, w);
  if (w.num_steps == 0)
    return; /* nobody would wait for the keys */
  barrier_expect(shared + KEY_FULL, KEY_BYTES + VALUE_BYTES);
  load_rows<BLOCK_N, CHUNKS_QK, KEY_BOX>(shared + KEYS, key_map, shared + KEY_FULL, w.first_key, w.kv_head, w.batch);
  load_rows<BLOCK_N, CHUNKS_V, KEY_BOX>(shared + VALUES, value_map, shared + KEY_FULL, w.first_key, w.kv_head, w.batch);
  for (int step = 0; step < w.num_steps; step++) {
    u32 full = shared + QUERY_FULL + 8 * queries.stage;
    wait_empty(shared + QUERY_EMPTY, queries);
    barrier_expect(full, QUERY_BYTES + STATS_BYTES);
    load_rows<BLOCK_M, CHUNKS_QK, QUERY_BOX>(shared + QUERIES + queries.stage * QUERY_BYTES, query_map, full,
                                             now.block * BLOCK_M, now.head, w.batch);
    bulk_load(shared + STATS + queries.stage * STATS_BYTES, now.at.stats + now.block * BLOCK_M, STATS_BYTES, full);
    advance(queries);

    full = shared + GRAD_FULL + 8 * grads.stage;
    wait_empty(shared + GRAD_EMPTY, grads);
    barrier_expect(full, GRAD_BYTES);
    load_rows<BLOCK_M, CHUNKS_V, QUERY_BOX>(shared + GRADS + grads.stage * GRAD_BYTES, grad_output_map, full,
                                            now.block * BLOCK_M, now.head, w.batch);
    advance(grads);
    advance(now, params, w);
  }
}
