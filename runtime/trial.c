/*
 * The memory, inputs and runs of a trial; see trial.h.
 */
#include "runtime/trial.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The reference computes about this many products for one head: some 20 ms. */
static const double REFERENCE_PRODUCTS = 17e6;

static bool is_too_large(const fa_trial *trial) {
  const fa_problem *problem = &trial->problem;
  const fa_shape *shape = &trial->time_shape;
  int64_t rows = shape->seqlen_q > shape->seqlen_k ? shape->seqlen_q : shape->seqlen_k;
  int cols = problem->head_dim > problem->head_dim_v ? problem->head_dim : problem->head_dim_v;
  return fa_flops(problem, shape) > trial->limits.flops || shape->heads_q * rows * cols > trial->limits.elements;
}

/* Fewer heads as long as they keep the device busy, then shorter sequences, then fewer heads still. */
static void reduce_for_time(fa_trial *trial) {
  const fa_trial_limits *limits = &trial->limits;
  fa_shape *shape = &trial->time_shape;
  while (is_too_large(trial)) {
    int64_t half = shape->heads_q / 2;
    bool busy = half >= limits->heads || half * shape->seqlen_q >= limits->rows;
    if (half > 0 && (busy || (shape->seqlen_q == 1 && shape->seqlen_k == 1))) {
      shape->heads_q = shape->heads_kv = half;
    } else if (trial->problem.is_causal && shape->seqlen_q > 1 && shape->seqlen_k > 1) {
      shape->seqlen_q /= 2;
      shape->seqlen_k /= 2;
    } else if (shape->seqlen_q >= shape->seqlen_k) {
      shape->seqlen_q /= 2;
    } else {
      shape->seqlen_k /= 2;
    }
  }
}

static int64_t reduced_length(int64_t length, int64_t most, int64_t less) {
  length = (length < most ? length : most) - less;
  return length < 1 ? 1 : length;
}

/* Lengths that no tile divides, so that the edges of tiles are checked too. */
static void reduce_for_check(const fa_problem *problem, fa_shape *shape) {
  int64_t most = (int64_t)sqrt(REFERENCE_PRODUCTS / problem->head_dim);
  if (most > 512)
    most = 512;
  if (shape->heads_q > FA_CHECKED_HEADS)
    shape->heads_q = shape->heads_kv = FA_CHECKED_HEADS;
  shape->seqlen_q = reduced_length(shape->seqlen_q, most, 3);
  shape->seqlen_k = reduced_length(shape->seqlen_k, most, 5);
}

static void lay_out(fa_trial *trial) {
  const fa_problem *problem = &trial->problem;
  const bool backward = problem->op == FA_BACKWARD;
  for (int i = 0; i < FA_NUM_FIELDS; i++) {
    fa_trial_field *f = &trial->field[i];
    bool of_keys = i == FA_KEY || i == FA_VALUE || i == FA_GRAD_KEY || i == FA_GRAD_VALUE;
    bool of_values = i == FA_VALUE || i == FA_OUTPUT || i == FA_GRAD_OUTPUT || i == FA_GRAD_VALUE;
    f->checked_rows = of_keys ? trial->check_shape.seqlen_k : trial->check_shape.seqlen_q;
    f->rows = of_keys ? trial->time_shape.seqlen_k : trial->time_shape.seqlen_q;
    f->cols = i == FA_LSE ? 2 : of_values ? problem->head_dim_v : problem->head_dim;
    f->dtype = i == FA_LSE ? FA_FP32 : problem->dtype;
    f->input = i <= FA_VALUE || (backward && i == FA_GRAD_OUTPUT);
    f->result = backward ? i >= FA_GRAD_QUERY : i == FA_OUTPUT;
    f->used = f->input || f->result || i == FA_OUTPUT || i == FA_LSE;
  }
}

size_t fa_trial_head_bytes(const fa_trial *trial, int i) {
  const fa_trial_field *f = &trial->field[i];
  return (size_t)(f->rows * f->cols) * fa_dtype_size(f->dtype);
}

