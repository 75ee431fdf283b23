/*
 * The CUDA target without a GPU, on a driver that only remembers what it was asked: devices, contexts, loading,
 * launching, timing, memory, and what is said when something fails.
 */
#define _GNU_SOURCE
#include "tests/c/cuda_help.h"

static void in_child_no_driver(void *name) {
  char message[FA_MESSAGE_SIZE] = "", target[FA_TARGET_LENGTH], *text = NULL;
  fa_cuda_driver_name = name;
  CHECK_NUMBER(fa_device_target(FA_DEVICE_CUDA, 0, target, message), FA_UNSUPPORTED);
  CHECKF(strstr(message, "there is no CUDA driver here") != NULL, "%s", message);
  CHECK(strstr(message, name) != NULL);
  CHECK(fa_default_host()->allocate(NULL, FA_DEVICE_CUDA, 0, 64) == NULL);
  CHECK(fa_info(&text) == FA_OK && strstr(text, "cuda target: none; there is no CUDA driver here") != NULL);
  fa_free(text);
}
static void test_no_driver(void) { IN_CHILD(in_child_no_driver, "libno_such_cuda.so.1"); }

/* What fa_device_target says with the driver that `change` makes of the fake one. */
typedef struct scenario {
  void (*change)(fake_cuda *fake);
  int index;
  fa_status status;
  const char *expected; /* in the target or in the message */
} scenario;
static void in_child_describe(void *argument) {
  const scenario *s = argument;
  char message[FA_MESSAGE_SIZE] = "", target[FA_TARGET_LENGTH] = "";
  fake_cuda *fake = fake_cuda_open();
  fa_family_of_tests = &help_family;
  s->change(fake);
  CHECK_NUMBER(fa_device_target(FA_DEVICE_CUDA, s->index, target, message), s->status);
  if (s->status == FA_OK)
    CHECK_TEXT(target, s->expected);
  else
    CHECKF(strstr(message, s->expected) != NULL, "said: %s\n  expected: %s", message, s->expected);
  CHECK_NUMBER(fake->retained, 0); /* asking makes no context */
}
static void nothing(fake_cuda *fake) { (void)fake; }
static void no_device(fake_cuda *fake) { fake->init_error = CUDA_ERROR_NO_DEVICE; }
static void not_ready(fake_cuda *fake) { fake->init_error = 802; }
static void none_visible(fake_cuda *fake) { fake->count = 0; }
static void old_driver(fake_cuda *fake) { fake->version = 11030; }
static void lacks_one(fake_cuda *fake) { fake->missing = "cuMemsetD2D8Async"; }
static void turing(fake_cuda *fake) { fake->device[0] = (fake_device){"Fake T4", 7, 5, 40, 65536}; }
static void newer(fake_cuda *fake) { fake->device[0] = (fake_device){"Fake R100", 13, 1, 200, 300000}; }
static int takes_all(const fa_problem *problem, char *message, size_t size) {
  (void)problem, (void)message, (void)size;
  return 0;
}
static void every_suffix(fake_cuda *fake) {
  static const fa_family family = {.owns = help_owns, .check_problem = takes_all};
  fa_family_of_tests = &family;
  (void)fake;
}
/* No kernel is Blackwell's alone: a suffix would only keep NVRTC from compiling for a lower minor version. */
static void newer_for_real_kernels(fake_cuda *fake) {
  fake->device[0].major = 10, fake->device[0].minor = 3;
  fa_family_of_tests = NULL;
}
static int takes_none(const fa_problem *problem, char *message, size_t size) {
  snprintf(message, size, "target is '%s'; there is no such test kernel", problem->target);
  return -1;
}
static void no_kernels(fake_cuda *fake) {
  static const fa_family family = {.owns = help_owns, .check_problem = takes_none};
  fa_family_of_tests = &family;
  (void)fake;
}
static void unanswered(fake_cuda *fake) {
  fake->fail = "cuDeviceGetAttribute";
  fake->error = 999;
}
static void test_describe(void) {
  static const scenario scenarios[] = {
      {nothing, 0, FA_OK, "cuda:sm_90a"},
      {nothing, 1, FA_OK, "cuda:sm_86"},
      {newer, 0, FA_OK, "cuda:sm_131"},
      {newer_for_real_kernels, 0, FA_OK, "cuda:sm_103"},
      {every_suffix, 0, FA_OK, "cuda:sm_90a"},
      {every_suffix, 1, FA_OK, "cuda:sm_86"},
      {no_kernels, 0, FA_UNSUPPORTED, "target is 'cuda:sm_90'; there is no such test kernel"},
      {nothing, 2, FA_INVALID_VALUE, "device_index is 2; it must be less than 2, the number of CUDA devices"},
      {nothing, 64, FA_INVALID_VALUE, "device_index is 64; it must be 0 to 63"},
      {no_device, 0, FA_UNSUPPORTED, "the CUDA driver finds no GPU"},
      {none_visible, 0, FA_UNSUPPORTED, "the CUDA driver finds no GPU"},
      {not_ready, 0, FA_FAILED, "starting CUDA failed: CUDA_ERROR_OF_A_TEST (802), a test's error"},
      {old_driver, 0, FA_UNSUPPORTED, "flash_attention needs CUDA 11.4 or newer"},
      {lacks_one, 0, FA_UNSUPPORTED, "has no cuMemsetD2D8Async"},
      {unanswered, 0, FA_FAILED, "describing a CUDA device failed"},
      {turing, 0, FA_UNSUPPORTED, "CUDA device 0 (Fake T4) has compute capability 7.5; the kernels need 8.0"},
  };
  for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++)
    IN_CHILD(in_child_describe, (void *)&scenarios[i]);
}

