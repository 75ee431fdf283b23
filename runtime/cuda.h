/*
 * The parts of the CUDA target: the driver (cuda_driver.h), devices and their contexts, NVRTC, loading, launching and
 * timing. nvrtc.h is the compiler; target_cuda.c puts them together.
 */
#ifndef FLASH_ATTENTION_CUDA_H
#define FLASH_ATTENTION_CUDA_H

#include "runtime/cuda_driver.h"
#include "runtime/target.h"

/* --- cuda_arch.c */
typedef struct fa_cuda_arch {
  int number;  /* 90 */
  char suffix; /* 'a' or 'f': instructions of this architecture alone; else 0 */
} fa_cuda_arch;
bool fa_cuda_parse_target(const char *target, fa_cuda_arch *arch); /* "cuda:sm_90a" */
/* The target of a GPU of this compute capability, as far as the generator has kernels for it. */
fa_status fa_cuda_device_target(int major, int minor, char target[FA_TARGET_LENGTH], char *message);
bool fa_cuda_lower_target(const char *target, char lower[FA_TARGET_LENGTH]);
/* What to ask of an NVRTC that knows the `supported` architectures. FA_UNSUPPORTED: it cannot. */
typedef struct fa_cuda_choice {
  char name[32]; /* "sm_90a", "compute_120" */
  bool is_ptx;
} fa_cuda_choice;
fa_status fa_cuda_choose_arch(const char *target, const int *supported, int count, fa_cuda_choice *choice,
                              char *message);

/* --- cuda_device.c */
fa_status fa_cuda_describe(int index, fa_device *device, char *message);
/* The driver, with this device's primary context (PyTorch's) current on this thread; the context that was current is
 * put back by fa_cuda_leave. A device is entered on every call, so that this is short when it is current already. */
typedef struct fa_cuda_entered {
  const fa_cuda_driver *cuda;
  bool pushed;
} fa_cuda_entered;
fa_status fa_cuda_enter(int index, fa_cuda_entered *entered, char *message);
void fa_cuda_leave(const fa_cuda_entered *entered);
void fa_cuda_info(char *text, size_t size);

/* --- cuda_compiler.c */
fa_status fa_cuda_compiler_identity(char identity[FA_COMPILER_LENGTH], char *message);
fa_status fa_cuda_compile(const fa_problem *problem, const fa_kernel *kernel, fa_compiled *compiled, char *message);
void fa_cuda_compiler_info(char *text, size_t size);
/* What a log made with --ptxas-options=-v says of the kernels: the most that one of them takes. */
void fa_cuda_read_usage(const char *log, fa_compiled *compiled);

/* --- cuda_loader.c */
fa_status fa_cuda_load(const fa_device *device, const fa_kernel *kernel, const void *image, size_t length,
                       fa_loaded *loaded, char *message);
void fa_cuda_unload(const fa_device *device, fa_loaded *loaded);

/* --- cuda_maps.c */
void fa_cuda_fit_target(const fa_device *device, const fa_call *call, fa_problem *problem);
fa_status fa_cuda_encode_map(const fa_cuda_driver *cuda, const fa_tensor_map *map, const struct fa_params *params,
                             fa_cuda_tensor_map *encoded, char *message);

/* --- cuda_launch.c */
fa_status fa_cuda_launch(const fa_launch *launch, const fa_host *host, char *message);
fa_status fa_cuda_time(const fa_launch *launch, const fa_host *host, double *seconds, char *message);
bool fa_cuda_is_capturing(const fa_device *device, void *stream);

/* --- cuda_memory.c */
fa_status fa_cuda_zero(const fa_call *call, const struct fa_tensor *tensor, const int64_t size[4], size_t element_size,
                       char *message);
fa_status fa_cuda_copy(const fa_device *device, void *stream, void *to, const void *from, size_t bytes,
                       fa_copy_kind kind, char *message);
fa_status fa_cuda_check(const fa_device *device, char *message);
fa_status fa_cuda_settle(const fa_device *device, void *stream, char *message);
/* For the default host: plain allocations. */
void *fa_cuda_allocate(int device_index, size_t bytes);
void fa_cuda_release(int device_index, void *memory);

#endif
