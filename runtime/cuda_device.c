/*
 * Devices of CUDA: what they are, and their primary contexts, which are PyTorch's. The driver numbers devices, so that
 * CUDA_VISIBLE_DEVICES and MIG need nothing here.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DEVICES = 64, OLDEST_MAJOR = 8 };

/* Retained once and kept for the life of the process: kernels stay loaded in them. */
static CUcontext _Atomic contexts[MAX_DEVICES];

typedef struct facts {
  char name[128];
  int major, minor, processors, shared_bytes;
} facts;

static CUresult ask(const fa_cuda_driver *cuda, int index, facts *about) {
  CUdevice handle = 0;
  CUresult error = cuda->cuDeviceGet(&handle, index);
  const struct {
    int attribute, *value;
  } asked[] = {{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &about->major},
               {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &about->minor},
               {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &about->processors},
               {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &about->shared_bytes}};
  if (error == CUDA_SUCCESS)
    error = cuda->cuDeviceGetName(about->name, (int)sizeof about->name, handle);
  for (int i = 0; i < 4 && error == CUDA_SUCCESS; i++)
    error = cuda->cuDeviceGetAttribute(asked[i].value, asked[i].attribute, handle);
  return error;
}

static fa_status count_devices(const fa_cuda_driver *cuda, int *count, char *message) {
  CUresult error = cuda->cuDeviceGetCount(count);
  if (error != CUDA_SUCCESS)
    return fa_cuda_fail(cuda, error, "counting CUDA devices", message);
  if (*count == 0)
    return fa_fail(FA_UNSUPPORTED, message, "the CUDA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)");
  return FA_OK;
}

/* Makes no context: that takes memory of the device. */
fa_status fa_cuda_describe(int index, fa_device *device, char *message) {
  const fa_cuda_driver *cuda = NULL;
  facts about;
  int count = 0;
  fa_status status = fa_cuda_get_driver(&cuda, message);
  if (status == FA_OK)
    status = count_devices(cuda, &count, message);
  if (status != FA_OK)
    return status;
  if (index >= count)
    return fa_fail(FA_INVALID_VALUE, message, "device_index is %d; it must be less than %d, the number of CUDA devices",
                   index, count);
  CUresult error = ask(cuda, index, &about);
  if (error != CUDA_SUCCESS)
    return fa_cuda_fail(cuda, error, "describing a CUDA device", message);
  if (about.major < OLDEST_MAJOR)
    return fa_fail(FA_UNSUPPORTED, message,
                   "CUDA device %d (%s) has compute capability %d.%d; the kernels need 8.0 (Ampere, such as A100 and "
                   "RTX 30) or newer",
                   index, about.name, about.major, about.minor);
  device->processors = about.processors;
  device->shared_bytes = (size_t)about.shared_bytes;
  snprintf(device->kind, sizeof device->kind, "%s, %d SMs", about.name, about.processors);
  status = fa_cuda_device_target(about.major, about.minor, device->target, message);
  /* Kernels of an architecture's own read through tensor maps, which drivers before CUDA 12 cannot encode. */
  char lower[FA_TARGET_LENGTH];
  if (status == FA_OK && !cuda->cuTensorMapEncodeTiled && fa_cuda_lower_target(device->target, lower))
    memcpy(device->target, lower, sizeof lower);
  return status;
}

static fa_status retain(const fa_cuda_driver *cuda, int index, CUcontext *context, char *message) {
  CUdevice handle = 0;
  CUresult error = cuda->cuDeviceGet(&handle, index);
  if (error == CUDA_SUCCESS)
    error = cuda->cuDevicePrimaryCtxRetain(context, handle);
  if (error != CUDA_SUCCESS)
    return fa_cuda_fail(cuda, error, "opening a CUDA device", message);
  /* Two threads at once retain it twice, which harms nothing. */
  atomic_store_explicit(&contexts[index], *context, memory_order_release);
  return FA_OK;
}

fa_status fa_cuda_enter(int index, fa_cuda_entered *entered, char *message) {
  fa_status status = fa_cuda_get_driver(&entered->cuda, message);
  entered->pushed = false;
  if (status != FA_OK)
    return status;
  if (index < 0 || index >= MAX_DEVICES)
    return fa_fail(FA_INVALID_VALUE, message, "device_index is %d; it must be 0 to %d", index, MAX_DEVICES - 1);
  const fa_cuda_driver *cuda = entered->cuda;
  CUcontext wanted = atomic_load_explicit(&contexts[index], memory_order_acquire), current = NULL;
  if (!wanted)
    status = retain(cuda, index, &wanted, message);
  if (status != FA_OK)
    return status;
  CUresult error = cuda->cuCtxGetCurrent(&current);
  if (error == CUDA_SUCCESS && current != wanted) {
    error = cuda->cuCtxPushCurrent(wanted);
    entered->pushed = error == CUDA_SUCCESS;
  }
  return error == CUDA_SUCCESS ? FA_OK : fa_cuda_fail(cuda, error, "making a CUDA device current", message);
}

void fa_cuda_leave(const fa_cuda_entered *entered) {
  CUcontext ours;
  if (entered->pushed)
    entered->cuda->cuCtxPopCurrent(&ours);
}

void fa_cuda_info(char *text, size_t size) {
  const fa_cuda_driver *cuda = NULL;
  char message[FA_MESSAGE_SIZE];
  int count = 0;
  if (fa_cuda_get_driver(&cuda, message) == FA_OK) {
    fa_append(text, size, "cuda driver: %d.%d\n", cuda->version / 1000, cuda->version % 1000 / 10);
    if (count_devices(cuda, &count, message) != FA_OK)
      count = 0;
  }
  for (int i = 0; i < count; i++) {
    facts about;
    if (ask(cuda, i, &about) == CUDA_SUCCESS)
      fa_append(text, size,
                "cuda device %d: %s, compute capability %d.%d, %d SMs, %d KiB of shared memory for a block\n", i,
                about.name, about.major, about.minor, about.processors, about.shared_bytes / 1024);
  }
}