/* A slice of a GPU (MIG) is a kind of its own, though named alike: what is fastest depends on the number of SMs. */
static void in_child_slice(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE] = "";
  fake_cuda *fake = fake_cuda_open();
  fa_family_of_tests = &help_family;
  fake->device[1] = fake->device[0];
  fake->device[1].processors = 16;
  fa_device whole, slice;
  CHECK_NUMBER(fa_cuda_describe(0, &whole, message), FA_OK);
  CHECK_NUMBER(fa_cuda_describe(1, &slice, message), FA_OK);
  CHECK_TEXT(whole.kind, "Fake H100, 132 SMs");
  CHECK_TEXT(slice.kind, "Fake H100, 16 SMs");
  CHECK_TEXT(slice.target, whole.target);
  CHECK_NUMBER(slice.processors, 16);
}
static void test_slice(void) { IN_CHILD(in_child_slice, NULL); }

static void in_child_info(void *unused) {
  (void)unused;
  char *text = NULL;
  fake_cuda_open();
  fa_family_of_tests = &help_family;
  if (!CHECK(fa_info(&text) == FA_OK))
    return;
  CHECK(strstr(text, "cuda target: cuda:sm_90a\ncuda driver: 13.2\n") != NULL);
  CHECK(strstr(text, "cuda device 0: Fake H100, compute capability 9.0, 132 SMs, 227 KiB of shared memory") != NULL);
  CHECK(strstr(text, "cuda device 1: Fake A10, compute capability 8.6, 72 SMs, 99 KiB of shared memory") != NULL);
  CHECKF(strstr(text, "cuda compiler: ") != NULL, "%s", text);
  fa_free(text);
}
static void test_info(void) { IN_CHILD(in_child_info, NULL); }

/* --- a loaded kernel of two phases on device `index`, and a call of it */
typedef struct stage {
  fake_cuda *fake;
  const fa_device *device;
  fa_kernel kernel;
  fa_loaded loaded;
  fa_plan plan;
  struct fa_params params;
  fa_launch launch;
  char message[FA_MESSAGE_SIZE];
} stage;
static const char IMAGE[] = "\177ELF, a cubin";

