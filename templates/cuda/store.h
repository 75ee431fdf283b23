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
