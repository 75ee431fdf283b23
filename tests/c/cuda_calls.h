/*
 * Calls on CUDA without a GPU: NVRTC compiles the small family of test kernels, and the fake driver "runs" them by
 * plain loops, so that the tuner finds them right.
 */
#ifndef FLASH_ATTENTION_TESTS_CUDA_CALLS_H
#define FLASH_ATTENTION_TESTS_CUDA_CALLS_H

#include "tests/c/cuda_help.h"

static fake_cuda *fake;
static _Atomic int wrong_config; /* the block_m whose kernel computes nonsense */

/* Attention by plain loops for what is small: the tuner's check and the calls of these tests. */
static inline void compute(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  (void)grid, (void)block;
  int block_m = atoi(name + strcspn(name, "0123456789"));
  fake->milliseconds = block_m == 32 ? 0.5 : 1; /* the fastest */
  if (strncmp(name, "forward", 7) != 0 || p->batch * p->heads_q > HELP_HEADS)
    return;
  const bool causal = strstr(name, "causal") != NULL;
  float *output = p->output.data;
  const float *query = p->query.data, *key = p->key.data, *value = p->value.data;
  for (int64_t h = 0; h < p->heads_q; h++)
    for (int64_t i = 0; i < p->seqlen_q; i++) {
      double sums[HELP_DIM] = {0}, sum = 0;
      for (int64_t j = 0; j < (causal ? i + 1 : p->seqlen_k); j++) {
        double score = 0;
        for (int d = 0; d < HELP_DIM; d++)
          score += (double)query[h * p->query.stride_head + i * p->query.stride_row + d] *
                   key[h * p->key.stride_head + j * p->key.stride_row + d];
        double weight = exp(p->softmax_scale * score);
        sum += weight;
        for (int d = 0; d < HELP_DIM; d++)
          sums[d] += weight * value[h * p->value.stride_head + j * p->value.stride_row + d];
      }
      for (int d = 0; d < HELP_DIM; d++)
        output[h * p->output.stride_head + i * p->output.stride_row + d] =
            block_m == atomic_load(&wrong_config) ? 7 : (float)(sums[d] / sum);
    }
}

/* In a child: the fake driver, the test family. */
static inline void begin(void) {
  fake = fake_cuda_open();
  fake->run = compute;
  help_use_family();
}

static inline fa_status run(int device, void *stream, help_case *self, char *message) {
  help_make_case(self, false);
  self->call.device_type = FA_DEVICE_CUDA;
  self->call.device_index = device;
  self->call.stream = stream;
  return fa_execute(&self->call, fa_default_host(), message);
}

static inline void check_run(int device, void *stream) {
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  CHECKF(run(device, stream, &self, message) == FA_OK, "%s", message);
  CHECKF(help_error(&self) < 1e-5, "error %g", help_error(&self));
}

static inline const char *last_launch(void) {
  const char *last = "", *found = fake->log;
  while ((found = strstr(found, "launch "))) {
    last = found;
    found++;
  }
  return last;
}
static inline bool launched(const char *what) { return strncmp(last_launch(), what, strlen(what)) == 0; }

#endif
