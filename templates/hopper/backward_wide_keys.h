/*
 * dK and dV of head dims above 128: a block of threads for 64 keys of one key/value head, which walks over the queries of
 * its group of heads, 64 at a time:
 *
 *     scores^T = K Q^T        weights^T = exp2((scores^T - row_max) * factor) / row_sum
 *     d_weights^T = V dO^T    d_scores^T = weights^T * (d_weights^T - delta)
 *     dV += weights^T dO      dK += d_scores^T Q
 *
 *     producer    one warp: TMA copies of K and V once, of Q, its statistics and dO for each step
 *     consumers   two warpgroups. Steps belong to them by turns: the owner computes weights and d_scores of all 64 keys and
 *                 puts them into shared memory. Both then add the step to their share of the columns of dV and dK.
 *
 * So nothing is computed twice, and no warpgroup holds more than half of the sums. These are added in the order of the
 * steps: the same call gives the same bits.
 */

/* A warpgroup's own step: where it is in the ring and in the queries. */
struct wide_step {
  int number;
  struct ring<STAGES> stage;
  struct cursor at;
};

static __device__ __forceinline__ void advance(struct wide_step &step, const struct fa_params &params,
                                               const struct work &w)
{
  step.number++;
  advance(step.stage);
  advance(step.at, params, w);
}

/* Does some query of the step not see some key of the block? */
static __device__ __forceinline__ bool is_masked(const struct wide_step &step, const struct work &w)
{
//% if causal
  if (w.first_key + BLOCK_N > step.at.block * BLOCK_M + 1)
    return true;
//% end
  return w.first_key + BLOCK_N > w.seqlen_k;
}

template <bool WEIGHTS, bool D_SCORES>
static __device__ __forceinline__ void weigh_step(struct scores &scores, const struct wide_step &step,
                                                  const struct fa_params &params, const struct work &w,
                                                  const unsigned char *memory)
{
  const int lane = threadIdx.x % 32, first_key = w.first_key + threadIdx.x / 32 % 4 * 16;
  const struct row_stats *stats =
      (const struct row_stats *)(memory + wide::STATS + step.stage.stage * wide::STATS_BYTES) + lane % 4 * 2;
  weigh<WEIGHTS, D_SCORES>(scores, stats, w, params);
  if (is_masked(step, w))
    mask_scores<WEIGHTS, D_SCORES>(scores, w, first_key + lane / 4, step.at.block * BLOCK_M + lane % 4 * 2);
}

/* Issue both products that weights and d_scores are made of. */
static __device__ __forceinline__ void begin_wide_scores(struct scores &scores, const struct ring<STAGES> &stage,
                                                         u32 shared)
{
  wait_full(shared + wide::QUERY_FULL, stage);
  multiply_rows<DIM_QK, BLOCK_N>(scores.weights, shared + wide::KEYS,
                                 shared + wide::QUERIES + stage.stage * wide::QUERY_BYTES);
  wait_full(shared + wide::GRAD_FULL, stage);
  multiply_rows<DIM_VALUES, BLOCK_N>(scores.d_scores, shared + wide::VALUES,
                                     shared + wide::GRADS + stage.stage * wide::GRAD_BYTES);
}

/* Issue what a step of the other warpgroup's adds. */
template <int WARPGROUP>
static __device__ __forceinline__ void add_others(struct gradients<WARPGROUP> &sums, const struct ring<STAGES> &stage,
                                                  u32 shared)
{
  wait_full(shared + wide::GRAD_FULL, stage);
  wait_full(shared + wide::WEIGHT_FULL, stage);
  add_values(sums, stage.stage, shared);
  wait_full(shared + wide::QUERY_FULL, stage);
  wait_full(shared + wide::D_SCORE_FULL, stage);
  add_keys(sums, stage.stage, shared);
}

/* A warpgroup's own step, and before it what the other's step before adds: its tiles of Q and dO are given back as early
 * as can be, because with two stages those of the step after this one come in their place. A warp's part of its own
 * step's products reads the 16 keys that it wrote itself, so nobody else has to be waited for. Nothing is under way in the
 * end: Q of the next own step cannot be there before this one's is given back. */
