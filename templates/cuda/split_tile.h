/* Tiles of fp16 parts in global memory, as they lie in shared memory (tile.h): made by a first phase from the caller's
 * fp32, copied by the next. */

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
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (threadIdx.x % 32 == 0)
    shared_largest[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < NUM_THREADS / 32; warp++)
    largest = shared_largest[warp] > largest ? shared_largest[warp] : largest;
  int k = scale_exponent(largest, MOST);
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
