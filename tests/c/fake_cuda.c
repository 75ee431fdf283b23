/* See fake_cuda.h. */
#include "tests/c/fake_cuda.h"

#include "runtime/cuda_driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ERROR_INVALID_CONTEXT = 201, ERROR_INVALID_IMAGE = 200, ERROR_NOT_FOUND = 500 };

FA_API fake_cuda fake_cuda_state = {.version = 13020,
                                    .count = 2,
                                    .device = {{"Fake H100", 9, 0, 132, 232448}, {"Fake A10", 8, 6, 72, 101376}},
                                    .memory_left = (size_t)1 << 32,
                                    .milliseconds = 1};
static fake_cuda *const fake = &fake_cuda_state;

/* Contexts are numbers: device 0's primary one is 1. */
static _Thread_local int stack[8], depth;
static double device_clock;

struct CUmod_st {
  int context;
};
struct CUfunc_st {
  int context;
  char name[48];
  struct CUfunc_st *next;
};
static struct CUfunc_st *functions;

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...) {
  size_t used = strlen(fake->log);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(fake->log + used, sizeof fake->log - used, format, arguments);
  va_end(arguments);
}

static CUresult fails(const char *name) {
  if (!fake->fail || strcmp(fake->fail, name) != 0)
    return CUDA_SUCCESS;
  fake->fail = NULL;
  return fake->error;
}
#define MAY_FAIL                                                                                                       \
  do {                                                                                                                 \
    CUresult injected = fails(__func__);                                                                               \
    if (injected != CUDA_SUCCESS)                                                                                      \
      return injected;                                                                                                 \
  } while (0)

/* What the true driver (13.0, on an H200) does in each function that calls this: it waits for all of the context's
 * work.
 */
static void wait_for_device(void) {
  if (fake->wait)
    fake->wait();
}

static int current(void) { return depth > 0 ? stack[depth - 1] : 0; }
static CUcontext to_context(int number) { return (CUcontext)(uintptr_t)number; }

static CUresult cuInit(unsigned flags) {
  (void)flags;
  return fake->init_error;
}
static CUresult cuDriverGetVersion(int *version) {
  *version = fake->version;
  return CUDA_SUCCESS;
}
static CUresult cuDeviceGetCount(int *count) {
  *count = fake->count;
  return CUDA_SUCCESS;
}
static CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return ordinal < fake->count ? CUDA_SUCCESS : 101;
}
static CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
  snprintf(name, (size_t)size, "%s", fake->device[device].name);
  return CUDA_SUCCESS;
}
static CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
  const fake_device *about = &fake->device[device];
  MAY_FAIL;
  *value = attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT       ? about->processors
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? about->major
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? about->minor
                                                                       : about->shared_bytes;
  return CUDA_SUCCESS;
}
static CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  MAY_FAIL;
  fake->retained++;
  *context = to_context(device + 1);
  return CUDA_SUCCESS;
}
static CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = to_context(current());
  return CUDA_SUCCESS;
}
static CUresult cuCtxPushCurrent(CUcontext context) {
  MAY_FAIL;
  if (depth == 8)
    return CUDA_ERROR_INVALID_VALUE;
  stack[depth++] = (int)(uintptr_t)context;
  note("push %d\n", current());
  return CUDA_SUCCESS;
}
static CUresult cuCtxPopCurrent(CUcontext *context) {
  if (depth == 0)
    return ERROR_INVALID_CONTEXT;
  *context = to_context(current());
  depth--;
  note("pop\n");
  return CUDA_SUCCESS;
}
static CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  wait_for_device();
  MAY_FAIL;
  if (current() == 0)
    return ERROR_INVALID_CONTEXT;
  if (memcmp(image, "\177ELF", 4) != 0 && memcmp(image, "//", 2) != 0)
    return ERROR_INVALID_IMAGE;
  if (fake->memory_left == 0)
    return CUDA_ERROR_OUT_OF_MEMORY;
  *module = calloc(1, sizeof **module);
  (*module)->context = current();
  fake->loads++;
  return CUDA_SUCCESS;
}
static CUresult cuModuleUnload(CUmodule module) {
  wait_for_device();
  if (current() != module->context)
    return ERROR_INVALID_CONTEXT;
  free(module);
  fake->unloads++;
  return CUDA_SUCCESS;
}
static CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  MAY_FAIL;
  if (strncmp(name, "missing", 7) == 0)
    return ERROR_NOT_FOUND;
  struct CUfunc_st *made = calloc(1, sizeof *made);
  made->context = module->context;
  snprintf(made->name, sizeof made->name, "%s", name);
  made->next = functions; /* kept: a sanitizer would see them lost */
  functions = made;
  *function = made;
  return CUDA_SUCCESS;
}
static CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
  MAY_FAIL;
  note("attribute %d of %s = %d\n", attribute, function->name, value);
  return CUDA_SUCCESS;
}
static CUresult cuFuncLoad(CUfunction function) {
  note("load %s\n", function->name);
  return CUDA_SUCCESS;
}
static CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,
                               void **parameters, void **extra) {
  MAY_FAIL;
  if (current() != function->context)
    return ERROR_INVALID_CONTEXT;
  if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || extra)
    return CUDA_ERROR_INVALID_VALUE;
  note("launch %s grid=%u block=%u shared=%u stream=%d\n", function->name, grid_x, block_x, shared_bytes,
       (int)(uintptr_t)stream);
  fake->launches++;
  if (fake->run)
    fake->run(function->name, parameters[0], grid_x, block_x);
  for (int i = 0; i < fake->maps; i++)
    fake->mapped[i] = (void *)(uintptr_t)((const fa_cuda_tensor_map *)parameters[1 + i])->words[0];
  device_clock += fake->milliseconds;
  return CUDA_SUCCESS;
}

