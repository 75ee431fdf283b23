/*
 * One call on a CPU: the tasks of each phase spread over the host's threads.
 *
 * A task computes the same bits whoever runs it, so that workers simply take the next one until none is
 * left. Each worker has its own scratch memory; the workspace is shared and carries results from one phase
 * to the next.
 */
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <string.h>
#include <time.h>

typedef void (*entry_function)(const struct fa_params *params, long long task, void *scratch);

enum { ALIGNMENT = 64, STACK_BYTES = 32 * 1024 };

/* Waking other threads costs some 5 microseconds; below this many operations one thread is done by then. */
static const double INLINE_FLOPS = 200e3;

typedef struct phase_work {
  entry_function entry;
  const struct fa_params *params;
  char *scratch;
  size_t scratch_stride;
  int64_t count;
  _Alignas(ALIGNMENT) _Atomic int64_t next; /* on a cache line of its own: every worker writes it */
} phase_work;

static void run_worker(int64_t worker, void *argument) {
  phase_work *work = argument;
  void *scratch = work->scratch + (size_t)worker * work->scratch_stride;
  int64_t task;
  while ((task = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed)) < work->count)
    work->entry(work->params, task, scratch);
}

static void run_alone(entry_function entry, const struct fa_params *params, int64_t count, void *scratch) {
  for (int64_t task = 0; task < count; task++)
    entry(params, task, scratch);
}

static size_t round_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* Object to function pointer, in the way that is legal everywhere. */
static entry_function entry_of(const fa_launch *launch, int phase) {
  entry_function entry;
  memcpy(&entry, &launch->loaded->entry[phase], sizeof entry);
  return entry;
}

/* The memory of a launch: workspace first, then each worker's scratch. */
static fa_status take_memory(const fa_launch *launch, const fa_host *host, int64_t workers, void *small, void **taken,
                             char **scratch, char *message) {
  size_t workspace = round_up(launch->plan->workspace_bytes), each = round_up(launch->plan->scratch_bytes);
  size_t bytes = workspace + each * (size_t)workers;
  char *memory = small;
  *taken = NULL;
  if (bytes > STACK_BYTES) {
    memory = *taken = host->allocate(host->context, FA_DEVICE_CPU, 0, bytes);
    if (!memory)
      return fa_fail(FA_OUT_OF_MEMORY, message,
                     "out of memory: %zu bytes (workspace %zu, scratch %zu for each of %lld workers)", bytes, workspace,
                     each, (long long)workers);
  }
  launch->params->workspace = memory;
  *scratch = memory + workspace;
  return FA_OK;
}

static int64_t count_workers(const fa_launch *launch, const fa_host *host) {
  if (launch->flops < INLINE_FLOPS)
    return 1;
  int64_t most = 1, threads = host->num_threads(host->context);
  for (int i = 0; i < launch->plan->num_phases; i++)
    if (launch->plan->grid[i] > most)
      most = launch->plan->grid[i];
  return threads < 1 ? 1 : threads < most ? threads : most;
}

fa_status fa_cpu_launch(const fa_launch *launch, const fa_host *host, char *message) {
  _Alignas(ALIGNMENT) char small[STACK_BYTES];
  const fa_plan *plan = launch->plan;
  int64_t workers = count_workers(launch, host);
  void *taken = NULL;
  char *scratch = NULL;
  fa_status status = take_memory(launch, host, workers, small, &taken, &scratch, message);
  if (status != FA_OK)
    return status;
  for (int i = 0; i < plan->num_phases; i++) {
    if (workers == 1 || plan->grid[i] <= 1) {
      run_alone(entry_of(launch, i), launch->params, plan->grid[i], scratch);
      continue;
    }
    phase_work work = {.entry = entry_of(launch, i),
                       .params = launch->params,
                       .scratch = scratch,
                       .scratch_stride = round_up(plan->scratch_bytes),
                       .count = plan->grid[i]};
    host->parallel_for(host->context, workers < plan->grid[i] ? workers : plan->grid[i], run_worker, &work);
  }
  if (taken)
    host->release(host->context, FA_DEVICE_CPU, 0, taken);
  return FA_OK;
}

/* All tasks on this thread, in its own CPU time: what is found best then depends neither on the number of threads
 * nor on what else the machine is doing. */
fa_status fa_cpu_time(const fa_launch *launch, const fa_host *host, double *seconds, char *message) {
  _Alignas(ALIGNMENT) char small[STACK_BYTES];
  void *taken = NULL;
  char *scratch = NULL;
  fa_status status = take_memory(launch, host, 1, small, &taken, &scratch, message);
  if (status != FA_OK)
    return status;
  struct timespec start, end;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
  for (int i = 0; i < launch->plan->num_phases; i++)
    run_alone(entry_of(launch, i), launch->params, launch->plan->grid[i], scratch);
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
  if (seconds)
    *seconds = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
  if (taken)
    host->release(host->context, FA_DEVICE_CPU, 0, taken);
  return FA_OK;
}

fa_status fa_cpu_zero(const fa_call *call, const struct fa_tensor *tensor, const int64_t size[4], size_t element_size,
                      char *message) {
  (void)call;
  (void)message;
  for (int64_t b = 0; b < size[0]; b++)
    for (int64_t h = 0; h < size[1]; h++)
      for (int64_t row = 0; row < size[2]; row++) {
        char *start =
            (char *)tensor->data +
            (b * tensor->stride_batch + h * tensor->stride_head + row * tensor->stride_row) * (int64_t)element_size;
        if (tensor->stride_col == 1)
          memset(start, 0, (size_t)size[3] * element_size);
        else
          for (int64_t col = 0; col < size[3]; col++)
            memset(start + col * tensor->stride_col * (int64_t)element_size, 0, element_size);
      }
  return FA_OK;
}
