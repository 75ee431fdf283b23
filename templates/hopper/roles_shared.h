/*
 * A block of threads of backward whose warpgroups have a role each: what they share.
 *
 *     loads     one thread: TMA copies of K and V once, of Q, its rows' statistics and dO for each step (roles_load.h)
 *     scores    weights and d_scores of each step, 64 queries, to shared memory (roles_scores.h)
 *     dV, dK    a warpgroup each: adds up one gradient in registers, in the order of the steps (roles_sums.h)
 *
 * So nothing is computed twice, and a step's exponentials fall into the products that add up the step before. Keys are worked
 * on in parts of 64.
 *
 * Shared memory is the block's K and V, for each stage a tile of Q with statistics and one of dO, a tile of weights and two
 * of d_scores, 16 bits each, queries as rows. Tiles begin at multiples of 1024 bytes, as the pattern of the swizzle does. A
 * tile is chunks of 64 columns, a chunk is rows of 128 bytes; of weights and d_scores a chunk is a part of the keys.
 */
enum {
  PARTS = BLOCK_N / 64,
  CHUNK = 64 * 128, /* of Q, dO, weights or d_scores */
  SCORE_BYTES = PARTS * CHUNK,
  KEYS = 0,
  VALUES = KEYS + KEY_BYTES,
  QUERIES = VALUES + VALUE_BYTES,
  GRADS = QUERIES + STAGES * QUERY_BYTES,
  WEIGHTS = GRADS + STAGES * GRAD_BYTES,
  D_SCORES = WEIGHTS + SCORE_BYTES,
  STATS = D_SCORES + 2 * SCORE_BYTES,
  KEY_FULL = STATS + STAGES * STATS_BYTES, /* barriers of 8 bytes, those of rings one for each stage or tile */
  QUERY_FULL = KEY_FULL + 8,
  QUERY_EMPTY = QUERY_FULL + 8 * STAGES,
  GRAD_FULL = QUERY_EMPTY + 8 * STAGES,
  GRAD_EMPTY = GRAD_FULL + 8 * STAGES,
  WEIGHT_FULL = GRAD_EMPTY + 8 * STAGES, /* of each part */
  WEIGHT_EMPTY = WEIGHT_FULL + 8 * PARTS,
  D_SCORE_FULL = WEIGHT_EMPTY + 8, /* of each part of either tile */
  D_SCORE_EMPTY = D_SCORE_FULL + 8 * 2 * PARTS,
  SHARED_END = D_SCORE_EMPTY + 8 * 2,
};
static_assert(BLOCK_M == 64, "a chunk's rows");
static_assert(SHARED_END == ${shared_bytes}, "as the generator reckons");

/* How many warpgroups compute scores, and read d_scores. */
static __device__ __forceinline__ void init_barriers(u32 shared, u32 scorers, u32 readers)
{
  barrier_init(shared + KEY_FULL, 1);
  init_ring(shared + QUERY_FULL, shared + QUERY_EMPTY, STAGES, 4);                /* warps of dK, the last to read Q */
  init_ring(shared + GRAD_FULL, shared + GRAD_EMPTY, STAGES, 4 * (scorers + 1)); /* of scores and of dV */
  for (int part = 0; part < PARTS; part++)
    barrier_init(shared + WEIGHT_FULL + 8 * part, 4);
  barrier_init(shared + WEIGHT_EMPTY, 4);
  for (int tile = 0; tile < 2; tile++) {
    for (int part = 0; part < PARTS; part++)
      barrier_init(shared + D_SCORE_FULL + 8 * (tile * PARTS + part), 4);
    barrier_init(shared + D_SCORE_EMPTY + 8 * tile, 4 * readers);
  }
  barrier_init_done();
}

/* Wait for a part of a tile of d_scores. */
static __device__ __forceinline__ void wait_d_scores(u32 shared, const struct ring<2> &tile, int part)
{
  barrier_wait(shared + D_SCORE_FULL + 8 * (tile.stage * PARTS + part), tile.phase);
}
