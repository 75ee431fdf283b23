/* The five products of a step. Those of scores and d_weights have keys as rows, 64 of a warpgroup, so that weights and
 * d_scores are left operands of dV and dK as they come; d_scores also go through shared memory, for dQ. */

/* Issue dV += weights^T dO. */
static __device__ __forceinline__ void add_grad_value(float (&grad_value)[DIM_V / 8][4],
                                                      const u32 (&weights)[BLOCK_M / 16][4], u32 grads)
{
  u64 b = matrix_descriptor(grads, BLOCK_M * 128, 1024, 128);
  keep_registers(flat(grad_value));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_M; k += 16)
    wgmma_m64n${value_n}k16<1>(flat(grad_value), weights[k / 16], b + k * 128 / 16, 1);
  wgmma_commit();
}

/* Issue dK += d_scores^T Q. They come from their tile: registers do not suffice to keep them. A warp's part of the product
 * reads the 16 keys that it wrote itself, so nobody else has to be waited for. */
static __device__ __forceinline__ void add_grad_key(float (&grad_key)[DIM_K / 8][4], u32 d_scores, u32 queries,
                                                    int warpgroup)
{
  u64 a = matrix_descriptor(d_scores + warpgroup * 64 * 128, 0, 1024, 128);
  u64 b = matrix_descriptor(queries, BLOCK_M * 128, 1024, 128);
  keep_registers(flat(grad_key));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_M; k += 16)
    wgmma_m64n${key_n}k16<0, 1>(flat(grad_key), a + (k / 64 * BLOCK_N * 128 + k % 64 * 2) / 16, b + k * 128 / 16, 1);
  wgmma_commit();
}

/* The packed d_scores of this warp's 16 keys to the tile (keys, queries) that dQ's product reads. */
static __device__ __forceinline__ void share_d_scores(u32 tile, const u32 (&left)[BLOCK_M / 16][4])
{
  /* A lane points at a row of one of the four 8x8 matrices: keys 0-7 and 8-15, of 8 queries and of the next 8. */
  const int lane = threadIdx.x % 32, key = (threadIdx.x / 32 - 4) * 16 + lane % 16;
  const u32 row = tile + key * 128;
#pragma unroll
  for (int k = 0; k < BLOCK_M / 16; k++)
    stmatrix_x4(row + k / 4 * BLOCK_N * 128 + ((2 * k % 8 + lane / 16) ^ key % 8) * 16, left[k]);
}

/* Issue dQ of this warpgroup's part of a block of queries, d_scores (64 queries x BLOCK_N keys) times K.
//% if dq_by_columns
 * The block has 64 queries, and a warpgroup 64 columns.
//% else
 * A warpgroup has 64 of the queries, and all columns.
//% end
 */
static __device__ __forceinline__ void multiply_d_scores(float (&grad_query)[${dq_n / 8}][4], u32 d_scores, u32 keys,
                                                         int warpgroup)
{
//% if dq_by_columns
  u64 a = matrix_descriptor(d_scores, BLOCK_N * 128, 1024, 128);
  u64 b = matrix_descriptor(keys + warpgroup * BLOCK_N * 128, BLOCK_N * 128, 1024, 128);
//% else
  u64 a = matrix_descriptor(d_scores + warpgroup * BLOCK_N * 128, BLOCK_N * 128, 1024, 128);
  u64 b = matrix_descriptor(keys, BLOCK_N * 128, 1024, 128);
//% end
  keep_registers(flat(grad_query));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_N; k += 16)
    wgmma_m64n${dq_n}k16<1, 1>(flat(grad_query), a + k * 128 / 16, b + k * 128 / 16, k > 0);
  wgmma_commit();
}

/* Add it to the sums in the workspace, which lie as accumulators do. */
static __device__ __forceinline__ void add_grad_query(float *sums, const float (&grad_query)[${dq_n / 8}][4])
{
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
//% if dq_by_columns
  const int row_tile = warp, first_column_tile = warpgroup * 8;
//% else
  const int row_tile = warpgroup * 4 + warp, first_column_tile = 0;
//% end
  float *first = sums + dq_offset(row_tile, first_column_tile, lane);
  constexpr int TILE = 32 * 4; /* from a tile to the next column's */
#pragma unroll
  for (int n = 0; n < ${dq_n / 8}; n++)
    if (first_column_tile + n < DIM_QK / 8) {
      const float(&x)[4] = grad_query[n];
      reduce_add_4(first + n * TILE, x[0], x[1], x[2], x[3]);
    }
}