static CUresult cuStreamIsCapturing(CUstream stream, int *status) {
  (void)stream;
  MAY_FAIL;
  *status = fake->capture_status;
  return CUDA_SUCCESS;
}
static CUresult cuStreamSynchronize(CUstream stream) {
  MAY_FAIL;
  note("synchronize stream=%d\n", (int)(uintptr_t)stream);
  wait_for_device();
  return CUDA_SUCCESS;
}
static CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
  int before = fake->capture_mode;
  fake->capture_mode = *mode;
  *mode = before;
  note("capture mode %d\n", fake->capture_mode);
  return CUDA_SUCCESS;
}

struct CUevent_st {
  double time;
};
static CUresult cuEventCreate(CUevent *event, unsigned flags) {
  (void)flags;
  MAY_FAIL;
  *event = calloc(1, sizeof **event);
  fake->events++;
  return CUDA_SUCCESS;
}
static CUresult cuEventRecord(CUevent event, CUstream stream) {
  (void)stream;
  MAY_FAIL;
  event->time = device_clock;
  return CUDA_SUCCESS;
}
static CUresult cuEventSynchronize(CUevent event) {
  (void)event;
  MAY_FAIL;
  return CUDA_SUCCESS;
}
static CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  *milliseconds = (float)(end->time - start->time);
  return CUDA_SUCCESS;
}
static CUresult cuEventDestroy(CUevent event) {
  free(event);
  fake->events--;
  return CUDA_SUCCESS;
}

