/*
 * Attention from C, forward and backward, without Python: compared with plain loops, and timed. On the CPU, or with the
 * argument "cuda" on the first GPU.
 *
 *     make && cc -O2 -I. examples/plain_c.c -Lbuild -lflash_attention -Wl,-rpath,$PWD/build -lm -o plain_c && ./plain_c
 *
 * The first run generates, tunes and compiles two kernels; later runs find them in the cache.
 */
#include "runtime/flash_attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/*
 * Memory of the device, from the library's default host. The library writes and reads it in order with the call's
 * stream, here the default one; a copy from the device waits until its bytes are there.
 */
static fa_device_type device = FA_DEVICE_CPU;
static char message[FA_MESSAGE_SIZE];

static void *take(size_t bytes, const void *contents) {
  const fa_host *host = fa_default_host();
  void *memory = host->allocate(host->context, device, 0, bytes);
  if (memory && contents && fa_copy_to_device(device, 0, NULL, memory, contents, bytes, message) != FA_OK) {
    host->release(host->context, device, 0, memory);
    return NULL;
  }
  return memory;
}

static void give_back(void *memory) {
  const fa_host *host = fa_default_host();
  if (memory)
    host->release(host->context, device, 0, memory);
}

/* Run twice: the first call may tune and compile, the second shows what a call costs. */
static int run(const fa_call *call, const char *name, const void *result) {
  for (int turn = 0; turn < 2; turn++) {
    double start = seconds();
    float waited_for;
    if (fa_execute(call, fa_default_host(), message) != FA_OK ||
        fa_copy_from_device(device, 0, NULL, &waited_for, result, sizeof waited_for, message) != FA_OK) {
      fprintf(stderr, "%s: %s\n", name, message);
      return 0;
    }
    printf("%s, %s call: %.3f ms\n", name, turn == 0 ? "first" : "second", 1e3 * (seconds() - start));
  }
  return 1;
}

enum { QUERY, KEY, VALUE, GRAD_OUTPUT, OUTPUT, GRAD_QUERY, GRAD_KEY, GRAD_VALUE, COUNT };

static int run_both(float *const memory[COUNT], float *lse, double softmax_scale) {
  fa_call call = {.op = FA_FORWARD,
                  .dtype = FA_FP32,
                  .is_causal = true,
                  .softmax_scale = softmax_scale,
                  .device_type = device,
                  .shape = {BATCH, HEADS, HEADS, SEQLEN, SEQLEN},
                  .head_dim = HEAD_DIM,
                  .head_dim_v = HEAD_DIM,
                  .query = view(memory[QUERY]),
                  .key = view(memory[KEY]),
                  .value = view(memory[VALUE]),
                  .output = view(memory[OUTPUT]),
                  .lse = lse};
  if (!run(&call, "forward", memory[OUTPUT]))
    return 0;
  call.op = FA_BACKWARD; /* reads output and lse of forward */
  call.grad_output = view(memory[GRAD_OUTPUT]);
  call.grad_query = view(memory[GRAD_QUERY]);
  call.grad_key = view(memory[GRAD_KEY]);
  call.grad_value = view(memory[GRAD_VALUE]);
  return run(&call, "backward", memory[GRAD_QUERY]);
}

/* Compare what is on the device with plain loops. */
static int check(float *const tensor[COUNT], float *const memory[COUNT], double *const expected[COUNT],
                 double softmax_scale) {
  static const char *const names[] = {"output", "grad_query", "grad_key", "grad_value"};
  double start = seconds();
  for (int h = 0; h < BATCH * HEADS; h++) {
    int at = h * SEQLEN * HEAD_DIM;
    naive_head(tensor[QUERY] + at, tensor[KEY] + at, tensor[VALUE] + at, tensor[GRAD_OUTPUT] + at, softmax_scale,
               expected[OUTPUT] + at, expected[GRAD_QUERY] + at, expected[GRAD_KEY] + at, expected[GRAD_VALUE] + at);
  }
  printf("plain loops, both: %.3f ms\n", 1e3 * (seconds() - start));
  int right = 1;
  for (int i = OUTPUT; i < COUNT; i++) {
    if (fa_copy_from_device(device, 0, NULL, tensor[i], memory[i], sizeof(float) * ELEMENTS, message) != FA_OK) {
      fprintf(stderr, "%s\n", message);
      return 0;
    }
    right = compare(names[i - OUTPUT], tensor[i], expected[i]) && right;
  }
  return right;
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "cuda") == 0) {
    device = FA_DEVICE_CUDA;
  } else if (argc > 1 && strcmp(argv[1], "cpu") != 0) {
    fprintf(stderr, "usage: plain_c [cpu | cuda]\n");
    return 2;
  }
  char target[FA_TARGET_LENGTH];
  if (fa_device_target(device, 0, target, message) != FA_OK) {
    fprintf(stderr, "%s\n", message);
    return 1;
  }
  printf("kernels are made for %s\n", target);

  float *tensor[COUNT] = {NULL}, *memory[COUNT] = {NULL}, *lse = take(sizeof(float) * QUERY_ROWS * 2, NULL);
  double *expected[COUNT] = {NULL};
  int have_memory = lse != NULL;
  for (int i = 0; i < COUNT; i++) {
    tensor[i] = make_tensor(i <= GRAD_OUTPUT);
    memory[i] = tensor[i] ? take(sizeof(float) * ELEMENTS, tensor[i]) : NULL;
    if (i >= OUTPUT)
      expected[i] = calloc(ELEMENTS, sizeof(double));
    have_memory = have_memory && memory[i] && (i < OUTPUT || expected[i]);
  }
  const double softmax_scale = 1 / sqrt(HEAD_DIM);
  int right = 0;
  if (have_memory)
    right = run_both(memory, lse, softmax_scale) && check(tensor, memory, expected, softmax_scale);
  else
    fprintf(stderr, "out of memory\n");
  for (int i = 0; i < COUNT; i++) {
    free(tensor[i]);
    free(expected[i]);
    give_back(memory[i]);
  }
  give_back(lse);
  return right ? 0 : 1;
}
