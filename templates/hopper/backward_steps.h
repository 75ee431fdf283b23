/* The steps of a consumer of backward, which has 64 keys: through the queries that see one of the block's keys. */

/* A consumer's step: where it is in the rings and in the queries. */
struct step {
  int number;
  struct ring<STAGES> stage;
  struct cursor at;
};

static __device__ __forceinline__ void advance(struct step &step, const struct fa_params &params,
                                               const struct work &w)
{
  step.number++;
  advance(step.stage);
  advance(step.at, params, w);
}

static __device__ __forceinline__ const struct row_stats *find_stats(const struct step &step,
                                                                     const unsigned char *memory)
{
  return (const struct row_stats *)(memory + STATS + step.stage.stage * STATS_BYTES) + threadIdx.x % 4 * 2;
}

/* Does some query of the step not see some key of the block? */
static __device__ __forceinline__ bool is_masked(const struct step &step, const struct work &w)
{
//% if causal
  if (w.first_key + BLOCK_N > step.at.block * BLOCK_M + 1)
    return true;
//% end
  return w.first_key + BLOCK_N > w.seqlen_k;
}

template <bool WEIGHTS, bool D_SCORES>
static __device__ __forceinline__ void mask_step(struct scores &scores, const struct step &step, const struct work &w)
{
  const int lane = threadIdx.x % 32, first_key = w.first_key + (threadIdx.x / 32 - 4) * 16;
  if (is_masked(step, w))
    mask_scores<WEIGHTS, D_SCORES>(scores, w, first_key + lane / 4, step.at.block * BLOCK_M + lane % 4 * 2);
}

static __device__ __forceinline__ void begin_scores(struct scores &scores, const struct step &step, int warpgroup,
                                                    u32 shared)
{
  wait_full(shared + QUERY_FULL, step.stage);
  multiply_rows<DIM_QK, BLOCK_N>(scores.weights, shared + KEYS + warpgroup * 64 * 128,
                                 shared + QUERIES + step.stage.stage * QUERY_BYTES);
}

static __device__ __forceinline__ void begin_grad_value(float (&grad_value)[DIM_V / 8][4],
                                                        u32 (&weights)[BLOCK_M / 16][4], const struct scores &scores,
                                                        const struct step &step, u32 shared)
{
  pack_fragments(weights, scores.weights);
  add_grad_value(grad_value, weights, shared + GRADS + step.stage.stage * GRAD_BYTES);
}