template <int WARPGROUP>
static __device__ __forceinline__ void consume_step(struct gradients<WARPGROUP> &sums, const struct wide_step &step,
                                                    const struct fa_params &params, const struct work &w,
                                                    const unsigned char *memory, u32 shared)
{
  const struct ring<STAGES> last = one_before(step.stage);
  struct scores scores;
  if (step.number > 0)
    add_others(sums, last, shared);
  begin_wide_scores(scores, step.stage, shared);
  wgmma_wait<2>();
  if (step.number > 0)
    release(shared + wide::STAGE_EMPTY, last);
  wgmma_wait<1>();
  keep_registers(flat(scores.weights));
  weigh_step<true, false>(scores, step, params, w, memory);
  share_scores(shared + wide::WEIGHTS, shared + wide::WEIGHT_FULL, step.stage, scores.weights);
  add_values(sums, step.stage.stage, shared);
  wgmma_wait<gradients<WARPGROUP>::HAS_VALUES>();
  keep_registers(flat(scores.d_scores));
  weigh_step<false, true>(scores, step, params, w, memory);
  share_scores(shared + wide::D_SCORES, shared + wide::D_SCORE_FULL, step.stage, scores.d_scores);
  add_keys(sums, step.stage.stage, shared);
  wgmma_wait<0>();
  keep_sums(sums);
  release(shared + wide::STAGE_EMPTY, step.stage);
}

template <int WARPGROUP>
static __device__ __forceinline__ void consume_steps(struct gradients<WARPGROUP> &sums, const struct fa_params &params,
                                                     const struct work &w, const unsigned char *memory, u32 shared)
{
  struct wide_step step = {0, {}, begin_steps(params, w)};
  if (WARPGROUP == 1)
    advance(step, params, w);
  barrier_wait(shared + wide::KEY_FULL, 0);
  for (; step.number < w.num_steps; advance(step, params, w), advance(step, params, w))
    consume_step(sums, step, params, w, memory, shared);
  if (step.number == w.num_steps) { /* the last step was the other's */
    add_others(sums, one_before(step.stage), shared);
    wgmma_wait<0>();
    keep_sums(sums);
  }
}

/* A warpgroup's columns of a gradient, from `first` on. */
template <int DIM, int TILES>
static __device__ __forceinline__ void store_share(const struct fa_tensor &to, const struct work &w, int first,
                                                   float (&share)[TILES][4], double scale)
{
  if (to.data && first < DIM)
    store_gradient<TILES, DIM>(to, w.batch, w.kv_head, w.first_key + threadIdx.x / 32 % 4 * 16, w.seqlen_k, first / 8,
                               share, (float)scale);
}

/* A warpgroup. They differ in how many columns of which gradient they have, so each has code of its own. */
template <int WARPGROUP>
static __device__ __forceinline__ void consume_wide(const struct fa_params &params, const struct work &w,
                                                    const unsigned char *memory, u32 shared)
{
  struct gradients<WARPGROUP> sums = {};
  if (w.num_steps > 0)
    consume_steps(sums, params, w, memory, shared);
  store_share<HEAD_DIM_V>(params.grad_value, w, gradients<WARPGROUP>::FIRST_VALUE, sums.values, 1);
  store_share<HEAD_DIM>(params.grad_key, w, gradients<WARPGROUP>::FIRST_KEY, sums.keys, params.softmax_scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward_keys(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
              const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
              const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
  if (!params.grad_key.data && !params.grad_value.data)
    return;
  struct work w = find_work(params);
  if (threadIdx.x == 0)
    init_wide_barriers(shared);
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_decrease<${producer_registers}>();
    if (threadIdx.x == 0)
      produce_wide(params, w, &query_map, &key_map, &value_map, &grad_output_map, shared);
  } else {
    registers_increase<${consumer_registers}>();
    if (warpgroup_index() == 1)
      consume_wide<0>(params, w, memory, shared);
    else
      consume_wide<1>(params, w, memory, shared);
  }
}
