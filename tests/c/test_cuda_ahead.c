/*
 * What is built before it is wanted (runtime/ahead.c): which kernels, when not, and that threads which nobody knows of
 * outlive neither a fork nor the process. The driver is a fake; NVRTC compiles the kernels of a small family.
 */
#define _GNU_SOURCE
#include "tests/c/cuda_help.h"

#include <pthread.h>
#include <time.h>

/* Forward leaves what makes the tuner find it right: zeros of zeros. */
static fake_cuda *fake;
static void compute(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  (void)name, (void)p, (void)grid, (void)block;
}

static void begin(int cores) {
  fake = fake_cuda_open();
  fake->run = compute;
  help_use_family();
  fa_cores_of_tests = cores;
}

/* The status is that of the call: the fake computes nothing, so that a tuner refuses every kernel. */
static fa_status call(bool backward_follows, char *message) {
  static help_case self;
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.backward_follows = backward_follows;
  return fa_execute(&self.call, fa_default_host(), message);
}

static int64_t compilations(void) {
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  return statistics.compilations;
}

/* Wait until so many were begun; then a little, for those that should not be. */
static void check_compilations(int64_t expected) {
  const double deadline = fa_seconds() + 20;
  const struct timespec span = {0, 5 * 1000 * 1000}, later = {0, 300 * 1000 * 1000};
  while (compilations() < expected && fa_seconds() < deadline)
    nanosleep(&span, NULL);
  nanosleep(&later, NULL);
  CHECK_NUMBER(compilations(), expected);
}

/* How many of backward's kernels the cache holds. So few queries are the portable family's. */
static int count_cached(void) {
  int count = 0;
  for (int i = 0; i < 3; i++) {
    char message[FA_MESSAGE_SIZE] = "";
    fa_problem problem = {.op = FA_BACKWARD, .head_dim = HELP_DIM, .head_dim_v = HELP_DIM, .target = "cuda:sm_90"};
    const fa_config config = {.count = 1, .item = {{"block_m", 16 << i}}};
    fa_built built;
    CHECKF(fa_build(&fa_target_cuda, &problem, &config, &built, message) == FA_OK, "%s", message);
    count += built.from_cache;
    fa_built_free(&built);
  }
  return count;
}

static void in_child_builds_backward(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  begin(16);
  call(true, message);
  check_compilations(6);
  CHECK_NUMBER(count_cached(), 3);
  CHECK_NUMBER(compilations(), 6);
}

/* Whoever wants a kernel that is being built waits for it: nothing is built twice. */
static void in_child_builds_once(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  begin(16);
  call(true, message);
  count_cached();
  CHECK_NUMBER(compilations(), 6);
}

static void in_child_best_guess(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  begin(16);
  call(true, message);
  check_compilations(2);
}

/* Without gradients, on few cores, or where only what is known may be used. */
static void in_child_not_wanted(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  begin(16);
  call(false, message);
  check_compilations(3);
}
static void in_child_few_cores(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  begin(2);
  call(true, message);
  check_compilations(3);
}
static void in_child_pinned(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  setenv("FLASH_ATTENTION_AUTOTUNE", "pinned", 1);
  begin(16);
  CHECK_NUMBER(call(true, message), FA_FAILED);
  check_compilations(0);
}
static void in_child_captured(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  begin(16);
  fake->capture_status = 1;
  CHECK_NUMBER(call(true, message), FA_FAILED);
  check_compilations(0);
}
static void in_child_no_cache(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  setenv("FLASH_ATTENTION_CACHE_SIZE", "0", 1);
  begin(16);
  call(true, message);
  CHECK(compilations() <= 3);
  const int64_t before = compilations();
  check_compilations(before);
}

/* Backward has been tuned before. */
static void in_child_known(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  begin(16);
  const fa_device *device = NULL;
  if (!CHECK(fa_find_device(FA_DEVICE_CUDA, 0, &device, message) == FA_OK))
    return;
  const fa_shape shape = {1, HELP_HEADS, HELP_HEADS, HELP_SEQLEN, HELP_SEQLEN};
  fa_shape bucket;
  device->ops->bucket(device, &shape, &bucket);
  fa_problem problem = {.op = FA_BACKWARD, .head_dim = HELP_DIM, .head_dim_v = HELP_DIM, .target = "cuda:sm_90a"};
  device->ops->choose_target(&bucket, problem.target);
  fa_key key;
  fa_record record = {
      .target = "cuda:sm_90a", .config = "block_m=16", .kernel_hex = "0123456789abcdef0123456789abcdef"};
  fa_record_key(&key, device, &problem, &bucket, FA_TUNE_SOME);
  fa_record_put(&key, &problem, FA_CACHE_REPLACE, &record, "");
  fa_key_free(&key);
  call(true, message);
  check_compilations(3);
}

/* The end of a process while kernels are built, at any moment. */
static void in_child_exits(void *argument) {
  static help_case later;
  char message[FA_MESSAGE_SIZE];
  const struct timespec span = {0, *(long *)argument};
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  begin(16);
  call(true, message);
  nanosleep(&span, NULL);
  fa_stop_building();
  const int64_t begun = compilations();
  check_compilations(begun);
  help_make_case(&later, true); /* who wants a kernel gets it; nothing is built ahead any more */
  later.call.device_type = FA_DEVICE_CUDA;
  later.call.backward_follows = true;
  later.call.head_dim = 8;
  fa_execute(&later.call, fa_default_host(), message);
  check_compilations(begun + 1);
  exit(0);
}

/* The child of a process that builds has no such threads, and waits for nobody else's. It compiles nothing for a GPU
 * either: NVRTC's locks may be held by threads that it has not got, and CUDA does not work in a forked child. */
static void in_grandchild(void *unused) {
  (void)unused;
  fa_stop_building();
  exit(0);
}
static void in_child_forks(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE];
  begin(16);
  call(true, message);
  IN_CHILD(in_grandchild, NULL);
  check_compilations(6);
  fa_stop_building();
  exit(0);
}

static void test_what_is_built(void) {
  static void (*const scenarios[])(void *) = {in_child_builds_backward, in_child_builds_once, in_child_best_guess,
                                              in_child_not_wanted,      in_child_few_cores,   in_child_pinned,
                                              in_child_captured,        in_child_no_cache,    in_child_known};
  for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
    char name[32];
    snprintf(name, sizeof name, "ahead_%zu", i);
    help_new_cache(name);
    IN_CHILD(scenarios[i], NULL);
  }
}

static void test_exit(void) {
  for (long i = 0; i < 12; i++) {
    char name[32];
    snprintf(name, sizeof name, "exit_%ld", i);
    help_new_cache(name);
    long nanoseconds = i * 8 * 1000 * 1000;
    IN_CHILD(in_child_exits, &nanoseconds);
  }
}

static void test_fork(void) {
  if (!check_forks_beside_threads()) {
    SKIP(CHECK_NO_FORK_BESIDE_THREADS);
    return;
  }
  help_new_cache("fork");
  IN_CHILD(in_child_forks, NULL);
}

int main(void) {
  help_begin();
  if (help_has_nvrtc()) {
    RUN(test_what_is_built);
    RUN(test_exit);
    RUN(test_fork);
  } else {
    check_skip("test_cuda_ahead", "there is no NVRTC here");
  }
  help_end();
  return check_summary();
}
