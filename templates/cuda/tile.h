/*
 * Tiles: some rows of DIM 16-bit elements in shared memory, one behind the other. Columns from the head dim on, up to a
 * multiple of 16, are zero, or of 8 where more are not read (forward at 16 bits).
 *
 * ldmatrix reads the same 16 bytes of eight rows at once, and they must lie in eight different groups of banks; a copy is
 * written a line of 128 bytes at a time. Padded rows do for the first, but then each line that comes from a tensor lies
 * across two: on an H200 copies took 10 cycles for each 512 bytes, and forward of head dim 256, which needs all that
 * shared memory can do, spent 37 % of it so. Instead, the pieces of 16 bytes of a row change places: those of row r, in
 * groups of 8 (or what a row is a multiple of), by an exclusive or with turn(r).
 */
static __device__ __forceinline__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
static __device__ __forceinline__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

/* Pieces of a row that change places among each other. */
template <int DIM>
static __device__ __forceinline__ constexpr int group_pieces()
{
  return DIM % 64 == 0 ? 8 : DIM % 32 == 0 ? 4 : 2;
}

/* Eight rows begin in 8 / group_pieces groups of banks in turn; the rest is up to their pieces. */
template <int DIM>
static __device__ __forceinline__ constexpr int turn(int row)
{
  return row / (8 / group_pieces<DIM>()) % group_pieces<DIM>();
}

/* Where an element lies, in elements from a tile's corner. */
template <int DIM>
static __device__ __forceinline__ constexpr int tile_index(int row, int column)
{
  return row * DIM + (column ^ turn<DIM>(row) * 8);
}

/* The address of another column of a row, a multiple of 8, from that of a column among the first 8; the tile's corner is
 * a multiple of 128. Rows that are a multiple of 8 apart are at a distance that can be added. */
template <int DIM>
static __device__ __forceinline__ u32 at_column(u32 address, int column)
{
  constexpr int BYTES = group_pieces<DIM>() * 16;
  return (address ^ column * 2 % BYTES) + column * 2 / BYTES * BYTES;
}

/* Where the lanes of a warp point ldmatrix at, in elements from a tile's corner. An A fragment is 16 rows and 16
 * columns; a B fragment is two 8-column tiles of 16 rows in k: `lane_b` where the tile's rows are those columns (keys in
 * Q K^T), `lane_a` with ldmatrix_x4_trans where the tile's rows are k (keys in P V). */
template <int DIM>
static __device__ __forceinline__ int lane_a(int lane)
{
  return tile_index<DIM>(lane & 15, (lane >> 4) * 8);
}
template <int DIM>
static __device__ __forceinline__ int lane_b(int lane)
{
  return tile_index<DIM>((lane >> 4) * 8 + (lane & 7), (lane >> 3 & 1) * 8);
}

static __device__ __forceinline__ long long head_offset(const struct fa_tensor &tensor, u32 batch, u32 head, u32 row)
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
template <int ROWS, int HEAD, int DIM>
static __device__ __noinline__ void load_tile_slowly(half_bits *tile, const half_bits *from, long long stride_row,
                                                     long long stride_col, int rows)
{
  for (int i = threadIdx.x; i < ROWS * HEAD; i += THREADS) {
    int row = i / HEAD, col = i % HEAD;
    tile[tile_index<DIM>(row, col)] = row < rows ? from[row * stride_row + col * stride_col] : (half_bits)0;
  }
}

/* The least power of two that is not below x. */
static __device__ constexpr int next_power(int x) { return x <= 1 ? 1 : 2 * next_power((x + 1) / 2); }

/* The first `rows` rows of HEAD elements, and zeros up to ROWS, to a tile, by asynchronous copies of BYTES where the
 * tensor allows it (`aligned`). A thread copies the same part of every ROW_STEP-th row: one address, one stride, and a
 * step is a power of two, so that turns of rows are those of their parts. */
template <int ROWS, int HEAD, int DIM, int BYTES>
static __device__ __forceinline__ void load_tile(half_bits *tile, const half_bits *from, const struct fa_tensor &tensor,
                                                 int rows, bool aligned)
{
  if constexpr (BYTES >= 4)
    if (aligned) {
      constexpr int WIDTH = BYTES / 2, PARTS_OF_ROW = HEAD / WIDTH;
      constexpr int LANES = next_power(PARTS_OF_ROW) < THREADS ? next_power(PARTS_OF_ROW) : THREADS;
      constexpr int ROW_STEP = THREADS / LANES;
      int row = threadIdx.x / LANES;
#pragma unroll
      for (int part = threadIdx.x % LANES; part < round_up(PARTS_OF_ROW, LANES); part += LANES) {
        if (PARTS_OF_ROW % LANES != 0 && part >= PARTS_OF_ROW)
          break;
        const half_bits *source = from + row * tensor.stride_row + part * WIDTH;
        u32 shared = shared_address(tile + tile_index<DIM>(row, part * WIDTH));
#pragma unroll
        for (int first = 0; first < ROWS; first += ROW_STEP) {
          if (ROWS % ROW_STEP == 0 || first + row < ROWS)
            copy_async<BYTES>((shared ^ turn<DIM>(first) * 16) + first * DIM * 2, source, first + row < rows);
          source += ROW_STEP * tensor.stride_row;
        }
      }
      return;
    }
  load_tile_slowly<ROWS, HEAD, DIM>(tile, from, tensor.stride_row, tensor.stride_col, rows);
}

/* Zeros, once, where nothing is ever loaded. */
static __device__ __forceinline__ void clear_shared(unsigned char *shared, int bytes)
{
  for (int i = threadIdx.x * 4; i < bytes; i += THREADS * 4)
    *(u32 *)(shared + i) = 0;
}
