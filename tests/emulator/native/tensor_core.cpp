/*
 * How tensor cores add, after published measurements (Fasi et al., PeerJ Computer Science 7:e330, 2021; Khattak and
 * Mikaitis, arXiv:2512.07004): products are exact; they and the accumulator are aligned to the largest exponent among
 * them, what lies below the kept bits is cut off, and the sum is cut to fp32.
 *     Hopper: all 16 products at once, 25 bits of fraction
 *     Ampere, Ada: k 0 to 7, then k 8 to 15, 24 bits of fraction
 * The third model rounds the exact sum once. A sum of zeros is +0, whatever their signs.
 *
 * That of Hopper is an H100's, bit for bit: test_recordings.py. That of Ampere and Ada is as published: no such card
 * has been recorded.
 */
#include "tensor_core.h"

#include "machine.h"

#include <cmath>
#include <cstring>

namespace emu {

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

float to_float(uint16_t bits, int type) {
  if (type == TYPE_BF16)
    return float_of((uint32_t)bits << 16);
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31)
    return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    float x = std::ldexp((float)fraction, -24);
    return sign ? -x : x;
  }
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t from_float(float x, int type) {
  uint32_t bits = bits_of(x), sign = bits >> 31 << 15;
  if (std::isnan(x))
    return 0x7fff;
  if (type == TYPE_BF16)
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  float size = std::fabs(x);
  if (size >= 65520.0f)
    return (uint16_t)(sign | 0x7c00);
  /* A multiple of the unit of x's binade, ties to even by the processor's own rounding. */
  int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  long units = std::lrint(std::ldexp((double)size, 10 - exponent));
  return (uint16_t)(sign | (uint32_t)((exponent + 14) * 1024 + units));
}

/* A number as significand * 2^exponent; the leading bit of a normal one is bit `fraction_bits`. */
struct Part {
  int64_t significand;
  int exponent; /* of the leading bit's place */
};

static Part split(uint16_t bits, int type) {
  int fraction_bits = type == TYPE_BF16 ? 7 : 10, bias = type == TYPE_BF16 ? 127 : 15;
  int exponent = (bits & 0x7fff) >> fraction_bits;
  int64_t fraction = bits & ((1 << fraction_bits) - 1);
  int64_t significand = exponent ? fraction | 1 << fraction_bits : fraction;
  return {bits & 0x8000 ? -significand : significand, (exponent ? exponent : 1) - bias};
}

static bool is_special(uint16_t bits, int type) {
  uint16_t mask = type == TYPE_BF16 ? 0x7f80 : 0x7c00;
  return (bits & mask) == mask;
}

/* sum * 2^unit cut to fp32. */
static float cut(int64_t sum, int unit) {
  bool negative = sum < 0;
  uint64_t size = negative ? (uint64_t)-sum : (uint64_t)sum;
  if (!size)
    return 0;
  int top = 63 - __builtin_clzll(size);
  int drop = top - 23;
  if (top + unit < -126)
    drop = -149 - unit; /* subnormal */
  if (drop > 0)
    size = drop > 63 ? 0 : size >> drop << drop;
  double x = std::ldexp((double)size, unit);
  float y = x >= 0x1p128 ? INFINITY : (float)x;
  return negative ? -y : y;
}

static int64_t align(int64_t significand, int shift) {
  if (shift >= 0)
    return significand << shift;
  if (shift < -62)
    return 0;
  return significand < 0 ? -(-significand >> -shift) : significand >> -shift;
}

/* c + sum of a[k] b[k], n products at once. */
static float add_products(float c, const Part *a, const Part *b, int n, int type, int kept) {
  int product_bits = 2 * (type == TYPE_BF16 ? 7 : 10);
  uint32_t bits = bits_of(c);
  int c_exponent = (int)(bits >> 23 & 255);
  int64_t c_significand = (bits & 0x7fffff) | (c_exponent ? 0x800000 : 0);
  if (bits >> 31)
    c_significand = -c_significand;
  c_exponent = (c_exponent ? c_exponent : 1) - 127;
  int largest = c_significand ? c_exponent : -1000;
  for (int k = 0; k < n; k++)
    if (a[k].significand && b[k].significand && a[k].exponent + b[k].exponent > largest)
      largest = a[k].exponent + b[k].exponent;
  if (largest == -1000)
    return 0; /* +0 where all are -0, too */
  int64_t sum = align(c_significand, c_exponent - 23 - (largest - kept));
  for (int k = 0; k < n; k++)
    sum += align(a[k].significand * b[k].significand, a[k].exponent + b[k].exponent - product_bits - (largest - kept));
  return cut(sum, largest - kept);
}

void tensor_core_multiply(float c[16][8], const uint16_t a[16][16], const uint16_t b[16][8], int type, int model) {
  Part left[16][16], right[8][16];
  bool special_row[16] = {}, special_column[8] = {}; /* with an infinity or NaN */
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++) {
      left[i][k] = split(a[i][k], type);
      special_row[i] |= is_special(a[i][k], type);
    }
  for (int k = 0; k < 16; k++)
    for (int j = 0; j < 8; j++) {
      right[j][k] = split(b[k][j], type);
      special_column[j] |= is_special(b[k][j], type);
    }
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      float &sum = c[i][j];
      if (special_row[i] || special_column[j] || model == MODEL_DOUBLE || !std::isfinite(sum)) {
        double exact = sum;
        for (int k = 0; k < 16; k++)
          exact += (double)to_float(a[i][k], type) * (double)to_float(b[k][j], type);
        sum = std::isnan(exact) ? float_of(0x7fffffff) : (float)exact;
      } else if (model == MODEL_HOPPER) {
        sum = add_products(sum, left[i], right[j], 16, type, 25);
      } else {
        sum = add_products(sum, left[i], right[j], 8, type, 24);
        sum = add_products(sum, left[i] + 8, right[j] + 8, 8, type, 24);
      }
    }
}

extern "C" float emu_to_float(uint16_t bits, int type) { return to_float(bits, type); }
extern "C" uint16_t emu_from_float(float x, int type) { return from_float(x, type); }
extern "C" void emu_multiply(float *c, const uint16_t *a, const uint16_t *b, int type, int model) {
  tensor_core_multiply((float(*)[8])c, (const uint16_t(*)[16])a, (const uint16_t(*)[8])b, type, model);
}

} // namespace emu
