/* The warpgroups that add up a gradient, each all columns of one of 64 keys. */

/* Columns of one instruction: what fits into the 128 registers that a thread has at the launch. */
enum { MOST_COLUMNS = 128 };

template <int COLUMNS>
static __device__ __forceinline__ void add_columns(float (&sums)[COLUMNS / 2], u64 a, u64 b)
{
//% for i in 1 .. 17
//%   let n = 8 * i
//%   if n == value_first || n == value_rest || n == key_first || n == key_rest
  if constexpr (COLUMNS == ${n})
    wgmma_m64n${n}k16<1, 1>(sums, a, b, 1);
//%   end
//% end
}

/* Issue sums += left^T (64 queries x 64 keys) times right (64 queries x 8 N columns). */
template <int N>
static __device__ __forceinline__ void add_product(float (&sums)[N][4], u32 left, u32 right)
{
  constexpr int FIRST = 8 * N < MOST_COLUMNS ? 8 * N : MOST_COLUMNS, REST = 8 * N - FIRST;
  u64 a = matrix_descriptor(left, 0, 1024, 128), b = matrix_descriptor(right, wide::CHUNK, 1024, 128);
  keep_registers(flat(sums));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_M; k += 16) {
    add_columns<FIRST>(reinterpret_cast<float(&)[FIRST / 2]>(sums), a + k * 128 / 16, b + k * 128 / 16);
    if constexpr (REST > 0)
      add_columns<REST>(reinterpret_cast<float(&)[REST / 2]>(sums[FIRST / 8]), a + k * 128 / 16,
                        b + (FIRST / 64 * wide::CHUNK + k * 128) / 16);
  }
  wgmma_commit();
}

/* Barriers and tiles, one for each stage, of a product. */
struct operands {
  u32 left, left_full; /* weights or d_scores */
  u32 right, right_bytes, right_full, right_empty;
};

template <int N>
static __device__ __forceinline__ void add_steps(float (&sums)[N][4], int num_steps, const struct operands &from)
{
  struct ring<STAGES> stage = {};
  for (int step = 0; step < num_steps; step++) {
    wait_full(from.right_full, stage);
    wait_full(from.left_full, stage);
    add_product(sums, from.left + stage.stage * wide::CHUNK, from.right + stage.stage * from.right_bytes);
    wgmma_wait<0>();
    keep_registers(flat(sums));
    release_and_advance(from.right_empty, stage);
  }
}

template <int DIM, int N>
static __device__ __forceinline__ void store_sums(const struct fa_tensor &to, const struct work &w,
                                                  float (&sums)[N][4], double scale)
{
  if (to.data)
    store_gradient<N, DIM>(to, w.batch, w.kv_head, w.first_key + threadIdx.x / 32 % 4 * 16, w.seqlen_k, 0, sums,
                           (float)scale);
}

static __device__ __forceinline__ void sum_grad_value(const struct fa_params &params, const struct work &w, u32 shared)
{
  float sums[DIM_V / 8][4] = {};
  add_steps(sums, w.num_steps,
            {shared + wide::WEIGHTS, shared + wide::WEIGHT_FULL, shared + wide::GRADS, wide::GRAD_BYTES,
             shared + wide::GRAD_FULL, shared + wide::GRAD_EMPTY});
  store_sums<HEAD_DIM_V>(params.grad_value, w, sums, 1);
}

static __device__ __forceinline__ void sum_grad_key(const struct fa_params &params, const struct work &w, u32 shared)
{
  float sums[DIM_K / 8][4] = {};
  add_steps(sums, w.num_steps,
            {shared + wide::D_SCORES, shared + wide::D_SCORE_FULL, shared + wide::QUERIES, wide::QUERY_BYTES,
             shared + wide::QUERY_FULL, shared + wide::QUERY_EMPTY});
  store_sums<HEAD_DIM>(params.grad_key, w, sums, params.softmax_scale);
}
