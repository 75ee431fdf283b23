/* The warpgroup that multiplies dQ and adds it to the sums in the workspace; one of its threads loads, too. */

/* Issue a part of the keys' part of 64 columns of dQ = d_scores K. */
static __device__ __forceinline__ void multiply_chunk(float (&grad_query)[8][4], u32 d_scores, u32 keys, bool accumulate)
{
  u64 a = matrix_descriptor(d_scores, 0, 1024, 128), b = matrix_descriptor(keys, 0, 1024, 128);
  keep_registers(flat(grad_query));
  wgmma_fence();
  wgmma_m64n64<64, 0, 1>(flat(grad_query), a, b, accumulate);
  wgmma_commit();
}

/* Add 64 columns to the sums, which lie as accumulators do. */
static __device__ __forceinline__ void add_chunk(float *sums, const float (&grad_query)[8][4], int chunk)
{
  float *first = sums + dq_offset(threadIdx.x / 32 % 4, 8 * chunk, threadIdx.x % 32);
  constexpr int TILE = 32 * 4; /* from a tile to the next column's */
#pragma unroll
  for (int n = 0; n < 8; n++)
    if (8 * chunk + n < DIM_QK / 8) {
      const float(&x)[4] = grad_query[n];
      reduce_add_4(first + n * TILE, x[0], x[1], x[2], x[3]);
    }
}

/* Chunks of columns one after the other: registers suffice for one. */
static __device__ __forceinline__ void sum_grad_query(const struct fa_params &params, const struct maps &maps, u32 shared)
{
  struct loader next = {};
  struct ring<KEY_STAGES> key_stage = {};
  struct ring<2> tile = {};
  struct work w;
  const bool is_loading = threadIdx.x == 0;
  if (is_loading) {
//% if key_stages > 1
    u32 round = 0;
    if (next_work(params, round, w))
      load_keys(key_stage, maps, w, shared);
//% end
    for (int stage = 0; stage < STAGES - 1; stage++)
      load_step(next, maps, params, shared);
  }
  __syncwarp();
  for (u32 round = 0; next_work(params, round, w);) {
    const u32 keys = shared + KEYS + key_stage.stage * KEY_BYTES;
    struct cursor at = begin_steps(params, w);
    if (is_loading) {
//% if key_stages > 1
      u32 round_ahead = round;
      struct work ahead;
      struct ring<KEY_STAGES> stage_ahead = key_stage;
      advance(stage_ahead); /* that of the tile before */
      if (next_work(params, round_ahead, ahead))
        load_keys(stage_ahead, maps, ahead, shared);
//% else
      load_keys(key_stage, maps, w, shared);
//% end
    }
    for (int left = w.num_steps; left > 0; left--) {
      float *sums = find_workspace(params, w.batch, at.head).grad_query + (long long)at.block * (BLOCK_M * DIM_QK);
      if (is_loading)
        load_step(next, maps, params, shared);
      __syncwarp();
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS_QK; chunk++) {
        float grad_query[8][4];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
          if (chunk == 0)
            wait_d_scores(shared, tile, part);
          multiply_chunk(grad_query, shared + D_SCORES + tile.stage * SCORE_BYTES + part * CHUNK,
                         keys + chunk * BLOCK_N * 128 + part * CHUNK, part > 0);
        }
        wgmma_wait<0>();
        keep_registers(flat(grad_query));
        if (chunk == CHUNKS_QK - 1)
          release(shared + D_SCORE_EMPTY, tile);
        if (params.grad_query.data)
          add_chunk(sums, grad_query, chunk);
      }
      advance(tile);
      advance(at, params, w);
    }
    release_and_advance(shared + KEY_EMPTY, key_stage);
  }
}