static CUresult cuMemAlloc(CUdeviceptr *memory, size_t bytes) {
  MAY_FAIL;
  if (current() == 0)
    return ERROR_INVALID_CONTEXT;
  if (fake->broken)
    return fake->broken;
  if (bytes > fake->memory_left)
    return CUDA_ERROR_OUT_OF_MEMORY;
  fake->allocations++;
  *memory = (CUdeviceptr)(uintptr_t)malloc(bytes);
  return CUDA_SUCCESS;
}
static CUresult cuMemGetInfo(size_t *available, size_t *total) {
  MAY_FAIL;
  if (current() == 0)
    return ERROR_INVALID_CONTEXT;
  *available = *total = fake->memory_left;
  return fake->broken;
}
static CUresult cuMemFree(CUdeviceptr memory) {
  MAY_FAIL;
  wait_for_device();
  fake->frees++;
  free((void *)(uintptr_t)memory);
  return CUDA_SUCCESS;
}
static CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  (void)stream;
  MAY_FAIL;
  memcpy((void *)(uintptr_t)to, from, bytes);
  return CUDA_SUCCESS;
}
static CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)stream;
  memcpy(to, (const void *)(uintptr_t)from, bytes);
  return CUDA_SUCCESS;
}
static CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)stream;
  memcpy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
  return CUDA_SUCCESS;
}
static CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
  (void)stream;
  MAY_FAIL;
  note("memset %zu\n", bytes);
  memset((void *)(uintptr_t)at, value, bytes);
  return CUDA_SUCCESS;
}
static CUresult cuMemsetD2D8Async(CUdeviceptr at, size_t pitch, unsigned char value, size_t width, size_t height,
                                  CUstream stream) {
  (void)stream;
  note("memset %zu x %zu pitch %zu\n", height, width, pitch);
  for (size_t row = 0; row < height; row++)
    memset((char *)(uintptr_t)at + row * pitch, value, width);
  return CUDA_SUCCESS;
}

static CUresult cuGetErrorName(CUresult error, const char **name) {
  *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_A_TEST";
  return CUDA_SUCCESS;
}
static CUresult cuGetErrorString(CUresult error, const char **words) {
  *words = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "a test's error";
  return CUDA_SUCCESS;
}

static CUresult cuTensorMapEncodeTiled(fa_cuda_tensor_map *map, int data_type, unsigned rank, void *address,
                                       const uint64_t *sizes, const uint64_t *strides, const unsigned *box,
                                       const unsigned *element_strides, int interleave, int swizzle, int l2_promotion,
                                       int fill) {
  (void)l2_promotion;
  MAY_FAIL;
  if ((uintptr_t)map % 64 != 0 || data_type != CU_TENSOR_MAP_DATA_TYPE_UINT16 || interleave != 0 || fill != 0)
    return CUDA_ERROR_INVALID_VALUE;
  note("map rank=%u swizzle=%d", rank, swizzle);
  for (unsigned i = 0; i < rank; i++) {
    bool bad_stride = i > 0 && (strides[i - 1] % 16 != 0 || strides[i - 1] == 0 || strides[i - 1] >= UINT64_C(1) << 40);
    if (sizes[i] == 0 || box[i] == 0 || box[i] > 256 || element_strides[i] != 1 || bad_stride)
      return CUDA_ERROR_INVALID_VALUE;
    note(" %llu/%llu/%u", (unsigned long long)sizes[i], i > 0 ? (unsigned long long)strides[i - 1] : 2, box[i]);
  }
  note("\n");
  map->words[0] = (uintptr_t)address;
  return CUDA_SUCCESS;
}

typedef void (*any_function)(void);
static const struct {
  const char *name;
  any_function function;
} table[] = {
#define ENTRY(name, parameters) {#name, (any_function)(name)},
    FA_CUDA_FUNCTIONS(ENTRY)
#undef ENTRY
        {"cuFuncLoad", (any_function)cuFuncLoad},
    {"cuTensorMapEncodeTiled", (any_function)cuTensorMapEncodeTiled}};

FA_API CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status);
FA_API CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status) {
  (void)flags;
  (void)status;
  *function = NULL;
  if (version > fake->version || (fake->missing && strcmp(fake->missing, name) == 0))
    return ERROR_NOT_FOUND;
  for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
    if (strcmp(table[i].name, name) == 0) {
      memcpy(function, &table[i].function, sizeof *function);
      return CUDA_SUCCESS;
    }
  return ERROR_NOT_FOUND;
}
