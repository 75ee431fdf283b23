/*
 * Shared memory: rings of tiles of Q, K and V, and their barriers. Tiles begin at multiples of 1024 bytes, as the pattern
 * of the swizzle does. A tile is chunks of 64 columns, a chunk is rows of 128 bytes.
 */
enum {
  QUERIES = 0,
  KEYS = QUERIES + QUERY_STAGES * QUERY_BYTES,
  VALUES = KEYS + STAGES * KEY_BYTES,
  QUERY_FULL = VALUES + STAGES * VALUE_BYTES, /* barriers of 8 bytes, one for each stage */
//% if precision == "full"
  QUERY_EMPTY = QUERY_FULL + 8 * QUERY_STAGES,
  KEY_FULL = QUERY_EMPTY + 8 * QUERY_STAGES,
//% else
  KEY_FULL = QUERY_FULL, /* Q has none: nobody loads it for others */
//% end
  KEY_EMPTY = KEY_FULL + 8 * STAGES,
  VALUE_FULL = KEY_EMPTY + 8 * STAGES,
  VALUE_EMPTY = VALUE_FULL + 8 * STAGES,
  SHARED_END = VALUE_EMPTY + 8 * STAGES,
};
static_assert(SHARED_END == ${shared_bytes}, "as the generator reckons");

static __device__ __forceinline__ void init_barriers(u32 shared)
{
//% if precision == "full"
  init_ring(shared + QUERY_FULL, shared + QUERY_EMPTY, QUERY_STAGES, 4 * CONSUMERS);
//% end
  init_ring(shared + KEY_FULL, shared + KEY_EMPTY, STAGES, 4 * CONSUMERS);
  init_ring(shared + VALUE_FULL, shared + VALUE_EMPTY, STAGES, 4 * CONSUMERS);
  barrier_init_done();
}
