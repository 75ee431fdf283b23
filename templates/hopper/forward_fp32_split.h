/*
 * The first phase: Q, K and V as fp16 parts in the workspace. Tiles of K and V are BLOCK_N rows with one scale, those
 * of Q BLOCK_M rows with a scale each; what undoes the scales is kept behind the tiles. A tile is chunks of 64 columns;
 * a chunk is rows of 128 bytes of high parts, then as many of low ones, swizzled as wgmma reads them: the 16-byte piece
 * i of row r is in place i ^ r % 8. Rows and columns that are not there are zeros, so that a tile is one run of bytes
 * whatever the tensor's layout.
//% let parts = 1 + (precision == "full")
//% if parts == 1
 *
 * For one product there are high parts alone, and Q is left to those who use it (forward_one_queries.h).
//% end
 */
struct operands {
  char *keys, *values;  /* of one head */
  float2 *key_factors;  /* 2^-k of each block of K (x), and of V (y) */
//% if parts == 2
  char *queries;        /* of one tile */
  float *query_factors; /* 2^-k of each row of the tile */
//% end
};

static __device__ __forceinline__ struct operands find_operands(const struct fa_params &params, const struct work &w)
{
  long long key_blocks = ceil_div((int)params.seqlen_k, BLOCK_N);
  long long all_keys = params.batch * params.heads_kv * key_blocks;
  long long key = (w.batch * params.heads_kv + w.kv_head) * key_blocks;
  char *keys = (char *)params.workspace, *values = keys + all_keys * KEY_BYTES;
  char *end = values + all_keys * VALUE_BYTES;
  struct operands o;
  o.keys = keys + key * KEY_BYTES;
  o.values = values + key * VALUE_BYTES;
//% if parts == 2
  long long query_blocks = ceil_div((int)params.seqlen_q, BLOCK_M);
  long long all_queries = params.batch * params.heads_q * query_blocks;
  long long query = (w.batch * params.heads_q + w.head) * query_blocks + w.first_query / BLOCK_M;
  float *factors = (float *)(end + all_queries * QUERY_BYTES);
  o.queries = end + query * QUERY_BYTES;
  o.query_factors = factors + query * BLOCK_M;
  end = (char *)(factors + all_queries * BLOCK_M);
//% end
  o.key_factors = (float2 *)end + key;
  return o;
}

enum { SPLIT_THREADS = ${split_threads} };

/* Two columns of each chunk of a row, in each lane. Chunks begin WIDTH columns apart; what there is of the next is not
 * used. */
template <int HEAD, int WIDTH, int CHUNKS>
static __device__ __forceinline__ void load_row(float (&x)[CHUNKS][2], const float *row, const struct fa_tensor &tensor,
                                                bool inside, bool pairs)
{
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    int col = WIDTH * chunk + threadIdx.x % 32 * 2;
    if (pairs && inside && col + 1 < HEAD) {
      float2 pair = *(const float2 *)(row + col);
      x[chunk][0] = pair.x;
      x[chunk][1] = pair.y;
    } else {
      x[chunk][0] = inside && col < HEAD ? row[col * tensor.stride_col] : 0.0f;
      x[chunk][1] = inside && col + 1 < HEAD ? row[(col + 1) * tensor.stride_col] : 0.0f;
    }
  }
}

template <int CHUNKS>
static __device__ __forceinline__ u32 largest_magnitude(const float (&x)[CHUNKS][2])
{
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < 2 * CHUNKS; i++)
    largest = max(largest, finite_magnitude(x[i / 2][i % 2]));
  return largest;
}

/* The parts of row `row`, times `scale`, to a tile of ROWS rows. */
template <int ROWS, int CHUNKS>
static __device__ __forceinline__ void store_row(char *tile, const float (&x)[CHUNKS][2], int row, float scale)
{
  int lane = threadIdx.x % 32;
  char *to = tile + row * 128 + ((lane / 4 ^ row % 8) * 16 + lane % 4 * 4);
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
//% if parts == 2
    u32 high, low;
    split_pair(x[chunk][0] * scale, x[chunk][1] * scale, high, low);
    *(u32 *)(to + chunk * ROWS * 256) = high;
    *(u32 *)(to + chunk * ROWS * 256 + ROWS * 128) = low;
//% else
    *(u32 *)(to + chunk * ROWS * 128) = round_pair(x[chunk][0] * scale, x[chunk][1] * scale);
//% end
  }
}

/* BLOCK_N rows, of which the first `rows` are there, with one scale. Returns what undoes it. Warps take rows in turn,
 * and keep them in registers until the largest magnitude is known. */
