/* The producer: one thread that loads what the consumers need, in the order in which they need it. */

static __device__ __forceinline__ void produce(const struct fa_params &params, const struct tensor_map *query_map,
                                               const struct tensor_map *key_map, const struct tensor_map *value_map,
                                               u32 shared)
{
  struct ring<QUERY_STAGES> queries = {};
  struct ring<STAGES> keys = {}, values = {};
  struct work w;
  for (u32 round = 0; next_work(params, round, w);) {
    /* Keys go one block ahead of values. */
    for (int block = w.num_blocks - 1; block >= -1; block--) {
      if (block >= 0) {
        wait_empty(shared + KEY_EMPTY, keys);
        barrier_expect(shared + KEY_FULL + 8 * keys.stage, KEY_BYTES);
        load_rows<BLOCK_N, CHUNKS_QK>(shared + KEYS + keys.stage * KEY_BYTES, key_map,
                                      shared + KEY_FULL + 8 * keys.stage, block * BLOCK_N, w.kv_head, w.batch);
        advance(keys);
      }
      if (block == w.num_blocks - 1) {
        wait_empty(shared + QUERY_EMPTY, queries);
        barrier_expect(shared + QUERY_FULL + 8 * queries.stage, QUERY_BYTES);
        load_rows<BLOCK_M, CHUNKS_QK>(shared + QUERIES + queries.stage * QUERY_BYTES, query_map,
                                      shared + QUERY_FULL + 8 * queries.stage, w.first_query, w.head, w.batch);
        advance(queries);
      } else {
        wait_empty(shared + VALUE_EMPTY, values);
        barrier_expect(shared + VALUE_FULL + 8 * values.stage, VALUE_BYTES);
        load_rows<BLOCK_N, CHUNKS_V>(shared + VALUES + values.stage * VALUE_BYTES, value_map,
                                     shared + VALUE_FULL + 8 * values.stage, (block + 1) * BLOCK_N, w.kv_head, w.batch);
        advance(values);
      }
    }
  }
}