size_t fa_trial_checked_bytes(const fa_trial *trial, int i) {
  return (size_t)trial->check_shape.heads_q * fa_trial_head_bytes(trial, i);
}

static fa_status take_memory(fa_trial *trial, char *message) {
  size_t most = 1;
  for (int i = 0; i < FA_NUM_FIELDS; i++) {
    fa_trial_field *f = &trial->field[i];
    if (!f->used)
      continue;
    size_t bytes = (size_t)trial->time_shape.heads_q * fa_trial_head_bytes(trial, i);
    most = fa_trial_checked_bytes(trial, i) > most ? fa_trial_checked_bytes(trial, i) : most;
    bool has_values = f->input || i == FA_OUTPUT;
    f->memory = trial->host->allocate(trial->host->context, trial->device->ops->type, trial->device->index, bytes);
    if (has_values)
      f->values = malloc((size_t)(trial->check_shape.heads_q * f->checked_rows * f->cols) * sizeof *f->values);
    fa_status status =
        f->memory || !trial->device->ops->check ? FA_OK : trial->device->ops->check(trial->device, message);
    if (status != FA_OK)
      return status;
    if (!f->memory || (has_values && !f->values))
      return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory: %zu bytes to tune with", bytes);
  }
  trial->staging = malloc(most);
  return trial->staging ? FA_OK : fa_fail(FA_OUT_OF_MEMORY, message, "out of memory: %zu bytes to tune with", most);
}

/* Uniform, with mean 0 and variance 1. */
static double next_value(fa_trial *trial) {
  trial->random ^= trial->random << 13;
  trial->random ^= trial->random >> 7;
  trial->random ^= trial->random << 17;
  return ((double)(trial->random >> 11) * 0x1p-53 * 2 - 1) * 1.7320508;
}

static fa_status copy(const fa_trial *trial, void *to, const void *from, size_t bytes, fa_copy_kind kind,
                      char *message) {
  return trial->device->ops->copy(trial->device, trial->stream, to, from, bytes, kind, message);
}

/* Repeat the first `done` bytes up to `bytes`, each time twice as many. */
static fa_status repeat(const fa_trial *trial, char *memory, size_t done, size_t bytes, char *message) {
  fa_status status = FA_OK;
  while (done < bytes && status == FA_OK) {
    size_t more = bytes - done < done ? bytes - done : done;
    status = copy(trial, memory + done, memory, more, FA_COPY_ON_DEVICE, message);
    done += more;
  }
  return status;
}

/* Rows that are checked get values of their own; further rows of a head and further heads repeat them: making millions
 * of values here would take longer than all kernels together. */
static fa_status fill_input(fa_trial *trial, int i, char *message) {
  fa_trial_field *f = &trial->field[i];
  const size_t head_bytes = fa_trial_head_bytes(trial, i);
  const int64_t checked = f->checked_rows * f->cols;
  const size_t checked_bytes = (size_t)checked * fa_dtype_size(f->dtype);
  fa_status status = FA_OK;
  for (int64_t head = 0; head < trial->check_shape.heads_q && status == FA_OK; head++) {
    char *memory = (char *)f->memory + (size_t)head * head_bytes;
    double *values = f->values + head * checked;
    for (int64_t j = 0; j < checked; j++) {
      fa_to_bits(f->dtype, next_value(trial), trial->staging, j);
      values[j] = fa_from_bits(f->dtype, trial->staging, j);
    }
    status = copy(trial, memory, trial->staging, checked_bytes, FA_COPY_TO_DEVICE, message);
    if (status == FA_OK)
      status = repeat(trial, memory, checked_bytes, head_bytes, message);
  }
  if (status == FA_OK)
    status = repeat(trial, f->memory, fa_trial_checked_bytes(trial, i), (size_t)trial->time_shape.heads_q * head_bytes,
                    message);
  return status;
}

static fa_status fill_inputs(fa_trial *trial, char *message) {
  fa_status status = FA_OK;
  for (int i = 0; i < FA_NUM_FIELDS && status == FA_OK; i++)
    if (trial->field[i].input)
      status = fill_input(trial, i, message);
  return status;
}

