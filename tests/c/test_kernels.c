/*
 * Protects: the CPU kernels compute attention, forward and backward, on every instruction set that this machine
 * has, for every dtype; neon too where this program runs on aarch64 or under qemu-user.
 *
 * Each instruction set gets a process of its own, with a cache of its own and no tuning. The expected values come
 * from plain loops in double precision on the inputs as the kernel sees them, that is after rounding to the dtype.
 */
#define _GNU_SOURCE
#include "runtime/flash_attention.h"
#include "tests/c/check.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

enum { MAX_SEQLEN = 512 };

typedef struct attention_case {
  fa_shape shape;
  int head_dim, head_dim_v;
  bool heads_inside; /* (batch, seqlen, heads, head_dim) in memory, as views of a linear layer's output are */
  int column_stride;
  bool full, causal; /* masks to test */
} attention_case;

static const attention_case cases[] = {
    {{2, 2, 2, 130, 130}, 64, 64, false, 1, true, true},
    {{1, 4, 2, 37, 100}, 80, 40, true, 1, false, true},
    {{1, 1, 1, 65, 3}, 1, 256, false, 2, true, false},
    {{1, 1, 1, 150, 257}, 128, 128, false, 1, false, true},
};

/* A (batch, heads, seqlen, columns) tensor: the values as doubles, contiguous, and in the dtype with its strides. */
typedef struct tensor {
  double *value;
  void *data;
  struct fa_tensor view;
  int64_t heads, seqlen;
  int columns, elements;
  fa_dtype dtype;
} tensor;

static uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Finite values of moderate size only; rounded to nearest, ties to even. */
static uint16_t to_half(float value) {
  uint16_t sign = (uint16_t)(value < 0 ? 0x8000 : 0);
  double magnitude = fabs((double)value);
  int exponent;
  frexp(magnitude, &exponent);
  if (exponent < -13) /* below 2^-14: subnormal, steps of 2^-24 */
    return (uint16_t)(sign | (uint16_t)nearbyint(ldexp(magnitude, 24)));
  int mantissa = (int)nearbyint(ldexp(magnitude, 11 - exponent)); /* 1024 .. 2048 */
  return (uint16_t)(sign | (((exponent + 14) << 10) + (mantissa - 1024)));
}

static double from_half(uint16_t half) {
  int exponent = (half >> 10) & 31, mantissa = half & 1023;
  double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
  return half & 0x8000 ? -magnitude : magnitude;
}

static void put(const tensor *to, int64_t at, float value) {
  if (to->dtype == FA_FP32)
    ((float *)to->data)[at] = value;
  else if (to->dtype == FA_FP16)
    ((uint16_t *)to->data)[at] = to_half(value);
  else
    ((uint16_t *)to->data)[at] = (uint16_t)((float_bits(value) + 0x7fff + ((float_bits(value) >> 16) & 1)) >> 16);
}

static double get(const tensor *from, int64_t at) {
  if (from->dtype == FA_FP32)
    return ((const float *)from->data)[at];
  uint16_t bits = ((const uint16_t *)from->data)[at];
  return from->dtype == FA_FP16 ? from_half(bits) : bits_float((uint32_t)bits << 16);
}

static int64_t place(const tensor *of, int index) {
  int64_t column = index % of->columns, rest = index / of->columns;
  int64_t row = rest % of->seqlen, head = rest / of->seqlen % of->heads, batch = rest / of->seqlen / of->heads;
  return batch * of->view.stride_batch + head * of->view.stride_head + row * of->view.stride_row +
         column * of->view.stride_col;
}

static tensor make_tensor(const attention_case *of, fa_dtype dtype, int64_t heads, int64_t seqlen, int columns,
                          bool random) {
  int64_t step = of->column_stride, width = columns * step;
  tensor made = {.heads = heads, .seqlen = seqlen, .columns = columns, .dtype = dtype};
  made.elements = (int)(of->shape.batch * heads * seqlen * columns);
  made.value = calloc((size_t)made.elements, sizeof(double));
  made.data = calloc((size_t)(made.elements * step), sizeof(float));
  made.view = (struct fa_tensor){made.data, heads * seqlen * width, of->heads_inside ? width : seqlen * width,
                                 of->heads_inside ? heads * width : width, step};
  for (int i = 0; random && i < made.elements; i++) {
    float value = 0; /* a sum of uniform numbers: near enough to normal */
    for (int k = 0; k < 4; k++)
      value += (float)rand() / (float)RAND_MAX - 0.5F;
    put(&made, place(&made, i), 1.7F * value);
    made.value[i] = get(&made, place(&made, i));
  }
  return made;
}

