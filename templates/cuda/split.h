/*
 * fp32 on tensor cores: x * 2^k = high + low, both fp16, keeps 22 bits of x, and three products (high * high,
 * high * low, low * high) keep them of a product. k brings the largest magnitude of a row or a tile to 2^14 .. 2^15;
 * being a power of two it is exact, and undone in the softmax factor and where the output is summed.
 *
 * An infinity becomes (inf, NaN), so that every sum it is in is NaN.
 */

/* 2^exponent for -126 .. 127. */
static __device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float((u32)(exponent + 127) << 23); }

static __device__ __forceinline__ float inverse_power(float power) { return __uint_as_float(0x7f000000u - __float_as_uint(power)); }

/* The most that k may be, so that a product of factors 2^-k is a float, which may be as small as 2^-149: of Q and K, of
//% if op == "forward"
 * V and OUTPUT_UNIT / WEIGHT_UNIT. What is smaller yet keeps fewer bits.
//% else
 * dO and V, of d_scores and Q or K. What is smaller yet keeps fewer bits.
//% end
 */
enum {
  MOST_OF_SCORES = 60,
//% if op == "forward"
  MOST_OF_VALUES = 106
//% else
  MOST_OF_VALUES = 74,
  MOST_OF_D_SCORES = 88
//% end
};

/* The k, up to `most`, for values whose largest finite magnitude has these bits. */
static __device__ __forceinline__ int scale_exponent(u32 largest_bits, int most)
{
  int k = 14 + 127 - (int)(largest_bits >> 23);
  return k > most ? most : k;
}

/* The bits of |x|, as integers ordered like the magnitudes; 0 for infinities and NaN. */
static __device__ __forceinline__ u32 finite_magnitude(float x)
{
  u32 bits = __float_as_uint(x) & 0x7fffffffu;
  return bits < 0x7f800000u ? bits : 0;
}

/* The exponent of a power of two, plus 127. */
static __device__ __forceinline__ int biased_exponent(float power) { return (int)(__float_as_uint(power) >> 23); }
//% if precision == "reduced"

/* x, or NaN where it is infinite. */
static __device__ __forceinline__ float finite_or_nan(float x) { return x + (x - x); }

/* x and y as their high parts alone: 11 significant bits, as TF32 has. */
static __device__ __forceinline__ u32 round_pair(float x, float y) { return pack(finite_or_nan(x), finite_or_nan(y)); }
//% else

/* x and y as pairs of their high and low parts. */
static __device__ __forceinline__ void split_pair(float x, float y, u32 &high, u32 &low)
{
  high = pack(x, y);
  low = pack(x - to_float((half_bits)high), y - to_float((half_bits)(high >> 16)));
}
//% end
