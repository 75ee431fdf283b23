/* The two products of forward at 16 bits, and the queries' tile. */

static __device__ __forceinline__ void load_queries(half_bits *tile, const struct fa_params &params, int batch, int head,
                                                    int first_query)
{
  const half_bits *from = (const half_bits *)params.query.data + head_offset(params.query, batch, head, first_query);
  load_tile<BLOCK_M, HEAD_DIM, DIM_QK, ${load_bytes_qk}>(tile, from, params.query, (int)params.seqlen_q - first_query,
                                                         is_aligned(params.query, ${load_bytes_qk}));
}

/* A negative scale becomes a positive one of -Q: the largest score is then still the one that weighs most. */
static __device__ __noinline__ void negate_queries(half_bits *tile)
{
  constexpr int PAIRS = round_up(HEAD_DIM, 8) / 2; /* what is behind them is not read, and may never have been written */
  for (int i = threadIdx.x; i < BLOCK_M * PAIRS; i += THREADS)
    *(u32 *)(tile + tile_index<DIM_QK>(i / PAIRS, i % PAIRS * 2)) ^= 0x80008000u;
  __syncthreads();
}

static __device__ __forceinline__ void multiply_keys(float (&scores)[M_TILES][N_TILES][4], const half_bits *queries,
                                                     const half_bits *keys)
{
  constexpr int WHOLE = DIM_QK - HEAD_DIM >= 8 ? DIM_QK - 16 : DIM_QK; /* columns, 16 at a time; then 8 may be left */
  const int lane = threadIdx.x % 32;
  u32 a_at = shared_address(queries + lane_a<DIM_QK>(lane)), b_at = shared_address(keys + lane_b<DIM_QK>(lane));
  forget_address(a_at);
  forget_address(b_at);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        scores[m][n][e] = 0;
#pragma unroll
  for (int k = 0; k < WHOLE; k += 16) {
    u32 a[M_TILES][4];
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
      ldmatrix_x4(a[m], at_column<DIM_QK>(a_at, k) + m * 16 * DIM_QK * 2);
#pragma unroll
    for (int n = 0; n < N_TILES; n += 2) {
      u32 b[4];
      ldmatrix_x4(b, at_column<DIM_QK>(b_at, k) + n * 8 * DIM_QK * 2);
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
        mma_m16n8k16(scores[m][n], a[m], b[0], b[1]);
        mma_m16n8k16(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
  if constexpr (WHOLE < DIM_QK) { /* a load finds them of two tiles of queries, and of four or two of keys */
    constexpr int ROWS_A = M_TILES % 2 == 0 ? 32 : 16, ROWS_B = BLOCK_N % 32 == 0 ? 32 : 16;
    u32 a[M_TILES * 16 / ROWS_A][4], b[4];
    a_at = shared_address(queries + tile_index<DIM_QK>(lane % ROWS_A, WHOLE));
    b_at = shared_address(keys + tile_index<DIM_QK>(lane % ROWS_B, WHOLE));
    forget_address(a_at);
    forget_address(b_at);
#pragma unroll
    for (int i = 0; i < M_TILES * 16 / ROWS_A; i++)
      ldmatrix_x4(a[i], a_at + i * ROWS_A * DIM_QK * 2);
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
      if (n % (ROWS_B / 8) == 0)
        ldmatrix_x4(b, b_at + n * 8 * DIM_QK * 2);
#pragma unroll
      for (int m = 0; m < M_TILES; m++)
        mma_m16n8k8(scores[m][n], a[m * 16 / ROWS_A][m * 16 % ROWS_A / 8], a[m * 16 / ROWS_A][m * 16 % ROWS_A / 8 + 1],
                    b[n % (ROWS_B / 8)]);
    }
  }
}

static __device__ __forceinline__ void rescale_output(float (&output)[M_TILES][V_TILES][4], const struct rows &rows)
{
  if (!rows.moved)
    return;
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int n = 0; n < V_TILES; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        output[m][n][e] *= rows.rescale[m][e / 2];
}

/* output += weights V. Where tiles of V's columns are odd in number, the last one is read of two blocks
 * of 16 keys at once, if BLOCK_N has such. */
static __device__ __forceinline__ void multiply_values(float (&output)[M_TILES][V_TILES][4],
                                                       const float (&weights)[M_TILES][N_TILES][4],
                                                       const half_bits *values)
{
  constexpr int LAST_ROWS = BLOCK_N % 32 == 0 ? 32 : 16;
  const int lane = threadIdx.x % 32;
  u32 at = shared_address(values + lane_a<DIM_V>(lane));
  u32 last_at = shared_address(values + tile_index<DIM_V>(lane % LAST_ROWS, (V_TILES - 1) * 8)), last[4];
  forget_address(at);
#pragma unroll
  for (int k = 0; k < BLOCK_N; k += 16) {
    u32 a[M_TILES][4];
    __syncwarp(); /* keeps the loads of later keys where they are */
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        a[m][i] = pack(weights[m][k / 8 + i / 2][i % 2 * 2], weights[m][k / 8 + i / 2][i % 2 * 2 + 1]);
    if (V_TILES % 2 == 1 && k % LAST_ROWS == 0)
      ldmatrix_x4_trans(last, last_at + k * DIM_V * 2);
#pragma unroll
    for (int n = 0; n + 1 < V_TILES; n += 2) {
      u32 b[4];
      ldmatrix_x4_trans(b, at_column<DIM_V>(at, n * 8) + k * DIM_V * 2);
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
        mma_m16n8k16(output[m][n], a[m], b[0], b[1]);
        mma_m16n8k16(output[m][n + 1], a[m], b[2], b[3]);
      }
    }
    if (V_TILES % 2 == 1)
#pragma unroll
      for (int m = 0; m < M_TILES; m++)
        mma_m16n8k16(output[m][V_TILES - 1], a[m], last[k % LAST_ROWS / 8], last[k % LAST_ROWS / 8 + 1]);
  }
}
