/* Results from fragments to the caller's tensors: as many columns at once as the tensor's layout allows. */

/* Can `columns` neighbouring columns be stored at once? */
static __device__ __forceinline__ bool is_together(const struct fa_tensor &to, int columns)
{
  unsigned long long together = (unsigned long long)to.data / sizeof(element) | to.stride_batch | to.stride_head |
                                to.stride_row;
  return to.stride_col == 1 && together % columns == 0;
}

//% if dtype == "fp32"
typedef float2 two; /* neighbouring columns */
static __device__ __forceinline__ two make_two(float x, float y) { return make_float2(x, y); }
static __device__ __forceinline__ element first_of(two pair) { return pair.x; }
static __device__ __forceinline__ element second_of(two pair) { return pair.y; }
//% else
typedef u32 two; /* neighbouring columns */
static __device__ __forceinline__ two make_two(float x, float y) { return pack(x, y); }
static __device__ __forceinline__ element first_of(two pair) { return (element)pair; }
static __device__ __forceinline__ element second_of(two pair) { return (element)(pair >> 16); }
//% end

/* Columns from DIM on are not there. */
template <int DIM>
static __device__ __forceinline__ void store_two(const struct fa_tensor &to, element *row, int col, bool together, two x)
{
  if (together && col + 1 < DIM) {
    *(two *)(row + col) = x;
    return;
  }
  if (col < DIM)
    row[col * to.stride_col] = first_of(x);
  if (col + 1 < DIM)
    row[(col + 1) * to.stride_col] = second_of(x);
}
//% if dtype != "fp32"

/* Four lanes hold a row of four 8-column tiles, a pair of columns of each tile every lane; after this, each lane holds
 * all pairs of one tile, lane t of tile t: a 4x4 transposition, in two steps. */
static __device__ __forceinline__ void gather_piece(u32 (&piece)[4])
{
  bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    u32 received = __shfl_xor_sync(0xffffffffu, odd ? piece[i] : piece[i + 1], 1);
    piece[i] = odd ? received : piece[i];
    piece[i + 1] = odd ? piece[i + 1] : received;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    u32 received = __shfl_xor_sync(0xffffffffu, upper ? piece[i] : piece[i + 2], 2);
    piece[i] = upper ? received : piece[i];
    piece[i + 2] = upper ? piece[i + 2] : received;
  }
}
//% end

/* A row of TILES x 8 columns from column `first` on, as four lanes hold it: lane t the columns 2t and 2t + 1 of a tile, in
 * fragments[n][2h] and [2h + 1]. All lanes of the warp come here, those that have no row (`present`) too. */
template <int TILES, int DIM>
static __device__ __forceinline__ void store_row(const struct fa_tensor &to, element *row, bool present, int first,
                                                 const float (&fragments)[TILES][4], int h)
{
  const int lane = threadIdx.x % 4, col = first + 2 * lane;
//% if dtype == "fp32"
  const bool together = is_together(to, 2);
  if (present)
#pragma unroll
    for (int n = 0; n < TILES; n++)
      store_two<DIM>(to, row, col + 8 * n, together, make_two(fragments[n][2 * h], fragments[n][2 * h + 1]));
//% else
  constexpr int TOGETHER = DIM % 8 == 0 ? 8 : 2;
  if (DIM % 2 == 0 && is_together(to, TOGETHER)) {
#pragma unroll
    for (int n = 0; n < TILES; n += 4) {
      two x[4];
#pragma unroll
      for (int i = 0; i < 4 && n + i < TILES; i++)
        x[i] = make_two(fragments[n + i][2 * h], fragments[n + i][2 * h + 1]);
      if (TOGETHER == 8 && n + 4 <= TILES && first + 8 * (n + 4) <= DIM) {
        gather_piece(x);
        if (present)
          *(uint4 *)(row + first + 8 * (n + lane)) = make_uint4(x[0], x[1], x[2], x[3]);
        continue;
      }
      if (present)
#pragma unroll
        for (int i = 0; i < 4 && n + i < TILES; i++)
          store_two<DIM>(to, row, col + 8 * (n + i), true, x[i]);
    }
  } else {
    /* Any layout, and odd head dims: not unrolled, which took a tenth of the time of compiling forward at d 128.
     * Registers have no index: the next tile moves to the first one's. */
    const bool together = is_together(to, 2);
    two x[TILES];
#pragma unroll
    for (int n = 0; n < TILES; n++)
      x[n] = make_two(fragments[n][2 * h], fragments[n][2 * h + 1]);
#pragma unroll 1
    for (int n = present ? 0 : TILES; n < TILES; n++) {
      store_two<DIM>(to, row, col + 8 * n, together, x[0]);
#pragma unroll
      for (int i = 0; i + 1 < TILES; i++)
        x[i] = x[i + 1];
    }
  }
//% end
}
