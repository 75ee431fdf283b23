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

/* Numbers as significand * 2^exponent; the leading bit of a normal one is bit `fraction_bits`. Plain arrays and loops
 * without branches, which compilers make vectors of. */
enum { NONE = -10000 /* the exponent of 0: that of no sum */ };

template <int N> struct Parts {
  int32_t significand[N];
  int32_t exponent[N]; /* of the leading bit's place */
};

static int fraction_bits(int type) { return type == TYPE_BF16 ? 7 : 10; }

template <int N> static void split(Parts<N> &parts, const uint16_t *bits, int type) {
  int shift = fraction_bits(type), bias = type == TYPE_BF16 ? 127 : 15;
  for (int i = 0; i < N; i++) {
    int exponent = (bits[i] & 0x7fff) >> shift, fraction = bits[i] & ((1 << shift) - 1);
    int significand = exponent ? fraction | 1 << shift : fraction;
    parts.significand[i] = bits[i] & 0x8000 ? -significand : significand;
    parts.exponent[i] = significand ? (exponent ? exponent : 1) - bias : (int)NONE;
  }
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
  uint64_t scale_bits = (uint64_t)(unit + 1023) << 52; /* 2^unit: units are those of fp32's products */
  double scale;
  memcpy(&scale, &scale_bits, 8);
  double x = (double)size * scale;
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

/* For each of 8 columns: c + sum of a[k] b[k], n products at once. A product of two significands has 22 bits; moved to
 * the left by `kept - product_bits` it has 27, and 16 of them are less than 2^31. */
static void add_products(float c[8], const int32_t *a_significand, const int32_t *a_exponent, const Parts<8> *b, int n,
                         int type, int kept) {
  int up = kept - 2 * fraction_bits(type);
  int32_t largest[8], sum[8] = {}, c_exponent[8], c_significand[8];
  for (int j = 0; j < 8; j++) {
    uint32_t bits = bits_of(c[j]);
    int exponent = (int)(bits >> 23 & 255);
    c_significand[j] = (int)((bits & 0x7fffff) | (exponent ? 0x800000 : 0));
    c_exponent[j] = c_significand[j] ? (exponent ? exponent : 1) - 127 : (int)NONE;
    c_significand[j] = bits >> 31 ? -c_significand[j] : c_significand[j];
    largest[j] = c_exponent[j];
  }
  for (int k = 0; k < n; k++)
    for (int j = 0; j < 8; j++) {
      int32_t exponent = a_exponent[k] + b[k].exponent[j];
      largest[j] = exponent > largest[j] ? exponent : largest[j];
    }
  for (int k = 0; k < n; k++)
    for (int j = 0; j < 8; j++) {
      int32_t product = a_significand[k] * b[k].significand[j];
      int32_t down = largest[j] - (a_exponent[k] + b[k].exponent[j]);
      uint32_t size = (uint32_t)(product < 0 ? -product : product) << up >> (down < 31 ? down : 31);
      sum[j] += product < 0 ? -(int32_t)size : (int32_t)size;
    }
  for (int j = 0; j < 8; j++) {
    int unit = largest[j] - kept;
    int64_t all = sum[j] + align(c_significand[j], c_exponent[j] - 23 - unit);
    c[j] = largest[j] <= NONE / 2 ? 0 : cut(all, unit); /* +0 where all are -0, too */
  }
}

void tensor_core_multiply(float c[16][8], const uint16_t a[16][16], const uint16_t b[16][8], int type, int model) {
  Parts<16> left;
  Parts<8> right[16];
  bool special_column[8] = {}; /* with an infinity or NaN */
  for (int k = 0; k < 16; k++) {
    split(right[k], b[k], type);
    for (int j = 0; j < 8; j++)
      special_column[j] |= is_special(b[k][j], type);
  }
  for (int i = 0; i < 16; i++) {
    bool special_row = false;
    for (int k = 0; k < 16; k++)
      special_row |= is_special(a[i][k], type);
    float sum[8];
    memcpy(sum, c[i], sizeof sum);
    split(left, a[i], type);
    if (model == MODEL_HOPPER) {
      add_products(sum, left.significand, left.exponent, right, 16, type, 25);
    } else if (model == MODEL_AMPERE) {
      add_products(sum, left.significand, left.exponent, right, 8, type, 24);
      add_products(sum, left.significand + 8, left.exponent + 8, right + 8, 8, type, 24);
    }
    for (int j = 0; j < 8; j++) {
      if (special_row || special_column[j] || model == MODEL_DOUBLE || !std::isfinite(c[i][j])) {
        double exact = c[i][j];
        for (int k = 0; k < 16; k++)
          exact += (double)to_float(a[i][k], type) * (double)to_float(b[k][j], type);
        sum[j] = std::isnan(exact) ? float_of(0x7fffffff) : (float)exact;
      }
      c[i][j] = sum[j];
    }
  }
}

extern "C" float emu_to_float(uint16_t bits, int type) { return to_float(bits, type); }
extern "C" uint16_t emu_from_float(float x, int type) { return from_float(x, type); }
extern "C" void emu_multiply(float *c, const uint16_t *a, const uint16_t *b, int type, int model) {
  tensor_core_multiply((float(*)[8])c, (const uint16_t(*)[16])a, (const uint16_t(*)[8])b, type, model);
}

} // namespace emu
