/* |softmax_scale| * log2(e). Not 0, however small: 0 * -inf would make masked scores NaN. */
static __device__ __forceinline__ float softmax_factor(const struct fa_params &params)
{
  double factor = fabs(params.softmax_scale) * 1.4426950408889634;
  return fmaxf((float)(factor < 0x1p127 ? factor : 0x1p127), 0x1p-149f);
}
