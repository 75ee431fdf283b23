/*
 * Shared memory of backward_keys: the block's K and V, and for each stage a tile of Q with its rows' statistics, one of dO,
 * and what becomes of them: weights and d_scores, 16 bits each, queries as rows. Tiles begin at multiples of 1024 bytes, as
 * the pattern of the swizzle does. A tile is chunks of 64 columns (of weights and d_scores: one, of 64 keys), a chunk is
 * 64 rows of 128 bytes.
 */
namespace wide {
enum {
  THREADS = ${wide_threads},
  CHUNK = 64 * 128,
  KEY_BYTES = CHUNKS_QK * CHUNK,
  VALUE_BYTES = CHUNKS_V * CHUNK,
  QUERY_BYTES = CHUNKS_QK * CHUNK,
  GRAD_BYTES = CHUNKS_V * CHUNK,
  STATS_BYTES = BLOCK_M * 16,
  KEYS = 0,
  VALUES = KEYS + KEY_BYTES,
  QUERIES = VALUES + VALUE_BYTES,
  GRADS = QUERIES + STAGES * QUERY_BYTES,
  WEIGHTS = GRADS + STAGES * GRAD_BYTES,
  D_SCORES = WEIGHTS + STAGES * CHUNK,
  STATS = D_SCORES + STAGES * CHUNK,
  KEY_FULL = STATS + STAGES * STATS_BYTES, /* barriers of 8 bytes, those of stages one for each */
  QUERY_FULL = KEY_FULL + 8,
  QUERY_EMPTY = QUERY_FULL + 8 * STAGES,
  GRAD_FULL = QUERY_EMPTY + 8 * STAGES,
  GRAD_EMPTY = GRAD_FULL + 8 * STAGES,
  WEIGHT_FULL = GRAD_EMPTY + 8 * STAGES,
  D_SCORE_FULL = WEIGHT_FULL + 8 * STAGES,
  SHARED_END = D_SCORE_FULL + 8 * STAGES,
};
} // namespace wide
static_assert(BLOCK_M == 64 && BLOCK_N == 64, "rows of chunks");
static_assert(wide::SHARED_END == ${shared_bytes}, "as the generator reckons");

static __device__ __forceinline__ void init_wide_barriers(u32 shared)
{
  barrier_init(shared + wide::KEY_FULL, 1);
  for (int stage = 0; stage < STAGES; stage++) {
    barrier_init(shared + wide::QUERY_FULL + 8 * stage, 1);
    barrier_init(shared + wide::QUERY_EMPTY + 8 * stage, 4); /* warps of the warpgroup that has dK: the last to read Q */
    barrier_init(shared + wide::GRAD_FULL + 8 * stage, 1);
    barrier_init(shared + wide::GRAD_EMPTY + 8 * stage, 4 * 2); /* of those that have scores and dV */
    barrier_init(shared + wide::WEIGHT_FULL + 8 * stage, 4);
    barrier_init(shared + wide::D_SCORE_FULL + 8 * stage, 4);
  }
  barrier_init_done();
}
