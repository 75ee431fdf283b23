/*
 * Calls on CUDA from fa_execute to the launch, without a GPU. What is protected: what a kernel is told, that nothing is
 * made while a stream is captured, and which switches of a problem make another one. The tuner is test_cuda_tune.c's.
 */
#define _GNU_SOURCE
#include "tests/c/cuda_calls.h"

/* Strides of dimensions of size 1 are not the kernel's to see: an odd one would forbid copies of several elements. */
static struct fa_params seen;
static void look(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  compute(name, p, grid, block);
  seen = *p;
}
static void in_child_idle_strides(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  begin();
  fake->run = look;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.query.stride_batch = 3, self.call.value.stride_batch = -5;
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  CHECKF(help_error(&self) < 1e-5, "error %g", help_error(&self));
  CHECK_NUMBER(seen.query.stride_batch, 0);
  CHECK_NUMBER(seen.value.stride_batch, 0);
  CHECK_NUMBER(seen.query.stride_row, self.call.query.stride_row);
  CHECK_NUMBER(seen.value.stride_head, self.call.value.stride_head);
}
static void test_strides(void) {
  help_new_cache("strides");
  IN_CHILD(in_child_idle_strides, NULL);
}

/* --- capture */

static void in_child_capture(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  fake->capture_status = 1;
  CHECK_NUMBER(run(0, (void *)5, &self, message), FA_FAILED);
  CHECKF(strstr(message, "the stream is being captured into a graph, and there is no kernel yet for forward fp32 "
                         "head_dim=24 head_dim_v=24 cuda:sm_90: make one call with tensors like these") != NULL,
         "%s", message);
  CHECK_NUMBER(fake->loads, 0);
  CHECK_NUMBER(fake->launches, 0);
  CHECK(strstr(fake->log, "synchronize") == NULL);

  /* One call before it, and the capture finds the kernel. */
  fake->capture_status = 0;
  check_run(0, (void *)5);
  const int loads = fake->loads, allocations = fake->allocations;
  fake->capture_status = 1;
  fake_forget(fake);
  check_run(0, (void *)5);
  CHECK(launched("launch forward32 grid=2"));

  /* Another shape bucket: any kernel of this problem will do, for now. */
  fake_forget(fake);
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.shape.seqlen_q = 3;
  CHECK(fa_execute(&self.call, fa_default_host(), message) == FA_OK);
  CHECK(launched("launch forward32 grid=2"));
  CHECK_NUMBER(fake->loads, loads);
  CHECK_NUMBER(fake->allocations, allocations + 2);
  CHECK(strstr(fake->log, "synchronize") == NULL);

  /* Another problem, or the other device: nothing fits. */
  self.call.is_causal = true;
  CHECK_NUMBER(fa_execute(&self.call, fa_default_host(), message), FA_FAILED);
  CHECK_NUMBER(run(1, NULL, &self, message), FA_FAILED);

  /* After the capture that bucket is tuned as ever. */
  fake->capture_status = 0;
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.shape.seqlen_q = 3;
  CHECK(fa_execute(&self.call, fa_default_host(), message) == FA_OK);
  CHECK(fake->loads > loads);
  /* The default stream while another one that waits for it is captured. */
  fake->fail = "cuStreamIsCapturing", fake->error = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  self.call.is_causal = true;
  CHECK_NUMBER(fa_execute(&self.call, fa_default_host(), message), FA_FAILED);
  CHECK(strstr(message, "being captured") != NULL);
}

/* A bucket that was never called here, but has a record: its own kernel if that is loaded, not the one loaded last. */
static const char *fastest; /* of the kernels */
static void prefer(const char *name, const struct fa_params *p, unsigned grid, unsigned block) {
  compute(name, p, grid, block);
  fake->milliseconds = strcmp(name, fastest) == 0 ? 0.1 : 1;
}
static void run_lengths(int64_t seqlen_q, int64_t seqlen_k, const char *expected) {
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.shape.seqlen_q = seqlen_q, self.call.shape.seqlen_k = seqlen_k;
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  CHECKF(launched(expected), "%s", last_launch());
}
static void in_child_makes_records(void *unused) {
  (void)unused;
  begin();
  fake->run = prefer;
  fastest = "forward16";
  run_lengths(3, 37, "launch forward16 ");
  fastest = "forward64";
  run_lengths(37, 37, "launch forward64 ");
  fastest = "forward16";
  run_lengths(37, 3, "launch forward16 ");
}
static void in_child_captures_by_record(void *unused) {
  (void)unused;
  begin();
  run_lengths(37, 37, "launch forward64 ");
  fake->capture_status = 1;
  run_lengths(3, 37, "launch forward64 "); /* its own is not loaded */
  fake->capture_status = 0;
  run_lengths(37, 3, "launch forward16 ");
  run_lengths(37, 37, "launch forward64 ");
  fa_table_forget();
  fake->capture_status = 1;
  fake_forget(fake);
  run_lengths(3, 37, "launch forward16 ");
  run_lengths(37, 37, "launch forward64 "); /* forward16 was loaded last */
  CHECK(strstr(fake->log, "synchronize") == NULL);
  CHECK_NUMBER(fake->loads, 2);
}