static fa_status set_stage(stage *s, int index) {
  memset(s, 0, sizeof *s);
  s->fake = fake_cuda_open();
  fa_family_of_tests = &help_family;
  if (fa_find_device(FA_DEVICE_CUDA, index, &s->device, s->message) != FA_OK)
    return FA_FAILED;
  s->kernel = (fa_kernel){.num_phases = 2, .phase = {{"delta", 64, 1024}, {"main", 128, 60000}}};
  s->plan = (fa_plan){.num_phases = 2, .grid = {7, INT_MAX}, .num_splits = 1, .workspace_bytes = 4096};
  s->launch = (fa_launch){.device = s->device,
                          .kernel = &s->kernel,
                          .loaded = &s->loaded,
                          .plan = &s->plan,
                          .params = &s->params,
                          .stream = (void *)7};
  return s->device->ops->load(s->device, &s->kernel, IMAGE, sizeof IMAGE, &s->loaded, s->message);
}

static void push(fake_cuda *fake, int context) {
  const fa_cuda_driver *cuda = NULL;
  char message[FA_MESSAGE_SIZE];
  (void)fake;
  if (CHECK(fa_cuda_get_driver(&cuda, message) == FA_OK))
    cuda->cuCtxPushCurrent((CUcontext)(uintptr_t)context);
}

/* The context is the device's own primary one, whatever is current, and that is put back. */
static void in_child_load(void *unused) {
  (void)unused;
  static stage s;
  CHECKF(set_stage(&s, 1) == FA_OK, "%s", s.message);
  CHECK_TEXT(s.fake->log, "push 2\nload delta\nattribute 8 of main = 60000\nload main\npop\n");
  CHECK_NUMBER(s.fake->retained, 1);
  fake_forget(s.fake);
  s.device->ops->unload(s.device, &s.loaded);
  CHECK_TEXT(s.fake->log, "push 2\npop\n");
  CHECK_NUMBER(s.fake->unloads, 1);
  CHECK(s.loaded.handle == NULL);
}

#define LOAD_FAILS(status, word)                                                                                       \
  do {                                                                                                                 \
    fake_forget(s.fake);                                                                                               \
    CHECK_NUMBER(s.device->ops->load(s.device, &s.kernel, image, length, &s.loaded, s.message), status);               \
    CHECKF(strstr(s.message, word) != NULL, "%s", s.message);                                                          \
    CHECK(s.loaded.handle == NULL);                                                                                    \
    CHECK_NUMBER(s.fake->loads, s.fake->unloads + kept);                                                               \
  } while (0)
