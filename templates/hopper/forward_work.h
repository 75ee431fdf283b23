/*
 * What a block of threads works on, tile by tile. Tiles are numbered so that those that run at once share K and V in the
 * second-level cache, and so that long ones do not come last.
 */
struct work {
  int batch, head, kv_head, first_query;
  int seqlen_k, num_blocks; /* of keys that it looks at */
};

/* The next tile of this block of threads, which has taken `round` of them; false behind the last. */
static __device__ __forceinline__ bool next_work(const struct fa_params &params, u32 &round, struct work &w)
{
  const u32 blocks = ceil_div((int)params.seqlen_q, BLOCK_M);
//% if causal || persistent
  const u32 heads = (u32)(params.batch * params.heads_q);
//% end
  u32 index, block;
//% if !persistent
  if (round++) /* there is one tile for each block of threads */
    return false;
//% end
//% if causal && persistent
//%   include "hopper/next_pair.h"
//% elif causal
  /* Handed out in this order: so many heads together that their K and V take half of the cache (50 MB); of these, tiles
   * with most keys first. */
  const u32 shared_by = (u32)(params.heads_q / params.heads_kv);
  const long long bytes = params.seqlen_k * KEY_AND_VALUE_BYTES;
  const u32 together = (u32)max(min((25ll << 20) / max(bytes, 1ll) * shared_by, (long long)heads), 1ll);
  const u32 group = blockIdx.x / (together * blocks), rest = blockIdx.x % (together * blocks);
  const u32 present = min(together, heads - group * together);
  index = group * together + rest % present;
  block = blocks - 1 - rest / present;
//% elif persistent
  const u32 tile = round++ * gridDim.x + blockIdx.x;
  index = tile / blocks;
  block = tile % blocks;
  if (index >= heads)
    return false;
//% else
  index = blockIdx.x / blocks;
  block = blockIdx.x % blocks;
//% end
  w.batch = (int)(index / (u32)params.heads_q);
  w.head = (int)(index % (u32)params.heads_q);
  w.kv_head = (int)((u32)w.head / ((u32)params.heads_q / (u32)params.heads_kv));
  w.first_query = (int)block * BLOCK_M;
  w.seqlen_k = (int)params.seqlen_k;
//% if causal
  w.num_blocks = ceil_div(min(w.first_query + BLOCK_M, w.seqlen_k), BLOCK_N);
//% else
  w.num_blocks = ceil_div(w.seqlen_k, BLOCK_N);
//% end
  return true;
}

/* How many keys the 64 queries of a warpgroup see, the first ones; 1 if there are no such queries. */
static __device__ __forceinline__ int find_keys_seen(const struct fa_params &params, const struct work &w, int warpgroup)
{
  const int first_query = w.first_query + 64 * warpgroup;
  if (first_query >= (int)params.seqlen_q)
    return 1;
//% if causal
  return min(first_query + 64, w.seqlen_k);
//% else
  return w.seqlen_k;
//% end
}
