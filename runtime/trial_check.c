/*
 * Is a candidate right? A few rows of each result are compared with the reference, and all of it must be
 * written and finite. See trial.h.
 */
#include "runtime/trial.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of the largest value of a row. Several times what a right kernel needs, far less than any wrong one makes. */
static const double TOLERANCE[] = {[FA_FP32] = 1e-4, [FA_FP16] = 1e-2, [FA_BF16] = 4e-2};
static const double TOLERANCE_REDUCED = 5e-3;

static const double *head_values(const fa_trial *trial, int i, int64_t head) {
  const fa_trial_field *f = &trial->field[i];
  return f->values ? f->values + head * f->checked_rows * f->cols : NULL;
}

static double *add_sample(fa_trial *trial, int i, int64_t head, int64_t row) {
  fa_sample *made = &trial->sample[trial->num_samples++];
  made->field = i;
  made->head = head;
  made->row = row;
  return made->expected;
}

static fa_reference reference_of(const fa_trial *trial, int64_t head) {
  return (fa_reference){.head_dim = trial->problem.head_dim,
                        .head_dim_v = trial->problem.head_dim_v,
                        .is_causal = trial->problem.is_causal,
                        .seqlen_q = trial->check_shape.seqlen_q,
                        .seqlen_k = trial->check_shape.seqlen_k,
                        .softmax_scale = trial->softmax_scale,
                        .query = head_values(trial, FA_QUERY, head),
                        .key = head_values(trial, FA_KEY, head),
                        .value = head_values(trial, FA_VALUE, head),
                        .output = head_values(trial, FA_OUTPUT, head),
                        .grad_output = head_values(trial, FA_GRAD_OUTPUT, head)};
}

/* The first, a middle and the last row of a head. */
static int expect_output(fa_trial *trial, int64_t head) {
  const fa_reference reference = reference_of(trial, head);
  int failed = 0;
  for (int which = 0; which < 3; which++) {
    int64_t row = (reference.seqlen_q - 1) * which / 2;
    failed |= fa_reference_output(&reference, row, add_sample(trial, FA_OUTPUT, head, row));
  }
  return failed;
}

static int expect_gradients(fa_trial *trial, int64_t head) {
  fa_reference reference = reference_of(trial, head);
  reference.log_sums = malloc((size_t)reference.seqlen_q * sizeof *reference.log_sums);
  if (!reference.log_sums)
    return -1;
  fa_reference_log_sums(&reference, reference.log_sums);
  for (int which = 0; which < 3; which++) {
    int64_t row = (reference.seqlen_q - 1) * which / 2, col = (reference.seqlen_k - 1) * which / 2;
    fa_reference_grad_query(&reference, row, add_sample(trial, FA_GRAD_QUERY, head, row));
    double *grad_key = add_sample(trial, FA_GRAD_KEY, head, col);
    fa_reference_grad_key_value(&reference, col, grad_key, add_sample(trial, FA_GRAD_VALUE, head, col));
  }
  free(reference.log_sums);
  return 0;
}

static fa_status read_back(fa_trial *trial, int i, char *message) {
  return trial->device->ops->copy(trial->device, trial->stream, trial->staging, trial->field[i].memory,
                                  fa_trial_checked_bytes(trial, i), FA_COPY_FROM_DEVICE, message);
}

fa_status fa_trial_expect(fa_trial *trial, char *message) {
  const int64_t last_head = trial->check_shape.heads_q - 1;
  fa_status status = FA_OK;
  int failed = 0;
  if (trial->problem.op == FA_FORWARD) {
    failed = expect_output(trial, 0);
    if (last_head > 0)
      failed |= expect_output(trial, last_head);
  } else {
    /* Gradients are those of the output that forward really wrote, rounding included. */
    const fa_trial_field *output = &trial->field[FA_OUTPUT];
    status = fa_trial_prepare(trial, &trial->check_shape, message);
    if (status == FA_OK)
      status = read_back(trial, FA_OUTPUT, message);
    const int64_t checked = output->checked_rows * output->cols, all = output->rows * output->cols;
    for (int64_t head = 0; status == FA_OK && head < trial->check_shape.heads_q; head++)
      for (int64_t j = 0; j < checked; j++)
        output->values[head * checked + j] = fa_from_bits(output->dtype, trial->staging, head * all + j);
    if (status == FA_OK)
      failed = expect_gradients(trial, last_head);
  }
  return failed ? fa_fail(FA_OUT_OF_MEMORY, message, "out of memory for the tuner's reference") : status;
}

