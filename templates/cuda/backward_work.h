/* What a block of threads works on in backward: some keys of a head, and all queries that see one of them. */
struct work {
  int batch, kv_head, group_size, key_block, first_key, seqlen_q, seqlen_k;
  int first_block, blocks; /* of queries that see one of the keys */
  int num_steps;           /* group_size times blocks */
  float factor;            /* from scores to exponents of 2 */
//% if dtype == "fp32"
  float key_factor, value_factor; /* 2^-k of the block's K and V */
//% end
};

/* Of one of the key/value heads, counted through the batch, a block of keys. */
static __device__ __forceinline__ struct work find_work(const struct fa_params &params, int index, int key_block)
{
  struct work w;
  w.seqlen_q = (int)params.seqlen_q;
  w.seqlen_k = (int)params.seqlen_k;
  w.key_block = key_block;
  w.batch = index / (int)params.heads_kv;
  w.kv_head = index % (int)params.heads_kv;
  w.group_size = (int)params.heads_q / (int)params.heads_kv;
  w.first_key = w.key_block * BLOCK_N;
//% if causal
  w.first_block = w.first_key / BLOCK_M;
//% else
  w.first_block = 0;
//% end
  w.blocks = query_blocks(params) - w.first_block;
//% if causal
  if (w.first_key >= w.seqlen_q)
    w.blocks = 0; /* nobody sees these keys */
//% end
  w.num_steps = w.group_size * w.blocks;
  w.factor = softmax_factor(params);
//% if dtype == "fp32"
  struct split_tiles from = find_split_tiles(params, w.batch, w.kv_head);
  w.key_factor = from.key_factors[w.key_block];
  w.value_factor = from.value_factors[w.key_block];
//% end
  return w;
}

/* Where there is a block of threads for each block of keys. */
static __device__ __forceinline__ struct work find_work(const struct fa_params &params)
{
  const int key_blocks = ceil_div((int)params.seqlen_k, BLOCK_N);
  return find_work(params, blockIdx.x / key_blocks, blockIdx.x % key_blocks);
}

/* The queries of a step: a head of the group and a block of its queries.
//% if causal && ordered
 * The last ones come first. All blocks of keys of a head are seen by them, so each can begin when the one before it has
 * added its part of dQ, and the one with the most steps need not wait. And the weights of a key grow towards its own
 * query: its sums grow from small terms, and what is rounded off is small.
//% end
 */
struct cursor {
  int head, block, stage;
  struct workspace at; /* of the head */
};

static __device__ __forceinline__ struct cursor begin_steps(const struct fa_params &params, const struct work &w)
{
  int head = w.kv_head * w.group_size;
//% if causal && ordered
  return {head, w.first_block + w.blocks - 1, 0, find_workspace(params, w.batch, head)};
//% else
  return {head, w.first_block, 0, find_workspace(params, w.batch, head)};
//% end
}

static __device__ __forceinline__ void advance(struct cursor &c, const struct fa_params &params, const struct work &w)
{
  c.stage = c.stage + 1 < STAGES ? c.stage + 1 : 0;
//% if causal && ordered
  c.block--;
  if (c.block < w.first_block) {
    c.block = w.first_block + w.blocks - 1;
//% else
  c.block++;
  if (c.block == query_blocks(params)) {
    c.block = w.first_block;
//% end
    c.head++;
    c.at = find_workspace(params, w.batch, c.head);
  }
}
