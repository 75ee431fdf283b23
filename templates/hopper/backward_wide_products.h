/* What a step adds to dV and dK, and the tiles of weights and d_scores by which its owner hands it to both warpgroups. */

/* A warpgroup's share of the columns: of the one gradient (major) the first 128, of the other (minor) those behind. The
 * first warpgroup's major one is dV, the second's dK. */
struct sums {
  float major[128 / 8][4], minor[${minor_n / 8}][4];
};

/* Does a warpgroup have columns behind the first 128? The narrower of two gradients may not. */
static __device__ __forceinline__ bool has_minor(int warpgroup)
{
  return (warpgroup == 0 ? HEAD_DIM : HEAD_DIM_V) > 128;
}

/* Issue sums += left (64 keys x 64 queries) times right (64 queries x N columns), of both gradients. */
static __device__ __forceinline__ void add_gradients(struct sums &sums, int stage, int warpgroup, u32 shared)
{
  const u32 weights = shared + wide::WEIGHTS + stage * wide::CHUNK;
  const u32 d_scores = shared + wide::D_SCORES + stage * wide::CHUNK;
  const u32 grads = shared + wide::GRADS + stage * wide::GRAD_BYTES;
  const u32 queries = shared + wide::QUERIES + stage * wide::QUERY_BYTES;
  u64 major_left = matrix_descriptor(warpgroup == 0 ? weights : d_scores, 0, 1024, 128);
  u64 major_right = matrix_descriptor(warpgroup == 0 ? grads : queries, wide::CHUNK, 1024, 128);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_M; k += 16)
    wgmma_m64n128k16<0, 1>(flat(sums.major), major_left + k * 2 / 16, major_right + k * 128 / 16, 1);
  if (has_minor(warpgroup)) {
//% if minor_n > 64 && min(ceil_div(head_dim, 64), ceil_div(head_dim_v, 64)) == 3
    /* A gradient without a fourth chunk reads its third one twice; columns that are not there are not stored. */
    const u32 leading = (warpgroup == 0 ? CHUNKS_QK : CHUNKS_V) > 3 ? wide::CHUNK : 0;
//% else
    const u32 leading = wide::CHUNK;
//% end
    u64 minor_left = matrix_descriptor(warpgroup == 0 ? d_scores : weights, 0, 1024, 128);
    u64 minor_right =
        matrix_descriptor((warpgroup == 0 ? queries : grads) + 2 * wide::CHUNK, leading, 1024, 128);
#pragma unroll
    for (int k = 0; k < BLOCK_M; k += 16)
      wgmma_m64n${minor_n}k16<0, 1>(flat(sums.minor), minor_left + k * 2 / 16, minor_right + k * 128 / 16, 1);
  }
  wgmma_commit();
}

/* Sums of finished products. */
static __device__ __forceinline__ void keep_sums(struct sums &sums)
{
  keep_registers(flat(sums.major));
  keep_registers(flat(sums.minor));
}

/* This warp's 16 keys of weights or of d_scores, at 16 bits, to the tile that products take as their left operand. */
static __device__ __forceinline__ void share_scores(u32 tile, const float (&scores)[BLOCK_M / 8][4])
{
  /* A lane points at a row of one of the four 8x8 matrices: keys 0-7 and 8-15, of 8 queries and of the next 8. */
  const int lane = threadIdx.x % 32, key = threadIdx.x / 32 % 4 * 16 + lane % 16;
  u32 left[BLOCK_M / 16][4];
  pack_fragments(left, scores);
#pragma unroll
  for (int k = 0; k < BLOCK_M / 16; k++)
    stmatrix_x4(tile + key * 128 + ((2 * k + lane / 16) ^ key % 8) * 16, left[k]);
}