/* Results start as NaN (all bits set), so that what a kernel forgets to write is found. */
static fa_status spoil_results(fa_trial *trial, char *message) {
  fa_status status = FA_OK;
  for (int i = 0; i < FA_NUM_FIELDS && status == FA_OK; i++) {
    if (!trial->field[i].result)
      continue;
    memset(trial->staging, 0xff, fa_trial_checked_bytes(trial, i));
    status = trial->device->ops->copy(trial->device, trial->stream, trial->field[i].memory, trial->staging,
                                      fa_trial_checked_bytes(trial, i), FA_COPY_TO_DEVICE, message);
  }
  return status;
}

static double largest_of(const fa_sample *sample, int64_t cols) {
  double largest = 0;
  for (int64_t col = 0; col < cols; col++)
    largest = fmax(largest, fabs(sample->expected[col]));
  return largest;
}

static const char *name_of(int field) {
  return field == FA_OUTPUT       ? "output"
         : field == FA_GRAD_QUERY ? "grad_query"
         : field == FA_GRAD_KEY   ? "grad_key"
                                  : "grad_value";
}

static fa_status check_finite(const fa_trial *trial, int i, char *message) {
  const fa_trial_field *f = &trial->field[i];
  for (int64_t head = 0; head < trial->check_shape.heads_q; head++)
    for (int64_t j = 0; j < f->checked_rows * f->cols; j++)
      if (!isfinite(fa_from_bits(f->dtype, trial->staging, head * f->rows * f->cols + j)))
        return fa_fail(FA_FAILED, message, "%s[head %lld, row %lld] is not finite or not written", name_of(i),
                       (long long)head, (long long)(j / f->cols));
  return FA_OK;
}

static fa_status check_samples(const fa_trial *trial, int i, char *message) {
  const fa_trial_field *f = &trial->field[i];
  /* By chance a row may cancel to almost nothing; then the field's size says what rounding may do. */
  double field_size = 0;
  for (int s = 0; s < trial->num_samples; s++)
    if (trial->sample[s].field == i)
      field_size = fmax(field_size, largest_of(&trial->sample[s], f->cols));
  const bool reduced = f->dtype == FA_FP32 && trial->problem.precision == FA_PRECISION_REDUCED;
  const double tolerance = reduced ? TOLERANCE_REDUCED : TOLERANCE[f->dtype];
  for (int s = 0; s < trial->num_samples; s++) {
    const fa_sample *at = &trial->sample[s];
    if (at->field != i)
      continue;
    double bound = tolerance * fmax(largest_of(at, f->cols), field_size / 10);
    for (int64_t col = 0; col < f->cols; col++) {
      double got = fa_from_bits(f->dtype, trial->staging, (at->head * f->rows + at->row) * f->cols + col);
      if (!(fabs(got - at->expected[col]) <= bound))
        return fa_fail(FA_FAILED, message, "%s[head %lld, row %lld, col %lld] is %.9g; it must be %.9g within %.3g",
                       name_of(i), (long long)at->head, (long long)at->row, (long long)col, got, at->expected[col],
                       bound);
    }
  }
  return FA_OK;
}

fa_status fa_trial_check(fa_trial *trial, const fa_candidate *candidate, char *message) {
  fa_status status = fa_trial_prepare(trial, &trial->check_shape, message);
  if (status == FA_OK)
    status = spoil_results(trial, message);
  if (status == FA_OK)
    status = fa_trial_launch(trial, candidate, &trial->check_shape, NULL, message);
  for (int i = 0; i < FA_NUM_FIELDS && status == FA_OK; i++) {
    if (!trial->field[i].result)
      continue;
    status = read_back(trial, i, message);
    if (status == FA_OK)
      status = check_finite(trial, i, message);
    if (status == FA_OK)
      status = check_samples(trial, i, message);
  }
  return status;
}
