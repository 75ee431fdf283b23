/*
 * The tuner on CUDA, without a GPU. What is protected: its choice and its limits, size classes, several devices, want
 * of memory, a busy device, and that it touches no tensor of the caller's. What other processes have of it is
 * test_cuda_records.c's.
 */
#define _GNU_SOURCE
#include "tests/c/cuda_calls.h"

static void in_child_tunes(void *unused) {
  (void)unused;
  begin();
  check_run(0, (void *)9);
  CHECKF(launched("launch forward32 grid=2 block=64 shared=65536 stream=9\n"), "%s", last_launch());
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.tunings, 1);
  CHECK_NUMBER(statistics.compilations, 3);
  CHECK_NUMBER(fake->loads, 3);
  CHECK_NUMBER(fake->unloads, 2);
  CHECK_NUMBER(fake->allocations, fake->frees);
  /* Nothing on the default stream, which would make every other stream wait; the thread's mode is as it was. */
  CHECK(strstr(fake->log, "stream=0") == NULL);
  CHECK(strncmp(fake->log, "push 1\npop\npush 1\ncapture mode 2\n", 33) == 0); /* asked whether it is captured first */
  CHECK(strstr(fake->log, "capture mode 0\npop\n") != NULL);
  CHECK_NUMBER(fake->capture_mode, 0);

  /* Warm: one push, one launch, one pop, and the workspace. */
  fake_forget(fake);
  check_run(0, (void *)4);
  CHECK_TEXT(fake->log,
             "push 1\npop\npush 1\nlaunch forward32 grid=2 block=64 shared=65536 stream=4\npop\npush 1\npop\n");

  /* The other device is another target, tuned by itself. */
  fake_forget(fake);
  check_run(1, NULL);
  CHECK(launched("launch forward32"));
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.tunings, 2);
  CHECK(strstr(fake->log, "push 1") == NULL);
}

static void in_child_wrong(void *unused) {
  (void)unused;
  begin();
  atomic_store(&wrong_config, 32);
  check_run(0, NULL);
  CHECKF(launched("launch forward16 "), "%s", last_launch());
}

/* Out of memory for the tuner: the best guess, for now. */
static void in_child_no_memory(void *unused) {
  (void)unused;
  begin();
  fake->memory_left = 1024;
  check_run(0, NULL);
  CHECKF(launched("launch forward16 "), "%s", last_launch());
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(fake->launches, 1);
  CHECK_NUMBER(statistics.unrecorded, 1);
}

/* A kernel of somebody else's has failed: the tuner says so, and takes no guess for want of memory. */
static void in_child_device_failed(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  fake->broken = 719;
  CHECK_NUMBER(run(0, NULL, &self, message), FA_FAILED);
  CHECKF(strstr(message, "CUDA_ERROR_OF_A_TEST (719)") != NULL, "%s", message);
  CHECK_NUMBER(fake->launches, 0);
}

/* No room for one candidate: the best of the others, for now. The next process finds no record, but all kernels in the
 * cache, and does not compile anew what it has no room for. */
static void check_no_room(int compilations) {
  fa_statistics statistics;
  begin();
  fake->fail = "cuModuleLoadData", fake->error = CUDA_ERROR_OUT_OF_MEMORY;
  check_run(0, NULL);
  fa_get_statistics(&statistics);
  CHECK_NUMBER(fake->loads, 2);
  CHECK_NUMBER(statistics.compilations, compilations);
  CHECK_NUMBER(statistics.tunings, 1);
  CHECK_NUMBER(statistics.unrecorded, 1);
}
static void in_child_no_room_for_one(void *unused) {
  (void)unused;
  check_no_room(3);
}
static void in_child_no_room_again(void *unused) {
  (void)unused;
  check_no_room(0);
}
/* No room for any: that is what the caller is told; once there is, all is well. */
static void in_child_no_room(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  fake->memory_left = 0;
  CHECK_NUMBER(run(0, NULL, &self, message), FA_OUT_OF_MEMORY);
  CHECKF(strstr(message, "CUDA_ERROR_OUT_OF_MEMORY") != NULL, "%s", message);
  fake->memory_left = (size_t)1 << 32;
  check_run(0, NULL);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.tunings, 1);
  CHECK_NUMBER(statistics.unrecorded, 0);
}

