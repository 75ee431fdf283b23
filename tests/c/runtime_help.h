/*
 * What the tests of runtime share: calls small enough to check with plain loops, and "processes" that start
 * afresh. The library reads its environment at its first call, so that a test's own process never calls it:
 * each scenario runs in a forked child that sets its environment first.
 */
#ifndef FLASH_ATTENTION_TESTS_RUNTIME_HELP_H
#define FLASH_ATTENTION_TESTS_RUNTIME_HELP_H

#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/cpu.h"
#include "runtime/runtime.h"
#include "tests/c/check.h"

/* A temporary directory of this test program, removed by help_end. */
static char help_dir[PATH_MAX - 512];

static inline void help_begin(void) {
  const char *base = getenv("TMPDIR");
  snprintf(help_dir, sizeof help_dir, "%s/test_runtime.XXXXXX", base && *base ? base : "/tmp");
  if (!mkdtemp(help_dir)) {
    perror("mkdtemp");
    exit(2);
  }
  setenv("TMPDIR", help_dir, 1);
  unsetenv("FLASH_ATTENTION_CPU_ISA");
  unsetenv("FLASH_ATTENTION_CUDA_ARCH");
  unsetenv("FLASH_ATTENTION_AUTOTUNE");
  unsetenv("FLASH_ATTENTION_VERBOSE");
}

static inline void help_end(void) {
  char command[PATH_MAX];
  snprintf(command, sizeof command, "rm -rf '%s'", help_dir);
  if (system(command) != 0)
    fprintf(stderr, "%s is left\n", help_dir);
}

/* An empty cache for the scenarios of one test. */
static inline void help_new_cache(const char *name) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/cache_%s", help_dir, name);
  setenv("FLASH_ATTENTION_CACHE_DIR", path, 1);
}

/* An executable script in the temporary directory; returns its path in a static buffer. */
static inline const char *help_script(const char *name, const char *text) {
  static char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", help_dir, name);
  FILE *file = fopen(path, "w");
  if (!file)
    return "/nonexistent";
  fprintf(file, "#!/bin/sh\n%s", text);
  fclose(file);
  chmod(path, 0755);
  return path;
}

/* The path of the compiler of these tests. */
static inline const char *help_compiler(void) {
  static char path[PATH_MAX];
  char message[FA_MESSAGE_SIZE];
  fa_command command;
  if (fa_find_cpu_compiler(&command, message) != FA_OK)
    return "/nonexistent";
  snprintf(path, sizeof path, "%s", command.word[0]);
  fa_command_free(&command);
  return path;
}

/* Under qemu-user /proc/cpuinfo is that of the machine beneath. A child there that was forked from a process with
 * threads cannot start threads of its own, and starting a program that does not exist seems to work. */
static inline bool help_is_emulated(void) {
#ifdef __aarch64__
  return system("grep -q 'CPU implementer' /proc/cpuinfo") != 0;
#else
  return false;
#endif
}

/* Numbers that children leave for their parent. */
typedef struct help_shared {
  _Atomic int64_t compilations, tunings, kernels_loaded, value[4];
} help_shared;
static inline help_shared *help_share(void) {
  help_shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return shared == MAP_FAILED ? NULL : shared;
}
static inline void help_add_statistics(help_shared *shared) {
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  atomic_fetch_add(&shared->compilations, statistics.compilations);
  atomic_fetch_add(&shared->tunings, statistics.tunings);
  atomic_fetch_add(&shared->kernels_loaded, statistics.kernels_loaded);
}

/* --- one small fp32 call, contiguous tensors */
enum { HELP_HEADS = 2, HELP_SEQLEN = 37, HELP_DIM = 24, HELP_ELEMENTS = HELP_HEADS * HELP_SEQLEN * HELP_DIM };
typedef struct help_case {
  fa_call call;
  float query[HELP_ELEMENTS], key[HELP_ELEMENTS], value[HELP_ELEMENTS], output[HELP_ELEMENTS];
  float lse[HELP_HEADS * HELP_SEQLEN * 2];
} help_case;

static inline struct fa_tensor help_view(float *data) {
  return (struct fa_tensor){data, HELP_ELEMENTS, HELP_SEQLEN * HELP_DIM, HELP_DIM, 1};
}

/* `self` must not move afterwards. */
static inline void help_make_case(help_case *self, bool is_causal) {
  memset(self, 0, sizeof *self);
  unsigned state = 1;
  for (int i = 0; i < HELP_ELEMENTS; i++) {
    float *inputs[] = {&self->query[i], &self->key[i], &self->value[i]};
    for (int j = 0; j < 3; j++) {
      state = state * 1664525 + 1013904223;
      *inputs[j] = (float)(state >> 8) / (float)(1 << 23) - 1;
    }
  }
  self->call = (fa_call){.op = FA_FORWARD,
                         .dtype = FA_FP32,
                         .is_causal = is_causal,
                         .softmax_scale = 0.25,
                         .device_type = FA_DEVICE_CPU,
                         .shape = {1, HELP_HEADS, HELP_HEADS, HELP_SEQLEN, HELP_SEQLEN},
                         .head_dim = HELP_DIM,
                         .head_dim_v = HELP_DIM,
                         .query = help_view(self->query),
                         .key = help_view(self->key),
                         .value = help_view(self->value),
                         .output = help_view(self->output),
                         .lse = self->lse};
}

/* Largest difference of self->output from plain loops. */
static inline double help_error(const help_case *self) {
  double largest = 0;
  for (int h = 0; h < HELP_HEADS; h++)
    for (int i = 0; i < HELP_SEQLEN; i++) {
      double output[HELP_DIM] = {0}, sum = 0;
      for (int j = 0; j < (self->call.is_causal ? i + 1 : HELP_SEQLEN); j++) {
        const float *q = self->query + (h * HELP_SEQLEN + i) * HELP_DIM,
                    *k = self->key + (h * HELP_SEQLEN + j) * HELP_DIM;
        double score = 0;
        for (int d = 0; d < HELP_DIM; d++)
          score += (double)q[d] * k[d];
        double weight = exp(self->call.softmax_scale * score);
        sum += weight;
        for (int d = 0; d < HELP_DIM; d++)
          output[d] += weight * self->value[(h * HELP_SEQLEN + j) * HELP_DIM + d];
      }
      for (int d = 0; d < HELP_DIM; d++) {
        double error = fabs(output[d] / sum - self->output[(h * HELP_SEQLEN + i) * HELP_DIM + d]);
        largest = error <= largest ? largest : error; /* NaN counts as largest */
      }
    }
  return largest;
}

/* Run one case and check it. */
static inline bool help_run(bool is_causal) {
  static _Thread_local help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  help_make_case(&self, is_causal);
  fa_status status = fa_execute(&self.call, fa_default_host(), message);
  CHECKF(status == FA_OK, "%s", message);
  CHECKF(status != FA_OK || help_error(&self) < 1e-5, "error %g", help_error(&self));
  return status == FA_OK;
}

#endif
