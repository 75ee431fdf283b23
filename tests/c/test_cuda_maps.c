/*
 * Calls whose kernels read by TMA, without a GPU: which tensors can be described by tensor maps and what happens to
 * calls with others, what the driver is told of a tensor, and that a launch hands the maps on.
 */
#include "tests/c/cuda_help.h"

enum { DIM = 64, BATCH = 2, HEADS = 6, KV_HEADS = 3, QUERIES = 100, KEYS = 70 };

static char message[FA_MESSAGE_SIZE];

static struct fa_tensor contiguous(void *data, int64_t heads, int64_t rows) {
  return (struct fa_tensor){data, heads * rows * DIM, rows * DIM, DIM, 1};
}

/* Addresses are only looked at. */
static fa_call plain_call(void) {
  return (fa_call){.op = FA_FORWARD,
                   .dtype = FA_BF16,
                   .head_dim = DIM,
                   .head_dim_v = DIM,
                   .device_type = FA_DEVICE_CUDA,
                   .shape = {BATCH, HEADS, KV_HEADS, QUERIES, KEYS},
                   .query = contiguous((void *)0x10000, HEADS, QUERIES),
                   .key = contiguous((void *)0x20000, KV_HEADS, KEYS),
                   .value = contiguous((void *)0x30000, KV_HEADS, KEYS),
                   .output = contiguous((void *)0x40000, HEADS, QUERIES),
                   .softmax_scale = 1};
}

static fa_problem problem_of(const fa_call *call) {
  return (fa_problem){.op = call->op,
                      .dtype = call->dtype,
                      .head_dim = call->head_dim,
                      .head_dim_v = call->head_dim_v,
                      .target = "cuda:sm_90a"};
}

static void check_target(const fa_call *call, const char *expected) {
  const fa_device *device = NULL;
  fa_problem problem = problem_of(call);
  if (!CHECK(fa_find_device(FA_DEVICE_CUDA, 0, &device, message) == FA_OK))
    return;
  device->ops->fit_target(device, call, &problem);
  CHECK_TEXT(problem.target, expected);
}

static void in_child_targets(void *unused) {
  (void)unused;
  fake_cuda_open();
  const fa_call plain = plain_call();
  check_target(&plain, "cuda:sm_90a");
  fa_call call = plain;
  /* Heads behind rows, as a projection's output is viewed; columns of a wider tensor. */
  call.query.stride_head = DIM, call.query.stride_row = HEADS * DIM;
  call.key.stride_row = 5 * DIM, call.key.data = (void *)0x20010;
  check_target(&call, "cuda:sm_90a");

#define REFUSED(change)                                                                                                \
  do {                                                                                                                 \
    call = plain;                                                                                                      \
    change;                                                                                                            \
    check_target(&call, "cuda:sm_90");                                                                                 \
  } while (0)
  REFUSED(call.query.data = (void *)0x10002);
  REFUSED(call.value.data = (void *)0x30008);
  REFUSED(call.key.stride_col = 2);
  REFUSED(call.key.stride_row = DIM + 4);
  REFUSED(call.query.stride_head += 1);
  REFUSED(call.value.stride_batch += 4);
  REFUSED(call.value.stride_head = 0); /* expanded */
  REFUSED(call.key.stride_row = -DIM);
  REFUSED(call.query.stride_batch = INT64_C(1) << 40);

  /* The stride of a dimension of size 1 means nothing. */
  call = plain;
  call.shape.batch = 1, call.shape.heads_kv = 1;
  call.query.stride_batch = 3, call.key.stride_batch = 0, call.key.stride_head = 7, call.value.stride_head = -1;
  check_target(&call, "cuda:sm_90a");

  /* What reads without TMA is not asked. */
  call = plain;
  call.query.data = (void *)0x10002;
  call.head_dim = 60;
  check_target(&call, "cuda:sm_90a");
  call.head_dim = DIM, call.dtype = FA_FP32;
  check_target(&call, "cuda:sm_90a");
}

/* A driver of CUDA 11 cannot describe tensors: nothing is made for this device that would ask for it, neither a call's
 * kernel nor the forward that the tuner runs before a backward. */
static void in_child_old_driver(void *unused) {
  (void)unused;
  char target[FA_TARGET_LENGTH];
  fake_cuda_open()->missing = "cuTensorMapEncodeTiled";
  CHECK_NUMBER(fa_device_target(FA_DEVICE_CUDA, 0, target, message), FA_OK);
  CHECK_TEXT(target, "cuda:sm_90");
}

