/*
 * The operators of flash_attention in PyTorch's dispatcher, bound through LibTorch's stable C ABI. Loading
 * this library (torch.ops.load_library) registers them; without PyTorch in the process nothing happens.
 *
 *     forward(query, key, value, scale, is_causal, enable_gqa) -> output
 *     forward_lse(the same) -> (output, lse)
 *     backward(grad_output, query, key, value, output, lse, scale, is_causal, needs_query, needs_key, needs_value)
 *         -> (grad_query, grad_key, grad_value); what is not needed is not computed and comes back with shape (0,)
 *
 * Tensors are (batch, heads, seqlen, head_dim) of one dtype and device, strides as they come. An operator
 * checks everything that memory safety and the kernels rest on, so that a call from Python needs no check of
 * its own; a failure is a RuntimeError "flash_attention[status]: ...", which Python turns into the exception
 * that the caller should see. Autograd, fake kernels and autocast have no C registration: see operators.py.
 */
#define _GNU_SOURCE
#include "python/operand.h"
#include "python/torch_cuda.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

torch_abi torch;
int32_t torch_cpu, torch_cuda, torch_dtypes[3];

/* Throws. The caller has released what it owned. */
static void raise_outcome(const outcome *result) {
  char text[FA_MESSAGE_SIZE + 32];
  snprintf(text, sizeof text, "flash_attention[%d]: %s", (int)result->status, result->message);
  torch.aoti_torch_check(false, __func__, "python/binding.c", __LINE__, text);
}

/*
 * What runtime asks of its host, from PyTorch: its thread pool, which obeys torch.set_num_threads, and its CUDA memory.
 */
static void *host_allocate(void *context, fa_device_type type, int device_index, size_t bytes) {
  (void)context;
  void *memory = NULL;
  if (type == FA_DEVICE_CUDA)
    return torch_cuda_allocate(device_index, bytes);
  if (type != FA_DEVICE_CPU || posix_memalign(&memory, 64, bytes) != 0)
    return NULL;
  return memory;
}

static void host_release(void *context, fa_device_type type, int device_index, void *memory) {
  (void)context, (void)device_index;
  if (type == FA_DEVICE_CUDA)
    torch_cuda_release(memory);
  else
    free(memory);
}

static int host_num_threads(void *context) {
  (void)context;
  uint32_t threads = 1;
  return torch.torch_get_num_threads(&threads) == 0 && threads > 0 ? (int)threads : 1;
}

typedef struct loop {
  void (*body)(int64_t i, void *argument);
  void *argument;
} loop;

static void run_range(int64_t begin, int64_t end, void *context) {
  const loop *loop = context;
  for (int64_t i = begin; i < end; ++i)
    loop->body(i, loop->argument);
}

static void host_parallel_for(void *context, int64_t count, void (*body)(int64_t, void *), void *argument) {
  (void)context;
  loop loop = {body, argument};
  /* It fails only before it starts (no more threads to be had): then this thread does everything. */
  if (count == 1 || torch.torch_parallel_for(0, count, 1, run_range, &loop) != 0)
    run_range(0, count, &loop);
}

static const fa_host torch_host = {
    .allocate = host_allocate,
    .release = host_release,
    .num_threads = host_num_threads,
    .parallel_for = host_parallel_for,
};

static void release(torch_tensor tensor) {
  if (tensor != NULL)
    torch.aoti_torch_delete_tensor_object(tensor);
}

static double to_double(torch_value value) {
  union {
    torch_value value;
    double number;
  } number = {value};
  return number.number;
}

static bool to_bool(torch_value value) { return (value & 0xff) != 0; }

static torch_value to_value(torch_tensor tensor) { return (torch_value)(uintptr_t)tensor; }

/*
 * Operators
 */

