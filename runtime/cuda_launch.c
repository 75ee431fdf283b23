/*
 * One call on a GPU: its phases, one launch after another on the caller's stream. A kernel takes struct fa_params by
 * value, and the tensor maps that it asked for.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <limits.h>
#include <stdio.h>

_Static_assert(sizeof(struct fa_params) <= 4096, "what a kernel's arguments may take on every GPU");

static fa_status launch_phase(const fa_cuda_driver *cuda, const fa_launch *launch, int i, void **arguments,
                              char *message) {
  const fa_phase *phase = &launch->kernel->phase[i];
  int64_t grid = launch->plan->grid[i];
  if (grid > INT_MAX)
    return fa_fail(FA_UNSUPPORTED, message, "%s would need %lld blocks of threads; a launch has at most %d",
                   phase->entry, (long long)grid, INT_MAX);
  if (phase->persistent && grid > launch->device->processors)
    grid = launch->device->processors;
  CUresult error = cuda->cuLaunchKernel(launch->loaded->entry[i], (unsigned)grid, 1, 1, (unsigned)phase->block_size, 1,
                                        1, (unsigned)phase->shared_bytes, launch->stream, arguments, NULL);
  if (error == CUDA_SUCCESS)
    return FA_OK;
  char what[192];
  snprintf(what, sizeof what, "launching %s (%lld blocks of %d threads, %zu bytes of shared memory)", phase->entry,
           (long long)grid, phase->block_size, phase->shared_bytes);
  return fa_cuda_fail(cuda, error, what, message);
}

static fa_status launch_phases(const fa_cuda_driver *cuda, const fa_launch *launch, char *message) {
  fa_cuda_tensor_map maps[FA_MAX_MAPS];
  void *arguments[1 + FA_MAX_MAPS] = {launch->params};
  fa_status status = FA_OK;
  for (int i = 0; i < launch->kernel->num_maps && status == FA_OK; i++) {
    status = fa_cuda_encode_map(cuda, &launch->kernel->map[i], launch->params, &maps[i], message);
    arguments[1 + i] = &maps[i];
  }
  for (int i = 0; i < launch->plan->num_phases && status == FA_OK; i++)
    if (launch->plan->grid[i] > 0)
      status = launch_phase(cuda, launch, i, arguments, message);
  return status;
}

static fa_status take_workspace(const fa_launch *launch, const fa_host *host, char *message) {
  const size_t bytes = launch->plan->workspace_bytes;
  launch->params->workspace = NULL;
  if (bytes == 0)
    return FA_OK;
  launch->params->workspace = host->allocate(host->context, FA_DEVICE_CUDA, launch->device->index, bytes);
  if (launch->params->workspace)
    return FA_OK;
  fa_status status = fa_cuda_check(launch->device, message);
  if (status != FA_OK)
    return status;
  /* In a capture cuMemAlloc is refused, however much memory there is. */
  if (host->allocate == fa_default_host()->allocate && fa_cuda_is_capturing(launch->device, launch->stream))
    return fa_fail(
        FA_FAILED, message,
        "the stream is being captured into a graph, in which the default host can allocate no workspace (%zu "
        "bytes): pass an fa_host whose allocate has memory for that",
        bytes);
  return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory: %zu bytes of workspace on CUDA device %d", bytes,
                 launch->device->index);
}

/* Before the kernels have run: the host gives this memory only to what comes later on the stream. */
static void give_workspace_back(const fa_launch *launch, const fa_host *host) {
  if (launch->params->workspace)
    host->release(host->context, FA_DEVICE_CUDA, launch->device->index, launch->params->workspace);
}

fa_status fa_cuda_launch(const fa_launch *launch, const fa_host *host, char *message) {
  fa_cuda_entered entered;
  fa_status status = take_workspace(launch, host, message);
  if (status != FA_OK)
    return status;
  status = fa_cuda_enter(launch->device->index, &entered, message);
  if (status == FA_OK) {
    status = launch_phases(entered.cuda, launch, message);
    fa_cuda_leave(&entered);
  }
  give_workspace_back(launch, host);
  return status;
}