static void in_child_load_fails(void *unused) {
  (void)unused;
  static stage s;
  CHECK(set_stage(&s, 0) == FA_OK);
  const int kept = 1;
  const char *image = "no cubin";
  size_t length = 9;
  s.loaded.handle = NULL;
  LOAD_FAILS(FA_FAILED, "loading a kernel for cuda:sm_90a with the driver of CUDA 13.2 failed: CUDA_ERROR_OF_A_TEST");
  length = 0;
  LOAD_FAILS(FA_FAILED, "a compiled kernel of 0 bytes is none");
  image = IMAGE, length = sizeof IMAGE;
  snprintf(s.kernel.phase[1].entry, FA_ENTRY_LENGTH, "missing");
  LOAD_FAILS(FA_FAILED, "loading missing failed");
  snprintf(s.kernel.phase[1].entry, FA_ENTRY_LENGTH, "main");
  s.kernel.phase[1].shared_bytes = 300000;
  LOAD_FAILS(FA_FAILED, "main needs 300000 bytes of shared memory; a block has at most 232448 on this GPU");
  s.kernel.phase[1].shared_bytes = 60000;
  s.fake->fail = "cuModuleLoadData", s.fake->error = CUDA_ERROR_OUT_OF_MEMORY;
  LOAD_FAILS(FA_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY (2), out of memory");
}
static void test_load(void) {
  IN_CHILD(in_child_load, NULL);
  IN_CHILD(in_child_load_fails, NULL);
}

static const struct fa_params *seen;
static void see(const char *name, const struct fa_params *params, unsigned grid, unsigned block) {
  (void)name, (void)grid, (void)block;
  static struct fa_params copy;
  copy = *params;
  seen = &copy;
}

static void in_child_launch(void *unused) {
  (void)unused;
  static stage s;
  CHECK(set_stage(&s, 0) == FA_OK);
  const fa_host *host = fa_default_host();
  s.fake->run = see;
  s.params.batch = 3, s.params.softmax_scale = 0.5;

  /* Nothing is current: pushed and popped. */
  fake_forget(s.fake);
  CHECKF(s.device->ops->launch(&s.launch, host, s.message) == FA_OK, "%s", s.message);
  static const char launches[] = "launch delta grid=7 block=64 shared=1024 stream=7\n"
                                 "launch main grid=2147483647 block=128 shared=60000 stream=7\n";
  char expected[512];
  snprintf(expected, sizeof expected, "push 1\npop\npush 1\n%spop\npush 1\npop\n", launches); /* memory, run, memory */
  CHECK_TEXT(s.fake->log, expected);
  CHECK(seen && seen->batch == 3 && seen->softmax_scale == 0.5 && seen->workspace != NULL);
  CHECK_NUMBER(s.fake->allocations, 1);
  CHECK_NUMBER(s.fake->frees, 1);

  /* The device is current already: no push, no pop; no workspace wanted: none taken. */
  push(s.fake, 1);
  fake_forget(s.fake);
  s.plan.workspace_bytes = 0;
  CHECK(s.device->ops->launch(&s.launch, host, s.message) == FA_OK);
  CHECK_TEXT(s.fake->log, launches);
  CHECK(seen->workspace == NULL);
  CHECK_NUMBER(s.fake->allocations, 1);

  /* Another device is current. An empty phase is skipped. */
  push(s.fake, 2);
  fake_forget(s.fake);
  s.plan.grid[0] = 0, s.plan.grid[1] = 1;
  CHECK(s.device->ops->launch(&s.launch, host, s.message) == FA_OK);
  CHECK_TEXT(s.fake->log, "push 1\nlaunch main grid=1 block=128 shared=60000 stream=7\npop\n");
}

static void in_child_launch_fails(void *unused) {
  (void)unused;
  static stage s;
  CHECK(set_stage(&s, 0) == FA_OK);
  const fa_host *host = fa_default_host();
  s.fake->fail = "cuLaunchKernel", s.fake->error = 701;
  CHECK_NUMBER(s.device->ops->launch(&s.launch, host, s.message), FA_FAILED);
  CHECKF(strstr(s.message, "launching delta (7 blocks of 64 threads, 1024 bytes of shared memory) failed: "
                           "CUDA_ERROR_OF_A_TEST (701), a test's error") != NULL,
         "%s", s.message);
  CHECK_NUMBER(s.fake->frees, 1);
  CHECK_NUMBER(s.fake->launches, 0);

  s.plan.grid[1] = (int64_t)INT_MAX + 1;
  CHECK_NUMBER(s.device->ops->launch(&s.launch, host, s.message), FA_UNSUPPORTED);
  CHECK(strstr(s.message, "main would need 2147483648 blocks of threads; a launch has at most 2147483647") != NULL);
  CHECK_NUMBER(s.fake->frees, 2);

  s.fake->memory_left = 100;
  CHECK_NUMBER(s.device->ops->launch(&s.launch, host, s.message), FA_OUT_OF_MEMORY);
  CHECK(strstr(s.message, "out of memory: 4096 bytes of workspace on CUDA device 0") != NULL);

  /* What it gives after a kernel has failed is that error, and not for want of memory. */
  s.fake->broken = 719;
  CHECK_NUMBER(s.device->ops->launch(&s.launch, host, s.message), FA_FAILED);
  CHECKF(strstr(s.message, "allocating memory on a CUDA device failed: CUDA_ERROR_OF_A_TEST (719)") != NULL, "%s",
         s.message);
  CHECK_NUMBER(fa_check_device(FA_DEVICE_CUDA, 0, s.message), FA_FAILED);
  s.fake->broken = 0;
  CHECK_NUMBER(fa_check_device(FA_DEVICE_CUDA, 0, s.message), FA_OK);
  CHECK_NUMBER(fa_check_device(FA_DEVICE_CPU, 0, s.message), FA_OK);

  /* What was current is put back after a failure too. */
  fake_forget(s.fake);
  s.plan.workspace_bytes = 0, s.plan.grid[1] = 1;
  s.fake->fail = "cuLaunchKernel", s.fake->error = 1;
  CHECK_NUMBER(s.device->ops->launch(&s.launch, host, s.message), FA_FAILED);
  CHECK_TEXT(s.fake->log, "push 1\npop\n");
}
static void test_launch(void) {
  IN_CHILD(in_child_launch, NULL);
  IN_CHILD(in_child_launch_fails, NULL);
}

static void in_child_time(void *unused) {
  (void)unused;
  static stage s;
  CHECK(set_stage(&s, 0) == FA_OK);
  const fa_host *host = fa_default_host();
  double seconds = 0;
  s.plan.grid[0] = 0;
  s.fake->milliseconds = 2;
  CHECK(s.device->ops->time(&s.launch, host, &seconds, s.message) == FA_OK);
  CHECKF(fabs(seconds - 2e-3) < 1e-8, "%g", seconds);
  CHECK_NUMBER(s.fake->launches, 2); /* one before, so that the device is busy when the clock starts */
  CHECK(s.device->ops->time(&s.launch, host, &seconds, s.message) == FA_OK);
  CHECKF(fabs(seconds - 2e-3) < 1e-8, "%g", seconds);
  CHECK_NUMBER(s.fake->launches, 3); /* it is known to take long: nothing goes before it */
  s.fake->milliseconds = 0.05;       /* several runs between the events */
  seconds = 0;
  int launches = s.fake->launches;
  CHECK(s.device->ops->time(&s.launch, host, &seconds, s.message) == FA_OK);
  CHECKF(fabs(seconds - 5e-5) < 1e-8, "%g", seconds);
  CHECKF(s.fake->launches >= launches + 2 + 1 + 10, "%d", s.fake->launches - launches);
  launches = s.fake->launches;
  CHECK(s.device->ops->time(&s.launch, host, &seconds, s.message) == FA_OK);
  CHECKF(fabs(seconds - 5e-5) < 1e-8, "%g", seconds);
  CHECKF(s.fake->launches >= launches + 1 + 10 && s.fake->launches <= launches + 1 + 11, "%d",
         s.fake->launches - launches);
  /* Once, without time: that is what results are checked after. */
  launches = s.fake->launches;
  fake_forget(s.fake);
  CHECK(s.device->ops->time(&s.launch, host, NULL, s.message) == FA_OK);
  CHECK_NUMBER(s.fake->launches, launches + 1);
  CHECK(strstr(s.fake->log, "synchronize stream=7\n") != NULL);
  static const char *const failing[] = {"cuEventCreate", "cuEventRecord", "cuEventSynchronize"};
  for (int i = 0; i < 3; i++) {
    s.fake->fail = failing[i], s.fake->error = 700;
    CHECK_NUMBER(s.device->ops->time(&s.launch, host, &seconds, s.message), FA_FAILED);
    CHECK(strstr(s.message, "(700)") != NULL);
  }
  s.fake->fail = "cuStreamSynchronize", s.fake->error = 700;
  CHECK_NUMBER(s.device->ops->time(&s.launch, host, NULL, s.message), FA_FAILED);
  CHECK_NUMBER(s.fake->events, 0);
  CHECK_NUMBER(s.fake->allocations, s.fake->frees);
}
static void test_time(void) { IN_CHILD(in_child_time, NULL); }

int main(void) {
  help_begin();
  RUN(test_no_driver);
  RUN(test_describe);
  RUN(test_slice);
  RUN(test_info);
  RUN(test_load);
  RUN(test_launch);
  RUN(test_time);
  help_end();
  return check_summary();
}
