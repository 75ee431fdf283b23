/* See operand.h. */
#include "python/operand.h"

void read_operand(operand *tensor, torch_value handle, const char *name, outcome *result) {
  int64_t dim = 0;
  tensor->handle = (torch_tensor)(uintptr_t)handle;
  tensor->name = name;
  if (result->status != FA_OK)
    return;
  if (torch.aoti_torch_get_dim(tensor->handle, &dim) != 0 ||
      torch.aoti_torch_get_sizes(tensor->handle, &tensor->sizes) != 0 ||
      torch.aoti_torch_get_strides(tensor->handle, &tensor->strides) != 0 ||
      torch.aoti_torch_get_dtype(tensor->handle, &tensor->dtype) != 0 ||
      torch.aoti_torch_get_device_type(tensor->handle, &tensor->device_type) != 0 ||
      torch.aoti_torch_get_device_index(tensor->handle, &tensor->device_index) != 0)
    FAIL(result, FA_INVALID_TYPE, "%s is not a dense tensor", name);
  else if (dim != 4)
    FAIL(result, FA_INVALID_VALUE, "%s has %lld dimensions, must have 4", name, (long long)dim);
}

void check_shape(const operand *tensor, int64_t size0, int64_t size1, int64_t size2, int64_t size3, outcome *result) {
  if (result->status != FA_OK)
    return;
  const int64_t *s = tensor->sizes;
  if (s[0] != size0 || s[1] != size1 || s[2] != size2 || s[3] != size3)
    FAIL(result, FA_INVALID_VALUE, "%s has shape (%lld, %lld, %lld, %lld), must have (%lld, %lld, %lld, %lld)",
         tensor->name, (long long)s[0], (long long)s[1], (long long)s[2], (long long)s[3], (long long)size0,
         (long long)size1, (long long)size2, (long long)size3);
}

void check_same_kind(const operand *tensor, const operand *query, int32_t dtype, outcome *result) {
  if (result->status != FA_OK)
    return;
  if (tensor->device_type != query->device_type || tensor->device_index != query->device_index)
    FAIL(result, FA_INVALID_VALUE, "%s is not on the device of query", tensor->name);
  else if (tensor->dtype != dtype)
    FAIL(result, FA_INVALID_TYPE, "%s has another dtype than it must have", tensor->name);
}

void check_contiguous(const operand *tensor, outcome *result) {
  if (result->status != FA_OK)
    return;
  int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    if (tensor->sizes[i] == 0)
      return;
    if (tensor->sizes[i] > 1 && tensor->strides[i] != stride)
      FAIL(result, FA_INVALID_VALUE, "%s is not contiguous, must be", tensor->name);
    stride *= tensor->sizes[i];
  }
}

void view_input(const operand *tensor, struct fa_tensor *view, outcome *result) {
  const void *data = NULL;
  if (result->status != FA_OK)
    return;
  if (torch.torch_get_const_data_ptr(tensor->handle, &data) != 0)
    FAIL(result, FA_INVALID_TYPE, "%s has no memory", tensor->name);
  const int64_t *s = tensor->strides;
  *view = (struct fa_tensor){(void *)(uintptr_t)data, s[0], s[1], s[2], s[3]};
}

/* Wraps where a stride cannot mean anything any more; such a tensor cannot be allocated. */
static int64_t multiply(int64_t a, int64_t b) { return (int64_t)((uint64_t)a * (uint64_t)b); }

static int64_t at_least_one(int64_t size) { return size > 1 ? size : 1; }

/*
 * Dense strides for `sizes` with the dimensions in the order in which `like` has them in memory; contiguous
 * where like overlaps itself (expanded) or is empty. operators.py says the same to the fake kernels.
 */
static void dense_strides(const int64_t sizes[4], const operand *like, int64_t strides[4]) {
  int order[4] = {0, 1, 2, 3};
  int64_t memory[4];
  bool plain = false;
  for (int i = 3; i >= 0; --i) { /* the stride of a dimension of size 1 says nothing: take a contiguous one's */
    int64_t inner = i == 3 ? 1 : multiply(memory[i + 1], at_least_one(like->sizes[i + 1]));
    memory[i] = like->sizes[i] == 1 ? inner : like->strides[i];
    plain |= like->sizes[i] == 0;
  }
  for (int i = 1; i < 4; ++i) /* stable, largest stride first */
    for (int j = i; j > 0 && memory[order[j - 1]] < memory[order[j]]; --j) {
      int swap = order[j];
      order[j] = order[j - 1], order[j - 1] = swap;
    }
  int64_t extent = 1; /* elements from the first to the last of the dimensions so far */
  for (int i = 3; i >= 0; --i) {
    if (like->sizes[order[i]] <= 1)
      continue;
    plain |= memory[order[i]] < extent;
    extent += multiply(like->sizes[order[i]] - 1, memory[order[i]]);
  }
  int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    int dimension = plain ? i : order[i];
    strides[dimension] = stride;
    stride = multiply(stride, at_least_one(sizes[dimension]));
  }
}

/* PyTorch does not say why it gives no memory. */
static void explain_no_memory(const operand *like, const char *name, outcome *result) {
  if (like->device_type == torch_cuda)
    result->status = fa_check_device(FA_DEVICE_CUDA, like->device_index, result->message);
  if (result->status == FA_OK)
    FAIL(result, FA_OUT_OF_MEMORY, "no memory for %s", name);
}

/* A new tensor on the device of `like`; NULL and a failed outcome if there is no memory. */
static torch_tensor allocate(int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype,
                             const operand *like, const char *name, outcome *result) {
  torch_tensor tensor = NULL;
  if (result->status != FA_OK)
    return NULL;
  if (torch.aoti_torch_empty_strided(dim, sizes, strides, dtype, like->device_type, like->device_index, &tensor) != 0)
    explain_no_memory(like, name, result);
  return tensor;
}

torch_tensor allocate_dense(const int64_t sizes[4], const operand *like, const char *name, struct fa_tensor *view,
                            outcome *result) {
  int64_t s[4];
  dense_strides(sizes, like, s);
  torch_tensor tensor = allocate(4, sizes, s, like->dtype, like, name, result);
  void *data = NULL;
  if (result->status == FA_OK && torch.torch_get_mutable_data_ptr(tensor, &data) != 0)
    FAIL(result, FA_FAILED, "%s has no memory", name);
  *view = (struct fa_tensor){data, s[0], s[1], s[2], s[3]};
  return tensor;
}

torch_tensor allocate_contiguous(int64_t dim, const int64_t *sizes, int32_t dtype, const operand *like,
                                 const char *name, void **data, outcome *result) {
  int64_t strides[4], stride = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    strides[i] = stride;
    stride = multiply(stride, at_least_one(sizes[i]));
  }
  torch_tensor tensor = allocate(dim, sizes, strides, dtype, like, name, result);
  if (result->status == FA_OK && torch.torch_get_mutable_data_ptr(tensor, data) != 0)
    FAIL(result, FA_FAILED, "%s has no memory", name);
  return tensor;
}
