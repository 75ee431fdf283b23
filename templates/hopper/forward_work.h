/*
 * What a block of threads works on, tile by tile. Tiles are numbered so that those that run at once share K and V in the
 * second-level cache, and so that long ones do not come last.
 */
struct work {
  int batch, head, kv_head, first_query;
  int seqlen_k, num_blocks; /* of keys that it looks at */
};

static __device__ __forceinline__ int count_tiles(const struct fa_params &params)
{
  return (int)(params.batch * params.heads_q) * ceil_div((int)params.seqlen_q, BLOCK_M);
}

/* The tiles of a block of threads: in each round every block takes one, in odd rounds in the opposite order, so that
 * whoever had the longest gets the shortest next. Without `persistent` there is a block for each tile and one round. */
static __device__ __forceinline__ int tile_of(int round)
{
  return (int)(round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x));
}
#define FOR_TILES(params, tile) for (int round = 0, tile; (tile = tile_of(round)) < count_tiles(params); round++)

static __device__ __forceinline__ struct work find_work(const struct fa_params &params, int tile)
{
  int query_blocks = ceil_div((int)params.seqlen_q, BLOCK_M);
  struct work w;
//% if causal
  /* So many heads together that their K and V take half of the cache (50 MB); of these, tiles with most keys first. */
  int all = (int)(params.batch * params.heads_q), shared_by = (int)(params.heads_q / params.heads_kv);
  long long bytes = params.seqlen_k * KEY_AND_VALUE_BYTES;
  int heads = bytes > 0 ? (int)min((25ll << 20) / bytes * shared_by, (long long)all) : 1;
  heads = max(heads, 1);
  int group = tile / (heads * query_blocks), rest = tile % (heads * query_blocks);
  int present = min(heads, all - group * heads);
  int index = group * heads + rest % present, block = query_blocks - 1 - rest / present;
//% else
  int index = tile / query_blocks, block = tile % query_blocks;
//% end
  w.batch = index / (int)params.heads_q;
  w.head = index % (int)params.heads_q;
  w.kv_head = w.head / (int)(params.heads_q / params.heads_kv);
  w.first_query = block * BLOCK_M;
  w.seqlen_k = (int)params.seqlen_k;
//% if causal
  w.num_blocks = ceil_div(min(w.first_query + BLOCK_M, w.seqlen_k), BLOCK_N);
//% else
  w.num_blocks = ceil_div(w.seqlen_k, BLOCK_N);
//% end
  return w;
}
