/*
 * A warpgroup that computes weights and d_scores of each step, by parts of 64 keys, all or one of them:
 *
 *     scores = Q K^T          weights = exp2((scores - row_max) * factor) / row_sum
 *     d_weights = dO V^T      d_scores = weights * (d_weights - delta)
 */

/* Issue product = 64 rows of DIM columns times 64 keys, transposed. */
template <int DIM>
static __device__ __forceinline__ void multiply_part(float (&product)[8][4], u32 rows, u32 keys)
{
  u64 a = matrix_descriptor(rows, 0, 1024, 128), b = matrix_descriptor(keys, 0, 1024, 128);
  keep_registers(flat(product));
  wgmma_fence();
  wgmma_m64n64<DIM, 0, 0, CHUNK, BLOCK_N * 128>(flat(product), a, b, 0);
  wgmma_commit();
}

/* This warp's 16 queries of a part of weights or d_scores, at 16 bits, to its chunk, which products take as their left
 * operand. */
static __device__ __forceinline__ void write_scores(u32 chunk, const float (&scores)[8][4])
{
  /* A lane points at a row of one of the four 8x8 matrices: queries 0-7 and 8-15, of 8 keys and of the next 8. */
  const int lane = threadIdx.x % 32, query = threadIdx.x / 32 % 4 * 16 + lane % 16;
  u32 left[4][4];
  pack_fragments(left, scores);
#pragma unroll
  for (int k = 0; k < 4; k++)
    stmatrix_x4(chunk + query * 128 + ((2 * k + lane / 16) ^ query % 8) * 16, left[k]);
}

/* Products may read what this warp has written; once all warps say so, the chunk is full. The fence waits for the writes,
 * which stand in line behind products' reads of shared memory. */
static __device__ __forceinline__ void share_scores(u32 full)
{
  fence_async_shared();
  __syncwarp();
  if (threadIdx.x % 32 == 0)
    barrier_arrive(full);
}

/* Does some of 64 queries not see some key of a part? There may be no keys behind the last, but weights of them can be
 * infinite, and times a key of zeros that is no number in dQ. */
static __device__ __forceinline__ bool is_masked(const struct work &w, int first_key, int first_query)
{
//% if causal
  if (first_key + 64 > first_query + 1 || first_query + 64 > w.seqlen_q)
    return true;
//% end
  return first_key + 64 > w.seqlen_k;
}

//% let share_late = head_dim <= 128 && head_dim_v <= 128
/* COUNT parts from `first_part` on.
//% if share_late
 * What is written is shared once what is written next has been computed: this warpgroup is the slowest, and does not wait
 * for its writes then.
//% end
 */
template <int COUNT>
static __device__ __forceinline__ void make_scores(const struct fa_params &params, int first_part,
                                                   const unsigned char *memory, u32 shared)
{
  struct ring<KEY_STAGES> key_stage = {};
  struct ring<STAGES> stage = {};
  struct ring<1> weight_tile = {};
  struct ring<2> tile = {}; /* of d_scores */
  struct rows rows = begin_rows(params);
  struct work w;
  const int first_row = threadIdx.x / 32 % 4 * 16; /* of the warp */
  float weights[8][4], d_scores[8][4];
//% if share_late
  u32 written = 0; /* barrier of the part of d_scores that is not yet shared */
//% end
  for (u32 round = 0; next_work(params, round, w);) {
    const u32 keys = shared + KEYS + key_stage.stage * KEY_BYTES, values = shared + VALUES + key_stage.stage * VALUE_BYTES;
    struct cursor at = begin_steps(params, w);
    wait_full(shared + KEY_FULL, key_stage);
    for (int step = 0; step < w.num_steps; step++) {
      const int first_query = at.block * BLOCK_M;
      wait_full(shared + QUERY_FULL, stage);
      read_rows(rows, (const struct row_stats *)(memory + STATS + stage.stage * STATS_BYTES) + first_row,
                first_query + first_row, first_query + BLOCK_M);
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        const int part = first_part + i;
        const int first_key = w.first_key + 64 * part;
        multiply_part<DIM_QK>(weights, shared + QUERIES + stage.stage * QUERY_BYTES, keys + part * CHUNK);
        if (i == 0)
          wait_full(shared + GRAD_FULL, stage);
        multiply_part<DIM_VALUES>(d_scores, shared + GRADS + stage.stage * GRAD_BYTES, values + part * CHUNK);
        wgmma_wait<1>();
        keep_registers(flat(weights));
        weigh_keys(weights, rows);
        if (is_masked(w, first_key, first_query))
          hide_keys(weights, rows, first_key, w.seqlen_k);
//% if share_late
        if (i > 0 || step > 0)
          share_scores(written);
//% end
        if (i == 0)
          wait_empty(shared + WEIGHT_EMPTY, weight_tile);
        write_scores(shared + WEIGHTS + part * CHUNK, weights);
//% if !share_late
        share_scores(shared + WEIGHT_FULL + 8 * part);
//% end
        wgmma_wait<0>();
        keep_registers(flat(d_scores));
        if (i == COUNT - 1)
          release(shared + GRAD_EMPTY, stage);
        weigh_gradients(d_scores, weights, rows);
        if (is_masked(w, first_key, first_query))
          hide_keys(d_scores, rows, first_key, w.seqlen_k);
//% if share_late
        share_scores(shared + WEIGHT_FULL + 8 * part);
//% end
        if (i == 0)
          wait_empty(shared + D_SCORE_EMPTY, tile);
        write_scores(shared + D_SCORES + tile.stage * SCORE_BYTES + part * CHUNK, d_scores);
//% if share_late
        written = shared + D_SCORE_FULL + 8 * (tile.stage * PARTS + part);
//% else
        share_scores(shared + D_SCORE_FULL + 8 * (tile.stage * PARTS + part));
//% end
      }
      advance(weight_tile);
      advance(tile);
      advance(stage);
      advance(at, params, w);
    }
//% if share_late
    share_scores(written);
//% end
    release_and_advance(shared + KEY_EMPTY, key_stage);
  }
}
