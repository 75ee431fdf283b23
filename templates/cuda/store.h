/* Two neighbouring columns of a row to the caller's tensor: at once where the tensor's layout allows it. */
static __device__ __forceinline__ bool has_pairs(const struct fa_tensor &to)
{
  unsigned long long together = (unsigned long long)to.data / sizeof(element) | to.stride_batch | to.stride_head |
                                to.stride_row;
  return to.stride_col == 1 && together % 2 == 0;
}

/* Columns from `dim` on are not there. */
static __device__ __forceinline__ void store_two(const struct fa_tensor &to, element *row, int col, int dim, bool pairs,
                                                 float x, float y)
{
//% if dtype == "fp32"
  if (pairs && col + 1 < dim) {
    *(float2 *)(row + col) = make_float2(x, y);
    return;
  }
  element first = x, second = y;
//% else
  u32 pair = pack(x, y);
  if (pairs && col + 1 < dim) {
    *(u32 *)(row + col) = pair;
    return;
  }
  element first = (element)pair, second = (element)(pair >> 16);
//% end
  if (col < dim)
    row[col * to.stride_col] = first;
  if (col + 1 < dim)
    row[(col + 1) * to.stride_col] = second;
}
