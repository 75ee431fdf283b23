/*
 * Shared memory of backward_keys up to head dim 128: the block's K and V, rings of tiles of Q (with its rows' statistics)
 * and of dO, and barriers. Tiles begin at multiples of 1024 bytes, as the pattern of the swizzle does. A tile is chunks of
 * 64 columns, a chunk is rows of 128 bytes.
 */
enum {
  KEYS = 0,
  VALUES = KEYS + KEY_BYTES,
  QUERIES = VALUES + VALUE_BYTES,
  GRADS = QUERIES + STAGES * QUERY_BYTES,
  STATS = GRADS + STAGES * GRAD_BYTES,
  KEY_FULL = STATS + STAGES * STATS_BYTES, /* barriers of 8 bytes, those of rings one for each stage */
  QUERY_FULL = KEY_FULL + 8,
  QUERY_EMPTY = QUERY_FULL + 8 * STAGES,
  GRAD_FULL = QUERY_EMPTY + 8 * STAGES,
  GRAD_EMPTY = GRAD_FULL + 8 * STAGES,
  SHARED_END = GRAD_EMPTY + 8 * STAGES,
};
static_assert(SHARED_END == ${shared_bytes}, "as the generator reckons");

static __device__ __forceinline__ void init_barriers(u32 shared)
{
  barrier_init(shared + KEY_FULL, 1);
  init_ring(shared + QUERY_FULL, shared + QUERY_EMPTY, STAGES, 4 * CONSUMERS);
  init_ring(shared + GRAD_FULL, shared + GRAD_EMPTY, STAGES, 4 * CONSUMERS);
  barrier_init_done();
}
