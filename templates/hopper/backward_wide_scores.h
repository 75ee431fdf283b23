/* The warpgroup that computes weights and d_scores of each step, and puts them into shared memory for the other two. */

/* This warp's 16 queries of weights or of d_scores, at 16 bits, to the tile that products take as their left operand; once
 * all warps have done so, the tile is full. */
static __device__ __forceinline__ void share_scores(u32 tiles, u32 full, const struct ring<STAGES> &stage,
                                                    const float (&scores)[BLOCK_N / 8][4])
{
  /* A lane points at a row of one of the four 8x8 matrices: queries 0-7 and 8-15, of 8 keys and of the next 8. */
  const int lane = threadIdx.x % 32, query = threadIdx.x / 32 % 4 * 16 + lane % 16;
  const u32 row = tiles + stage.stage * wide::CHUNK + query * 128;
  u32 left[BLOCK_N / 16][4];
  pack_fragments(left, scores);
#pragma unroll
  for (int k = 0; k < BLOCK_N / 16; k++)
    stmatrix_x4(row + ((2 * k + lane / 16) ^ query % 8) * 16, left[k]);
  fence_async_shared();
  __syncwarp();
  release(full, stage);
}

/* Does some query of the step not see some key of the block? Those behind the last key do not matter: what comes of them
 * ends in rows of dK and dV that are not stored. */
static __device__ __forceinline__ bool is_masked(const struct work &w, int first_query)
{
//% if causal
  return w.first_key + BLOCK_N > first_query + 1;
//% else
  return false;
//% end
}

static __device__ __forceinline__ void make_scores(const struct fa_params &params, const struct work &w,
                                                   const unsigned char *memory, u32 shared)
{
  struct ring<STAGES> stage = {};
  struct cursor at = begin_steps(params, w);
  struct rows rows = begin_rows(params);
  const int first_row = threadIdx.x / 32 % 4 * 16; /* of the warp */
  float weights[BLOCK_N / 8][4], d_scores[BLOCK_N / 8][4];
  barrier_wait(shared + wide::KEY_FULL, 0);
  for (int step = 0; step < w.num_steps; step++) {
    wait_full(shared + wide::QUERY_FULL, stage);
    const int first_query = at.block * BLOCK_M;
    read_rows(rows, (const struct row_stats *)(memory + wide::STATS + stage.stage * wide::STATS_BYTES) + first_row,
              first_query + first_row, first_query + BLOCK_M);
    multiply_rows<DIM_QK, BLOCK_M>(weights, shared + wide::QUERIES + stage.stage * wide::QUERY_BYTES,
                                   shared + wide::KEYS);
    wait_full(shared + wide::GRAD_FULL, stage);
    multiply_rows<DIM_VALUES, BLOCK_M>(d_scores, shared + wide::GRADS + stage.stage * wide::GRAD_BYTES,
                                       shared + wide::VALUES);
    wgmma_wait<1>();
    keep_registers(flat(weights));
    weigh_keys(weights, rows);
    if (is_masked(w, first_query))
      hide_keys(weights, rows, w.first_key, w.seqlen_k);
    share_scores(shared + wide::WEIGHTS, shared + wide::WEIGHT_FULL, stage, weights);
    wgmma_wait<0>();
    keep_registers(flat(d_scores));
    release(shared + wide::GRAD_EMPTY, stage);
    weigh_gradients(d_scores, weights, rows);
    if (is_masked(w, first_query))
      hide_keys(d_scores, rows, w.first_key, w.seqlen_k);
    share_scores(shared + wide::D_SCORES, shared + wide::D_SCORE_FULL, stage, d_scores);
    advance(stage);
    advance(at, params, w);
  }
}
