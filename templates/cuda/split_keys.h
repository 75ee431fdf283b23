/*
 * The first phase of fp32: K and V of each block of keys as fp16 parts in the workspace, a tile after the other:
 * BLOCK_N rows of DIM high parts, then the low ones. A tile has one scale; what undoes it is kept beside the tiles.
 */
struct split_tiles {
  half_bits *keys, *values;          /* of one head */
  float *key_factors, *value_factors; /* 2^-k of each block */
};

static __device__ __forceinline__ struct split_tiles find_split_tiles(const struct fa_params &params, int batch,
                                                                       int kv_head)
{
  long long per_head = ceil_div((int)params.seqlen_k, BLOCK_N), all = params.batch * params.heads_kv * per_head;
  long long first = (batch * params.heads_kv + kv_head) * per_head;
  half_bits *keys = (half_bits *)params.workspace, *values = keys + all * (2 * BLOCK_N * DIM_QK);
  float *factors = (float *)(values + all * (2 * BLOCK_N * DIM_V));
  return {keys + first * (2 * BLOCK_N * DIM_QK), values + first * (2 * BLOCK_N * DIM_V), factors + first,
          factors + all + first};
}

enum { SPLIT_THREADS = ${split_threads} };

/* `rows` rows of HEAD elements, zeros up to BLOCK_N x DIM, to `tile`; returns 2^-k. */
template <int HEAD, int DIM>
static __device__ __forceinline__ float split_tile(half_bits *tile, const float *from, const struct fa_tensor &tensor,
                                                   int rows, u32 *shared_largest)
{
  constexpr int PAIRS = (BLOCK_N * DIM / 2 + SPLIT_THREADS - 1) / SPLIT_THREADS;
  float x[PAIRS][2];
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int pair = i * SPLIT_THREADS + threadIdx.x, row = pair / (DIM / 2), col = pair % (DIM / 2) * 2;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      bool valid = row < rows && (HEAD == DIM || col + j < HEAD);
      x[i][j] = valid ? from[row * tensor.stride_row + (col + j) * tensor.stride_col] : 0.0f;
      u32 magnitude = finite_magnitude(x[i][j]);
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (threadIdx.x % 32 == 0)
    shared_largest[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < SPLIT_THREADS / 32; warp++)
    largest = shared_largest[warp] > largest ? shared_largest[warp] : largest;
  int k = scale_exponent(largest);
  float scale = power_of_two(k);
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int pair = i * SPLIT_THREADS + threadIdx.x;
    u32 high, low;
    split_pair(x[i][0] * scale, x[i][1] * scale, high, low);
    if (BLOCK_N * DIM / 2 % SPLIT_THREADS == 0 || pair < BLOCK_N * DIM / 2) {
      ((u32 *)tile)[pair] = high;
      ((u32 *)tile)[pair + BLOCK_N * DIM / 2] = low;
    }
  }
  return power_of_two(-k);
}

extern "C" __global__ void __launch_bounds__(SPLIT_THREADS)
split_keys(const __grid_constant__ struct fa_params params)
{
  __shared__ u32 largest[2][SPLIT_THREADS / 32];
  int per_head = ceil_div((int)params.seqlen_k, BLOCK_N), index = blockIdx.x / per_head, block = blockIdx.x % per_head;
  int batch = index / (int)params.heads_kv, kv_head = index % (int)params.heads_kv, first = block * BLOCK_N;
  int rows = (int)params.seqlen_k - first;
  struct split_tiles tiles = find_split_tiles(params, batch, kv_head);
  float key_factor = split_tile<HEAD_DIM, DIM_QK>(
      tiles.keys + (long long)block * (2 * BLOCK_N * DIM_QK),
      (const float *)params.key.data + head_offset(params.key, batch, kv_head, first), params.key, rows, largest[0]);
  float value_factor = split_tile<HEAD_DIM_V, DIM_V>(
      tiles.values + (long long)block * (2 * BLOCK_N * DIM_V),
      (const float *)params.value.data + head_offset(params.value, batch, kv_head, first), params.value, rows,
      largest[1]);
  if (threadIdx.x == 0) {
    tiles.key_factors[block] = key_factor;
    tiles.value_factors[block] = value_factor;
  }
}

/* Tile `block`, both parts, to shared memory. */
template <int DIM, int PITCH>
static __device__ __forceinline__ void load_split(half_bits *tile, const half_bits *tiles, int block)
{
  constexpr int CHUNKS = DIM / 8;
  const half_bits *from = tiles + (long long)block * (2 * BLOCK_N * DIM);
  u32 shared = shared_address(tile);
#pragma unroll
  for (int first = 0; first < 2 * BLOCK_N * CHUNKS; first += THREADS) {
    int i = first + threadIdx.x;
    if (2 * BLOCK_N * CHUNKS % THREADS != 0 && i >= 2 * BLOCK_N * CHUNKS)
      break;
    copy_async<16>(shared + (i / CHUNKS * PITCH + i % CHUNKS * 8) * 2, from + i * 8, true);
  }
}
