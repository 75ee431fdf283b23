/*
 * The CPU as a target: see target.h for what each of these must do.
 */
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <stdio.h>
#include <string.h>

static fa_status describe(int index, fa_device *device, char *message) {
  (void)index;
  const char *isa = NULL;
  fa_status status = fa_cpu_isa(&isa, message);
  if (status != FA_OK)
    return status;
  char model[FA_CPU_MODEL_LENGTH];
  fa_cpu_model(model);
  snprintf(device->target, sizeof device->target, "cpu:%s", isa);
  snprintf(device->kind, sizeof device->kind, "%s, %s", model, isa);
  return FA_OK;
}

/* Powers of four: between neighbours the best tile sizes differ by less than tuning each would cost. Longer
 * sequences than 4096 stream through the caches in the same way. */
static int64_t round_length(int64_t length) {
  int64_t rounded = 16;
  while (rounded < length && rounded < 4096)
    rounded *= 4;
  return rounded;
}

/* A task is one head's tile, so that heads matter only where there are too few of them for every core. */
static void bucket(const fa_device *device, const fa_shape *shape, fa_shape *rounded) {
  (void)device;
  rounded->batch = 1;
  rounded->heads_q = rounded->heads_kv = shape->batch * shape->heads_q <= 4 ? 4 : 64;
  rounded->seqlen_q = round_length(shape->seqlen_q);
  rounded->seqlen_k = round_length(shape->seqlen_k);
}

static bool lower_target(const char *target, char lower[FA_TARGET_LENGTH]) {
  const char *isa = fa_cpu_lower_isa(target + strlen("cpu:"));
  if (!isa)
    return false;
  snprintf(lower, FA_TARGET_LENGTH, "cpu:%s", isa);
  return true;
}

/* A run takes 10 to 30 ms on one core, and its tensors more than any cache that a core has to itself. */
static void limit_trial(const fa_device *device, const fa_problem *problem, fa_trial_limits *limits) {
  (void)device;
  (void)problem;
  *limits = (fa_trial_limits){.flops = 1.1e9,
                              .elements = 1 << 21,
                              .heads = 1,
                              .candidates = 4,
                              .likely = 2,
                              .usual = {.least_rounds = 3, .seconds = 0.2},
                              .thorough = {.least_rounds = 5, .seconds = 1}};
}

/* To set up the tiles of AMX costs 2 microseconds: as much as all else where there is next to nothing to compute. */
static void choose_target(const fa_shape *bucket, char target[FA_TARGET_LENGTH]) {
  char lower[FA_TARGET_LENGTH];
  bool tiny = bucket->seqlen_q <= 16 && bucket->seqlen_k <= 64;
  if (tiny && strcmp(target, "cpu:avx512_amx") == 0 && lower_target(target, lower))
    memcpy(target, lower, FA_TARGET_LENGTH);
}

static fa_status copy(const fa_device *device, void *stream, void *to, const void *from, size_t bytes,
                      fa_copy_kind kind, char *message) {
  (void)device;
  (void)stream;
  (void)kind;
  (void)message;
  memcpy(to, from, bytes);
  return FA_OK;
}

static void info(char *text, size_t size) {
  char model[FA_CPU_MODEL_LENGTH], isas[64];
  fa_cpu_model(model);
  fa_cpu_list_isas(isas, sizeof isas);
  fa_append(text, size, "cpu: %s\ncpu cores: %d\ncpu instruction sets: %s\n", model, fa_online_cores(), isas);
  fa_cpu_compiler_info(text, size);
}

const fa_target fa_target_cpu = {
    .name = "cpu",
    .type = FA_DEVICE_CPU,
    .describe = describe,
    .bucket = bucket,
    .compiler_identity = fa_cpu_compiler_identity,
    .compile = fa_cpu_compile,
    .lower_target = lower_target,
    .choose_target = choose_target,
    .load = fa_cpu_load,
    .unload = fa_cpu_unload,
    .launch = fa_cpu_launch,
    .limit_trial = limit_trial,
    .time = fa_cpu_time,
    .zero = fa_cpu_zero,
    .copy = copy,
    .info = info,
};
