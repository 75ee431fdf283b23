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
 * So one warpgroup's exponentials fall into the other's products, nothing is computed twice, and no warpgroup holds more
 * than half of the sums. These are added in the order of the steps: the same call gives the same bits.
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

/* Tell both warpgroups that weights and d_scores are in their tiles. */
static __device__ __forceinline__ void publish_scores(const struct ring<STAGES> &stage, u32 shared)
{
  fence_async_shared();
  __syncwarp();
  release(shared + wide::SCORE_FULL, stage);
}

/* Issue what the step of a stage adds, a step of the other warpgroup's. */
static __device__ __forceinline__ void add_others(struct sums &sums, const struct ring<STAGES> &stage, int warpgroup,
                                                  u32 shared)
{
  wait_full(shared + wide::SCORE_FULL, stage);
  add_gradients(sums, stage.stage, warpgroup, shared);
}

/* A warpgroup's own step, and in it the products of the other's step before. Those are issued behind the exponentials,
 * by which time the other has its d_scores. A warp's part of its own step's products reads the 16 keys that it wrote itself,
 * so nobody else has to be waited for. Nothing is under way in the end: Q of the next own step comes no earlier than
 * this one's is given back (with two stages). */
static __device__ __forceinline__ void consume_step(struct sums &sums, const struct wide_step &step,
                                                    const struct fa_params &params, const struct work &w, int warpgroup,
                                                    const unsigned char *memory, u32 shared)
{
  const struct ring<STAGES> last = one_before(step.stage);
  struct scores scores;
  begin_wide_scores(scores, step.stage, shared);
  wgmma_wait<1>();
  keep_registers(flat(scores.weights));
  weigh_step<true, false>(scores, step, params, w, memory);
  share_scores(shared + wide::WEIGHTS + step.stage.stage * wide::CHUNK, scores.weights);
  if (step.number > 0) {
    add_others(sums, last, warpgroup, shared);
    wgmma_wait<1>();
  } else
    wgmma_wait<0>();
  keep_registers(flat(scores.d_scores));
  weigh_step<false, true>(scores, step, params, w, memory);
  share_scores(shared + wide::D_SCORES + step.stage.stage * wide::CHUNK, scores.d_scores);
  publish_scores(step.stage, shared);
  add_gradients(sums, step.stage.stage, warpgroup, shared);
  wgmma_wait<1>();
  if (step.number > 0)
    release(shared + wide::STAGE_EMPTY, last);
  wgmma_wait<0>();
  keep_sums(sums);
  release(shared + wide::STAGE_EMPTY, step.stage);
}

static __device__ __forceinline__ void consume_steps(struct sums &sums, const struct fa_params &params,
                                                     const struct work &w, int warpgroup, const unsigned char *memory,
                                                     u32 shared)
{
  struct wide_step step = {0, {}, begin_steps(params, w)};
  if (warpgroup == 1)
    advance(step, params, w);
  barrier_wait(shared + wide::KEY_FULL, 0);
  for (; step.number < w.num_steps; advance(step, params, w), advance(step, params, w))
    consume_step(sums, step, params, w, warpgroup, memory, shared);
  if (step.number == w.num_steps) { /* the last step was the other's */
    add_others(sums, one_before(step.stage), warpgroup, shared);
    wgmma_wait<0>();
    keep_sums(sums);
  }
}

/* A warpgroup's columns of a gradient, from `first_tile` of 8 on. */
template <int DIM, int TILES>
static __device__ __forceinline__ void store_share(const struct fa_tensor &to, const struct work &w, int first_tile,
                                                   float (&share)[TILES][4], double scale)
{
  if (to.data)
    store_gradient<TILES, DIM>(to, w.batch, w.kv_head, w.first_key + threadIdx.x / 32 % 4 * 16, w.seqlen_k, first_tile,
                               share, (float)scale);
}

static __device__ __forceinline__ void consume_wide(const struct fa_params &params, const struct work &w,
                                                    const unsigned char *memory, u32 shared)
{
  const int warpgroup = warpgroup_index() - 1;
  struct sums sums = {};
  if (w.num_steps > 0)
    consume_steps(sums, params, w, warpgroup, memory, shared);
  if (warpgroup == 0) {
    store_share<HEAD_DIM_V>(params.grad_value, w, 0, sums.major, 1);
    if (has_minor(0))
      store_share<HEAD_DIM>(params.grad_key, w, 128 / 8, sums.minor, params.softmax_scale);
  } else {
    store_share<HEAD_DIM>(params.grad_key, w, 0, sums.major, params.softmax_scale);
    if (has_minor(1))
      store_share<HEAD_DIM_V>(params.grad_value, w, 128 / 8, sums.minor, 1);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward_keys(const __grid_constant__ struct fa_params params, const __grid_constant__ struct tensor_map query_map,
              const __grid_constant__ struct tensor_map key_map, const __grid_constant__ struct tensor_map value_map,
              const __grid_constant__ struct tensor_map grad_output_map)
{
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = shared_address(memory);
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
    consume_wide(params, w, memory, shared);
  }
}
