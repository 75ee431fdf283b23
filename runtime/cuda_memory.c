/*
 * Bytes on a GPU: zeros, copies, plain allocations for the default host, and what these wait for.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <limits.h>
#include <string.h>

static CUdeviceptr address_of(const void *memory) { return (CUdeviceptr)(uintptr_t)memory; }

/* Up to four dimensions of bytes, outermost first: sizes, strides, and the bytes that lie together. */
typedef struct region {
  int dims;
  int64_t size[4], stride[4], width;
} region;

/* Drop dimensions of size 1, sort the others by their strides and join what lies dense. False: it is empty. */
static bool simplify(const struct fa_tensor *tensor, const int64_t size[4], int64_t element_size, region *made) {
  const int64_t stride[4] = {tensor->stride_batch, tensor->stride_head, tensor->stride_row, tensor->stride_col};
  made->dims = 0;
  made->width = element_size;
  for (int i = 0; i < 4; i++) {
    if (size[i] == 0)
      return false;
    if (size[i] == 1)
      continue;
    int at = made->dims++;
    for (; at > 0 && made->stride[at - 1] < stride[i] * element_size; at--) {
      made->size[at] = made->size[at - 1];
      made->stride[at] = made->stride[at - 1];
    }
    made->size[at] = size[i];
    made->stride[at] = stride[i] * element_size;
  }
  while (made->dims > 0 && made->stride[made->dims - 1] == made->width)
    made->width *= made->size[--made->dims];
  for (int i = made->dims - 1; i > 0; i--) {
    if (made->stride[i - 1] != made->size[i] * made->stride[i])
      continue;
    made->size[i - 1] *= made->size[i];
    made->dims--;
    for (int j = i - 1; j < made->dims; j++) { /* i goes away; i - 1 takes its stride */
      made->stride[j] = made->stride[j + 1];
      made->size[j] = j == i - 1 ? made->size[j] : made->size[j + 1];
    }
  }
  return true;
}

static CUresult fill(const fa_cuda_driver *cuda, const region *what, int dim, CUdeviceptr at, CUstream stream) {
  if (dim == what->dims)
    return cuda->cuMemsetD8Async(at, 0, (size_t)what->width, stream);
  const int64_t size = what->size[dim], stride = what->stride[dim];
  if (dim + 1 == what->dims && stride >= what->width &&
      stride <= INT_MAX) /* rows with gaps; the driver's limit on a pitch */
    return cuda->cuMemsetD2D8Async(at, (size_t)stride, 0, (size_t)what->width, (size_t)size, stream);
  CUresult error = CUDA_SUCCESS;
  for (int64_t i = 0; i < size && error == CUDA_SUCCESS; i++)
    error = fill(cuda, what, dim + 1, at + (CUdeviceptr)(i * stride), stream);
  return error;
}

fa_status fa_cuda_zero(const fa_call *call, const struct fa_tensor *tensor, const int64_t size[4], size_t element_size,
                       char *message) {
  region what;
  fa_cuda_entered entered;
  if (!simplify(tensor, size, (int64_t)element_size, &what))
    return FA_OK;
  fa_status status = fa_cuda_enter(call->device_index, &entered, message);
  if (status != FA_OK)
    return status;
  CUresult error = fill(entered.cuda, &what, 0, address_of(tensor->data), call->stream);
  if (error != CUDA_SUCCESS)
    status = fa_cuda_fail(entered.cuda, error, "filling a tensor with zeros", message);
  fa_cuda_leave(&entered);
  return status;
}

fa_status fa_cuda_copy(const fa_device *device, void *stream, void *to, const void *from, size_t bytes,
                       fa_copy_kind kind, char *message) {
  fa_cuda_entered entered;
  fa_status status = fa_cuda_enter(device->index, &entered, message);
  if (status != FA_OK)
    return status;
  const fa_cuda_driver *cuda = entered.cuda;
  CUresult error = CUDA_SUCCESS;
  if (kind == FA_COPY_ON_DEVICE)
    error = cuda->cuMemcpyDtoDAsync(address_of(to), address_of(from), bytes, stream);
  else if (kind == FA_COPY_TO_DEVICE)
    error = cuda->cuMemcpyHtoDAsync(address_of(to), from, bytes, stream);
  else
    error = cuda->cuMemcpyDtoHAsync(to, address_of(from), bytes, stream);
  if (error == CUDA_SUCCESS && kind != FA_COPY_ON_DEVICE)
    error = cuda->cuStreamSynchronize(stream);
  if (error != CUDA_SUCCESS)
    status = fa_cuda_fail(cuda, error, "copying to or from a CUDA device", message);
  fa_cuda_leave(&entered);
  return status;
}

/* Once a kernel has failed, every call of its context reports that, and no allocation succeeds. To ask how much memory
 * there is is allowed in a capture too. */
fa_status fa_cuda_check(const fa_device *device, char *message) {
  fa_cuda_entered entered;
  size_t available, total;
  fa_status status = fa_cuda_enter(device->index, &entered, message);
  if (status != FA_OK)
    return status;
  CUresult error = entered.cuda->cuMemGetInfo(&available, &total);
  if (error != CUDA_SUCCESS && error != CUDA_ERROR_OUT_OF_MEMORY)
    status = fa_cuda_fail(entered.cuda, error, "allocating memory on a CUDA device", message);
  fa_cuda_leave(&entered);
  return status;
}

void *fa_cuda_allocate(int device_index, size_t bytes) {
  fa_cuda_entered entered;
  char ignored[FA_MESSAGE_SIZE];
  CUdeviceptr memory = 0;
  if (fa_cuda_enter(device_index, &entered, ignored) != FA_OK)
    return NULL;
  if (entered.cuda->cuMemAlloc(&memory, bytes ? bytes : 1) != CUDA_SUCCESS)
    memory = 0;
  fa_cuda_leave(&entered);
  return (void *)(uintptr_t)memory;
}

/* The driver waits for what still uses it. */
void fa_cuda_release(int device_index, void *memory) {
  fa_cuda_entered entered;
  char ignored[FA_MESSAGE_SIZE];
  if (!memory || fa_cuda_enter(device_index, &entered, ignored) != FA_OK)
    return;
  entered.cuda->cuMemFree(address_of(memory));
  fa_cuda_leave(&entered);
}

/* To free memory waits for the whole context, like cuCtxSynchronize, which would end the capture of a stream by another
 * thread, whatever the mode (both measured: driver 13, H200). Where there is no memory, at least the stream. */
fa_status fa_cuda_settle(const fa_device *device, void *stream, char *message) {
  fa_cuda_entered entered;
  fa_status status = fa_cuda_enter(device->index, &entered, message);
  if (status != FA_OK)
    return status;
  CUdeviceptr memory = 0;
  CUresult error = entered.cuda->cuStreamSynchronize(stream);
  if (error == CUDA_SUCCESS && entered.cuda->cuMemAlloc(&memory, 1) == CUDA_SUCCESS)
    error = entered.cuda->cuMemFree(memory);
  if (error != CUDA_SUCCESS)
    status = fa_cuda_fail(entered.cuda, error, "waiting for earlier work on a CUDA device", message);
  fa_cuda_leave(&entered);
  return status;
}
