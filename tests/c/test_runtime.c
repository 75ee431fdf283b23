/*
 * Runtime: a call becomes a kernel once, among threads and processes, and survives forks and a cache that
 * cannot be used.
 */
#define _GNU_SOURCE
#include <glob.h>
#include <pthread.h>
#include <unistd.h>

#include "tests/c/runtime_help.h"

/* --- arguments */

static void check_refused(fa_call call, fa_status expected, const char *word) {
  char message[FA_MESSAGE_SIZE] = "";
  fa_status status = fa_execute(&call, fa_default_host(), message);
  CHECK_NUMBER(status, expected);
  CHECKF(strstr(message, word) != NULL, "message: %s, expected: %s", message, word);
}

static void in_child_arguments(void *unused) {
  (void)unused;
  static help_case self;
  help_make_case(&self, false);
  fa_call call;
#define REFUSED(change, status, word)                                                                                  \
  do {                                                                                                                 \
    call = self.call;                                                                                                  \
    change;                                                                                                            \
    check_refused(call, status, word);                                                                                 \
  } while (0)
  REFUSED(call.head_dim = 0, FA_INVALID_VALUE, "head_dim is 0; it must be 1 to 256");
  REFUSED(call.head_dim_v = 257, FA_INVALID_VALUE, "head_dim_v is 257");
  REFUSED(call.shape.batch = -1, FA_INVALID_VALUE, "batch is -1");
  REFUSED(call.shape.heads_kv = 3, FA_INVALID_VALUE, "heads_q is 2 and heads_kv is 3");
  REFUSED(call.shape.heads_kv = 0, FA_INVALID_VALUE, "heads_kv is 0");
  REFUSED(call.softmax_scale = NAN, FA_INVALID_VALUE, "softmax_scale is nan");
  REFUSED(call.query.data = NULL, FA_INVALID_VALUE, "query has no data");
  REFUSED(call.output.data = NULL, FA_INVALID_VALUE, "output has no data");
  REFUSED((call.op = FA_BACKWARD, call.lse = NULL), FA_INVALID_VALUE, "lse has no data");
  const int wrong = 7;
  REFUSED(memcpy(&call.dtype, &wrong, sizeof call.dtype), FA_INVALID_VALUE, "dtype is 7");
  REFUSED(memcpy(&call.op, &wrong, sizeof call.op), FA_INVALID_VALUE, "op is 7");
  REFUSED(call.device_type = FA_DEVICE_CUDA, FA_UNSUPPORTED, "cuda");
}

static void test_arguments(void) { IN_CHILD(in_child_arguments, NULL); }

/* --- nothing to launch: no compiler is needed either */

static void in_child_empty(void *unused) {
  (void)unused;
  setenv("CC", "/bin/false", 1);
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  help_make_case(&self, false);
  fa_call call = self.call;
  for (int i = 0; i < HELP_ELEMENTS; i++)
    self.output[i] = 1;
  call.shape.seqlen_k = 0;
  call.output.stride_col = 2; /* every other element is not ours */
  call.output.stride_row = 2 * HELP_DIM;
  call.shape.seqlen_q = 3;
  call.shape.heads_q = call.shape.heads_kv = 1;
  CHECK_NUMBER(fa_execute(&call, fa_default_host(), message), FA_OK);
  for (int i = 0; i < 6 * HELP_DIM; i++)
    CHECK(self.output[i] == (float)(i % 2));
  CHECK(self.output[6 * HELP_DIM] == 1);

  call = self.call;
  call.op = FA_BACKWARD;
  call.shape.seqlen_q = 0;
  call.grad_query = (struct fa_tensor){0};
  call.grad_key = help_view(self.key);
  CHECK_NUMBER(fa_execute(&call, fa_default_host(), message), FA_OK);
  for (int i = 0; i < HELP_ELEMENTS; i++)
    CHECK(self.key[i] == 0);

  call = self.call;
  call.shape.batch = 0;
  CHECK_NUMBER(fa_execute(&call, fa_default_host(), message), FA_OK);
  call = self.call;
  call.op = FA_BACKWARD; /* no gradient is wanted */
  call.grad_output = help_view(self.value);
  CHECK_NUMBER(fa_execute(&call, fa_default_host(), message), FA_OK);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.launches, 0);
  CHECK_NUMBER(statistics.compilations, 0);
}

static void test_empty(void) {
  help_new_cache("empty");
  IN_CHILD(in_child_empty, NULL);
}

/* --- cold, then warm in the same process, then warm in another that has no compiler */

static void in_child_cold(void *unused) {
  (void)unused;
  fa_statistics first, second;
  help_run(true);
  fa_get_statistics(&first);
  CHECK_NUMBER(first.tunings, 1);
  CHECK(first.compilations >= 1);
  CHECK_NUMBER(first.kernels_loaded, 1);
  help_run(true);
  fa_get_statistics(&second);
  CHECK_NUMBER(second.compilations, first.compilations);
  CHECK_NUMBER(second.launches, first.launches + 1);
}

static void in_child_warm_without_compiler(void *unused) {
  (void)unused;
  setenv("CC", "/bin/false", 1);
  setenv("PATH", "", 1);
  help_run(true);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.compilations, 0);
  CHECK_NUMBER(statistics.tunings, 0);
  CHECK_NUMBER(statistics.cache_hits, 1);
}

