/*
 * What attention is, in double precision and a row at a time: what the tuner holds every kernel against.
 */
#include "runtime/runtime.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double dot(const double *a, const double *b, int length) {
  double sum = 0;
  for (int i = 0; i < length; i++)
    sum += a[i] * b[i];
  return sum;
}

static int64_t visible_keys(const fa_reference *r, int64_t row) {
  return r->is_causal && row + 1 < r->seqlen_k ? row + 1 : r->seqlen_k;
}

static double score(const fa_reference *r, int64_t row, int64_t col) {
  return r->softmax_scale * dot(r->query + row * r->head_dim, r->key + col * r->head_dim, r->head_dim);
}

int fa_reference_output(const fa_reference *r, int64_t row, double *output) {
  int64_t visible = visible_keys(r, row);
  double *probability = malloc((size_t)visible * sizeof *probability);
  if (!probability)
    return -1;
  double largest = -INFINITY, sum = 0;
  for (int64_t j = 0; j < visible; j++) {
    probability[j] = score(r, row, j);
    if (probability[j] > largest)
      largest = probability[j];
  }
  memset(output, 0, (size_t)r->head_dim_v * sizeof *output);
  for (int64_t j = 0; j < visible; j++) {
    probability[j] = exp(probability[j] - largest);
    sum += probability[j];
    for (int d = 0; d < r->head_dim_v; d++)
      output[d] += probability[j] * r->value[j * r->head_dim_v + d];
  }
  for (int d = 0; d < r->head_dim_v; d++)
    output[d] /= sum;
  free(probability);
  return 0;
}

void fa_reference_log_sums(const fa_reference *r, double *log_sums) {
  for (int64_t i = 0; i < r->seqlen_q; i++) {
    double largest = -INFINITY, sum = 0; /* of exp(score - largest) so far */
    for (int64_t j = 0; j < visible_keys(r, i); j++) {
      double s = score(r, i, j);
      sum = s > largest ? sum * exp(largest - s) + 1 : sum + exp(s - largest);
      largest = s > largest ? s : largest;
    }
    log_sums[i] = largest + log(sum);
  }
}

/* P and dS of one pair: dS = P * (dO.V - dO.O). */
static double probability_at(const fa_reference *r, int64_t row, int64_t col, double *grad_score) {
  const double *grad_output = r->grad_output + row * r->head_dim_v;
  double probability = exp(score(r, row, col) - r->log_sums[row]);
  *grad_score = probability * (dot(grad_output, r->value + col * r->head_dim_v, r->head_dim_v) -
                               dot(grad_output, r->output + row * r->head_dim_v, r->head_dim_v));
  return probability;
}

void fa_reference_grad_query(const fa_reference *r, int64_t row, double *grad_query) {
  memset(grad_query, 0, (size_t)r->head_dim * sizeof *grad_query);
  for (int64_t j = 0; j < visible_keys(r, row); j++) {
    double grad_score;
    probability_at(r, row, j, &grad_score);
    for (int d = 0; d < r->head_dim; d++)
      grad_query[d] += r->softmax_scale * grad_score * r->key[j * r->head_dim + d];
  }
}

void fa_reference_grad_key_value(const fa_reference *r, int64_t col, double *grad_key, double *grad_value) {
  memset(grad_key, 0, (size_t)r->head_dim * sizeof *grad_key);
  memset(grad_value, 0, (size_t)r->head_dim_v * sizeof *grad_value);
  for (int64_t i = r->is_causal ? col : 0; i < r->seqlen_q; i++) {
    double grad_score, probability = probability_at(r, i, col, &grad_score);
    for (int d = 0; d < r->head_dim; d++)
      grad_key[d] += r->softmax_scale * grad_score * r->query[i * r->head_dim + d];
    for (int d = 0; d < r->head_dim_v; d++)
      grad_value[d] += probability * r->grad_output[i * r->head_dim_v + d];
  }
}

/* --- the three dtypes, without needing the compiler's own 16-bit types */

static double from_half(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                     : exponent == 0 ? ldexp(fraction, -24)
                                     : ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

/* Of finite values in half's range, to nearest even (the tuner makes its inputs so). */
static uint16_t to_half(double value) {
  uint16_t sign = signbit(value) ? 0x8000 : 0;
  double magnitude = fabs(value);
  if (magnitude == 0)
    return sign;
  int exponent = ilogb(magnitude) < -14 ? -14 : ilogb(magnitude);
  int units = (int)nearbyint(ldexp(magnitude, 10 - exponent)); /* 1024 to 2048, less below 2^-14 */
  return (uint16_t)(sign | (((exponent + 14) << 10) + units));
}

static uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

double fa_from_bits(fa_dtype dtype, const void *data, int64_t index) {
  if (dtype == FA_FP32)
    return ((const float *)data)[index];
  uint16_t bits = ((const uint16_t *)data)[index];
  if (dtype == FA_FP16)
    return from_half(bits);
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

void fa_to_bits(fa_dtype dtype, double value, void *data, int64_t index) {
  if (dtype == FA_FP32)
    ((float *)data)[index] = (float)value;
  else
    ((uint16_t *)data)[index] = dtype == FA_FP16 ? to_half(value) : to_bf16((float)value);
}
