/* The producer: one thread that loads the block's keys and values, and what each step needs. dO of a stage is given back
 * before its Q, so it is the first to come. */
static __device__ __forceinline__ void produce_wide(const struct fa_params &params, const struct work &w,
                                                    const struct tensor_map *query_map,
                                                    const struct tensor_map *key_map,
                                                    const struct tensor_map *value_map,
                                                    const struct tensor_map *grad_output_map, u32 shared)
{
  struct ring<STAGES> ring = {};
  struct cursor now = begin_steps(params, w);
  if (w.num_steps == 0)
    return; /* nobody would wait for the keys */
  barrier_expect(shared + wide::KEY_FULL, wide::KEY_BYTES + wide::VALUE_BYTES);
  load_rows<BLOCK_N, CHUNKS_QK, KEY_BOX>(shared + wide::KEYS, key_map, shared + wide::KEY_FULL, w.first_key, w.kv_head,
                                         w.batch);
  load_rows<BLOCK_N, CHUNKS_V, KEY_BOX>(shared + wide::VALUES, value_map, shared + wide::KEY_FULL, w.first_key,
                                        w.kv_head, w.batch);
  for (int step = 0; step < w.num_steps; step++) {
    const int first_query = now.block * BLOCK_M;
    u32 full = shared + wide::GRAD_FULL + 8 * ring.stage;
    wait_empty(shared + wide::GRAD_EMPTY, ring);
    barrier_expect(full, wide::GRAD_BYTES);
    load_rows<BLOCK_M, CHUNKS_V, QUERY_BOX>(shared + wide::GRADS + ring.stage * wide::GRAD_BYTES, grad_output_map, full,
                                            first_query, now.head, w.batch);
    full = shared + wide::QUERY_FULL + 8 * ring.stage;
    wait_empty(shared + wide::QUERY_EMPTY, ring);
    barrier_expect(full, wide::QUERY_BYTES + wide::STATS_BYTES);
    load_rows<BLOCK_M, CHUNKS_QK, QUERY_BOX>(shared + wide::QUERIES + ring.stage * wide::QUERY_BYTES, query_map, full,
                                             first_query, now.head, w.batch);
    bulk_load(shared + wide::STATS + ring.stage * wide::STATS_BYTES, now.at.stats + first_query, wide::STATS_BYTES,
              full);
    advance(ring);
    advance(now, params, w);
  }
}