static void test_second_process(void) {
  help_new_cache("second");
  IN_CHILD(in_child_cold, NULL);
  IN_CHILD(in_child_warm_without_compiler, NULL);
}

/* The record is there but its kernel is not (evicted): that one config is compiled, nothing is timed. */
static void remove_kernels(void) {
  char pattern[PATH_MAX];
  glob_t found;
  snprintf(pattern, sizeof pattern, "%s/kernel-*", getenv("FLASH_ATTENTION_CACHE_DIR"));
  CHECK(glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc > 0);
  for (size_t i = 0; i < found.gl_pathc; i++)
    CHECK(unlink(found.gl_pathv[i]) == 0);
  globfree(&found);
}

static void in_child_kernel_lost(void *unused) {
  (void)unused;
  help_run(true);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.compilations, 1);
  CHECK_NUMBER(statistics.tunings, 0);
}

static void test_kernel_lost(void) {
  help_new_cache("lost");
  IN_CHILD(in_child_cold, NULL);
  remove_kernels();
  IN_CHILD(in_child_kernel_lost, NULL);
  IN_CHILD(in_child_warm_without_compiler, NULL);
}

/* --- one compilation per key */

static void *thread_run(void *unused) {
  (void)unused;
  help_run(false);
  return NULL;
}

static void run_threads(int count) {
  pthread_t threads[16];
  for (int i = 0; i < count; i++)
    CHECK(pthread_create(&threads[i], NULL, thread_run, NULL) == 0);
  for (int i = 0; i < count; i++)
    pthread_join(threads[i], NULL);
}

static void in_child_threads(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  run_threads(8);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.compilations, 1);
  CHECK_NUMBER(statistics.kernels_loaded, 1);
  CHECK_NUMBER(statistics.launches, 8);
}

static void test_threads_on_a_cold_cache(void) {
  help_new_cache("threads");
  IN_CHILD(in_child_threads, NULL);
}

static void in_child_one_of_many(void *argument) {
  help_run(true);
  help_add_statistics(argument);
}

static void test_processes_on_a_cold_cache(void) {
  help_new_cache("processes");
  help_shared *shared = help_share();
  pid_t children[6];
  for (int i = 0; i < 6; i++)
    children[i] = check_fork(in_child_one_of_many, shared);
  for (int i = 0; i < 6; i++)
    CHECK(check_ended_well(children[i]));
  CHECK_NUMBER(shared->tunings, 1);
  CHECK(shared->compilations <= 4); /* the candidates, each once */
  CHECK_NUMBER(shared->kernels_loaded, 6);
}

/* --- the cache cannot be used: everything still works, in memory */

static void in_child_no_cache(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_CACHE_DIR", "/proc/nowhere", 1);
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  help_run(false);
  help_run(false);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.compilations, 1);
}

static void test_no_cache(void) { IN_CHILD(in_child_no_cache, NULL); }

/* --- fork */

/* DataLoader workers are forked after use: kernels stay, threads do not. */
static void in_grandchild_after_use(void *unused) {
  (void)unused;
  help_run(false);
  help_run(true); /* not known yet: the child tunes on its own */
  run_threads(2);
}

static void in_child_fork_after_use(void *unused) {
  (void)unused;
  help_run(false);
  IN_CHILD(in_grandchild_after_use, NULL);
  IN_CHILD(in_grandchild_after_use, NULL);
  help_run(false);
}

static void test_fork_after_use(void) {
  if (help_is_emulated()) {
    SKIP("the emulator cannot start threads after such a fork");
    return;
  }
  help_new_cache("fork");
  IN_CHILD(in_child_fork_after_use, NULL);
}

/* A child forked while another thread is tuning starts over instead of waiting for a thread that it has not. */
static void in_child_fork_while_tuning(void *unused) {
  (void)unused;
  pthread_t tuner;
  CHECK(pthread_create(&tuner, NULL, thread_run, NULL) == 0);
  usleep(30000);
  pid_t child = check_fork(in_grandchild_after_use, NULL);
  pthread_join(tuner, NULL);
  CHECK(check_ended_well(child));
}

static void test_fork_while_tuning(void) {
  if (help_is_emulated()) {
    SKIP("the emulator cannot start threads after such a fork");
    return;
  }
  if (!check_forks_beside_threads()) {
    SKIP(CHECK_NO_FORK_BESIDE_THREADS);
    return;
  }
  help_new_cache("fork_tuning");
  IN_CHILD(in_child_fork_while_tuning, NULL);
}

/* --- what is left behind: nothing but the cache */
static void test_no_leftovers(void) {
  char command[PATH_MAX];
  snprintf(command, sizeof command, "test -z \"$(find '%s' -maxdepth 1 -name 'flash_attention.*')\"", help_dir);
  CHECK(system(command) == 0);
}

int main(void) {
  help_begin();
  RUN(test_arguments);
  RUN(test_empty);
  RUN(test_second_process);
  RUN(test_kernel_lost);
  RUN(test_threads_on_a_cold_cache);
  RUN(test_processes_on_a_cold_cache);
  RUN(test_no_cache);
  RUN(test_fork_after_use);
  RUN(test_fork_while_tuning);
  RUN(test_no_leftovers);
  help_end();
  return check_summary();
}
