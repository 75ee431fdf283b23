/*
 * CUDA as a target: see target.h for what each of these must do.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <string.h>

/* Short ones by powers of four: between neighbours the best tile sizes differ by less than tuning each would cost. Then
 * by powers of two: how many tiles a head has decides, with a causal mask, who should hand them out. Longer sequences
 * than 16384 are more of the same. The least is one tile of a tensor core: decoding, where the keys are all there is to
 * do. */
static int64_t round_length(int64_t length) {
  int64_t rounded = 16;
  while (rounded < length && rounded < 16384)
    rounded *= rounded < 256 ? 4 : 2;
  return rounded;
}

/* Where images attend to a text, which often has 77 tokens, the keys are one block of the kernels that have one of 80.
 */
enum { TEXT_KEYS = 80, IMAGE_QUERIES = 1024 };
static int64_t round_keys(const fa_shape *shape) {
  const bool is_text = shape->seqlen_k > 64 && shape->seqlen_k <= TEXT_KEYS && shape->seqlen_q >= IMAGE_QUERIES;
  return is_text ? TEXT_KEYS : round_length(shape->seqlen_k);
}

/* Rows of queries in all heads, for each SM, from which on more heads change nothing: eight tiles of 128. */
enum { MANY_ROWS = 8 * 128 };

/* Heads in terms of what keeps the device busy: few of them, about one for each SM, more. Powers of two, as most
 * numbers of heads are; H100: 16, 128, 512. Where few heads have rows enough, more are the same. */
static void bucket(const fa_device *device, const fa_shape *shape, fa_shape *rounded) {
  const int64_t heads = shape->batch * shape->heads_q;
  int64_t one_each = 8;
  while (2 * one_each <= device->processors)
    one_each *= 2;
  rounded->batch = 1;
  rounded->seqlen_q = round_length(shape->seqlen_q);
  rounded->seqlen_k = round_keys(shape);
  const int64_t rows = rounded->seqlen_q < rounded->seqlen_k ? rounded->seqlen_q : rounded->seqlen_k;
  const int64_t few = one_each / 8, enough = one_each * MANY_ROWS / rows;
  rounded->heads_q = rounded->heads_kv = heads <= few || few >= enough             ? few
                                         : heads <= one_each || one_each >= enough ? one_each
                                                                                   : 4 * one_each;
}

/* What is special to an architecture works on tiles of 128 rows and more: so few queries would fill them with nothing.
 */
static void choose_target(const fa_shape *bucket, char target[FA_TARGET_LENGTH]) {
  char lower[FA_TARGET_LENGTH];
  if (bucket->seqlen_q <= 64 && fa_cuda_lower_target(target, lower))
    memcpy(target, lower, sizeof lower);
}

/* Large enough that a bucket is timed as it is up to 16384 tokens of 2048 columns, forward at 16 bits: there 5 ms of a
 * kernel that is good for its device, and less for most others. */
static void limit_trial(const fa_device *device, const fa_problem *problem, fa_trial_limits *limits) {
  /* 20e9 operations of an SM's tensor cores are 4 ms on an H100. fp32 takes three products for one where it is full;
   * backward has 2.5 times as many operations and more candidates that are slow. */
  const bool full = problem->dtype == FA_FP32 && problem->precision == FA_PRECISION_FULL;
  limits->flops = (full ? 9e9 : problem->op == FA_BACKWARD ? 40e9 : 20e9) * device->processors;
  /* 128 MB: more than the caches. Forward takes four such tensors, backward eight. */
  limits->elements = (int64_t)(128 << 20) / (int64_t)fa_dtype_size(problem->dtype);
  limits->heads = device->processors;
  limits->rows = (int64_t)768 * device->processors; /* six tiles of 128 for each SM */
  limits->candidates = 6;
  limits->likely = 3;
  /* Rounds that are shorter than a hundredth of a second are as many as there may be. */
  limits->usual = (fa_contest_limits){.least_rounds = 3, .seconds = 0.1};
  limits->thorough = (fa_contest_limits){.least_rounds = 7, .seconds = 1};
}

static fa_status begin_preparing(const fa_device *device, fa_preparing *state, char *message) {
  fa_cuda_entered entered;
  fa_status status = fa_cuda_enter(device->index, &entered, message);
  if (status != FA_OK)
    return status;
  /* While another thread captures a stream, much of what follows would be refused: none of it touches that stream. */
  state->entered = entered.pushed;
  state->capture_mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  entered.cuda->cuThreadExchangeStreamCaptureMode(&state->capture_mode);
  return FA_OK;
}

static void end_preparing(const fa_device *device, fa_preparing *state) {
  (void)device;
  fa_cuda_entered entered = {.pushed = state->entered};
  char ignored[FA_MESSAGE_SIZE];
  if (fa_cuda_get_driver(&entered.cuda, ignored) != FA_OK)
    return;
  entered.cuda->cuThreadExchangeStreamCaptureMode(&state->capture_mode);
  fa_cuda_leave(&entered);
}

static void info(char *text, size_t size) {
  fa_cuda_info(text, size);
  fa_cuda_compiler_info(text, size);
}

const fa_target fa_target_cuda = {
    .name = "cuda",
    .type = FA_DEVICE_CUDA,
    .describe = fa_cuda_describe,
    .bucket = bucket,
    .compiler_identity = fa_cuda_compiler_identity,
    .compile = fa_cuda_compile,
    .builds_ahead = true,
    .lower_target = fa_cuda_lower_target,
    .fit_target = fa_cuda_fit_target,
    .choose_target = choose_target,
    .load = fa_cuda_load,
    .unload = fa_cuda_unload,
    .launch = fa_cuda_launch,
    .limit_trial = limit_trial,
    .time = fa_cuda_time,
    .zero = fa_cuda_zero,
    .copy = fa_cuda_copy,
    .settle = fa_cuda_settle,
    .check = fa_cuda_check,
    .is_capturing = fa_cuda_is_capturing,
    .begin_preparing = begin_preparing,
    .end_preparing = end_preparing,
    .info = info,
};
