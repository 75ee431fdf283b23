/* A warpgroup with 64 keys of its own: dK and dV from the first step (consume_steps) to the caller's tensors. */
static __device__ __forceinline__ void consume(const struct fa_params &params, const struct work &w,
                                               const unsigned char *memory, u32 shared)
{
  const int first_key = w.first_key + (threadIdx.x / 32 - 4) * 16; /* of this warp */
  float grad_key[DIM_K / 8][4] = {}, grad_value[DIM_V / 8][4] = {};
  if (w.num_steps > 0)
    consume_steps(grad_key, grad_value, params, w, memory, shared);
  if (params.grad_key.data)
    store_gradient<DIM_K / 8, HEAD_DIM>(params.grad_key, w.batch, w.kv_head, first_key, w.seqlen_k, 0, grad_key,
                                        (float)params.softmax_scale);
  if (params.grad_value.data)
    store_gradient<DIM_V / 8, HEAD_DIM_V>(params.grad_value, w.batch, w.kv_head, first_key, w.seqlen_k, 0, grad_value,
                                          1.0f);
}
