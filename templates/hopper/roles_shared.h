/*
 * A block of threads of backward whose warpgroups have a role each: what they share.
 *
 *     loads     one thread: TMA copies of K and V for each tile of keys, of Q, its rows' statistics and dO for each step
 *               (roles_load.h)
 *     scores    weights and d_scores of each step, 64 queries, to shared memory (roles_scores.h)
 *     dV, dK    a warpgroup each: adds up one gradient in registers, in the order of the steps (roles_sums.h)
 *
 * So nothing is computed twice, and a step's exponentials fall into the products that add up the step before. Keys are worked
 * on in parts of 64.
 *
 * Shared memory is stages of K and V, for each stage of queries a tile of Q with statistics and one of dO, a tile of weights
 * and two of d_scores, 16 bits each, queries as rows. Tiles begin at multiples of 1024 bytes, as the pattern of the swizzle
 * does. A tile is chunks of 64 columns, a chunk is rows of 128 bytes; of weights and d_scores a chunk is a part of the keys.
//% if many_tiles
 *
 * A block of threads takes one tile of keys after another. Rings go on from tile to tile: Q and dO of the next are loaded
 * while one comes to its end, and K and V too where they have two stages.
//% end
 */
enum {
  PARTS = BLOCK_N / 64,
  CHUNK = 64 * 128, /* of Q, dO, weights or d_scores */
  SCORE_BYTES = PARTS * CHUNK,
  KEY_STAGES = ${key_stages},
  KEYS = 0,
  VALUES = KEYS + KEY_STAGES * KEY_BYTES,
  QUERIES = VALUES + KEY_STAGES * VALUE_BYTES,
  GRADS = QUERIES + STAGES * QUERY_BYTES,
  WEIGHTS = GRADS + STAGES * GRAD_BYTES,
  D_SCORES = WEIGHTS + SCORE_BYTES,
  STATS = D_SCORES + 2 * SCORE_BYTES,
  KEY_FULL = STATS + STAGES * STATS_BYTES, /* barriers of 8 bytes, those of rings one for each stage or tile */
  KEY_EMPTY = KEY_FULL + 8 * KEY_STAGES,
  QUERY_FULL = KEY_EMPTY + 8 * KEY_STAGES,
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

/* How many warpgroups compute scores, and read d_scores; all but dK's of these read keys. */
static __device__ __forceinline__ void init_barriers(u32 shared, u32 scorers, u32 readers)
{
  init_ring(shared + KEY_FULL, shared + KEY_EMPTY, KEY_STAGES, 4 * (scorers + readers - 1));
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

//% if many_tiles
/* Blocks of a head's keys that some query sees. */
static __device__ __forceinline__ u32 count_seen(const struct fa_params &params)
{
//%   if causal
  return ceil_div(min((int)params.seqlen_k, (int)params.seqlen_q), BLOCK_N);
//%   else
  return params.seqlen_q > 0 ? ceil_div((int)params.seqlen_k, BLOCK_N) : 0;
//%   end
}

//% end
/* The next tile of keys of this block of threads, of those that some query sees. It has taken `round` of them; false behind
 * the last. */
static __device__ __forceinline__ bool next_work(const struct fa_params &params, u32 &round, struct work &w)
{
//% if many_tiles
  const u32 blocks = count_seen(params), heads = (u32)(params.batch * params.heads_kv);
  u32 index, block;
  if (blocks * heads <= gridDim.x) { /* a tile each */
    if (round++ || blockIdx.x >= blocks * heads)
      return false;
    index = blockIdx.x / blocks;
    block = blockIdx.x % blocks;
  } else {
//%   if causal
//%     include "hopper/next_pair.h"
    block = blocks - 1 - block; /* the first keys are seen by most queries */
//%   else
    const u32 tile = round++ * gridDim.x + blockIdx.x;
    index = tile / blocks;
    block = tile % blocks;
    if (index >= heads)
      return false;
//%   end
  }
  w = find_work(params, (int)index, (int)block);
  return true;
//% else
  w = find_work(params);
  return round++ == 0 && w.num_steps > 0; /* there is one tile for each block of threads */
//% end
}

/* The same of those that nobody sees. */
static __device__ __forceinline__ bool next_unseen(const struct fa_params &params, u32 &round, struct work &w)
{
//% if many_tiles
  const u32 seen = count_seen(params), unseen = ceil_div((int)params.seqlen_k, BLOCK_N) - seen;
  const u32 tile = round++ * gridDim.x + blockIdx.x, index = tile / max(unseen, 1u);
  if (unseen == 0 || index >= (u32)(params.batch * params.heads_kv))
    return false;
  w = find_work(params, (int)index, (int)(seen + tile % unseen));
  return true;
//% else
  w = find_work(params);
  return round++ == 0 && w.num_steps == 0;
//% end
}
