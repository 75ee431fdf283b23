/*
 * Kernel + call -> results: the parameters of a launch, and calls so empty that nothing is launched.
 */
#include "runtime/runtime.h"

bool fa_call_is_empty(const fa_call *call) {
  const fa_shape *shape = &call->shape;
  bool wanted = call->op == FA_FORWARD || call->grad_query.data || call->grad_key.data || call->grad_value.data;
  return !wanted || shape->batch == 0 || shape->heads_q == 0 || shape->seqlen_q == 0 || shape->seqlen_k == 0;
}

/* Without keys the output is zero (as PyTorch has it), and what does not depend on an input has gradient zero. */
fa_status fa_execute_empty(const fa_device *device, const fa_call *call, char *message) {
  const fa_shape *shape = &call->shape;
  const int64_t output[4] = {shape->batch, shape->heads_q, shape->seqlen_q, call->head_dim_v};
  const int64_t statistics[4] = {shape->batch, shape->heads_q, shape->seqlen_q, 2};
  const int64_t query[4] = {shape->batch, shape->heads_q, shape->seqlen_q, call->head_dim};
  const int64_t key[4] = {shape->batch, shape->heads_kv, shape->seqlen_k, call->head_dim};
  const int64_t value[4] = {shape->batch, shape->heads_kv, shape->seqlen_k, call->head_dim_v};
  const struct fa_tensor lse = {call->lse, shape->heads_q * shape->seqlen_q * 2, shape->seqlen_q * 2, 2, 1};
  const bool forward = call->op == FA_FORWARD;
  const size_t size = fa_dtype_size(call->dtype);
  const struct {
    const struct fa_tensor *tensor;
    const int64_t *sizes;
    size_t element_size;
    bool written;
  } results[] = {{&call->output, output, size, forward},
                 {&lse, statistics, sizeof(float), forward},
                 {&call->grad_query, query, size, !forward},
                 {&call->grad_key, key, size, !forward},
                 {&call->grad_value, value, size, !forward}};
  fa_status status = FA_OK;
  for (int i = 0; i < 5 && status == FA_OK; i++)
    if (results[i].written && results[i].tensor->data)
      status = device->ops->zero(call, results[i].tensor, results[i].sizes, results[i].element_size, message);
  return status;
}

/* A multiplication and an addition for each of: forward 2 products, backward 5; half of them when causal. */
double fa_flops(const fa_problem *problem, const fa_shape *shape) {
  double pairs = (double)shape->batch * (double)shape->heads_q * (double)shape->seqlen_q * (double)shape->seqlen_k;
  double dims = (double)problem->head_dim + (double)problem->head_dim_v;
  return pairs * dims * (problem->op == FA_FORWARD ? 2 : 5) * (problem->is_causal ? 0.5 : 1);
}

/* The stride of a dimension of size 1 means nothing, and PyTorch leaves it open: it must not look like one that forbids
 * to copy several elements at once. */
static struct fa_tensor without_idle_strides(struct fa_tensor tensor, const fa_shape *shape, int64_t heads,
                                             int64_t rows, int cols) {
  tensor.stride_batch = shape->batch == 1 ? 0 : tensor.stride_batch;
  tensor.stride_head = heads == 1 ? 0 : tensor.stride_head;
  tensor.stride_row = rows == 1 ? 0 : tensor.stride_row;
  tensor.stride_col = cols == 1 ? 1 : tensor.stride_col;
  return tensor;
}

static struct fa_tensor of_queries(struct fa_tensor tensor, const fa_shape *shape, int cols) {
  return without_idle_strides(tensor, shape, shape->heads_q, shape->seqlen_q, cols);
}

static struct fa_tensor of_keys(struct fa_tensor tensor, const fa_shape *shape, int cols) {
  return without_idle_strides(tensor, shape, shape->heads_kv, shape->seqlen_k, cols);
}

fa_status fa_launch_call(const fa_ready *ready, const fa_call *call, const fa_host *host, char *message) {
  fa_plan plan;
  if (fa_plan_call(&ready->problem, &ready->config, &call->shape, &plan) != 0)
    return fa_fail(FA_FAILED, message, "no plan for a call of kernel %s", ready->kernel_hex);
  const fa_shape *shape = &call->shape;
  const int dim = call->head_dim, dim_v = call->head_dim_v;
  struct fa_params params = {.query = of_queries(call->query, shape, dim),
                             .key = of_keys(call->key, shape, dim),
                             .value = of_keys(call->value, shape, dim_v),
                             .output = of_queries(call->output, shape, dim_v),
                             .grad_output = of_queries(call->grad_output, shape, dim_v),
                             .grad_query = of_queries(call->grad_query, shape, dim),
                             .grad_key = of_keys(call->grad_key, shape, dim),
                             .grad_value = of_keys(call->grad_value, shape, dim_v),
                             .lse = call->lse,
                             .batch = call->shape.batch,
                             .heads_q = call->shape.heads_q,
                             .heads_kv = call->shape.heads_kv,
                             .seqlen_q = call->shape.seqlen_q,
                             .seqlen_k = call->shape.seqlen_k,
                             .softmax_scale = call->softmax_scale,
                             .num_splits = plan.num_splits};
  fa_launch launch = {.device = ready->device,
                      .kernel = &ready->kernel,
                      .loaded = &ready->loaded,
                      .plan = &plan,
                      .params = &params,
                      .stream = call->stream,
                      .flops = fa_flops(&ready->problem, &call->shape)};
  fa_count(&fa_counters.launches);
  return ready->device->ops->launch(&launch, host, message);
}
