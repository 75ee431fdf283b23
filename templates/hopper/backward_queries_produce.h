/* The producer of dQ's pass: one thread that loads what the consumers need, in the order in which they need it. */
static __device__ __forceinline__ void produce_tiles(const struct fa_params &params, const struct tensor_map *query_map,
                                                     const struct tensor_map *key_map,
                                                     const struct tensor_map *value_map,
                                                     const struct tensor_map *grad_output_map, u32 shared)
{
  struct ring<1> queries = {};
  struct ring<STAGES> keys = {};
  struct ring<VALUE_STAGES> values = {};
  struct work w;
  for (u32 round = 0; next_work(params, round, w);)
    for (int block = w.num_blocks - 1; block >= 0; block--) {
      u32 full = shared + KEY_FULL + 8 * keys.stage;
      wait_empty(shared + KEY_EMPTY, keys);
      barrier_expect(full, KEY_BYTES);
      load_rows<BLOCK_N, CHUNKS_QK, KEY_BOX>(shared + KEYS + keys.stage * KEY_BYTES, key_map, full, block * BLOCK_N,
                                             w.kv_head, w.batch);
      advance(keys);
      if (block == w.num_blocks - 1) {
        wait_empty(shared + QUERY_EMPTY, queries);
        barrier_expect(shared + QUERY_FULL, QUERY_BYTES);
        load_rows<BLOCK_M, CHUNKS_QK, QUERY_BOX>(shared + QUERIES, query_map, shared + QUERY_FULL, w.first_query,
                                                 w.head, w.batch);
        barrier_expect(shared + GRAD_FULL, GRAD_BYTES);
        load_rows<BLOCK_M, CHUNKS_V, QUERY_BOX>(shared + GRADS, grad_output_map, shared + GRAD_FULL, w.first_query,
                                                w.head, w.batch);
        advance(queries);
      }
      full = shared + VALUE_FULL + 8 * values.stage;
      wait_empty(shared + VALUE_EMPTY, values);
      barrier_expect(full, VALUE_BYTES);
      load_rows<BLOCK_N, CHUNKS_V, KEY_BOX>(shared + VALUES + values.stage * VALUE_BYTES, value_map, full,
                                            block * BLOCK_N, w.kv_head, w.batch);
      advance(values);
    }
}