/* What forward and backward share: the call that query, key, value and the two attributes describe. */
static void describe_call(fa_call *call, const operand *query, const operand *key, const operand *value, double scale,
                          bool is_causal, outcome *result) {
  if (result->status != FA_OK)
    return;
  int dtype = 0;
  while (dtype < 3 && torch_dtypes[dtype] != query->dtype)
    ++dtype;
  int64_t batch = query->sizes[0], heads = key->sizes[1], seqlen_k = key->sizes[2];
  int64_t head_dim = query->sizes[3], head_dim_v = value->sizes[3];
  check_shape(key, batch, heads, seqlen_k, head_dim, result);
  check_shape(value, batch, heads, seqlen_k, head_dim_v, result);
  check_same_kind(key, query, query->dtype, result);
  check_same_kind(value, query, query->dtype, result);
  if (result->status != FA_OK)
    return;
  if (dtype == 3)
    FAIL(result, FA_INVALID_TYPE, "query must be float32, float16 or bfloat16");
  else if (query->device_type != torch_cpu && query->device_type != torch_cuda)
    FAIL(result, FA_UNSUPPORTED, "query must be on a cpu or cuda device");
  else if (head_dim < 1 || head_dim > FA_MAX_HEAD_DIM || head_dim_v < 1 || head_dim_v > FA_MAX_HEAD_DIM)
    FAIL(result, FA_INVALID_VALUE, "head dims are %lld and %lld, must be 1 to %d", (long long)head_dim,
         (long long)head_dim_v, FA_MAX_HEAD_DIM);
  else if (heads == 0 ? query->sizes[1] != 0 : query->sizes[1] % heads != 0)
    FAIL(result, FA_INVALID_VALUE, "query has %lld heads, must be a multiple of key's %lld", (long long)query->sizes[1],
         (long long)heads);
  else if (!(fabs(scale) <= FLT_MAX))
    FAIL(result, FA_INVALID_VALUE, "scale is %g, must be finite in float32 (at most %.4e in magnitude)", scale,
         FLT_MAX);
  *call = (fa_call){
      .dtype = (fa_dtype)dtype,
      .is_causal = is_causal,
      .softmax_scale = scale,
      .device_type = query->device_type == torch_cuda ? FA_DEVICE_CUDA : FA_DEVICE_CPU,
      .device_index = query->device_index,
      .shape = {batch, query->sizes[1], heads, query->sizes[2], seqlen_k},
      .head_dim = (int)head_dim,
      .head_dim_v = (int)head_dim_v,
  };
  if (call->device_type == FA_DEVICE_CUDA)
    call->stream = torch_cuda_stream(call->device_index, result);
  view_input(query, &call->query, result);
  view_input(key, &call->key, result);
  view_input(value, &call->value, result);
}

static void forward(torch_value *stack, bool wants_lse) {
  outcome result;
  result.status = FA_OK;
  fa_call call;
  operand query, key, value;
  torch_tensor output = NULL, lse = NULL;
  read_operand(&query, stack[0], "query", &result);
  read_operand(&key, stack[1], "key", &result);
  read_operand(&value, stack[2], "value", &result);
  describe_call(&call, &query, &key, &value, to_double(stack[3]), to_bool(stack[4]), &result);
  if (result.status == FA_OK) {
    call.op = FA_FORWARD;
    call.backward_follows = wants_lse;
    call.deterministic = wants_lse && torch_is_deterministic(); /* of backward; forward always is */
    /* Read in each call, so that it is right in compiled graphs too. With lse the runtime would not use it. */
    if (!wants_lse && call.dtype == FA_FP32 && call.device_type == FA_DEVICE_CUDA && torch_allows_tf32())
      call.precision = FA_PRECISION_REDUCED;
    if (!to_bool(stack[5]) && call.shape.heads_q != call.shape.heads_kv)
      FAIL(&result, FA_INVALID_VALUE, "key has %lld heads, must have query's %lld unless enable_gqa",
           (long long)call.shape.heads_kv, (long long)call.shape.heads_q);
    const int64_t sizes[4] = {query.sizes[0], query.sizes[1], query.sizes[2], value.sizes[3]};
    output = allocate_dense(sizes, &query, "output", &call.output, &result);
    if (wants_lse) {
      const int64_t lse_sizes[4] = {sizes[0], sizes[1], sizes[2], 2};
      void *data = NULL;
      lse = allocate_contiguous(4, lse_sizes, torch_dtypes[FA_FP32], &query, "lse", &data, &result);
      call.lse = data;
    }
    if (result.status == FA_OK)
      result.status = fa_execute(&call, &torch_host, result.message);
  }
  release(query.handle), release(key.handle), release(value.handle);
  if (result.status != FA_OK) {
    release(output), release(lse);
    raise_outcome(&result);
    return;
  }
  stack[0] = to_value(output);
  if (wants_lse)
    stack[1] = to_value(lse);
}

static void forward_boxed(torch_value *stack, uint64_t num_inputs, uint64_t num_outputs) {
  (void)num_inputs, (void)num_outputs;
  forward(stack, false);
}

static void forward_lse_boxed(torch_value *stack, uint64_t num_inputs, uint64_t num_outputs) {
  (void)num_inputs, (void)num_outputs;
  forward(stack, true);
}

/* The gradient of one input, or an empty tensor where it is not needed. */
static torch_tensor allocate_gradient(bool needed, const operand *input, const char *name, struct fa_tensor *view,
                                      outcome *result) {
  if (needed)
    return allocate_dense(input->sizes, input, name, view, result);
  const int64_t none = 0;
  void *data = NULL;
  return allocate_contiguous(1, &none, input->dtype, input, name, &data, result);
}

