/*
 * Tuning records of CUDA kernels and the lock of who makes them, without a GPU. What is protected: a later process
 * tunes and compiles nothing, `pinned` takes records only, a record of no use is replaced, and a process whose device
 * is stuck holds no other one up.
 */
#define _GNU_SOURCE
#include "tests/c/cuda_calls.h"

static void in_child_tunes(void *unused) {
  (void)unused;
  begin();
  check_run(0, NULL);
}

/* A later process: one kernel is loaded, nothing is compiled, timed or looked for. */
static void in_child_knows(void *unused) {
  (void)unused;
  setenv("CUDA_HOME", "/nowhere", 1);
  begin();
  check_run(0, NULL);
  CHECK_NUMBER(fake->launches, 1);
  CHECK_NUMBER(fake->loads, 1);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.compilations, 0);
}

/* Only what is known: a kernel of another process's record, no tuning; and an error where there is none. */
static void in_child_pinned(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_AUTOTUNE", "pinned", 1);
  setenv("CUDA_HOME", "/nowhere", 1);
  begin();
  check_run(0, NULL);
  CHECKF(launched("launch forward32"), "%s", last_launch());
  CHECK_NUMBER(fake->launches, 1);
  CHECK_NUMBER(fake->loads, 1);
}
static void in_child_pinned_unknown(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  setenv("FLASH_ATTENTION_AUTOTUNE", "pinned", 1);
  begin();
  help_make_case(&self, true);
  self.call.device_type = FA_DEVICE_CUDA;
  CHECK_NUMBER(fa_execute(&self.call, fa_default_host(), message), FA_FAILED);
  CHECKF(strstr(message, " has no tuning record for forward fp32 head_dim=24 head_dim_v=24 causal cuda:sm_") != NULL &&
             strstr(message, "python -m flash_attention tune --op forward --dtype fp32 --head-dim 24 --batch 1 "
                             "--heads 2 --seqlen 37 --causal --device cuda)") != NULL,
         "%s", message);
  CHECK_NUMBER(fake->loads, 0);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.compilations, 0);
}

static void test_records(void) {
  help_new_cache("records");
  IN_CHILD(in_child_tunes, NULL);
  IN_CHILD(in_child_knows, NULL);
  IN_CHILD(in_child_pinned, NULL);
  help_new_cache("unknown");
  IN_CHILD(in_child_pinned_unknown, NULL);
}

/* A record that is of no use here, whose kernel is gone: another compiler's, for a target that this one does not know,
 * or one that nobody can read. It is replaced once, and the next process tunes no more. */
static void spoil_record(const char *target, const char *config) {
  const fa_device *device = NULL;
  fa_problem problem = {.op = FA_FORWARD, .head_dim = HELP_DIM, .head_dim_v = HELP_DIM, .target = "cuda:sm_90"};
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  fa_shape bucket;
  fa_key key;
  fa_record record = {.kernel_hex = "0123456789abcdef0123456789abcdef"};
  help_make_case(&self, false);
  if (!CHECK(fa_find_device(FA_DEVICE_CUDA, 0, &device, message) == FA_OK))
    return;
  device->ops->bucket(device, &self.call.shape, &bucket);
  snprintf(record.target, sizeof record.target, "%s", target);
  snprintf(record.config, sizeof record.config, "%s", config);
  fa_record_key(&key, device, &problem, &bucket, FA_TUNE_SOME);
  CHECK(fa_record_put(&key, &problem, FA_CACHE_REPLACE, &record, ""));
  fa_key_free(&key);
}
static void check_spoiled(const char *target, const char *config, int tunings) {
  begin();
  if (target)
    spoil_record(target, config);
  check_run(0, (void *)5);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.tunings, tunings);
  CHECK_NUMBER(statistics.unrecorded, 0);
}
static void in_child_unknown_target(void *unused) {
  (void)unused;
  check_spoiled("cuda:sm_91a", "block_m=32", 1);
}
static void in_child_unknown_config(void *unused) {
  (void)unused;
  check_spoiled("cuda:sm_90", "nonsense=3", 1);
}
static void in_child_not_spoiled(void *unused) {
  (void)unused;
  check_spoiled(NULL, NULL, 0);
}

static void test_spoiled(void) {
  help_new_cache("spoiled");
  IN_CHILD(in_child_unknown_target, NULL);
  IN_CHILD(in_child_not_spoiled, NULL);
  IN_CHILD(in_child_unknown_config, NULL);
  IN_CHILD(in_child_not_spoiled, NULL);
}

/* --- a device that gets no further until another process, which wants the same kernel, has called: a pipeline's. */

enum { PATIENCE = 60 }; /* seconds; half of what a tuner's lock is waited for */
static atomic_bool *other_called;
static void wait_for_other(void) {
  for (int i = 0; i < 100 * PATIENCE && !atomic_load(other_called); i++)
    usleep(10 * 1000);
  CHECK(atomic_load(other_called)); /* else each waits for the other */
}
static void in_child_stuck(void *unused) {
  (void)unused;
  begin();
  fake->wait = wait_for_other;
  check_run(0, (void *)5);
}
static void in_child_not_stuck(void *unused) {
  (void)unused;
  begin();
  usleep(300 * 1000); /* the other one is first */
  check_run(0, (void *)6);
  atomic_store(other_called, true);
}
static void check_stuck_device(const char *autotune) {
  atomic_store(other_called, false);
  help_new_cache(autotune);
  setenv("FLASH_ATTENTION_AUTOTUNE", autotune, 1);
  const pid_t stuck = check_fork(in_child_stuck, NULL), other = check_fork(in_child_not_stuck, NULL);
  CHECK(check_ended_well(other));
  CHECK(check_ended_well(stuck));
}
/* Earlier work has failed: said, and nothing is tuned. */
static void check_failing_wait(const char *function) {
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  fake->fail = function, fake->error = 719;
  CHECK_NUMBER(run(0, (void *)5, &self, message), FA_FAILED);
  CHECKF(strstr(message, "waiting for earlier work on a CUDA device failed") != NULL, "%s", message);
  CHECK_NUMBER(fake->launches, 0);
  CHECK_NUMBER(fake->capture_mode, 0);
}
static void in_child_work_failed(void *unused) {
  (void)unused;
  begin();
  check_failing_wait("cuStreamSynchronize");
  check_failing_wait("cuMemFree");
}
/* A kernel that is loaded already: nothing is waited for. */
static void in_child_waits_for_nothing(void *unused) {
  (void)unused;
  begin();
  check_run(0, (void *)5);
  CHECK_NUMBER(fake->capture_mode, 0);
  CHECK(strstr(fake->log, "capture mode 2\nsynchronize stream=5\n") != NULL);
  fa_table_forget();
  fake_forget(fake);
  check_run(0, (void *)5);
  CHECK(strstr(fake->log, "synchronize") == NULL);
}
static void test_stuck_device(void) {
  other_called = mmap(NULL, sizeof *other_called, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  check_stuck_device("0"); /* the best guess is checked too */
  check_stuck_device("1");
  munmap(other_called, sizeof *other_called);
  help_new_cache("work failed");
  IN_CHILD(in_child_work_failed, NULL);
  IN_CHILD(in_child_waits_for_nothing, NULL);
}

int main(void) {
  help_begin();
  if (help_has_nvrtc()) {
    RUN(test_records);
    RUN(test_spoiled);
    RUN(test_stuck_device);
  } else {
    check_skip("test_cuda_records", "there is no NVRTC here");
  }
  help_end();
  return check_summary();
}
