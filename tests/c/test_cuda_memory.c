/*
 * Memory of a GPU, on the fake driver: zeros for tensors of any strides, copies, the default host's allocations.
 */
#define _GNU_SOURCE
#include "tests/c/cuda_help.h"

enum { BYTES = 4096, BEFORE = 1024 };

/* Fill `tensor` within marked memory with zeros: every element is, and nothing else. Returns the fake's log. */
static void check_zero(fake_cuda *fake, const int64_t size[4], const int64_t stride[4], const char *log) {
  static unsigned char memory[BYTES], expected[BYTES];
  const struct fa_tensor tensor = {memory + BEFORE, stride[0], stride[1], stride[2], stride[3]};
  const fa_call call = {.device_type = FA_DEVICE_CUDA, .stream = (void *)3};
  char message[FA_MESSAGE_SIZE] = "";
  memset(memory, 0xee, BYTES);
  memset(expected, 0xee, BYTES);
  for (int64_t a = 0; a < size[0]; a++)
    for (int64_t b = 0; b < size[1]; b++)
      for (int64_t c = 0; c < size[2]; c++)
        for (int64_t d = 0; d < size[3]; d++)
          memset(expected + BEFORE + 2 * (a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]), 0, 2);
  fake_forget(fake);
  CHECKF(fa_target_cuda.zero(&call, &tensor, size, 2, message) == FA_OK, "%s", message);
  CHECK(memcmp(memory, expected, BYTES) == 0);
  if (log)
    CHECK_TEXT(fake->log, log);
}

static void in_child_zero(void *unused) {
  (void)unused;
  fake_cuda *fake = fake_cuda_open();
#define SIZE(a, b, c, d) ((const int64_t[4]){a, b, c, d})
  check_zero(fake, SIZE(2, 3, 4, 8), SIZE(96, 32, 8, 1), "push 1\nmemset 384\npop\n");
  /* (batch, seqlen, heads, head_dim) in memory: dense in another order. */
  check_zero(fake, SIZE(2, 3, 4, 8), SIZE(96, 8, 24, 1), "push 1\nmemset 384\npop\n");
  /* A slice of the heads: rows with gaps. */
  check_zero(fake, SIZE(2, 3, 4, 8), SIZE(192, 32, 8, 1), "push 1\nmemset 2 x 192 pitch 384\npop\n");
  check_zero(fake, SIZE(1, 3, 4, 8), SIZE(0, 64, 16, 1), "push 1\nmemset 12 x 16 pitch 32\npop\n");
  check_zero(fake, SIZE(2, 2, 4, 8), SIZE(300, 100, 16, 1), NULL);
  check_zero(fake, SIZE(2, 2, 2, 4), SIZE(200, 90, 40, 3), NULL);
  check_zero(fake, SIZE(2, 2, 2, 4), SIZE(1, 90, 40, 3), NULL);
  check_zero(fake, SIZE(1, 1, 3, 4), SIZE(0, 0, 0, 1), NULL);      /* rows that are one row */
  check_zero(fake, SIZE(1, 1, 3, 4), SIZE(0, 0, 2, 1), NULL);      /* rows that overlap */
  check_zero(fake, SIZE(1, 1, 3, 4), SIZE(0, 0, -10, 1), NULL);    /* rows backwards */
  check_zero(fake, SIZE(1, 2, 3, 4), SIZE(0, 100, -10, -2), NULL); /* all backwards */
  check_zero(fake, SIZE(1, 1, 1, 1), SIZE(7, 7, 7, 7), "push 1\nmemset 2\npop\n");
  check_zero(fake, SIZE(2, 0, 4, 8), SIZE(96, 32, 8, 1), "");
  unsigned state = 1;
  for (int i = 0; i < 2000; i++) { /* any strides that stay within */
    int64_t size[4], stride[4], reach = 0;
    for (int j = 0; j < 4; j++) {
      state = state * 1664525 + 1013904223;
      size[j] = 1 + (state >> 16) % 4;
      stride[j] = (int64_t)((state >> 20) % 120) - 20;
      reach += (size[j] - 1) * (stride[j] > 0 ? stride[j] : 0);
    }
    if (2 * reach + 2 <= BYTES - BEFORE)
      check_zero(fake, size, stride, NULL);
  }
}
static void test_zero(void) { IN_CHILD(in_child_zero, NULL); }

