/* The producer: one thread that loads what the consumers need, in the order in which they need it. */

/* ROWS rows from `row` on; what lies outside of the tensor becomes zero. */
template <int ROWS, int CHUNKS>
static __device__ __forceinline__ void load_rows(u32 tile, const struct tensor_map *map, u32 full, int row, int head,
                                                 int batch)
{
  barrier_expect(full, CHUNKS * ROWS * 128);
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++)
    tensor_load(tile + chunk * ROWS * 128, map, full, 64 * chunk, row, head, batch);
}

static __device__ __forceinline__ void produce(const struct fa_params &params, const struct tensor_map *query_map,
                                               const struct tensor_map *key_map, const struct tensor_map *value_map,
                                               u32 shared)
{
  struct ring<QUERY_STAGES> queries = {};
  struct ring<STAGES> keys = {}, values = {};
  FOR_TILES(params, tile) {
    struct work w = find_work(params, tile);
    /* Keys go one block ahead of values. */
    for (int block = w.num_blocks - 1; block >= -1; block--) {
      if (block >= 0) {
        wait_empty(shared + KEY_EMPTY, keys);
        load_rows<BLOCK_N, CHUNKS_QK>(shared + KEYS + keys.stage * KEY_BYTES, key_map,
                                      shared + KEY_FULL + 8 * keys.stage, block * BLOCK_N, w.kv_head, w.batch);
        advance(keys);
      }
      if (block == w.num_blocks - 1) {
        wait_empty(shared + QUERY_EMPTY, queries);
        load_rows<BLOCK_M, CHUNKS_QK>(shared + QUERIES + queries.stage * QUERY_BYTES, query_map,
                                      shared + QUERY_FULL + 8 * queries.stage, w.first_query, w.head, w.batch);
        advance(queries);
      } else {
        wait_empty(shared + VALUE_EMPTY, values);
        load_rows<BLOCK_N, CHUNKS_V>(shared + VALUES + values.stage * VALUE_BYTES, value_map,
                                     shared + VALUE_FULL + 8 * values.stage, (block + 1) * BLOCK_N, w.kv_head, w.batch);
        advance(values);
      }
    }
  }
}