/* What is timed fills all SMs, and neither takes long nor much memory: fewer heads first, then shorter sequences. */
static fa_shape timed;
static void watch(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  compute(name, p, grid, block);
  if (p->heads_q > HELP_HEADS)
    timed = (fa_shape){p->batch, p->heads_q, p->heads_kv, p->seqlen_q, p->seqlen_k};
}
static void check_timed(fa_shape asked, fa_shape expected) {
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  const fa_device *device = NULL;
  const fa_ready *ready = NULL;
  fa_problem problem = {.op = FA_FORWARD, .head_dim = HELP_DIM, .head_dim_v = HELP_DIM, .target = "cuda:sm_90a"};
  fa_shape bucket;
  char notes[FA_NOTES_SIZE] = "";
  bool keep = false;
  if (!CHECK(fa_find_device(FA_DEVICE_CUDA, 0, &device, message) == FA_OK))
    return;
  device->ops->bucket(device, &asked, &bucket);
  fa_status status =
      fa_tune(device, &problem, &bucket, FA_TUNE_SOME, fa_default_host(), NULL, &ready, &keep, notes, message);
  CHECKF(status == FA_OK && keep, "%s", message);
  CHECKF(memcmp(&timed, &expected, sizeof timed) == 0, "batch %lld heads %lld %lld seqlens %lld %lld",
         (long long)timed.batch, (long long)timed.heads_q, (long long)timed.heads_kv, (long long)timed.seqlen_q,
         (long long)timed.seqlen_k);
}
static void in_child_fills_device(void *unused) {
  (void)unused;
  begin();
  fake->run = watch;
  /* batch, heads_q, heads_kv, seqlen_q, seqlen_k; 132 SMs */
  check_timed((fa_shape){4, 64, 64, 4096, 4096}, (fa_shape){1, 128, 128, 4096, 4096});
  check_timed((fa_shape){2, 8, 8, 1000, 1000}, (fa_shape){1, 16, 16, 1024, 1024});
  check_timed((fa_shape){64, 8, 8, 1, 100000}, (fa_shape){1, 256, 256, 16, 4096});
  check_timed((fa_shape){1, 8, 1, 60, 60}, (fa_shape){1, 16, 16, 64, 64});
}

/* What shares a size class: where the best config may differ it is another one, and there are few of them. */
static void check_bucket(const fa_device *device, fa_shape asked, fa_shape expected) {
  fa_shape bucket;
  device->ops->bucket(device, &asked, &bucket);
  CHECKF(memcmp(&bucket, &expected, sizeof bucket) == 0, "batch %lld heads %lld %lld seqlens %lld %lld",
         (long long)bucket.batch, (long long)bucket.heads_q, (long long)bucket.heads_kv, (long long)bucket.seqlen_q,
         (long long)bucket.seqlen_k);
}
static void in_child_buckets(void *unused) {
  (void)unused;
  const fa_device *device = NULL;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  if (!CHECK(fa_find_device(FA_DEVICE_CUDA, 0, &device, message) == FA_OK))
    return;
  /* 16384 tokens of 2048 columns, head dim 128, are timed as they are, but for heads where there are many anyway. */
  check_bucket(device, (fa_shape){32, 16, 16, 512, 512}, (fa_shape){1, 512, 512, 512, 512});
  check_bucket(device, (fa_shape){16, 16, 16, 1024, 1024}, (fa_shape){1, 128, 128, 1024, 1024});
  check_bucket(device, (fa_shape){4, 16, 4, 4096, 4096}, (fa_shape){1, 128, 128, 4096, 4096});
  check_bucket(device, (fa_shape){2, 16, 16, 8192, 8192}, (fa_shape){1, 16, 16, 8192, 8192});
  check_bucket(device, (fa_shape){1, 16, 16, 16384, 16384}, (fa_shape){1, 16, 16, 16384, 16384});
  check_bucket(device, (fa_shape){1, 16, 16, 100000, 100000}, (fa_shape){1, 16, 16, 16384, 16384});
  check_bucket(device, (fa_shape){1, 17, 17, 513, 257}, (fa_shape){1, 128, 128, 1024, 512});
  check_bucket(device, (fa_shape){1, 1, 1, 1, 32768}, (fa_shape){1, 16, 16, 16, 16384});
  check_bucket(device, (fa_shape){8, 16, 16, 32768, 77}, (fa_shape){1, 128, 128, 16384, 80});
  check_bucket(device, (fa_shape){8, 16, 16, 77, 77}, (fa_shape){1, 128, 128, 256, 256});
  /* All batches and lengths of a model. */
  enum { MOST = 64 };
  fa_shape seen[MOST];
  int count = 0;
  for (int batch = 1; batch <= 64; batch++)
    for (int seqlen = 1; seqlen <= 8192; seqlen++) {
      fa_shape bucket, asked = {batch, 16, 16, seqlen, seqlen};
      device->ops->bucket(device, &asked, &bucket);
      int i = 0;
      while (i < count && memcmp(&seen[i], &bucket, sizeof bucket) != 0)
        i++;
      if (i == count && count < MOST)
        seen[count++] = bucket;
    }
  CHECK_NUMBER(count, 19);
}