template <int HEAD, int WIDTH, int CHUNKS>
static __device__ __forceinline__ float split_keys(char *tile, const float *from, const struct fa_tensor &tensor,
                                                   int rows, int most, u32 *largest_of_warp)
{
  constexpr int WARPS = SPLIT_THREADS / 32, OWN = (BLOCK_N + WARPS - 1) / WARPS;
  int warp = threadIdx.x / 32;
  bool pairs = is_together(tensor, 2);
  float x[OWN][CHUNKS][2];
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    int row = i * WARPS + warp;
    load_row<HEAD, WIDTH>(x[i], from + row * tensor.stride_row, tensor, row < rows && row < BLOCK_N, pairs);
    largest = max(largest, largest_magnitude(x[i]));
  }
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (threadIdx.x % 32 == 0)
    largest_of_warp[warp] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < WARPS; i++)
    largest = max(largest, largest_of_warp[i]);
  int k = scale_exponent(largest, most);
#pragma unroll
  for (int i = 0; i < OWN; i++)
    if (BLOCK_N % WARPS == 0 || i * WARPS + warp < BLOCK_N)
      store_row<BLOCK_N>(tile, x[i], i * WARPS + warp, power_of_two(k));
  return power_of_two(-k);
}

//% if parts == 2
/* BLOCK_M rows, of which the first `rows` are there, with a scale each. A negative softmax scale becomes a positive one
 * of -Q: the largest score is then still the one that weighs most. */
static __device__ __forceinline__ void split_queries(char *tile, float *factors, const float *from,
                                                     const struct fa_params &params, int rows)
{
  bool pairs = is_together(params.query, 2);
  float sign = params.softmax_scale < 0 ? -1.0f : 1.0f;
#pragma unroll 2
  for (int row = threadIdx.x / 32; row < BLOCK_M; row += SPLIT_THREADS / 32) {
    float x[CHUNKS_QK][2];
    load_row<HEAD_DIM, 64>(x, from + row * params.query.stride_row, params.query, row < rows, pairs);
    int k = scale_exponent(__reduce_max_sync(0xffffffffu, largest_magnitude(x)), MOST_OF_SCORES);
    store_row<BLOCK_M>(tile, x, row, power_of_two(k) * sign);
    if (threadIdx.x % 32 == 0)
      factors[row] = power_of_two(-k);
  }
}

//% end
/* A block of threads splits a tile: first come those of K, then those of V, then those of Q. */
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS)
split_operands(const __grid_constant__ struct fa_params params)
{
  __shared__ u32 largest[SPLIT_THREADS / 32];
  int key_blocks = ceil_div((int)params.seqlen_k, BLOCK_N);
  int all_keys = (int)(params.batch * params.heads_kv) * key_blocks, tile = blockIdx.x;
  struct work w = {};
//% if parts == 2
  if (tile >= 2 * all_keys) {
    tile -= 2 * all_keys;
    int query_blocks = ceil_div((int)params.seqlen_q, BLOCK_M);
    int index = tile / query_blocks;
    w.batch = index / (int)params.heads_q;
    w.head = index % (int)params.heads_q;
    w.first_query = tile % query_blocks * BLOCK_M;
    struct operands to = find_operands(params, w);
    const float *from = (const float *)params.query.data + head_offset(params.query, w.batch, w.head, w.first_query);
    split_queries(to.queries, to.query_factors, from, params, (int)params.seqlen_q - w.first_query);
    return;
  }
//% end
  bool is_value = tile >= all_keys;
  tile -= is_value ? all_keys : 0;
  int index = tile / key_blocks, block = tile % key_blocks, first = block * BLOCK_N;
  w.batch = index / (int)params.heads_kv;
  w.kv_head = index % (int)params.heads_kv;
  struct operands to = find_operands(params, w);
//% if causal
  /* Keys that no query sees are left out: what they are must not show in the scale of others. */
  int rows = min((int)params.seqlen_k, (int)params.seqlen_q) - first;
//% else
  int rows = (int)params.seqlen_k - first;
//% end
  const struct fa_tensor &tensor = is_value ? params.value : params.key;
  const float *from = (const float *)tensor.data + head_offset(tensor, w.batch, w.kv_head, first);
  /* K and V share the code where their dims and chunks are alike: to compile it twice takes 0.2 s. */
  constexpr bool ALIKE = HEAD_DIM == HEAD_DIM_V && WIDTH_V == 64;
  float factor;
  if (ALIKE || !is_value)
    factor = split_keys<HEAD_DIM, 64, CHUNKS_QK>(
        is_value ? to.values + (long long)block * VALUE_BYTES : to.keys + (long long)block * KEY_BYTES, from, tensor,
        rows, is_value ? MOST_OF_VALUES : MOST_OF_SCORES, largest);
  else
    factor = split_keys<HEAD_DIM_V, WIDTH_V, CHUNKS_V>(to.values + (long long)block * VALUE_BYTES, from, tensor, rows,
                                                       MOST_OF_VALUES, largest);
  if (threadIdx.x == 0)
    (is_value ? to.key_factors[block].y : to.key_factors[block].x) = factor;
}
