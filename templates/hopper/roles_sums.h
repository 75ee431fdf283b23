/* The warpgroups that add up a gradient of BLOCK_N keys:  dV += weights^T dO  or  dK += d_scores^T Q. */

/* Columns of one instruction: what ptxas allows with the 128 registers that a thread of 512 has at the launch. */
enum { MOST_COLUMNS = 128 };

template <int COLUMNS>
static __device__ __forceinline__ void add_columns(float (&sums)[COLUMNS / 2], u64 a, u64 b)
{
//% for i in 1 .. 17
//%   let n = 8 * i
//%   if n == value_first || n == value_rest || n == key_first || n == key_rest
  if constexpr (COLUMNS == ${n})
    wgmma_m64n${n}<BLOCK_M, 1, 1>(sums, a, b, 1);
//%   end
//% end
}

/* Issue sums += left^T (64 queries x 64 keys) times right (64 queries x 8 N columns). */
template <int N>
static __device__ __forceinline__ void add_product(float (&sums)[N][4], u32 left, u32 right)
{
  constexpr int FIRST = 8 * N < MOST_COLUMNS ? 8 * N : MOST_COLUMNS, REST = 8 * N - FIRST;
  u64 a = matrix_descriptor(left, 0, 1024, 128), b = matrix_descriptor(right, CHUNK, 1024, 128);
  keep_registers(flat(sums));
  wgmma_fence();
  add_columns<FIRST>(reinterpret_cast<float(&)[FIRST / 2]>(sums), a, b);
  if constexpr (REST > 0)
    add_columns<REST>(reinterpret_cast<float(&)[REST / 2]>(sums[FIRST / 8]), a, b + FIRST / 64 * CHUNK / 16);
  wgmma_commit();
}

template <int DIM, int N>
static __device__ __forceinline__ void store_sums(const struct fa_tensor &to, const struct work &w,
                                                  float (&sums)[PARTS][N][4], double scale)
{
  if (to.data)
#pragma unroll
    for (int part = 0; part < PARTS; part++)
      store_gradient<N, DIM>(to, w.batch, w.kv_head, w.first_key + part * 64 + threadIdx.x / 32 % 4 * 16, w.seqlen_k, 0,
                             sums[part], (float)scale);
}

/* A gradient: where it goes, and what is multiplied: tiles of weights or d_scores, and of dO or Q. */
struct sum_of {
  const struct fa_tensor *to;
  double scale;
  u32 left, left_full, left_empty, right, right_bytes, right_full, right_empty;
  int left_tiles;
};

static __device__ __forceinline__ struct sum_of values_of(const struct fa_params &params, u32 shared)
{
  return {&params.grad_value, 1, shared + WEIGHTS, shared + WEIGHT_FULL, shared + WEIGHT_EMPTY,
          shared + GRADS, GRAD_BYTES, shared + GRAD_FULL, shared + GRAD_EMPTY, 1};
}

static __device__ __forceinline__ struct sum_of keys_of(const struct fa_params &params, u32 shared)
{
  return {&params.grad_key, params.softmax_scale, shared + D_SCORES, shared + D_SCORE_FULL, shared + D_SCORE_EMPTY,
          shared + QUERIES, QUERY_BYTES, shared + QUERY_FULL, shared + QUERY_EMPTY, 2};
}

/* Add up one gradient. */
template <int DIM, int COLUMNS>
static __device__ __forceinline__ void sum_gradient(const struct sum_of &of, const struct fa_params &params)
{
  struct ring<STAGES> stage = {};
  struct ring<2> tile = {};
  struct work w;
  for (u32 round = 0, unseen = 0; next_work(params, round, w) || next_unseen(params, unseen, w);) {
    float sums[PARTS][COLUMNS / 8][4] = {};
    for (int step = 0; step < w.num_steps; step++) {
      wait_full(of.right_full, stage);
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        barrier_wait(of.left_full + 8 * (tile.stage * PARTS + part), tile.phase);
        add_product(sums[part], of.left + tile.stage * SCORE_BYTES + part * CHUNK,
                    of.right + stage.stage * of.right_bytes);
      }
      wgmma_wait<0>();
#pragma unroll
      for (int part = 0; part < PARTS; part++)
        keep_registers(flat(sums[part]));
      release(of.left_empty, tile);
      release_and_advance(of.right_empty, stage);
      tile.stage++;
      if (tile.stage == of.left_tiles)
        tile = {0, tile.phase ^ 1};
    }
    store_sums<DIM>(*of.to, w, sums, of.scale);
  }
}

/* Both, of narrow heads. */
static __device__ __forceinline__ void sum_keys_and_values(const struct fa_params &params, u32 shared)
{
  struct ring<STAGES> stage = {};
  struct ring<1> weight_tile = {};
  struct ring<2> tile = {};
  struct work w;
  for (u32 round = 0, unseen = 0; next_work(params, round, w) || next_unseen(params, unseen, w);) {
    float values[PARTS][DIM_V / 8][4] = {}, keys[PARTS][DIM_K / 8][4] = {};
    for (int step = 0; step < w.num_steps; step++) {
      wait_full(shared + GRAD_FULL, stage);
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        wait_full(shared + WEIGHT_FULL + 8 * part, weight_tile);
        add_product(values[part], shared + WEIGHTS + part * CHUNK, shared + GRADS + stage.stage * GRAD_BYTES);
      }
      wgmma_wait<0>(); /* d_scores come later in any case, and the next weights not before these are given back */
#pragma unroll
      for (int part = 0; part < PARTS; part++)
        keep_registers(flat(values[part]));
      release_and_advance(shared + WEIGHT_EMPTY, weight_tile);
      release(shared + GRAD_EMPTY, stage);
      wait_full(shared + QUERY_FULL, stage);
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        wait_d_scores(shared, tile, part);
        add_product(keys[part], shared + D_SCORES + tile.stage * SCORE_BYTES + part * CHUNK,
                    shared + QUERIES + stage.stage * QUERY_BYTES);
      }
      wgmma_wait<0>();
#pragma unroll
      for (int part = 0; part < PARTS; part++)
        keep_registers(flat(keys[part]));
      release_and_advance(shared + D_SCORE_EMPTY, tile);
      release_and_advance(shared + QUERY_EMPTY, stage);
    }
    store_sums<HEAD_DIM_V>(params.grad_value, w, values, 1);
    store_sums<HEAD_DIM>(params.grad_key, w, keys, params.softmax_scale);
  }
}