/* A thousand calls of one model, each of another batch and length. */
static void in_child_thousand_shapes(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  unsigned state = 1;
  for (int i = 0; i < 1000; i++) { /* the fake touches no tensor of as many heads */
    state = state * 1664525 + 1013904223;
    const int64_t batch = 1 + (state >> 8) % 64, seqlen = 1 + (state >> 16) % 8192;
    self.call.shape = (fa_shape){batch, 16, 16, seqlen, seqlen};
    if (!CHECK(fa_execute(&self.call, fa_default_host(), message) == FA_OK)) {
      fprintf(stderr, "%s\n", message);
      return;
    }
  }
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.launches, 1000);
  CHECK_NUMBER(statistics.compilations, 6); /* three configs for each of two targets: short sequences, longer ones */
  CHECKF(statistics.tunings >= 8 && statistics.tunings <= 19, "%d tunings", (int)statistics.tunings);
}

/* Memory for the tensors but not for a kernel's workspace, once: a smaller trial. */
static void lose_memory(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  compute(name, p, grid, block);
  if (fake->launches == 1)
    fake->fail = "cuMemAlloc", fake->error = CUDA_ERROR_OUT_OF_MEMORY;
}
static void check_short_of_memory(void (*run_kernel)(const char *, const struct fa_params *, unsigned, unsigned),
                                  const char *chosen, fa_statistics *statistics) {
  begin();
  fake->run = run_kernel;
  check_run(0, NULL);
  CHECKF(launched(chosen), "%s", last_launch());
  fa_get_statistics(statistics);
  CHECK_NUMBER(fake->allocations, fake->frees);
}
static void in_child_smaller(void *unused) {
  (void)unused;
  fa_statistics statistics;
  check_short_of_memory(lose_memory, "launch forward32 ", &statistics);
  CHECK_NUMBER(statistics.tunings, 1);
  CHECK_NUMBER(statistics.unrecorded, 0);
}
/* It never comes back: the best guess for now, although its trial was under way, and no error. */
static void never_again(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  lose_memory(name, p, grid, block);
  if (fake->launches == 1)
    fake->memory_left = 1024;
}
static void in_child_lost(void *unused) {
  (void)unused;
  fa_statistics statistics;
  check_short_of_memory(never_again, "launch forward16 ", &statistics);
  CHECK_NUMBER(statistics.unrecorded, 1);
}

