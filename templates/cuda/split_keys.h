/*
 * The first phase of fp32: K and V of each block of keys as fp16 parts in the workspace, a tile after the other:
 * BLOCK_N rows of DIM high parts, then the low ones. A tile has one scale; what undoes it is kept beside the tiles.
 */
struct split_tiles {
  half_bits *keys, *values;          /* of one head */
  float *key_factors, *value_factors; /* 2^-k of each block */
};

/* Bytes of all of it, a multiple of 256. */
static __device__ __forceinline__ long long split_bytes(const struct fa_params &params)
{
  long long all = params.batch * params.heads_kv * ceil_div((int)params.seqlen_k, BLOCK_N);
  return (all * (2 * BLOCK_N * (DIM_QK + DIM_V) * 2 + 8) + 255) / 256 * 256;
}

static __device__ __forceinline__ struct split_tiles find_split_tiles(const struct fa_params &params, u32 batch,
                                                                       u32 kv_head)
{
  long long per_head = ceil_div((int)params.seqlen_k, BLOCK_N), all = params.batch * params.heads_kv * per_head;
  long long first = (batch * params.heads_kv + kv_head) * per_head;
  half_bits *keys = (half_bits *)params.workspace, *values = keys + all * (2 * BLOCK_N * DIM_QK);
  float *factors = (float *)(values + all * (2 * BLOCK_N * DIM_V));
  return {keys + first * (2 * BLOCK_N * DIM_QK), values + first * (2 * BLOCK_N * DIM_V), factors + first,
          factors + all + first};
}

enum { SPLIT_THREADS = ${split_threads} };

extern "C" __global__ void __launch_bounds__(SPLIT_THREADS)
split_keys(const __grid_constant__ struct fa_params params)
{
  __shared__ u32 largest[2][SPLIT_THREADS / 32];
  int per_head = ceil_div((int)params.seqlen_k, BLOCK_N), index = blockIdx.x / per_head, block = blockIdx.x % per_head;
  int batch = index / (int)params.heads_kv, kv_head = index % (int)params.heads_kv, first = block * BLOCK_N;
//% if causal
  /* Keys that no query sees are left out: what they are must not show in the scale of others. */
  int rows = min((int)params.seqlen_k, (int)params.seqlen_q) - first;
//% else
  int rows = (int)params.seqlen_k - first;
//% end
  struct split_tiles tiles = find_split_tiles(params, batch, kv_head);
  float key_factor = split_tile<SPLIT_THREADS, BLOCK_N, HEAD_DIM, DIM_QK, MOST_OF_SCORES>(
      tiles.keys + (long long)block * (2 * BLOCK_N * DIM_QK),
      (const float *)params.key.data + head_offset(params.key, batch, kv_head, first), params.key, rows, largest[0]);
  float value_factor = split_tile<SPLIT_THREADS, BLOCK_N, HEAD_DIM_V, DIM_V, MOST_OF_VALUES>(
      tiles.values + (long long)block * (2 * BLOCK_N * DIM_V),
      (const float *)params.value.data + head_offset(params.value, batch, kv_head, first), params.value, rows,
      largest[1]);
  if (threadIdx.x == 0) {
    tiles.key_factors[block] = key_factor;
    tiles.value_factors[block] = value_factor;
  }
}
