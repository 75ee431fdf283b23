/*
 * A trial: generated inputs in scratch memory of a device, on which candidates of one problem are checked
 * (trial_check.c) and timed (trial.c).
 *
 *     fa_trial_begin(device, problem, bucket, limits, host, stream, forward, &trial, message)
 *     for each candidate: fa_trial_check(trial, candidate, ...)
 *     for each that is right, again and again: fa_trial_time(trial, candidate, ...)
 *     fa_trial_end(trial)
 *
 * Backward reads what forward left (output and the softmax statistics, whose form is known only to the family),
 * so a trial of backward has a forward kernel of the same problem run first.
 */
#ifndef FLASH_ATTENTION_TRIAL_H
#define FLASH_ATTENTION_TRIAL_H

#include "runtime/runtime.h"

/* A kernel that can be run. */
typedef struct fa_candidate {
  const fa_problem *problem;
  const fa_config *config;
  const fa_kernel *kernel;
  fa_loaded loaded;
} fa_candidate;

enum {
  FA_QUERY,
  FA_KEY,
  FA_VALUE,
  FA_GRAD_OUTPUT,
  FA_OUTPUT,
  FA_LSE,
  FA_GRAD_QUERY,
  FA_GRAD_KEY,
  FA_GRAD_VALUE,
  FA_NUM_FIELDS
};

typedef struct fa_trial_field {
  void *memory;   /* on the device */
  double *values; /* what the device sees in the rows that are checked: of inputs, and of output */
  int64_t rows, cols;
  int64_t checked_rows; /* the first ones, of the heads of check_shape; `values` has these alone */
  fa_dtype dtype;
  bool used, input, result;
} fa_trial_field;

enum { FA_MAX_SAMPLES = 9, FA_CHECKED_HEADS = 2 };
typedef struct fa_sample {
  int field;
  int64_t head, row;
  double expected[FA_MAX_HEAD_DIM];
} fa_sample;

typedef struct fa_trial {
  const fa_device *device;
  const fa_host *host;
  void *stream;
  fa_problem problem;
  const fa_candidate *forward;      /* in a trial of backward */
  fa_shape time_shape, check_shape; /* check_shape is a corner of time_shape and lies in the same memory */
  fa_shape ready_shape;             /* for which forward has left its results */
  fa_trial_limits limits;
  double softmax_scale;
  fa_trial_field field[FA_NUM_FIELDS];
  fa_sample sample[FA_MAX_SAMPLES];
  int num_samples;
  void *staging; /* large enough for the checked heads of any field */
  uint64_t random;
} fa_trial;

fa_status fa_trial_begin(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                         const fa_trial_limits *limits, const fa_host *host, void *stream, const fa_candidate *forward,
                         fa_trial **trial, char *message);
void fa_trial_end(fa_trial *trial); /* NULL is allowed */
/* Are the results equal to the reference within rounding? */
fa_status fa_trial_check(fa_trial *trial, const fa_candidate *candidate, char *message);
/* The time of a run. *seconds is also what it is expected to take, 0 where that is not known. */
fa_status fa_trial_time(fa_trial *trial, const fa_candidate *candidate, double *seconds, char *message);

/* Between the two files. */
fa_status fa_trial_prepare(fa_trial *trial, const fa_shape *shape, char *message); /* forward's results for a shape */
/* seconds NULL: run once, without timing. */
fa_status fa_trial_launch(fa_trial *trial, const fa_candidate *candidate, const fa_shape *shape, double *seconds,
                          char *message);
size_t fa_trial_head_bytes(const fa_trial *trial, int field);
size_t fa_trial_checked_bytes(const fa_trial *trial, int field); /* of the heads that are checked, all rows */
fa_status fa_trial_expect(fa_trial *trial, char *message);       /* fill in the samples */

#endif