/* The tuner reads and writes memory of its own only. */
static help_case *callers;
static int of_callers; /* tensors that launches were given */
static void guard(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  const struct fa_tensor *tensors[] = {&p->query, &p->key, &p->value, &p->output};
  for (int i = 0; i < 4; i++) {
    const char *at = tensors[i]->data;
    bool theirs = at >= (const char *)callers && at < (const char *)(callers + 1);
    of_callers += theirs;
  }
  compute(name, p, grid, block);
}
static bool same_bytes(const void *a, const void *b, size_t length) { return memcmp(a, b, length) == 0; }
static void in_child_leaves_tensors(void *unused) {
  (void)unused;
  static help_case self, before;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  fake->run = guard;
  callers = &self;
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  for (int i = 0; i < HELP_ELEMENTS; i++)
    self.output[i] = 7;
  before = self;
  /* Everything but the call itself, which fails. */
  const fa_device *device = NULL;
  const fa_ready *ready = NULL;
  fa_problem problem = {.op = FA_FORWARD, .head_dim = HELP_DIM, .head_dim_v = HELP_DIM, .target = "cuda:sm_90a"};
  fa_shape bucket;
  char notes[FA_NOTES_SIZE] = "";
  bool keep = false;
  if (!CHECK(fa_find_device(FA_DEVICE_CUDA, 0, &device, message) == FA_OK))
    return;
  device->ops->bucket(device, &self.call.shape, &bucket);
  CHECK(fa_tune(device, &problem, &bucket, FA_TUNE_SOME, fa_default_host(), NULL, &ready, &keep, notes, message) ==
        FA_OK);
  CHECK(fake->launches > 3 && of_callers == 0);
  CHECK(same_bytes(&self, &before, sizeof self));
  /* The call then launches once on its tensors. */
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  CHECK_NUMBER(of_callers, 4);
  CHECK(same_bytes(self.query, before.query, sizeof self.query));
  CHECK(same_bytes(self.value, before.value, sizeof self.value));
}

/* Every time is another one, as on a device that others use: the choice is one of the candidates, and it is kept. */
static void busy(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  compute(name, p, grid, block);
  static unsigned state = 1;
  state = state * 1664525 + 1013904223;
  fake->milliseconds = 0.1 + (double)(state >> 8) * 1e-6;
}
static void in_child_busy(void *unused) {
  (void)unused;
  begin();
  fake->run = busy;
  check_run(0, NULL);
  CHECK(launched("launch forward"));
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.tunings, 1);
  CHECK(fake->launches < 1000);
}
/* Nothing can be timed: the best guess of those that are right. */
static void timeless(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  compute(name, p, grid, block);
  fake->milliseconds = 0;
}
static void in_child_no_events(void *unused) {
  (void)unused;
  begin();
  fake->run = timeless;
  check_run(0, NULL);
  CHECKF(launched("launch forward16 "), "%s", last_launch());
}

static void in_child_best_guess(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  begin();
  check_run(0, NULL);
  CHECKF(launched("launch forward16 "), "%s", last_launch());
  CHECK_NUMBER(fake->loads, 1);
}

static void test_tuning(void) {
  help_new_cache("tuning");
  IN_CHILD(in_child_tunes, NULL);
  help_new_cache("wrong");
  IN_CHILD(in_child_wrong, NULL);
  help_new_cache("memory");
  IN_CHILD(in_child_no_memory, NULL);
  help_new_cache("failed");
  IN_CHILD(in_child_device_failed, NULL);
  help_new_cache("room");
  IN_CHILD(in_child_no_room_for_one, NULL);
  IN_CHILD(in_child_no_room_again, NULL);
  IN_CHILD(in_child_no_room, NULL);
  help_new_cache("shapes");
  IN_CHILD(in_child_fills_device, NULL);
  IN_CHILD(in_child_buckets, NULL);
  help_new_cache("thousand");
  IN_CHILD(in_child_thousand_shapes, NULL);
  help_new_cache("smaller");
  IN_CHILD(in_child_smaller, NULL);
  help_new_cache("lost");
  IN_CHILD(in_child_lost, NULL);
  help_new_cache("tensors");
  IN_CHILD(in_child_leaves_tensors, NULL);
  help_new_cache("busy");
  IN_CHILD(in_child_busy, NULL);
  help_new_cache("events");
  IN_CHILD(in_child_no_events, NULL);
  help_new_cache("guess");
  IN_CHILD(in_child_best_guess, NULL);
}

int main(void) {
  help_begin();
  if (help_has_nvrtc())
    RUN(test_tuning);
  else
    check_skip("test_cuda_tune", "there is no NVRTC here");
  help_end();
  return check_summary();
}