static void *allocate_nothing(void *context, fa_device_type type, int device_index, size_t bytes) {
  (void)context, (void)type, (void)device_index, (void)bytes;
  return NULL;
}
/* Where only records count, another bucket's kernel does not. */
static void in_child_captures_pinned(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  setenv("FLASH_ATTENTION_AUTOTUNE", "pinned", 1);
  begin();
  run_lengths(37, 37, "launch forward64 ");
  fake->capture_status = 1;
  run_lengths(37, 37, "launch forward64 ");
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.shape.seqlen_q = 3;
  CHECK_NUMBER(fa_execute(&self.call, fa_default_host(), message), FA_FAILED);
  CHECKF(strstr(message, "(FLASH_ATTENTION_AUTOTUNE is 'pinned': of its tuning record): make one call") != NULL, "%s",
         message);
  fake->capture_status = 0;
  run_lengths(3, 37, "launch forward16 ");
  fake->capture_status = 1;
  run_lengths(3, 37, "launch forward16 ");
}

/* Without memory that is there already, a workspace cannot be had in a capture, which is no want of memory. */
static void in_child_capture_without_memory(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  check_run(0, (void *)5);
  fake->capture_status = 1;
  fake->fail = "cuMemAlloc", fake->error = 900; /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED */
  CHECK_NUMBER(run(0, (void *)5, &self, message), FA_FAILED);
  CHECKF(strstr(message, "pass an fa_host whose allocate has memory for that") != NULL, "%s", message);
  /* Another host's is want of memory in a capture too. */
  fa_host host = *fa_default_host();
  host.allocate = allocate_nothing;
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  CHECK_NUMBER(fa_execute(&self.call, &host, message), FA_OUT_OF_MEMORY);
}

/* Few queries have kernels of another target: in fp32 those add in another order, so that a capture never takes them
 * for more queries, or the other way round, whichever was loaded last. */
static fa_status run_length(int64_t length, char *message) {
  static help_case self;
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.shape = (fa_shape){1, 16, 16, length, length}; /* the fake touches no tensor of as many heads */
  return fa_execute(&self.call, fa_default_host(), message);
}
static void check_captured(int64_t length, int block) {
  char message[FA_MESSAGE_SIZE] = "", expected[64];
  fake->capture_status = 1;
  CHECKF(run_length(length, message) == FA_OK, "%s", message);
  snprintf(expected, sizeof expected, "launch forward16 grid=16 block=%d ", block);
  CHECKF(launched(expected), "%s", last_launch());
}
static void check_targets(int64_t first, int64_t second, int64_t captured, const char *missing) {
  char message[FA_MESSAGE_SIZE] = "";
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  begin();
  CHECKF(run_length(first, message) == FA_OK, "%s", message);
  fake->capture_status = 1;
  CHECK_NUMBER(run_length(captured, message), FA_FAILED);
  CHECKF(strstr(message, missing) != NULL, "%s", message);
  fake->capture_status = 0;
  CHECKF(run_length(second, message) == FA_OK, "%s", message);
  check_captured(10, 64);
  check_captured(1000, 128);
}
static void in_child_capture_of_many(void *unused) {
  (void)unused;
  check_targets(30, 200, 1000, "no kernel yet for forward fp32 head_dim=24 head_dim_v=24 cuda:sm_90a: ");
}
static void in_child_capture_of_few(void *unused) {
  (void)unused;
  check_targets(200, 30, 10, "no kernel yet for forward fp32 head_dim=24 head_dim_v=24 cuda:sm_90: ");
}
static void test_capture(void) {
  help_new_cache("capture");
  IN_CHILD(in_child_capture, NULL);
  IN_CHILD(in_child_capture_without_memory, NULL);
  help_new_cache("capture by record");
  IN_CHILD(in_child_makes_records, NULL);
  IN_CHILD(in_child_captures_by_record, NULL);
  IN_CHILD(in_child_captures_pinned, NULL);
  help_new_cache("capture of targets");
  IN_CHILD(in_child_capture_of_many, NULL);
  IN_CHILD(in_child_capture_of_few, NULL);
}

