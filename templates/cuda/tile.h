/*
 * Tiles: some rows of a head in shared memory, a row PITCH elements apart. A pitch is an odd number of 16-byte
 * chunks, so that the eight rows of an 8x8 matrix lie in eight different groups of banks. Columns from the head dim
 * on, up to a multiple of 16, are zero.
 */
static __device__ __forceinline__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
static __device__ __forceinline__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

/* Where the lanes of a warp point ldmatrix at, in elements from a tile's corner. An A fragment is 16 rows and 16
 * columns; a B fragment is two 8-column tiles of 16 rows in k: `lane_b` where the tile's rows are those columns (keys in
 * Q K^T), `lane_a` with ldmatrix_x4_trans where the tile's rows are k (keys in P V). */
static __device__ __forceinline__ int lane_a(int lane, int pitch) { return (lane & 15) * pitch + (lane >> 4) * 8; }
static __device__ __forceinline__ int lane_b(int lane, int pitch)
{
  return ((lane >> 4) * 8 + (lane & 7)) * pitch + (lane >> 3 & 1) * 8;
}

static __device__ __forceinline__ long long head_offset(const struct fa_tensor &tensor, int batch, int head, int row)
{
  return batch * tensor.stride_batch + head * tensor.stride_head + row * tensor.stride_row;
}

/* Can rows of this 16-bit tensor be copied in pieces of `bytes`? (2: not at all, asynchronously.) */
static __device__ __forceinline__ bool is_aligned(const struct fa_tensor &tensor, int bytes)
{
  unsigned long long together = (unsigned long long)tensor.data | 2 * tensor.stride_batch | 2 * tensor.stride_head |
                                2 * tensor.stride_row;
  return tensor.stride_col == 1 && together % bytes == 0;
}

/* Element by element, for tensors that cannot be copied in pieces. */
template <int ROWS, int DIM, int PITCH>
static __device__ __noinline__ void load_tile_slowly(half_bits *tile, const half_bits *from, long long stride_row,
                                                     long long stride_col, int rows)
{
  for (int i = threadIdx.x; i < ROWS * DIM; i += THREADS) {
    int row = i / DIM, col = i % DIM;
    tile[row * PITCH + col] = row < rows ? from[row * stride_row + col * stride_col] : (half_bits)0;
  }
}

/* The least power of two that is not below x. */
static __device__ constexpr int next_power(int x) { return x <= 1 ? 1 : 2 * next_power((x + 1) / 2); }

/* The first `rows` rows of DIM elements, and zeros up to ROWS, to a tile, by asynchronous copies of BYTES where the
 * tensor allows it (`aligned`). A thread copies the same piece of every ROW_STEP-th row: one address and one stride. */
template <int ROWS, int DIM, int PITCH, int BYTES>
static __device__ __forceinline__ void load_tile(half_bits *tile, const half_bits *from, const struct fa_tensor &tensor,
                                                 int rows, bool aligned)
{
  if constexpr (BYTES >= 4)
    if (aligned) {
      constexpr int WIDTH = BYTES / 2, PIECES = DIM / WIDTH;
      constexpr int LANES = next_power(PIECES) < THREADS ? next_power(PIECES) : THREADS, ROW_STEP = THREADS / LANES;
      int row = threadIdx.x / LANES;
#pragma unroll
      for (int piece = threadIdx.x % LANES; piece < round_up(PIECES, LANES); piece += LANES) {
        if (PIECES % LANES != 0 && piece >= PIECES)
          break;
        const half_bits *source = from + row * tensor.stride_row + piece * WIDTH;
        u32 shared = shared_address(tile + row * PITCH + piece * WIDTH);
#pragma unroll
        for (int first = 0; first < ROWS; first += ROW_STEP) {
          if (ROWS % ROW_STEP == 0 || first + row < ROWS)
            copy_async<BYTES>(shared + first * PITCH * 2, source, first + row < rows);
          source += ROW_STEP * tensor.stride_row;
        }
      }
      return;
    }
  load_tile_slowly<ROWS, DIM, PITCH>(tile, from, tensor.stride_row, tensor.stride_col, rows);
}

/* Zeros, once, where nothing is ever loaded. */
static __device__ __forceinline__ void clear_shared(unsigned char *shared, int bytes)
{
  for (int i = threadIdx.x * 4; i < bytes; i += THREADS * 4)
    *(u32 *)(shared + i) = 0;
}
