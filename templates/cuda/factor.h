/* Is the sign bit set? The comparison of doubles waits for the units that products occupy. */
static __device__ __forceinline__ bool is_negative(double x) { return __double2hiint(x) < 0; }

/* |softmax_scale| * log2(e). Not less than 2^-119, so that the score of a hidden key (LOWEST in softmax.h) is far below
 * all others also times it. Times that, scores below 2^95 differ by less than 2^-24: their weights are equal, as with 0.
 * Larger ones, of bf16 and fp32 inputs beyond 2^40 or so, are weighted where a scale of 0 would give a plain mean. */
static __device__ __forceinline__ float softmax_factor(const struct fa_params &params)
{
  double factor = fabs(params.softmax_scale) * 1.4426950408889634;
  return fmaxf((float)(factor < 0x1p127 ? factor : 0x1p127), 0x1p-119f);
}