static void in_child_zero_fails(void *unused) {
  (void)unused;
  fake_cuda *fake = fake_cuda_open();
  char message[FA_MESSAGE_SIZE] = "", memory[64];
  const struct fa_tensor tensor = {memory, 8, 8, 8, 1};
  const fa_call call = {.device_type = FA_DEVICE_CUDA};
  fake->fail = "cuMemsetD8Async", fake->error = 719;
  CHECK_NUMBER(fa_target_cuda.zero(&call, &tensor, SIZE(1, 1, 1, 8), 2, message), FA_FAILED);
  CHECK(strstr(message, "filling a tensor with zeros failed") != NULL);
  CHECK_TEXT(fake->log, "push 1\npop\n");
  fake->fail = "cuDevicePrimaryCtxRetain", fake->error = CUDA_ERROR_OUT_OF_MEMORY;
  const fa_call other = {.device_type = FA_DEVICE_CUDA, .device_index = 1};
  CHECK_NUMBER(fa_target_cuda.zero(&other, &tensor, SIZE(1, 1, 1, 8), 2, message), FA_OUT_OF_MEMORY);
  CHECK(strstr(message, "opening a CUDA device failed") != NULL);
}
static void test_zero_fails(void) { IN_CHILD(in_child_zero_fails, NULL); }

static void in_child_copies(void *unused) {
  (void)unused;
  fake_cuda *fake = fake_cuda_open();
  fa_family_of_tests = &help_family;
  char message[FA_MESSAGE_SIZE] = "", back[16] = "";
  const fa_host *host = fa_default_host();
  char *memory = host->allocate(host->context, FA_DEVICE_CUDA, 1, 32);
  if (!CHECK(memory != NULL))
    return;
  fake_forget(fake);
  CHECKF(fa_copy_to_device(FA_DEVICE_CUDA, 1, (void *)5, memory, "fifteen letters", 16, message) == FA_OK, "%s",
         message);
  CHECK_TEXT(fake->log, "push 2\nsynchronize stream=5\npop\n");
  CHECK(fa_copy_from_device(FA_DEVICE_CUDA, 1, (void *)5, back, memory, 16, message) == FA_OK);
  CHECK_TEXT(back, "fifteen letters");
  host->release(host->context, FA_DEVICE_CUDA, 1, memory);
  CHECK_NUMBER(fake->frees, 1);
  host->release(host->context, FA_DEVICE_CUDA, 1, NULL);
  CHECK_NUMBER(fake->frees, 1);
  fake->memory_left = 10;
  CHECK(host->allocate(host->context, FA_DEVICE_CUDA, 0, 11) == NULL);
  fake->fail = "cuMemcpyHtoDAsync", fake->error = 1;
  CHECK_NUMBER(fa_copy_to_device(FA_DEVICE_CUDA, 1, NULL, back, back, 16, message), FA_FAILED);
  CHECK_NUMBER(fa_copy_to_device(FA_DEVICE_CUDA, 2, NULL, back, back, 16, message), FA_INVALID_VALUE);
  /* The same functions for a CPU. */
  CHECK(fa_copy_to_device(FA_DEVICE_CPU, 0, NULL, back, "other", 6, message) == FA_OK);
  CHECK_TEXT(back, "other");
}
static void test_copies(void) { IN_CHILD(in_child_copies, NULL); }

int main(void) {
  help_begin();
  RUN(test_zero);
  RUN(test_zero_fails);
  RUN(test_copies);
  help_end();
  return check_summary();
}
