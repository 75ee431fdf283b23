/* See torch_cuda.h. */
#define _GNU_SOURCE
#include "python/torch_cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

typedef int32_t (*stream_function)(int32_t device_index, void **stream);

static stream_function get_stream;
static pthread_once_t stream_once = PTHREAD_ONCE_INIT;

/* NULL if the library is not in this process or does not have it. The handle is never closed. */
static void *find_symbol(const char *library, const char *name) {
  void *handle = dlopen(library, RTLD_NOLOAD | RTLD_NOW | RTLD_LOCAL);
  return handle ? dlsym(handle, name) : NULL;
}

static void find_stream(void) {
  void *found = find_symbol("libtorch_cuda.so", "aoti_torch_get_current_cuda_stream");
  memcpy(&get_stream, &found, sizeof get_stream);
}

void *torch_cuda_stream(int device_index, outcome *result) {
  void *stream = NULL;
  if (result->status != FA_OK)
    return NULL;
  pthread_once(&stream_once, find_stream);
  if (!get_stream)
    FAIL(result, FA_UNSUPPORTED, "this PyTorch has a cuda tensor but no aoti_torch_get_current_cuda_stream");
  else if (get_stream(device_index, &stream) != 0)
    FAIL(result, FA_FAILED, "PyTorch gives no current stream for device cuda:%d", device_index);
  return stream;
}

/* A workspace is a tensor of bytes: deleting it gives the memory back in the order of the stream. A call takes one,
 * the tuner one for each tensor and one more. */
enum { MAX_TAKEN = 16 };
static _Thread_local struct {
  void *memory;
  torch_tensor tensor;
} taken[MAX_TAKEN];

void *torch_cuda_allocate(int device_index, size_t bytes) {
  int at = 0;
  while (at < MAX_TAKEN && taken[at].memory)
    at++;
  if (at == MAX_TAKEN || bytes > INT64_MAX)
    return NULL;
  const int64_t size = bytes > 0 ? (int64_t)bytes : 1, stride = 1;
  torch_tensor tensor = NULL;
  void *memory = NULL;
  if (torch.aoti_torch_empty_strided(1, &size, &stride, torch.aoti_torch_dtype_uint8(), torch_cuda, device_index,
                                     &tensor) != 0)
    return NULL;
  if (torch.torch_get_mutable_data_ptr(tensor, &memory) != 0 || !memory) {
    torch.aoti_torch_delete_tensor_object(tensor);
    return NULL;
  }
  taken[at].memory = memory;
  taken[at].tensor = tensor;
  return memory;
}

void torch_cuda_release(void *memory) {
  for (int at = 0; at < MAX_TAKEN; at++)
    if (memory && taken[at].memory == memory) {
      torch.aoti_torch_delete_tensor_object(taken[at].tensor);
      taken[at].memory = NULL;
      return;
    }
}

/* The stable ABI has no function for it. These two of at::Context are plain enough to be called from C (a reference and
 * a const member function without arguments); if they ever change their names, results are deterministic. */
static void *(*get_context)(void);
static bool (*get_deterministic)(const void *context);
static pthread_once_t deterministic_once = PTHREAD_ONCE_INIT;

static void find_deterministic(void) {
  void *context = find_symbol("libtorch_cpu.so", "_ZN2at13globalContextEv");
  void *deterministic = find_symbol("libtorch_cpu.so", "_ZNK2at7Context23deterministicAlgorithmsEv");
  memcpy(&get_context, &context, sizeof get_context);
  memcpy(&get_deterministic, &deterministic, sizeof get_deterministic);
}

bool torch_is_deterministic(void) {
  pthread_once(&deterministic_once, find_deterministic);
  return !get_context || !get_deterministic || get_deterministic(get_context());
}

/* The same, of a function with two enums; at::Float32Precision's values are appended to, never renumbered. If it
 * changes its name, fp32 is full. Every way to allow TF32 ends here: set_float32_matmul_precision, allow_tf32,
 * fp32_precision of torch.backends or one of its parts, and the environment's TORCH_ALLOW_TF32_CUBLAS_OVERRIDE. */
enum { BACKEND_CUDA = 1, OP_MATMUL = 3, PRECISION_TF32 = 2 };
static int (*get_precision)(const void *context, int backend, int op);
static pthread_once_t precision_once = PTHREAD_ONCE_INIT;

static void find_precision(void) {
  void *precision =
      find_symbol("libtorch_cpu.so", "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE");
  memcpy(&get_precision, &precision, sizeof get_precision);
  pthread_once(&deterministic_once, find_deterministic);
}

bool torch_allows_tf32(void) {
  pthread_once(&precision_once, find_precision);
  return get_context && get_precision && get_precision(get_context(), BACKEND_CUDA, OP_MATMUL) == PRECISION_TF32;
}
