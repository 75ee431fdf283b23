/*
 * What a launch hands to a kernel. This file is C for the launcher and is included in every generated
 * kernel, so that the two cannot disagree. No #include here: generated kernels use no header.
 *
 * Tensors are (batch, heads, seqlen, head_dim); strides count elements and may be anything, 0 included.
 * A gradient whose data is null is not wanted and is not computed.
 */
#ifndef FLASH_ATTENTION_PARAMS_H
#define FLASH_ATTENTION_PARAMS_H

struct fa_tensor {
  void *data;
  long long stride_batch, stride_head, stride_row, stride_col;
};

struct fa_params {
  struct fa_tensor query, key, value, output;
  struct fa_tensor grad_output, grad_query, grad_key, grad_value;
  /* Log-sum-exp of each query row in two parts, contiguous (batch, heads_q, seqlen_q, 2): the largest score or one
   * not far below it, in units of the kernel family's own (a family's backward reads what its forward wrote), and the
   * sum of the exponentials of what scores are more than that. One float for both would lose up to |lse| * 2^-24 of
   * every probability that the backward pass recomputes. Written by forward unless null, read by backward. */
  float *lse;
  void *workspace; /* fa_plan.workspace_bytes */
  long long batch, heads_q, heads_kv, seqlen_q, seqlen_k;
  double softmax_scale;
  long long num_splits; /* fa_plan.num_splits */
};

#endif
