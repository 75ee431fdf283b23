/* Tiles of fp16 parts of the caller's fp32, as they lie in shared memory (tile.h): made by a first phase in global memory
 * and copied by the next, or made in shared memory by the block of threads that uses them. */

/* The exponent k of a tile's scale 2^k, from the largest magnitude that each thread has seen. */
template <int NUM_THREADS, int MOST>
static __device__ __forceinline__ int find_exponent(u32 largest, u32 *shared_largest)
{
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (threadIdx.x % 32 == 0)
    shared_largest[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < NUM_THREADS / 32; warp++)
    largest = shared_largest[warp] > largest ? shared_largest[warp] : largest;
  return scale_exponent(largest, MOST);
}

/* `rows` rows of HEAD elements, zeros up to ROWS x DIM, to `tile`: all high parts, then the low ones, with one scale 2^k. Returns 2^-k. */
template <int NUM_THREADS, int ROWS, int HEAD, int DIM, int MOST>
static __device__ __forceinline__ float split_tile(half_bits *tile, const float *from, const struct fa_tensor &tensor,
                                                   int rows, u32 *shared_largest)
{
  constexpr int PAIRS = (ROWS * DIM / 2 + NUM_THREADS - 1) / NUM_THREADS;
  float x[PAIRS][2];
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int pair = i * NUM_THREADS + threadIdx.x, row = pair / (DIM / 2), col = pair % (DIM / 2) * 2;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      bool valid = row < rows && row < ROWS && (HEAD == DIM || col + j < HEAD);
      x[i][j] = valid ? from[row * tensor.stride_row + (col + j) * tensor.stride_col] : 0.0f;
      u32 magnitude = finite_magnitude(x[i][j]);
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  int k = find_exponent<NUM_THREADS, MOST>(largest, shared_largest);
  float scale = power_of_two(k);
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int pair = i * NUM_THREADS + threadIdx.x;
    u32 high, low;
    split_pair(x[i][0] * scale, x[i][1] * scale, high, low);
    if (ROWS * DIM / 2 % NUM_THREADS == 0 || pair < ROWS * DIM / 2) {
      half_bits *to = tile + tile_index<DIM>(pair / (DIM / 2), pair % (DIM / 2) * 2);
      *(u32 *)to = high;
      *(u32 *)(to + ROWS * DIM) = low;
    }
  }
  return power_of_two(-k);
}

/* Piece i of a tile's rows: four elements, 0 where the tensor has none. TOGETHER: they lie in 16 bytes. */
template <int HEAD, int DIM, bool TOGETHER>
static __device__ __forceinline__ float4 read_piece(const float *from, const struct fa_tensor &tensor, int rows, int i)
{
  int row = i / (DIM / 4), col = i % (DIM / 4) * 4;
  bool inside = row < rows;
  from += row * tensor.stride_row;
  if constexpr (TOGETHER) {
    return inside && (HEAD == DIM || col < HEAD) ? *(const float4 *)(from + col) : make_float4(0, 0, 0, 0);
  } else {
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      x[j] = inside && (HEAD == DIM || col + j < HEAD) ? from[(col + j) * tensor.stride_col] : 0.0f;
    return make_float4(x[0], x[1], x[2], x[3]);
  }
}

/* As split_tile, by a block of threads that has no registers for a tile: what it reads for the scale it reads again. */
template <int NUM_THREADS, int ROWS, int HEAD, int DIM, int MOST, bool TOGETHER>
static __device__ __forceinline__ float split_tile_twice(half_bits *tile, const float *from,
                                                         const struct fa_tensor &tensor, int rows, u32 *shared_largest)
{
  constexpr int PIECES = ROWS * DIM / 4, AT_ONCE = TOGETHER ? 8 : 1;
  u32 largest = 0;
#pragma unroll AT_ONCE
  for (int i = threadIdx.x; i < PIECES; i += NUM_THREADS) {
    float4 x = read_piece<HEAD, DIM, TOGETHER>(from, tensor, rows, i);
    largest = max(largest, max(max(finite_magnitude(x.x), finite_magnitude(x.y)),
                               max(finite_magnitude(x.z), finite_magnitude(x.w))));
  }
  int k = find_exponent<NUM_THREADS, MOST>(largest, shared_largest);
  float scale = power_of_two(k);
#pragma unroll AT_ONCE
  for (int i = threadIdx.x; i < PIECES; i += NUM_THREADS) {
    float4 x = read_piece<HEAD, DIM, TOGETHER>(from, tensor, rows, i);
    uint2 high, low;
    split_pair(x.x * scale, x.y * scale, high.x, low.x);
    split_pair(x.z * scale, x.w * scale, high.y, low.y);
    half_bits *to = tile + tile_index<DIM>(i / (DIM / 4), i % (DIM / 4) * 4);
    *(uint2 *)to = high;
    *(uint2 *)(to + ROWS * DIM) = low;
  }
  return power_of_two(-k);
}

template <int NUM_THREADS, int ROWS, int HEAD, int DIM, int MOST>
static __device__ __forceinline__ float split_tile_directly(half_bits *tile, const float *from,
                                                            const struct fa_tensor &tensor, int rows,
                                                            u32 *shared_largest)
{
  bool together = tensor.stride_col == 1 && ((unsigned long long)from / sizeof(float) | tensor.stride_row) % 4 == 0;
  if (HEAD % 4 == 0 && together)
    return split_tile_twice<NUM_THREADS, ROWS, HEAD, DIM, MOST, true>(tile, from, tensor, rows, shared_largest);
  return split_tile_twice<NUM_THREADS, ROWS, HEAD, DIM, MOST, false>(tile, from, tensor, rows, shared_largest);
}

/* Tile `block`, both parts, to shared memory. */
template <int ROWS, int DIM>
static __device__ __forceinline__ void load_split(half_bits *tile, const half_bits *tiles, int block)
{
  constexpr int PIECES = 2 * ROWS * DIM / 8;
  const half_bits *from = tiles + (long long)block * (2 * ROWS * DIM);
  u32 shared = shared_address(tile);
#pragma unroll
  for (int first = 0; first < PIECES; first += THREADS) {
    int i = first + threadIdx.x;
    if (PIECES % THREADS != 0 && i >= PIECES)
      break;
    copy_async<16>(shared + i * 16, from + i * 8, true);
  }
}
