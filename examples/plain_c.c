/*
 * Attention from C, forward and backward on the CPU, without Python: compared with plain loops, and timed.
 *
 *     make && cc -O2 -I. examples/plain_c.c -Lbuild -lflash_attention -Wl,-rpath,$PWD/build -lm -o plain_c && ./plain_c
 *
 * The first run generates, tunes and compiles two kernels; later runs find them in the cache.
 */
#include "runtime/flash_attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BATCH = 1, HEADS = 4, SEQLEN = 512, HEAD_DIM = 64 };
enum { ELEMENTS = BATCH * HEADS * SEQLEN * HEAD_DIM, QUERY_ROWS = BATCH * HEADS * SEQLEN };

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* A (batch, heads, seqlen, head_dim) tensor of random values, or of zeros. */
static float *make_tensor(int random) {
  float *data = calloc(ELEMENTS, sizeof *data);
  for (int i = 0; data && random && i < ELEMENTS; i++)
    data[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
  return data;
}

static struct fa_tensor view(float *data) {
  return (struct fa_tensor){data, HEADS * SEQLEN * HEAD_DIM, SEQLEN * HEAD_DIM, HEAD_DIM, 1};
}

/* What the library computes for one head, causal, in loops: output and the gradients of sum(output * grad_output). */
static void naive_head(const float *query, const float *key, const float *value, const float *grad_output, double scale,
                       double *output, double *grad_query, double *grad_key, double *grad_value) {
  for (int i = 0; i < SEQLEN; i++) {
    double probability[SEQLEN], grad_probability[SEQLEN], largest = -INFINITY, sum = 0, delta = 0;
    for (int j = 0; j <= i; j++) {
      probability[j] = 0;
      for (int d = 0; d < HEAD_DIM; d++)
        probability[j] += scale * query[i * HEAD_DIM + d] * key[j * HEAD_DIM + d];
      largest = fmax(largest, probability[j]);
    }
    for (int j = 0; j <= i; j++)
      sum += probability[j] = exp(probability[j] - largest);
    for (int j = 0; j <= i; j++) {
      probability[j] /= sum;
      grad_probability[j] = 0;
      for (int d = 0; d < HEAD_DIM; d++) {
        output[i * HEAD_DIM + d] += probability[j] * value[j * HEAD_DIM + d];
        grad_value[j * HEAD_DIM + d] += probability[j] * grad_output[i * HEAD_DIM + d];
        grad_probability[j] += (double)grad_output[i * HEAD_DIM + d] * value[j * HEAD_DIM + d];
      }
      delta += probability[j] * grad_probability[j];
    }
    for (int j = 0; j <= i; j++) {
      double grad_score = scale * probability[j] * (grad_probability[j] - delta);
      for (int d = 0; d < HEAD_DIM; d++) {
        grad_query[i * HEAD_DIM + d] += grad_score * key[j * HEAD_DIM + d];
        grad_key[j * HEAD_DIM + d] += grad_score * query[i * HEAD_DIM + d];
      }
    }
  }
}

static int compare(const char *name, const float *got, const double *expected) {
  double largest = 0;
  for (int i = 0; i < ELEMENTS; i++)
    largest = fmax(largest, fabs(got[i] - expected[i]));
  int right = largest < 1e-5;
  printf("  %-12s largest difference %.2e  %s\n", name, largest, right ? "ok" : "WRONG");
  return right;
}

/* Run twice: the first call may tune and compile, the second shows what a call costs. */
static int run(const fa_call *call, const char *name) {
  char message[FA_MESSAGE_SIZE];
  for (int turn = 0; turn < 2; turn++) {
    double start = seconds();
    if (fa_execute(call, fa_default_host(), message) != FA_OK) {
      fprintf(stderr, "%s: %s\n", name, message);
      return 0;
    }
    printf("%s, %s call: %.3f ms\n", name, turn == 0 ? "first" : "second", 1e3 * (seconds() - start));
  }
  return 1;
}

int main(void) {
  enum { QUERY, KEY, VALUE, GRAD_OUTPUT, OUTPUT, GRAD_QUERY, GRAD_KEY, GRAD_VALUE, COUNT };
  float *tensor[COUNT], *lse = malloc(sizeof(float) * QUERY_ROWS * 2);
  double *expected[COUNT] = {NULL};
  int have_memory = lse != NULL;
  for (int i = 0; i < COUNT; i++) {
    tensor[i] = make_tensor(i <= GRAD_OUTPUT);
    if (i >= OUTPUT)
      expected[i] = calloc(ELEMENTS, sizeof(double));
    have_memory = have_memory && tensor[i] && (i < OUTPUT || expected[i]);
  }
  if (!have_memory)
    return 1;

  fa_call call = {.op = FA_FORWARD,
                  .dtype = FA_FP32,
                  .is_causal = true,
                  .softmax_scale = 1 / sqrt(HEAD_DIM),
                  .device_type = FA_DEVICE_CPU,
                  .shape = {BATCH, HEADS, HEADS, SEQLEN, SEQLEN},
                  .head_dim = HEAD_DIM,
                  .head_dim_v = HEAD_DIM,
                  .query = view(tensor[QUERY]),
                  .key = view(tensor[KEY]),
                  .value = view(tensor[VALUE]),
                  .output = view(tensor[OUTPUT]),
                  .lse = lse};
  int right = run(&call, "forward");

  call.op = FA_BACKWARD; /* reads output and lse of forward */
  call.grad_output = view(tensor[GRAD_OUTPUT]);
  call.grad_query = view(tensor[GRAD_QUERY]);
  call.grad_key = view(tensor[GRAD_KEY]);
  call.grad_value = view(tensor[GRAD_VALUE]);
  right = right && run(&call, "backward");

  double start = seconds();
  for (int h = 0; right && h < BATCH * HEADS; h++) {
    int at = h * SEQLEN * HEAD_DIM;
    naive_head(tensor[QUERY] + at, tensor[KEY] + at, tensor[VALUE] + at, tensor[GRAD_OUTPUT] + at, call.softmax_scale,
               expected[OUTPUT] + at, expected[GRAD_QUERY] + at, expected[GRAD_KEY] + at, expected[GRAD_VALUE] + at);
  }
  if (right) {
    printf("plain loops, both: %.3f ms\n", 1e3 * (seconds() - start));
    static const char *const names[] = {"output", "grad_query", "grad_key", "grad_value"};
    for (int i = OUTPUT; i < COUNT; i++)
      right = compare(names[i - OUTPUT], tensor[i], expected[i]) && right;
  }
  for (int i = 0; i < COUNT; i++) {
    free(tensor[i]);
    free(expected[i]);
  }
  free(lse);
  return right ? 0 : 1;
}