fa_status fa_trial_begin(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                         const fa_trial_limits *limits, const fa_host *host, void *stream, const fa_candidate *forward,
                         fa_trial **trial, char *message) {
  *trial = NULL;
  fa_trial *made = calloc(1, sizeof *made);
  if (!made)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory: %zu bytes to tune with", sizeof *made);
  made->device = device;
  made->host = host;
  made->stream = stream;
  made->problem = *problem;
  made->forward = forward;
  made->time_shape = *bucket;
  made->limits = *limits;
  reduce_for_time(made);
  made->check_shape = made->time_shape;
  reduce_for_check(problem, &made->check_shape);
  made->softmax_scale = 1 / sqrt(problem->head_dim);
  made->random = UINT64_C(0x9E3779B97F4A7C15);
  lay_out(made);
  fa_status status = take_memory(made, message);
  if (status == FA_OK)
    status = fill_inputs(made, message);
  if (status == FA_OK)
    status = fa_trial_expect(made, message);
  if (status != FA_OK) {
    fa_trial_end(made);
    made = NULL;
  }
  *trial = made;
  return status;
}

void fa_trial_end(fa_trial *trial) {
  if (!trial)
    return;
  for (int i = 0; i < FA_NUM_FIELDS; i++) {
    fa_trial_field *f = &trial->field[i];
    free(f->values);
    if (f->memory)
      trial->host->release(trial->host->context, trial->device->ops->type, trial->device->index, f->memory);
  }
  free(trial->staging);
  free(trial);
}

static struct fa_tensor tensor_of(const fa_trial *trial, int i) {
  const fa_trial_field *f = &trial->field[i];
  return (struct fa_tensor){f->memory, trial->time_shape.heads_q * f->rows * f->cols, f->rows * f->cols, f->cols, 1};
}

fa_status fa_trial_launch(fa_trial *trial, const fa_candidate *candidate, const fa_shape *shape, double *seconds,
                          char *message) {
  fa_plan plan;
  if (fa_plan_call(candidate->problem, candidate->config, shape, &plan) != 0)
    return fa_fail(FA_FAILED, message, "no plan for the tuner's shape");
  struct fa_params params = {.query = tensor_of(trial, FA_QUERY),
                             .key = tensor_of(trial, FA_KEY),
                             .value = tensor_of(trial, FA_VALUE),
                             .output = tensor_of(trial, FA_OUTPUT),
                             .grad_output = tensor_of(trial, FA_GRAD_OUTPUT),
                             .grad_query = tensor_of(trial, FA_GRAD_QUERY),
                             .grad_key = tensor_of(trial, FA_GRAD_KEY),
                             .grad_value = tensor_of(trial, FA_GRAD_VALUE),
                             .lse = trial->field[FA_LSE].memory,
                             .batch = shape->batch,
                             .heads_q = shape->heads_q,
                             .heads_kv = shape->heads_kv,
                             .seqlen_q = shape->seqlen_q,
                             .seqlen_k = shape->seqlen_k,
                             .softmax_scale = trial->softmax_scale,
                             .num_splits = plan.num_splits};
  fa_launch launch = {.device = trial->device,
                      .kernel = candidate->kernel,
                      .loaded = &candidate->loaded,
                      .plan = &plan,
                      .params = &params,
                      .stream = trial->stream,
                      .flops = fa_flops(candidate->problem, shape)};
  return trial->device->ops->time(&launch, trial->host, seconds, message);
}

fa_status fa_trial_prepare(fa_trial *trial, const fa_shape *shape, char *message) {
  if (!trial->forward || memcmp(&trial->ready_shape, shape, sizeof *shape) == 0)
    return FA_OK;
  fa_status status = fa_trial_launch(trial, trial->forward, shape, NULL, message);
  if (status == FA_OK)
    trial->ready_shape = *shape;
  return status;
}

fa_status fa_trial_time(fa_trial *trial, const fa_candidate *candidate, double *seconds, char *message) {
  fa_status status = fa_trial_prepare(trial, &trial->time_shape, message);
  return status == FA_OK ? fa_trial_launch(trial, candidate, &trial->time_shape, seconds, message) : status;
}
