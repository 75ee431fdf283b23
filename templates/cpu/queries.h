/*
 * A block of query rows, brought to a common size.
 *
 * Each row is multiplied by a power of two (exact) so that its largest element lies near 2^-16: no score can
 * then overflow, whatever finite numbers q and k hold. The power and the softmax scale's sign and size are
 * undone by the row's factor of the exponent: softmax(scale * s) = 2^((s' - max s') * factor) / sum.
 */
static inline void normalise_queries(float *q_t, double softmax_scale, float *exponent_factor)
{
  double log2_e = 1.4426950408889634;
  float sign = softmax_scale < 0 ? -1.0f : 1.0f;
  float size = (float)(softmax_scale * log2_e * sign);
  for (int lanes = 0; lanes < TILE_M; lanes += LANES) {
    ivec largest = {0};
    for (int column = 0; column < HEAD_DIM; column++) {
      ivec bits = (ivec)load(q_t + column * TILE_M + lanes) & 0x7fffffff;
      ivec more = bits > largest;
      largest = (bits & more) | (largest & ~more);
    }
    /* Biased exponent, 1 to 250; rows of zeros and rows with an infinity or a NaN stay as they are. */
    ivec exponent = largest >> 23;
    ivec low = exponent < 1, high = exponent > 250, special = (exponent < 1) | (exponent > 254);
    exponent = (exponent & ~low & ~high) | (1 & low) | (250 & high);
    exponent = (exponent & ~special) | (127 & special);
    vec down = (vec)((254 - exponent) << 23); /* 2^(127 - exponent) */
    vec up = (vec)(exponent << 23);
    vec factor = splat(size * 65536.0f) * up;
    store(exponent_factor + lanes, smaller(factor, splat(3.4028234e38f)));
    for (int column = 0; column < HEAD_DIM; column++) {
      float *q = q_t + column * TILE_M + lanes;
      store(q, load(q) * down * (sign / 65536.0f));
    }
  }
}
