/*
 * The part of LibTorch's stable C ABI that the binding uses, declared here so that building needs nothing of
 * PyTorch: torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h of PyTorch 2.10.
 *
 * PyTorch loads its libraries RTLD_LOCAL, so undefined symbols would not resolve: torch_abi_load looks each
 * function up in the libtorch_cpu.so that this process already holds. Everything but the last two groups
 * returns 0 on success.
 */
#ifndef FLASH_ATTENTION_TORCH_ABI_H
#define FLASH_ATTENTION_TORCH_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct torch_tensor_opaque *torch_tensor;   /* at::Tensor * */
typedef struct torch_library_opaque *torch_library; /* torch::Library * */
typedef uint64_t torch_value;                       /* a number, a bool or a handle, in its low bytes */
typedef void (*torch_boxed_function)(torch_value *stack, uint64_t num_inputs, uint64_t num_outputs);
typedef void (*torch_range_function)(int64_t begin, int64_t end, void *context);

/* The ABI that this file was written against, as torch_library_impl wants to know it: 2.10.0. */
#define TORCH_BUILD_VERSION ((UINT64_C(2) << 56) | (UINT64_C(10) << 48))

/* return type, name, parameters */
#define TORCH_FUNCTIONS(F)                                                                                             \
  F(int32_t, aoti_torch_library_init_fragment, (const char *space, const char *file, uint32_t line, torch_library *))  \
  F(int32_t, aoti_torch_library_init_impl,                                                                             \
    (const char *space, const char *key, const char *file, uint32_t line, torch_library *))                            \
  F(int32_t, aoti_torch_library_def, (torch_library, const char *schema))                                              \
  F(int32_t, torch_library_impl, (torch_library, const char *name, torch_boxed_function, uint64_t build_version))      \
  F(int32_t, aoti_torch_get_dim, (torch_tensor, int64_t *))                                                            \
  F(int32_t, aoti_torch_get_sizes, (torch_tensor, int64_t * *borrowed))                                                \
  F(int32_t, aoti_torch_get_strides, (torch_tensor, int64_t * *borrowed))                                              \
  F(int32_t, aoti_torch_get_dtype, (torch_tensor, int32_t *))                                                          \
  F(int32_t, aoti_torch_get_device_type, (torch_tensor, int32_t *))                                                    \
  F(int32_t, aoti_torch_get_device_index, (torch_tensor, int32_t *))                                                   \
  F(int32_t, torch_get_const_data_ptr, (torch_tensor, const void **borrowed))                                          \
  F(int32_t, torch_get_mutable_data_ptr, (torch_tensor, void **borrowed))                                              \
  F(int32_t, aoti_torch_empty_strided,                                                                                 \
    (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type,                    \
     int32_t device_index, torch_tensor *owned))                                                                       \
  F(int32_t, aoti_torch_delete_tensor_object, (torch_tensor))                                                          \
  F(int32_t, torch_parallel_for,                                                                                       \
    (int64_t begin, int64_t end, int64_t grain_size, torch_range_function, void *context))                             \
  F(int32_t, torch_get_num_threads, (uint32_t *))                                                                      \
  /* These return what their name says. */                                                                             \
  F(int32_t, aoti_torch_device_type_cpu, (void))                                                                       \
  F(int32_t, aoti_torch_device_type_cuda, (void))                                                                      \
  F(int32_t, aoti_torch_dtype_float32, (void))                                                                         \
  F(int32_t, aoti_torch_dtype_float16, (void))                                                                         \
  F(int32_t, aoti_torch_dtype_bfloat16, (void))                                                                        \
  F(int32_t, aoti_torch_dtype_uint8, (void))                                                                           \
  /* Throws a C++ RuntimeError through its caller's frames unless the condition holds: the caller is compiled with     \
   * -fexceptions and owns nothing by then. */                                                                         \
  F(void, aoti_torch_check,                                                                                            \
    (bool condition, const char *function, const char *file, uint32_t line, const char *message))

typedef struct torch_abi {
#define TORCH_MEMBER(type, name, parameters) type(*name) parameters;
  TORCH_FUNCTIONS(TORCH_MEMBER)
#undef TORCH_MEMBER
} torch_abi;

/* Fill the table. NULL on success, "" where this process holds no PyTorch, else one sentence that says what
 * is wrong (static text). */
const char *torch_abi_load(torch_abi *torch);

#endif
