/* What a step adds to dV and dK, and the tiles of weights and d_scores by which its owner hands it to both warpgroups. */

/* A warpgroup's share of the columns: the first one has the first 128 of dV and those behind of dK, the second one the first
 * 128 of dK and those behind of dV. There may be none behind, where head dims differ. */
enum { SPLIT = 128, BEHIND = ${minor_n} };

template <int WARPGROUP>
struct gradients {
  static constexpr int FIRST_VALUE = WARPGROUP == 0 ? 0 : SPLIT, FIRST_KEY = SPLIT - FIRST_VALUE;
  static constexpr bool HAS_VALUES = FIRST_VALUE < HEAD_DIM_V, HAS_KEYS = FIRST_KEY < HEAD_DIM;
  float values[(WARPGROUP == 0 ? SPLIT : BEHIND) / 8][4], keys[(WARPGROUP == 0 ? BEHIND : SPLIT) / 8][4];
};

/* Issue sums += left (64 keys x 64 queries) times right (64 queries x 8 N columns from `first` on). */
template <int CHUNKS, int N>
static __device__ __forceinline__ void add_product(float (&sums)[N][4], u32 left, u32 right, int first)
{
  /* Columns that a tile has not are those before them once more: they are not stored. */
  const u32 leading = first / 64 + ceil_div(N, 8) <= CHUNKS ? wide::CHUNK : 0;
  u64 a = matrix_descriptor(left, 0, 1024, 128);
  u64 b = matrix_descriptor(right + first / 64 * wide::CHUNK, leading, 1024, 128);
  keep_registers(flat(sums));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_M; k += 16)
    if constexpr (8 * N == SPLIT)
      wgmma_m64n128k16<0, 1>(flat(sums), a + k * 2 / 16, b + k * 128 / 16, 1);
    else
      wgmma_m64n${minor_n}k16<0, 1>(flat(sums), a + k * 2 / 16, b + k * 128 / 16, 1);
  wgmma_commit();
}

/* Issue dV += weights^T dO, of a stage. */
template <int WARPGROUP>
static __device__ __forceinline__ void add_values(struct gradients<WARPGROUP> &sums, int stage, u32 shared)
{
  if constexpr (gradients<WARPGROUP>::HAS_VALUES)
    add_product<CHUNKS_V>(sums.values, shared + wide::WEIGHTS + stage * wide::CHUNK,
                          shared + wide::GRADS + stage * wide::GRAD_BYTES, gradients<WARPGROUP>::FIRST_VALUE);
}

/* Issue dK += d_scores^T Q, of a stage. */
template <int WARPGROUP>
static __device__ __forceinline__ void add_keys(struct gradients<WARPGROUP> &sums, int stage, u32 shared)
{
  if constexpr (gradients<WARPGROUP>::HAS_KEYS)
    add_product<CHUNKS_QK>(sums.keys, shared + wide::D_SCORES + stage * wide::CHUNK,
                           shared + wide::QUERIES + stage * wide::QUERY_BYTES, gradients<WARPGROUP>::FIRST_KEY);
}

/* Sums of finished products. */
template <int WARPGROUP>
static __device__ __forceinline__ void keep_sums(struct gradients<WARPGROUP> &sums)
{
  keep_registers(flat(sums.values));
  keep_registers(flat(sums.keys));
}

/* This warp's 16 keys of weights or of d_scores, at 16 bits, to the tile that products take as their left operand; once
 * all of the owner's warps have done so, the tile is full. */
static __device__ __forceinline__ void share_scores(u32 tiles, u32 full, const struct ring<STAGES> &stage,
                                                    const float (&scores)[BLOCK_M / 8][4])
{
  /* A lane points at a row of one of the four 8x8 matrices: keys 0-7 and 8-15, of 8 queries and of the next 8. */
  const int lane = threadIdx.x % 32, key = threadIdx.x / 32 % 4 * 16 + lane % 16;
  const u32 row = tiles + stage.stage * wide::CHUNK + key * 128;
  u32 left[BLOCK_M / 16][4];
  pack_fragments(left, scores);
#pragma unroll
  for (int k = 0; k < BLOCK_M / 16; k++)
    stmatrix_x4(row + ((2 * k + lane / 16) ^ key % 8) * 16, left[k]);
  fence_async_shared();
  __syncwarp();
  release(full, stage);
}