static void free_tensor(tensor *of) {
  free(of->value);
  free(of->data);
}

static double *row_of(const tensor *of, int64_t batch, int64_t head, int64_t row) {
  return of->value + ((batch * of->heads + head) * of->seqlen + row) * of->columns;
}

static double dot(const double *a, const double *b, int count) {
  double sum = 0;
  for (int i = 0; i < count; i++)
    sum += a[i] * b[i];
  return sum;
}

static void add_scaled(double *to, const double *from, double factor, int count) {
  for (int i = 0; i < count; i++)
    to[i] += factor * from[i];
}

typedef struct attention {
  tensor query, key, value, output, grad_output, grad_query, grad_key, grad_value;
} attention;

/* One query row of the expected output and its share of the gradients. */
static void expect_row(attention *of, const attention_case *what, bool is_causal, double scale, int64_t batch,
                       int64_t head, int64_t i) {
  double probability[MAX_SEQLEN], largest = -INFINITY, sum = 0;
  int64_t kv_head = head / (what->shape.heads_q / what->shape.heads_kv), seqlen_k = what->shape.seqlen_k;
  int64_t seen = is_causal && i + 1 < seqlen_k ? i + 1 : seqlen_k;
  const double *query = row_of(&of->query, batch, head, i), *grad = row_of(&of->grad_output, batch, head, i);
  double *output = row_of(&of->output, batch, head, i);
  for (int64_t j = 0; j < seen; j++) {
    probability[j] = scale * dot(query, row_of(&of->key, batch, kv_head, j), what->head_dim);
    largest = fmax(largest, probability[j]);
  }
  for (int64_t j = 0; j < seen; j++)
    sum += probability[j] = exp(probability[j] - largest);
  for (int64_t j = 0; j < seen; j++) {
    probability[j] /= sum;
    add_scaled(output, row_of(&of->value, batch, kv_head, j), probability[j], what->head_dim_v);
  }
  double delta = dot(output, grad, what->head_dim_v);
  for (int64_t j = 0; j < seen; j++) {
    const double *key = row_of(&of->key, batch, kv_head, j);
    double grad_probability = dot(grad, row_of(&of->value, batch, kv_head, j), what->head_dim_v);
    double grad_score = scale * probability[j] * (grad_probability - delta);
    add_scaled(row_of(&of->grad_value, batch, kv_head, j), grad, probability[j], what->head_dim_v);
    add_scaled(row_of(&of->grad_query, batch, head, i), key, grad_score, what->head_dim);
    add_scaled(row_of(&of->grad_key, batch, kv_head, j), query, grad_score, what->head_dim);
  }
}

/* Relative to the largest expected value: several roundings to the dtype. */
static void compare(const tensor *got, const char *name, const char *about) {
  static const double tolerance[] = {[FA_FP32] = 4e-6, [FA_FP16] = 4e-3, [FA_BF16] = 3e-2};
  double largest = 0, difference = 0;
  for (int i = 0; i < got->elements; i++) {
    largest = fmax(largest, fabs(got->value[i]));
    double here = fabs(get(got, place(got, i)) - got->value[i]);
    difference = here <= difference ? difference : here; /* keeps NaN */
  }
  CHECKF(difference <= tolerance[got->dtype] * largest, "%s of %s: off by %g, largest value %g", name, about,
         difference, largest);
}