static void in_child_launch(void *unused) {
  (void)unused;
  fake_cuda *fake = fake_cuda_open();
  const fa_device *device = NULL;
  if (!CHECK(fa_find_device(FA_DEVICE_CUDA, 0, &device, message) == FA_OK))
    return;
  fa_call call = plain_call();
  call.query.stride_head = DIM, call.query.stride_row = HEADS * DIM;
  struct fa_params params = {.query = call.query,
                             .key = call.key,
                             .value = call.value,
                             .batch = BATCH,
                             .heads_q = HEADS,
                             .heads_kv = KV_HEADS,
                             .seqlen_q = QUERIES,
                             .seqlen_k = KEYS};
  fa_problem problem = problem_of(&call);
  fa_config config;
  fa_kernel kernel;
  fa_plan plan;
  fa_loaded loaded;
  CHECKF(fa_config_parse(&problem, "block_m=128,block_n=96,persistent=1", &config, message, sizeof message) == 0, "%s",
         message);
  CHECKF(fa_describe(&problem, &config, &kernel, message, sizeof message) == 0, "%s", message);
  CHECK(fa_plan_call(&problem, &config, &call.shape, &plan) == 0);
  CHECK(fa_cuda_load(device, &kernel, "\177ELF", 4, &loaded, message) == FA_OK);
  fa_launch launch = {.device = device, .kernel = &kernel, .loaded = &loaded, .plan = &plan, .params = &params};
  fake_forget(fake);
  fake->maps = 3;
  CHECKF(fa_cuda_launch(&launch, fa_default_host(), message) == FA_OK, "%s", message);
  /* Sizes, strides in bytes and boxes of columns, rows, heads, batch. */
  char expected[1024];
  snprintf(expected, sizeof expected,
           "push 1\nmap rank=4 swizzle=3 64/2/64 100/768/128 6/128/1 2/76800/1\n"
           "map rank=4 swizzle=3 64/2/64 70/128/96 3/8960/1 2/26880/1\n"
           "map rank=4 swizzle=3 64/2/64 70/128/96 3/8960/1 2/26880/1\n"
           "launch forward grid=12 block=384 shared=%zu stream=0\npop\n",
           kernel.phase[0].shared_bytes);
  CHECK_TEXT(fake->log, expected);
  CHECK(fake->mapped[0] == call.query.data && fake->mapped[1] == call.key.data && fake->mapped[2] == call.value.data);

  /* A persistent phase has one block of threads for each of the 132 SMs; another one has all that the plan says. */
  params.batch = 100;
  const fa_shape large = {100, HEADS, KV_HEADS, QUERIES, KEYS};
  CHECK(fa_plan_call(&problem, &config, &large, &plan) == 0);
  CHECK(fa_cuda_launch(&launch, fa_default_host(), message) == FA_OK);
  CHECK(strstr(fake->log, "launch forward grid=132 ") != NULL);
  kernel.phase[0].persistent = false;
  CHECK(fa_cuda_launch(&launch, fa_default_host(), message) == FA_OK);
  CHECK(strstr(fake->log, "launch forward grid=600 ") != NULL);

  fake->fail = "cuTensorMapEncodeTiled", fake->error = 1;
  CHECK(fa_cuda_launch(&launch, fa_default_host(), message) == FA_FAILED);
  CHECK(strstr(message, "describing a tensor to TMA failed") != NULL);
  fa_cuda_unload(device, &loaded);
}

static void in_child_forced(void *unused) {
  (void)unused;
  char target[FA_TARGET_LENGTH];
  fake_cuda_open();
  setenv("FLASH_ATTENTION_CUDA_ARCH", "sm_90", 1);
  CHECK_NUMBER(fa_device_target(FA_DEVICE_CUDA, 0, target, message), FA_OK);
  CHECK_TEXT(target, "cuda:sm_90");
}
static void in_child_forced_wrongly(void *unused) {
  (void)unused;
  char target[FA_TARGET_LENGTH];
  fake_cuda_open();
  setenv("FLASH_ATTENTION_CUDA_ARCH", "sm_80", 1);
  CHECK_NUMBER(fa_device_target(FA_DEVICE_CUDA, 0, target, message), FA_INVALID_VALUE);
  CHECK_TEXT(message, "FLASH_ATTENTION_CUDA_ARCH is 'sm_80'; on this device it must be one of: sm_90a, sm_90 (or unset "
                      "for the first)");
}

static void test_targets(void) {
  IN_CHILD(in_child_targets, NULL);
  IN_CHILD(in_child_old_driver, NULL);
}
static void test_launch(void) { IN_CHILD(in_child_launch, NULL); }
static void test_forced(void) {
  IN_CHILD(in_child_forced, NULL);
  IN_CHILD(in_child_forced_wrongly, NULL);
}

int main(void) {
  help_begin();
  RUN(test_targets);
  RUN(test_launch);
  RUN(test_forced);
  help_end();
  return check_summary();
}