static void backward_boxed(torch_value *stack, uint64_t num_inputs, uint64_t num_outputs) {
  (void)num_inputs, (void)num_outputs;
  outcome result;
  result.status = FA_OK;
  fa_call call;
  operand input[6], *grad_output = &input[0], *query = &input[1], *key = &input[2], *value = &input[3],
                    *output = &input[4], *lse = &input[5];
  torch_tensor gradient[3] = {NULL, NULL, NULL};
  static const char *const names[6] = {"grad_output", "query", "key", "value", "output", "lse"};
  for (int i = 0; i < 6; ++i)
    read_operand(&input[i], stack[i], names[i], &result);
  describe_call(&call, query, key, value, to_double(stack[6]), to_bool(stack[7]), &result);
  if (result.status == FA_OK) {
    call.op = FA_BACKWARD;
    call.deterministic = torch_is_deterministic();
    const fa_shape *shape = &call.shape;
    check_shape(output, shape->batch, shape->heads_q, shape->seqlen_q, call.head_dim_v, &result);
    check_shape(grad_output, shape->batch, shape->heads_q, shape->seqlen_q, call.head_dim_v, &result);
    check_shape(lse, shape->batch, shape->heads_q, shape->seqlen_q, 2, &result);
    check_same_kind(output, query, query->dtype, &result);
    check_same_kind(grad_output, query, query->dtype, &result);
    check_same_kind(lse, query, torch_dtypes[FA_FP32], &result);
    struct fa_tensor statistics = {0};
    view_input(output, &call.output, &result);
    view_input(grad_output, &call.grad_output, &result);
    view_input(lse, &statistics, &result);
    call.lse = statistics.data;
    check_contiguous(lse, &result);
    gradient[0] = allocate_gradient(to_bool(stack[8]), query, "grad_query", &call.grad_query, &result);
    gradient[1] = allocate_gradient(to_bool(stack[9]), key, "grad_key", &call.grad_key, &result);
    gradient[2] = allocate_gradient(to_bool(stack[10]), value, "grad_value", &call.grad_value, &result);
    if (result.status == FA_OK)
      result.status = fa_execute(&call, &torch_host, result.message);
  }
  for (int i = 0; i < 6; ++i)
    release(input[i].handle);
  if (result.status != FA_OK) {
    for (int i = 0; i < 3; ++i)
      release(gradient[i]);
    raise_outcome(&result);
    return;
  }
  for (int i = 0; i < 3; ++i)
    stack[i] = to_value(gradient[i]);
}

/*
 * Registration
 */
static const char *registration_error = "";

/* Why the operators are not there: NULL if they are, "" if there was no PyTorch in this process. */
FA_API const char *fa_torch_error(void) { return registration_error; }

/* For tests. */
FA_API bool fa_torch_allows_tf32(void) { return torch_allows_tf32(); }

__attribute__((constructor)) static void register_operators(void) {
  /* _forward_lse and _backward are the same functions under names that get no autograd kernel: autograd's own
   * Python function calls them, and must not pay for a second one. */
#define FORWARD_ARGUMENTS "(Tensor query, Tensor key, Tensor value, float scale, bool is_causal, bool enable_gqa) -> "
#define BACKWARD_ARGUMENTS                                                                                             \
  "(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, float scale, "              \
  "bool is_causal, bool needs_query, bool needs_key, bool needs_value) -> "
  static const struct {
    const char *name, *schema;
    torch_boxed_function function;
  } operators[] = {
      {"forward", "forward" FORWARD_ARGUMENTS "Tensor", forward_boxed},
      {"forward_lse", "forward_lse" FORWARD_ARGUMENTS "(Tensor, Tensor)", forward_lse_boxed},
      {"backward", "backward" BACKWARD_ARGUMENTS "(Tensor, Tensor, Tensor)", backward_boxed},
      {"_forward_lse", "_forward_lse" FORWARD_ARGUMENTS "(Tensor, Tensor)", forward_lse_boxed},
      {"_backward", "_backward" BACKWARD_ARGUMENTS "(Tensor, Tensor, Tensor)", backward_boxed},
  };
  enum { NUM_OPERATORS = sizeof operators / sizeof operators[0] };
  static const char *const keys[] = {"CPU", "CUDA"};

  registration_error = torch_abi_load(&torch);
  if (registration_error != NULL)
    return;
  torch_cpu = torch.aoti_torch_device_type_cpu();
  torch_cuda = torch.aoti_torch_device_type_cuda();
  torch_dtypes[FA_FP32] = torch.aoti_torch_dtype_float32();
  torch_dtypes[FA_FP16] = torch.aoti_torch_dtype_float16();
  torch_dtypes[FA_BF16] = torch.aoti_torch_dtype_bfloat16();

  /* The library objects are kept: deleting one takes its operators away. */
  torch_library library = NULL;
  int32_t error = torch.aoti_torch_library_init_fragment("flash_attention", __FILE__, __LINE__, &library);
  for (int i = 0; error == 0 && i < NUM_OPERATORS; ++i)
    error = torch.aoti_torch_library_def(library, operators[i].schema);
  for (int k = 0; error == 0 && k < 2; ++k) {
    error = torch.aoti_torch_library_init_impl("flash_attention", keys[k], __FILE__, __LINE__, &library);
    for (int i = 0; error == 0 && i < NUM_OPERATORS; ++i)
      error = torch.torch_library_impl(library, operators[i].name, operators[i].function, TORCH_BUILD_VERSION);
  }
  if (error != 0)
    registration_error = "PyTorch refused the operators; is another flash_attention loaded already?";
}