static void test_case(const attention_case *what, fa_dtype dtype, bool is_causal, const char *target) {
  const fa_shape *shape = &what->shape;
  int dim = what->head_dim, dim_v = what->head_dim_v;
  attention of = {
      .query = make_tensor(what, dtype, shape->heads_q, shape->seqlen_q, dim, true),
      .key = make_tensor(what, dtype, shape->heads_kv, shape->seqlen_k, dim, true),
      .value = make_tensor(what, dtype, shape->heads_kv, shape->seqlen_k, dim_v, true),
      .output = make_tensor(what, dtype, shape->heads_q, shape->seqlen_q, dim_v, false),
      .grad_output = make_tensor(what, dtype, shape->heads_q, shape->seqlen_q, dim_v, true),
      .grad_query = make_tensor(what, dtype, shape->heads_q, shape->seqlen_q, dim, false),
      .grad_key = make_tensor(what, dtype, shape->heads_kv, shape->seqlen_k, dim, false),
      .grad_value = make_tensor(what, dtype, shape->heads_kv, shape->seqlen_k, dim_v, false),
  };
  double scale = 1 / sqrt(dim);
  for (int64_t row = 0; row < shape->batch * shape->heads_q * shape->seqlen_q; row++)
    expect_row(&of, what, is_causal, scale, row / shape->seqlen_q / shape->heads_q,
               row / shape->seqlen_q % shape->heads_q, row % shape->seqlen_q);
  float *lse = calloc((size_t)(shape->batch * shape->heads_q * shape->seqlen_q) * 2, sizeof *lse);
  fa_call call = {.op = FA_FORWARD,
                  .dtype = dtype,
                  .is_causal = is_causal,
                  .softmax_scale = scale,
                  .device_type = FA_DEVICE_CPU,
                  .shape = *shape,
                  .head_dim = dim,
                  .head_dim_v = dim_v,
                  .query = of.query.view,
                  .key = of.key.view,
                  .value = of.value.view,
                  .output = of.output.view,
                  .grad_output = of.grad_output.view,
                  .grad_query = of.grad_query.view,
                  .grad_key = of.grad_key.view,
                  .grad_value = of.grad_value.view,
                  .lse = lse};
  char about[128], message[FA_MESSAGE_SIZE] = "";
  snprintf(about, sizeof about, "%s %s, d %d/%d, S %d/%d%s", target, fa_dtype_name(dtype), dim, dim_v,
           (int)shape->seqlen_q, (int)shape->seqlen_k, is_causal ? ", causal" : "");
  CHECKF(fa_execute(&call, fa_default_host(), message) == FA_OK, "forward of %s: %s", about, message);
  compare(&of.output, "output", about);
  call.op = FA_BACKWARD;
  CHECKF(fa_execute(&call, fa_default_host(), message) == FA_OK, "backward of %s: %s", about, message);
  compare(&of.grad_query, "grad_query", about);
  compare(&of.grad_key, "grad_key", about);
  compare(&of.grad_value, "grad_value", about);
  free(lse);
  tensor *all = &of.query;
  for (size_t i = 0; i < sizeof of / sizeof(tensor); i++)
    free_tensor(&all[i]);
}

static void test_isa(void *argument) {
  char target[FA_TARGET_LENGTH], message[FA_MESSAGE_SIZE] = "", directory[] = "/tmp/flash_attention_test.XXXXXX";
  setenv("FLASH_ATTENTION_CPU_ISA", argument, 1);
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  if (!CHECK(mkdtemp(directory) != NULL))
    return;
  setenv("FLASH_ATTENTION_CACHE_DIR", directory, 1);
  if (fa_device_target(FA_DEVICE_CPU, 0, target, message) != FA_OK) {
    check_skip(argument, message);
    return;
  }
  int problems = 0;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int dtype = FA_FP32; dtype <= FA_BF16; dtype++)
      for (int is_causal = 0; is_causal < 2; is_causal++)
        if (is_causal ? cases[i].causal : cases[i].full) {
          test_case(&cases[i], (fa_dtype)dtype, is_causal, target);
          problems += 2;
        }
  int64_t removed = 0;
  CHECK(fa_cache_remove_all(&removed, message) == FA_OK);
  CHECK(removed > 0);
  printf("%s: %d problems\n", target, problems);
  rmdir(directory);
}

static void test_avx2(void) { IN_CHILD(test_isa, "avx2"); }
static void test_avx512(void) { IN_CHILD(test_isa, "avx512"); }
static void test_avx512_bf16(void) { IN_CHILD(test_isa, "avx512_bf16"); }
static void test_avx512_amx(void) { IN_CHILD(test_isa, "avx512_amx"); }
static void test_neon(void) { IN_CHILD(test_isa, "neon"); }

int main(void) {
  RUN(test_avx2);
  RUN(test_avx512);
  RUN(test_avx512_bf16);
  RUN(test_avx512_amx);
  RUN(test_neon);
  return check_summary();
}
