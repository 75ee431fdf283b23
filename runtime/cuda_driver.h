/*
 * The part of the CUDA driver's API that the runtime uses, declared here so that building needs nothing of CUDA: one
 * build works on machines with and without a GPU. Names, types and numbers are those of NVIDIA's cuda.h.
 *
 *     const fa_cuda_driver *cuda;
 *     if (fa_cuda_get_driver(&cuda, message) == FA_OK) cuda->cuDeviceGetCount(&count);
 */
#ifndef FLASH_ATTENTION_CUDA_DRIVER_H
#define FLASH_ATTENTION_CUDA_DRIVER_H

#include "runtime/flash_attention.h"

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;

enum {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NO_DEVICE = 100,
  CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,

  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
  CU_STREAM_CAPTURE_STATUS_NONE = 0,
  CU_STREAM_CAPTURE_MODE_RELAXED = 2,
  CU_EVENT_DEFAULT = 0,

  CU_TENSOR_MAP_DATA_TYPE_UINT16 = 1,
  CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
  CU_TENSOR_MAP_SWIZZLE_128B = 3,
  CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0
};

/* CUtensorMap: a kernel takes it by value. */
typedef struct fa_cuda_tensor_map {
  _Alignas(64) uint64_t words[16];
} fa_cuda_tensor_map;

/* name, parameters; each returns a CUresult. All are in CUDA 11.4 and newer. */
#define FA_CUDA_FUNCTIONS(F)                                                                                           \
  F(cuInit, (unsigned flags))                                                                                          \
  F(cuDriverGetVersion, (int *version))                                                                                \
  F(cuDeviceGetCount, (int *count))                                                                                    \
  F(cuDeviceGet, (CUdevice *, int ordinal))                                                                            \
  F(cuDeviceGetName, (char *name, int size, CUdevice))                                                                 \
  F(cuDeviceGetAttribute, (int *value, int attribute, CUdevice))                                                       \
  F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                                 \
  F(cuCtxGetCurrent, (CUcontext *))                                                                                    \
  F(cuCtxPushCurrent, (CUcontext))                                                                                     \
  F(cuCtxPopCurrent, (CUcontext *))                                                                                    \
  F(cuModuleLoadData, (CUmodule *, const void *image))                                                                 \
  F(cuModuleUnload, (CUmodule))                                                                                        \
  F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *name))                                                   \
  F(cuFuncSetAttribute, (CUfunction, int attribute, int value))                                                        \
  F(cuLaunchKernel,                                                                                                    \
    (CUfunction, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,                \
     unsigned block_z, unsigned shared_bytes, CUstream, void **parameters, void **extra))                              \
  F(cuStreamIsCapturing, (CUstream, int *status))                                                                      \
  F(cuStreamSynchronize, (CUstream))                                                                                   \
  F(cuThreadExchangeStreamCaptureMode, (int *mode))                                                                    \
  F(cuEventCreate, (CUevent *, unsigned flags))                                                                        \
  F(cuEventRecord, (CUevent, CUstream))                                                                                \
  F(cuEventSynchronize, (CUevent))                                                                                     \
  F(cuEventElapsedTime, (float *milliseconds, CUevent start, CUevent end))                                             \
  F(cuEventDestroy, (CUevent))                                                                                         \
  F(cuMemAlloc, (CUdeviceptr *, size_t bytes))                                                                         \
  F(cuMemGetInfo, (size_t * available, size_t * total))                                                                \
  F(cuMemFree, (CUdeviceptr))                                                                                          \
  F(cuMemcpyHtoDAsync, (CUdeviceptr to, const void *from, size_t bytes, CUstream))                                     \
  F(cuMemcpyDtoHAsync, (void *to, CUdeviceptr from, size_t bytes, CUstream))                                           \
  F(cuMemcpyDtoDAsync, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream))                                     \
  F(cuMemsetD8Async, (CUdeviceptr, unsigned char value, size_t bytes, CUstream))                                       \
  F(cuMemsetD2D8Async, (CUdeviceptr, size_t pitch, unsigned char value, size_t width, size_t height, CUstream))        \
  F(cuGetErrorName, (CUresult, const char **))                                                                         \
  F(cuGetErrorString, (CUresult, const char **))

typedef struct fa_cuda_driver {
#define FA_CUDA_MEMBER(name, parameters) CUresult(*name) parameters;
  FA_CUDA_FUNCTIONS(FA_CUDA_MEMBER)
#undef FA_CUDA_MEMBER
  CUresult (*cuFuncLoad)(CUfunction); /* NULL before CUDA 12.4 */
  /* NULL before CUDA 12.0 */
  CUresult (*cuTensorMapEncodeTiled)(fa_cuda_tensor_map *, int data_type, unsigned rank, void *address,
                                     const uint64_t *sizes, const uint64_t *strides, const unsigned *box,
                                     const unsigned *element_strides, int interleave, int swizzle, int l2_promotion,
                                     int fill);
  int version; /* 13020 is CUDA 13.2 */
} fa_cuda_driver;

/* The driver, initialised; the same answer for the life of the process. FA_UNSUPPORTED: there is none, or no GPU. */
fa_status fa_cuda_get_driver(const fa_cuda_driver **driver, char *message);

/* What was tried, and the driver's name and words for the error. FA_OUT_OF_MEMORY if that is what it is. */
fa_status fa_cuda_fail(const fa_cuda_driver *cuda, CUresult error, const char *what, char *message);

/* The library that is opened; tests put another one here before the first call. */
extern const char *fa_cuda_driver_name;

#endif
