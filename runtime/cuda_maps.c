/*
 * Tensor maps: what the Tensor Memory Accelerator must know of a tensor. They are encoded on every call, from the
 * caller's addresses and strides; a tensor that they cannot describe goes to kernels that do without.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <string.h>

enum { RANK = 4, COLS_OF_BOX = 64, ELEMENT_BYTES = 2, ALIGNMENT = 16 };

/* cuTensorMapEncodeTiled: addresses and strides are multiples of 16 bytes, strides below 2^40. */
static const int64_t STRIDE_LIMIT = INT64_C(1) << 40;

typedef struct extent {
  const struct fa_tensor *tensor;
  int64_t rows, heads;
} extent;

static bool fits_stride(int64_t stride, int64_t size) {
  int64_t bytes = stride * ELEMENT_BYTES;
  return size <= 1 || (bytes > 0 && bytes < STRIDE_LIMIT && bytes % ALIGNMENT == 0);
}

static bool can_map(extent of, int64_t batch) {
  const struct fa_tensor *tensor = of.tensor;
  return (uintptr_t)tensor->data % ALIGNMENT == 0 && tensor->stride_col == 1 &&
         fits_stride(tensor->stride_row, of.rows) && fits_stride(tensor->stride_head, of.heads) &&
         fits_stride(tensor->stride_batch, batch) && of.rows <= UINT32_MAX && batch <= UINT32_MAX;
}

void fa_cuda_fit_target(const fa_device *device, const fa_call *call, fa_problem *problem) {
  const fa_shape *shape = &call->shape;
  char lower[FA_TARGET_LENGTH];
  (void)device;
  if (!fa_needs_tensor_maps(problem))
    return;
  bool mapped = (call->op == FA_FORWARD ||
                 can_map((extent){&call->grad_output, shape->seqlen_q, shape->heads_q}, shape->batch)) &&
                can_map((extent){&call->query, shape->seqlen_q, shape->heads_q}, shape->batch) &&
                can_map((extent){&call->key, shape->seqlen_k, shape->heads_kv}, shape->batch) &&
                can_map((extent){&call->value, shape->seqlen_k, shape->heads_kv}, shape->batch);
  if (!mapped && fa_cuda_lower_target(problem->target, lower))
    memcpy(problem->target, lower, sizeof lower);
}

static extent extent_of(const struct fa_params *params, fa_mapped tensor) {
  switch (tensor) {
  case FA_MAP_QUERY:
    return (extent){&params->query, params->seqlen_q, params->heads_q};
  case FA_MAP_GRAD_OUTPUT:
    return (extent){&params->grad_output, params->seqlen_q, params->heads_q};
  case FA_MAP_KEY:
    return (extent){&params->key, params->seqlen_k, params->heads_kv};
  default:
    return (extent){&params->value, params->seqlen_k, params->heads_kv};
  }
}

/* A dimension of size 1 may have any stride: one that is allowed. */
static uint64_t stride_bytes(int64_t stride, int64_t size) {
  return size <= 1 ? ALIGNMENT : (uint64_t)(stride * ELEMENT_BYTES);
}

fa_status fa_cuda_encode_map(const fa_cuda_driver *cuda, const fa_tensor_map *map, const struct fa_params *params,
                             fa_cuda_tensor_map *encoded, char *message) {
  const extent of = extent_of(params, map->tensor);
  const uint64_t sizes[RANK] = {(uint64_t)map->cols, (uint64_t)of.rows, (uint64_t)of.heads, (uint64_t)params->batch};
  const uint64_t strides[RANK - 1] = {stride_bytes(of.tensor->stride_row, of.rows),
                                      stride_bytes(of.tensor->stride_head, of.heads),
                                      stride_bytes(of.tensor->stride_batch, params->batch)};
  const unsigned box[RANK] = {COLS_OF_BOX, (unsigned)map->rows, 1, 1}, steps[RANK] = {1, 1, 1, 1};
  CUresult error =
      cuda->cuTensorMapEncodeTiled(encoded, CU_TENSOR_MAP_DATA_TYPE_UINT16, RANK, of.tensor->data, sizes, strides, box,
                                   steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error == CUDA_SUCCESS ? FA_OK : fa_cuda_fail(cuda, error, "describing a tensor to TMA", message);
}
