/*
 * Is a call one that can be run? Each message names the argument, what it was and what it must be.
 */
#include "runtime/runtime.h"

#include <float.h>
#include <limits.h>
#include <math.h>

static fa_status check_enum(const char *name, unsigned value, unsigned count, const char *choices, char *message) {
  if (value < count)
    return FA_OK;
  return fa_fail(FA_INVALID_VALUE, message, "%s is %u; it must be one of %s", name, value, choices);
}

static fa_status check_kind(const fa_call *call, char *message) {
  fa_status status = check_enum("op", call->op, 2, "FA_FORWARD, FA_BACKWARD", message);
  if (status == FA_OK)
    status = check_enum("dtype", call->dtype, 3, "FA_FP32, FA_FP16, FA_BF16", message);
  if (status == FA_OK)
    status = check_enum("precision", call->precision, 2, "FA_PRECISION_FULL, FA_PRECISION_REDUCED", message);
  if (status == FA_OK)
    status = check_enum("device_type", call->device_type, 2, "FA_DEVICE_CPU, FA_DEVICE_CUDA", message);
  if (status == FA_OK && !(fabs(call->softmax_scale) <= FLT_MAX))
    status = fa_fail(FA_INVALID_VALUE, message, "softmax_scale is %g; it must be finite in float32 (at most %.4e)",
                     call->softmax_scale, FLT_MAX);
  return status;
}

static fa_status check_head_dim(const char *name, int head_dim, char *message) {
  if (head_dim >= 1 && head_dim <= FA_MAX_HEAD_DIM)
    return FA_OK;
  return fa_fail(FA_INVALID_VALUE, message, "%s is %d; it must be 1 to %d", name, head_dim, FA_MAX_HEAD_DIM);
}

static fa_status check_shape(const fa_call *call, char *message) {
  const fa_shape *shape = &call->shape;
  const struct {
    const char *name;
    int64_t value;
  } sizes[] = {{"batch", shape->batch},
               {"heads_q", shape->heads_q},
               {"heads_kv", shape->heads_kv},
               {"seqlen_q", shape->seqlen_q},
               {"seqlen_k", shape->seqlen_k}};
  for (int i = 0; i < 5; i++)
    if (sizes[i].value < 0)
      return fa_fail(FA_INVALID_VALUE, message, "%s is %lld; it must be 0 or more", sizes[i].name,
                     (long long)sizes[i].value);
  if (call->device_type == FA_DEVICE_CUDA) /* positions within a sequence are ints there */
    for (int i = 3; i < 5; i++)
      if (sizes[i].value > INT_MAX / 2)
        return fa_fail(FA_UNSUPPORTED, message, "%s is %lld; on a GPU it must be at most %d", sizes[i].name,
                       (long long)sizes[i].value, INT_MAX / 2);
  bool divides = shape->heads_kv > 0 ? shape->heads_q % shape->heads_kv == 0 : shape->heads_q == 0;
  if (!divides)
    return fa_fail(FA_INVALID_VALUE, message, "heads_q is %lld and heads_kv is %lld; heads_kv must divide heads_q",
                   (long long)shape->heads_q, (long long)shape->heads_kv);
  fa_status status = check_head_dim("head_dim", call->head_dim, message);
  return status == FA_OK ? check_head_dim("head_dim_v", call->head_dim_v, message) : status;
}

static fa_status check_data(const char *name, const void *data, bool needed, char *message) {
  if (data || !needed)
    return FA_OK;
  return fa_fail(FA_INVALID_VALUE, message, "%s has no data; it must not be NULL here", name);
}

fa_status fa_check_call(const fa_call *call, char *message) {
  fa_status status = check_kind(call, message);
  if (status == FA_OK)
    status = check_shape(call, message);
  if (status != FA_OK)
    return status;
  const fa_shape *shape = &call->shape;
  bool queries = shape->batch > 0 && shape->heads_q > 0 && shape->seqlen_q > 0;
  bool both = queries && shape->seqlen_k > 0, backward = call->op == FA_BACKWARD;
  const struct {
    const char *name;
    const void *data;
    bool needed;
  } tensors[] = {{"query", call->query.data, both},    {"key", call->key.data, both},
                 {"value", call->value.data, both},    {"output", call->output.data, backward ? both : queries},
                 {"lse", call->lse, backward && both}, {"grad_output", call->grad_output.data, backward && both}};
  for (int i = 0; i < 6 && status == FA_OK; i++)
    status = check_data(tensors[i].name, tensors[i].data, tensors[i].needed, message);
  return status;
}