/* --- switches of a problem */

static void in_child_deterministic(void *unused) {
  (void)unused;
  begin();
  fa_problem problem = {.op = FA_BACKWARD, .head_dim = 64, .head_dim_v = 64, .target = "cuda:sm_90a"};
  problem.deterministic = true;
  problem.precision = FA_PRECISION_REDUCED;
  fa_problem_normalize(&problem);
  CHECK(problem.deterministic && problem.precision == FA_PRECISION_FULL);
  char text[160], *source = NULL, message[FA_MESSAGE_SIZE] = "";
  fa_describe_problem(&problem, text, sizeof text);
  CHECK_TEXT(text, "backward fp32 head_dim=64 head_dim_v=64 deterministic cuda:sm_90a");
  CHECKF(fa_source(&problem, "", &source, NULL, 0, message) == FA_OK, "%s", message);
  CHECK(source && strstr(source, "fixed order: the same call gives the same bits") != NULL);
  fa_free(source);
  problem.op = FA_FORWARD; /* this family's forward always is */
  fa_problem_normalize(&problem);
  CHECK(!problem.deterministic);
  /* As every kernel for CPUs. */
  fa_problem cpu = {.op = FA_BACKWARD, .head_dim = 64, .head_dim_v = 64, .target = "cpu:avx2"};
  cpu.deterministic = true;
  fa_problem_normalize(&cpu);
  CHECK(!cpu.deterministic);
}
/* A problem on Hopper that ends on the portable kernels, after it was normalised, has not lost what those look at. */
static void in_child_deterministic_elsewhere(void *unused) {
  (void)unused;
  fa_family_of_tests = NULL;
  for (int dtype = FA_FP32; dtype <= FA_BF16; dtype++)
    for (int head_dim = 1; head_dim <= FA_MAX_HEAD_DIM; head_dim++) {
      fa_problem problem = {.op = FA_BACKWARD, .dtype = (fa_dtype)dtype, .head_dim = head_dim, .head_dim_v = head_dim};
      problem.deterministic = true;
      fa_problem portable = problem;
      snprintf(problem.target, sizeof problem.target, "cuda:sm_90a");
      snprintf(portable.target, sizeof portable.target, "cuda:sm_90");
      fa_problem_normalize(&problem);
      fa_problem_normalize(&portable);
      CHECKF(problem.deterministic || !portable.deterministic, "dtype %d head_dim %d", dtype, head_dim);
    }
}
/* Lower precision is a problem of its own where there is such a kernel, and the same problem everywhere else. */
static void in_child_precision(void *unused) {
  (void)unused;
  fa_family_of_tests = NULL;
  static const struct {
    fa_op op;
    fa_dtype dtype;
    const char *target;
    fa_precision expected;
  } cases[] = {{FA_FORWARD, FA_FP32, "cuda:sm_90a", FA_PRECISION_REDUCED},
               {FA_BACKWARD, FA_FP32, "cuda:sm_90a", FA_PRECISION_FULL},
               {FA_FORWARD, FA_FP16, "cuda:sm_90a", FA_PRECISION_FULL},
               {FA_FORWARD, FA_FP32, "cuda:sm_90", FA_PRECISION_FULL},
               {FA_FORWARD, FA_FP32, "cuda:sm_80", FA_PRECISION_FULL},
               {FA_FORWARD, FA_FP32, "cpu:avx512_amx", FA_PRECISION_FULL}};
  char text[160], *full = NULL, *reduced = NULL, message[FA_MESSAGE_SIZE] = "";
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    fa_problem problem = {.op = cases[i].op, .dtype = cases[i].dtype, .head_dim = 64, .head_dim_v = 64};
    snprintf(problem.target, sizeof problem.target, "%s", cases[i].target);
    CHECKF(fa_source(&problem, "", &full, NULL, 0, message) == FA_OK, "%s", message);
    problem.precision = FA_PRECISION_REDUCED;
    CHECKF(fa_source(&problem, "", &reduced, NULL, 0, message) == FA_OK, "%s", message);
    fa_problem_normalize(&problem);
    CHECKF(problem.precision == cases[i].expected, "%s", cases[i].target);
    CHECKF((strcmp(full, reduced) == 0) == (cases[i].expected == FA_PRECISION_FULL), "%s", cases[i].target);
    CHECK(fa_needs_tensor_maps(&problem) == (cases[i].dtype == FA_FP16));
    fa_describe_problem(&problem, text, sizeof text);
    CHECKF((strstr(text, " reduced ") != NULL) == (i == 0), "%s", text);
    fa_free(full), fa_free(reduced);
  }
}