bool fa_cuda_is_capturing(const fa_device *device, void *stream) {
  fa_cuda_entered entered;
  char ignored[FA_MESSAGE_SIZE];
  int state = CU_STREAM_CAPTURE_STATUS_NONE;
  if (fa_cuda_enter(device->index, &entered, ignored) != FA_OK)
    return false;
  CUresult error = entered.cuda->cuStreamIsCapturing(stream, &state);
  fa_cuda_leave(&entered);
  /* IMPLICIT: it is the default stream, and one that waits for it is being captured. */
  return error == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT ||
         (error == CUDA_SUCCESS && state != CU_STREAM_CAPTURE_STATUS_NONE);
}

/*
 * Timing: by events of the device. A kernel that takes less time than the processor needs to launch it would be timed
 * wrongly alone: another run goes before, so that the device is still busy when the first event gets there, and
 * several go between the events. For one that takes long, none of that is needed.
 */
static const double LONG_ENOUGH = 500e-6; /* seconds between the events, which tell some 0.5 us apart */
static const double LONG = 2e-3;          /* a hundred times what a launch takes */
enum { MAX_REPEATS = 50 };

static fa_status run_between_events(const fa_cuda_driver *cuda, const fa_launch *launch, CUevent start, CUevent end,
                                    bool runs_before, int repeats, double *seconds, char *message) {
  float milliseconds = 0;
  fa_status status = runs_before ? launch_phases(cuda, launch, message) : FA_OK;
  if (status != FA_OK)
    return status;
  CUresult error = cuda->cuEventRecord(start, launch->stream);
  for (int i = 0; i < repeats && status == FA_OK; i++)
    status = launch_phases(cuda, launch, message);
  if (status != FA_OK)
    return status;
  if (error == CUDA_SUCCESS)
    error = cuda->cuEventRecord(end, launch->stream);
  if (error == CUDA_SUCCESS)
    error = cuda->cuEventSynchronize(end);
  if (error == CUDA_SUCCESS)
    error = cuda->cuEventElapsedTime(&milliseconds, start, end);
  *seconds = 1e-3 * (double)milliseconds / repeats;
  return error == CUDA_SUCCESS ? FA_OK : fa_cuda_fail(cuda, error, "timing a kernel", message);
}

static int count_repeats(double seconds) {
  return seconds >= LONG_ENOUGH                ? 1
         : seconds < LONG_ENOUGH / MAX_REPEATS ? MAX_REPEATS
                                               : (int)(LONG_ENOUGH / seconds) + 1;
}

static fa_status time_phases(const fa_cuda_driver *cuda, const fa_launch *launch, double *seconds, char *message) {
  CUevent start = NULL, end = NULL;
  CUresult error = cuda->cuEventCreate(&start, CU_EVENT_DEFAULT);
  if (error == CUDA_SUCCESS)
    error = cuda->cuEventCreate(&end, CU_EVENT_DEFAULT);
  fa_status status = error == CUDA_SUCCESS ? FA_OK : fa_cuda_fail(cuda, error, "making an event", message);
  const double expected = *seconds;
  const int repeats = expected > 0 ? count_repeats(expected) : 1;
  if (status == FA_OK)
    status = run_between_events(cuda, launch, start, end, expected < LONG, repeats, seconds, message);
  if (status == FA_OK && expected == 0 && *seconds < LONG_ENOUGH)
    status = run_between_events(cuda, launch, start, end, true, count_repeats(*seconds), seconds, message);
  if (start)
    cuda->cuEventDestroy(start);
  if (end)
    cuda->cuEventDestroy(end);
  return status;
}

fa_status fa_cuda_time(const fa_launch *launch, const fa_host *host, double *seconds, char *message) {
  fa_cuda_entered entered;
  fa_status status = take_workspace(launch, host, message);
  if (status != FA_OK)
    return status;
  status = fa_cuda_enter(launch->device->index, &entered, message);
  if (status == FA_OK) {
    if (seconds) {
      status = time_phases(entered.cuda, launch, seconds, message);
    } else {
      status = launch_phases(entered.cuda, launch, message);
      CUresult error = entered.cuda->cuStreamSynchronize(launch->stream);
      if (status == FA_OK && error != CUDA_SUCCESS)
        status = fa_cuda_fail(entered.cuda, error, "running a kernel", message);
    }
    fa_cuda_leave(&entered);
  }
  give_workspace_back(launch, host);
  return status;
}
