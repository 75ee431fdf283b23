/*
 * PyTorch's tensors as the operators see them: read and checked, viewed as the kernels want them, allocated.
 *
 * A function that can fail takes an outcome and does nothing if that has failed already, so that an operator
 * reads as a list of steps and looks at the outcome once, at the end.
 */
#ifndef FLASH_ATTENTION_OPERAND_H
#define FLASH_ATTENTION_OPERAND_H

#include "python/torch_abi.h"
#include "runtime/flash_attention.h"

#include <stdio.h>

/* PyTorch's functions and numbers, filled when the operators are registered. */
extern torch_abi torch;
extern int32_t torch_cpu, torch_cuda, torch_dtypes[3]; /* device types; dtypes in fa_dtype's order */

/* Status of a call under way, and its message once the status is not FA_OK. */
typedef struct outcome {
  fa_status status;
  char message[FA_MESSAGE_SIZE];
} outcome;

#define FAIL(outcome, code, ...)                                                                                       \
  ((outcome)->status = (code), (void)snprintf((outcome)->message, FA_MESSAGE_SIZE, __VA_ARGS__))

typedef struct operand {
  torch_tensor handle;
  const char *name;
  int64_t *sizes, *strides; /* four of each, borrowed from the tensor */
  int32_t dtype, device_type, device_index;
} operand;

/* Look at an input, a borrowed handle on an operator's stack. It must have four dimensions. */
void read_operand(operand *tensor, torch_value handle, const char *name, outcome *result);
void check_shape(const operand *tensor, int64_t size0, int64_t size1, int64_t size2, int64_t size3, outcome *result);
void check_same_kind(const operand *tensor, const operand *query, int32_t dtype, outcome *result);
void check_contiguous(const operand *tensor, outcome *result);
void view_input(const operand *tensor, struct fa_tensor *view, outcome *result);

/* New tensors on the device of `like`, owned by the caller: NULL and a failed outcome if there is no memory.
 * allocate_dense: like's dtype, dimensions in the order in which like has them in memory. */
torch_tensor allocate_dense(const int64_t sizes[4], const operand *like, const char *name, struct fa_tensor *view,
                            outcome *result);
torch_tensor allocate_contiguous(int64_t dim, const int64_t *sizes, int32_t dtype, const operand *like,
                                 const char *name, void **data, outcome *result);

#endif