static void make_precision_case(help_case *self, bool wants_lse) {
  help_make_case(self, false);
  self->call.device_type = FA_DEVICE_CUDA;
  self->call.stream = (void *)9;
  self->call.precision = FA_PRECISION_REDUCED;
  self->call.lse = wants_lse ? self->lse : NULL;
}

/* Statistics of rows come of full precision, whatever is allowed; in a capture that serves for lower precision too. */
static void in_child_full_precision(void *unused) {
  (void)unused;
  begin();
  static help_case self;
  check_run(0, (void *)9);
  fa_statistics before, after;
  char message[FA_MESSAGE_SIZE] = "";
  fa_get_statistics(&before);
  make_precision_case(&self, true);
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  make_precision_case(&self, false);
  fake->capture_status = 1;
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  fa_get_statistics(&after);
  CHECK_NUMBER(after.kernels_loaded, before.kernels_loaded);
  fake->capture_status = 0; /* else it has a kernel of its own */
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  fa_get_statistics(&after);
  CHECK_NUMBER(after.tunings, before.tunings + 1);
}

/* A kernel of lower precision never serves for full precision. */
static void in_child_reduced_precision(void *unused) {
  (void)unused;
  begin();
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  make_precision_case(&self, false);
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  fake->capture_status = 1;
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  make_precision_case(&self, true);
  CHECK_NUMBER(fa_execute(&self.call, fa_default_host(), message), FA_FAILED);
  make_precision_case(&self, false);
  self.call.precision = FA_PRECISION_FULL;
  CHECK_NUMBER(fa_execute(&self.call, fa_default_host(), message), FA_FAILED);
}

/* What a capture takes: a kernel that repeats its bits also where that is not asked for, never the other way round. */
static void in_child_deterministic_in_capture(void *unused) {
  (void)unused;
  static const fa_device device;
  const fa_loaded loaded = {0};
  const char hex[33] = "";
  const fa_ready *ready = NULL;
  char message[FA_MESSAGE_SIZE] = "";
  fa_problem problem = {.op = FA_BACKWARD, .dtype = FA_BF16, .head_dim = 64, .head_dim_v = 64, .target = "cuda:sm_90a"};
  static fa_config configs[FA_MAX_CANDIDATES];
  for (int deterministic = 0; deterministic <= 1; deterministic++) {
    problem.deterministic = deterministic;
    problem.head_dim = problem.head_dim_v = 64 + 8 * deterministic; /* the first kernel is not the second's */
    CHECKF(fa_candidates(&problem, NULL, configs, message, sizeof message) > 0, "%s", message);
    CHECKF(fa_make_ready(&device, &problem, &configs[0], hex, &loaded, &ready, message) == FA_OK, "%s", message);
    fa_problem other = problem;
    other.deterministic = !deterministic;
    CHECK(fa_find_loaded_for(&device, &problem) == ready);
    CHECK(fa_find_loaded_for(&device, &other) == (deterministic ? ready : NULL));
  }
}
static void test_deterministic_in_capture(void) { IN_CHILD(in_child_deterministic_in_capture, NULL); }

static void test_precision(void) { IN_CHILD(in_child_precision, NULL); }
static void test_precision_of_calls(void) {
  help_new_cache("precision");
  IN_CHILD(in_child_full_precision, NULL);
  help_new_cache("reduced precision");
  IN_CHILD(in_child_reduced_precision, NULL);
}

static void test_deterministic(void) {
  IN_CHILD(in_child_deterministic, NULL);
  IN_CHILD(in_child_deterministic_elsewhere, NULL);
}

static void in_child_empty(void *unused) {
  (void)unused;
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  begin();
  help_make_case(&self, false);
  self.call.device_type = FA_DEVICE_CUDA;
  self.call.shape.seqlen_k = 0;
  for (int i = 0; i < HELP_ELEMENTS; i++)
    self.output[i] = 1;
  CHECKF(fa_execute(&self.call, fa_default_host(), message) == FA_OK, "%s", message);
  for (int i = 0; i < HELP_ELEMENTS; i++)
    CHECK(self.output[i] == 0);
  CHECK_NUMBER(fake->launches, 0);
}
static void test_empty(void) { IN_CHILD(in_child_empty, NULL); }

int main(void) {
  help_begin();
  if (help_has_nvrtc()) {
    RUN(test_strides);
    RUN(test_capture);
    RUN(test_precision_of_calls);
  } else {
    check_skip("test_cuda_dispatch", "there is no NVRTC here");
  }
  RUN(test_deterministic);
  RUN(test_deterministic_in_capture);
  RUN(test_precision);
  RUN(test_empty);
  help_end();
  return check_summary();
}
