/* Results from fragments to the caller's tensors: as many columns at once as the tensor's layout allows. */

/* Can two neighbouring columns be stored at once? */
static __device__ __forceinline__ bool has_pairs(const struct fa_tensor &to)
{
  unsigned long long together = (unsigned long long)to.data / sizeof(element) | to.stride_batch | to.stride_head |
                                to.stride_row;
  return to.stride_col == 1 && together % 2 == 0;
}
//% if dtype == "fp32"

/* Two neighbouring columns; those from `dim` on are not there. */
static __device__ __forceinline__ void store_two(const struct fa_tensor &to, element *row, int col, int dim, bool pairs,
                                                 float x, float y)
{
  if (pairs && col + 1 < dim) {
    *(float2 *)(row + col) = make_float2(x, y);
    return;
  }
  if (col < dim)
    row[col * to.stride_col] = x;
  if (col + 1 < dim)
    row[(col + 1) * to.stride_col] = y;
}
//% else

/* Two neighbouring columns; those from `dim` on are not there. */
static __device__ __forceinline__ void store_pair(const struct fa_tensor &to, element *row, int col, int dim, bool pairs,
                                                  u32 pair)
{
  if (pairs && col + 1 < dim) {
    *(u32 *)(row + col) = pair;
    return;
  }
  if (col < dim)
    row[col * to.stride_col] = (element)pair;
  if (col + 1 < dim)
    row[(col + 1) * to.stride_col] = (element)(pair >> 16);
}
static __device__ __forceinline__ void store_two(const struct fa_tensor &to, element *row, int col, int dim, bool pairs,
                                                 float x, float y)
{
  store_pair(to, row, col, dim, pairs, pack(x, y));
}

/* Can eight neighbouring columns, 16 bytes, be stored at once? */
static __device__ __forceinline__ bool has_pieces(const struct fa_tensor &to)
{
  unsigned long long together = (unsigned long long)to.data / sizeof(element) | to.stride_batch | to.stride_head |
                                to.stride_row;
  return to.stride_col == 1 && together % 8 == 0;
}

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
  const bool pairs = has_pairs(to);
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < TILES; n += 4) {
//% if dtype != "fp32"
    /* Four tiles together, where they lie in the row. */
    if (DIM % 8 == 0 && n + 4 <= TILES && first + 8 * (n + 4) <= DIM) {
      u32 piece[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        piece[i] = pack(fragments[n + i][2 * h], fragments[n + i][2 * h + 1]);
      if (has_pieces(to)) {
        gather_piece(piece);
        if (present)
          *(uint4 *)(row + first + 8 * (n + lane)) = make_uint4(piece[0], piece[1], piece[2], piece[3]);
      } else if (present) {
#pragma unroll
        for (int i = 0; i < 4; i++)
          store_pair(to, row, first + 8 * (n + i) + 2 * lane, DIM, pairs, piece[i]);
      }
      continue;
    }
//% end
    if (present)
#pragma unroll
      for (int i = n; i < n + 4 && i < TILES; i++)
        store_two(to, row, first + 8 * i + 2 * lane, DIM, pairs, fragments[i][2 * h], fragments[i][2 * h + 1]);
  }
}
