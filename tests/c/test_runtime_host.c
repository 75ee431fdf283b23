/*
 * Runtime: memory and threads of the host. Without memory a call fails and says how much it needed, a tuner
 * makes do; results do not depend on threads; the default host's pool serves several callers and forks.
 */
#include <pthread.h>

#include "tests/c/runtime_help.h"

static size_t largest_allocation;

static void *limited_allocate(void *context, fa_device_type type, int device_index, size_t bytes) {
  (void)context;
  return bytes > largest_allocation ? NULL : fa_default_host()->allocate(NULL, type, device_index, bytes);
}

static int some_threads(void *context) { return *(int *)context; }

/* Workers in the wrong order, on one thread: a legal host. */
static void backward_for(void *context, int64_t count, void (*body)(int64_t i, void *argument), void *argument) {
  (void)context;
  for (int64_t i = count; i-- > 0;)
    body(i, argument);
}

static fa_host make_host(int *threads) {
  fa_host host = *fa_default_host();
  host.context = threads;
  host.allocate = limited_allocate;
  host.num_threads = some_threads;
  return host;
}

/* Long enough to need memory from the host and to be worth several threads. */
enum { LONG = 600, LONG_DIM = 64, LONG_ELEMENTS = LONG * LONG_DIM };
static fa_call make_long_call(float *data[4]) {
  struct fa_tensor view[4];
  for (int i = 0; i < 4; i++) {
    data[i] = calloc(LONG_ELEMENTS, sizeof(float));
    for (int j = 0; i < 3 && j < LONG_ELEMENTS; j++)
      data[i][j] = (float)((j * (i + 7)) % 23) / 23;
    view[i] = (struct fa_tensor){data[i], LONG_ELEMENTS, LONG_ELEMENTS, LONG_DIM, 1};
  }
  return (fa_call){.op = FA_FORWARD,
                   .dtype = FA_FP32,
                   .softmax_scale = 0.125,
                   .device_type = FA_DEVICE_CPU,
                   .shape = {1, 1, 1, LONG, LONG},
                   .head_dim = LONG_DIM,
                   .head_dim_v = LONG_DIM,
                   .query = view[0],
                   .key = view[1],
                   .value = view[2],
                   .output = view[3]};
}

static void in_child_out_of_memory(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  float *data[4];
  int threads = 3;
  fa_call call = make_long_call(data);
  fa_host host = make_host(&threads);
  char message[FA_MESSAGE_SIZE] = "";
  largest_allocation = 1000;
  CHECK_NUMBER(fa_execute(&call, &host, message), FA_OUT_OF_MEMORY);
  CHECKF(strstr(message, "out of memory: ") && strstr(message, "workers"), "%s", message);
  largest_allocation = SIZE_MAX;
  CHECK_NUMBER(fa_execute(&call, &host, message), FA_OK);
}

/* Memory for the call but not for the tuner: the best guess runs, and is not recorded as a winner. */
static void in_child_no_memory_to_tune(void *unused) {
  (void)unused;
  int threads = 1;
  static help_case self;
  help_make_case(&self, false);
  fa_host host = make_host(&threads);
  char message[FA_MESSAGE_SIZE] = "";
  largest_allocation = 0;
  CHECKF(fa_execute(&self.call, &host, message) == FA_OUT_OF_MEMORY || help_error(&self) < 1e-5, "%s", message);
  char *report = NULL;
  CHECK_NUMBER(fa_cache_report(true, &report, message), FA_OK);
  CHECK(report && strstr(report, " kernel ") && !strstr(report, " tuning "));
  fa_free(report);
}

static void test_out_of_memory(void) {
  help_new_cache("memory");
  IN_CHILD(in_child_out_of_memory, NULL);
  help_new_cache("memory_to_tune");
  IN_CHILD(in_child_no_memory_to_tune, NULL);
}

/* The same bits for any number of threads and any order of workers. */
static void in_child_same_bits(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1);
  largest_allocation = SIZE_MAX;
  float *data[4], *first = calloc(LONG_ELEMENTS, sizeof(float));
  char message[FA_MESSAGE_SIZE] = "";
  fa_call call = make_long_call(data);
  for (int threads = 1; threads <= 7; threads++) {
    fa_host host = make_host(&threads);
    if (threads % 2)
      host.parallel_for = backward_for;
    memset(data[3], 0, LONG_ELEMENTS * sizeof(float));
    CHECKF(fa_execute(&call, &host, message) == FA_OK, "%s", message);
    if (threads == 1)
      memcpy(first, data[3], LONG_ELEMENTS * sizeof(float));
    int different = 0;
    for (int i = 0; i < LONG_ELEMENTS; i++) /* no value is -0 or NaN */
      different += first[i] != data[3][i];
    CHECK_NUMBER(different, 0);
  }
}

static void test_same_bits(void) {
  help_new_cache("bits");
  IN_CHILD(in_child_same_bits, NULL);
}

/* --- the pool of the default host */

enum { LOOP = 1000 };
typedef struct counts {
  _Atomic int of[LOOP];
} counts;

static void count_one(int64_t i, void *argument) { atomic_fetch_add(&((counts *)argument)->of[i], 1); }

static void *run_loops(void *unused) {
  static _Thread_local counts counts;
  int wrong = 0;
  for (int turn = 1; turn <= 200; turn++) {
    fa_default_host()->parallel_for(NULL, LOOP, count_one, &counts);
    for (int i = 0; i < LOOP; i++)
      wrong += counts.of[i] != turn;
  }
  CHECK_NUMBER(wrong, 0);
  return unused;
}

static void run_loops_in_child(void *unused) { run_loops(unused); }

static void count_inside(int64_t i, void *argument) {
  (void)i;
  fa_default_host()->parallel_for(NULL, LOOP, count_one, argument);
}

static void in_child_pool(void *unused) {
  pthread_t threads[4];
  for (int i = 0; i < 4; i++)
    CHECK(pthread_create(&threads[i], NULL, run_loops, NULL) == 0);
  for (int i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  static counts nested;
  fa_default_host()->parallel_for(NULL, 7, count_inside, &nested);
  for (int i = 0; i < LOOP; i++)
    CHECK_NUMBER(nested.of[i], 7);
  fa_default_host()->parallel_for(NULL, 0, count_one, &nested);
  if (!help_is_emulated())
    IN_CHILD(run_loops_in_child, unused);
}

static void test_pool(void) { IN_CHILD(in_child_pool, NULL); }

int main(void) {
  help_begin();
  RUN(test_out_of_memory);
  RUN(test_same_bits);
  RUN(test_pool);
  help_end();
  return check_summary();
}
