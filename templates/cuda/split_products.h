/* The two products of forward in fp32 (three products of fp16 each), and the queries' tile. */

/* The factors that undo the scales of the block's queries: 2^-k of each row. */
static __device__ __forceinline__ float *query_factors(half_bits *queries)
{
  return (float *)(queries + QUERY_TILE + STAGES * (KEY_TILE + VALUE_TILE));
}

/* Each warp splits its own rows of queries, every row by its own scale. A negative softmax scale becomes a positive one
 * of -Q: the largest score is then still the one that weighs most. */
static __device__ __forceinline__ void load_queries(half_bits *tile, const struct fa_params &params, int batch, int head,
                                                    int first_query)
{
  constexpr int PAIRS = (DIM_QK + 63) / 64, AT_ONCE = 4; /* one by one, a warp would wait for memory 16 times */
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sign = params.softmax_scale < 0 ? -1.0f : 1.0f;
  for (int first = warp * 16 * M_TILES; first < (warp + 1) * 16 * M_TILES; first += AT_ONCE) {
    float x[AT_ONCE][PAIRS][2];
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) {
      int query = first_query + first + r;
      const float *from = (const float *)params.query.data + head_offset(params.query, batch, head, query);
#pragma unroll
      for (int i = 0; i < PAIRS; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          int col = i * 64 + lane * 2 + j;
          x[r][i][j] = query < (int)params.seqlen_q && col < HEAD_DIM ? from[col * params.query.stride_col] : 0.0f;
        }
    }
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) {
      int row = first + r;
      u32 largest = 0;
#pragma unroll
      for (int i = 0; i < PAIRS * 2; i++) {
        u32 magnitude = finite_magnitude(x[r][i / 2][i % 2]);
        largest = magnitude > largest ? magnitude : largest;
      }
      int k = scale_exponent(__reduce_max_sync(0xffffffffu, largest), MOST_OF_SCORES);
      float scale = power_of_two(k) * sign;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        int col = i * 64 + lane * 2;
        u32 high, low;
        split_pair(x[r][i][0] * scale, x[r][i][1] * scale, high, low);
        if (DIM_QK % 64 == 0 || col < DIM_QK) {
          *(u32 *)(tile + tile_index<DIM_QK>(row, col)) = high;
          *(u32 *)(tile + BLOCK_M * DIM_QK + tile_index<DIM_QK>(row, col)) = low;
        }
      }
      if (lane == 0)
        query_factors(tile)[row] = power_of_two(-k);
    }
  }
}

static __device__ __forceinline__ void multiply_keys(float (&scores)[M_TILES][N_TILES][4], const half_bits *queries,
                                                     const half_bits *keys)
{
  const int lane = threadIdx.x % 32;
  const u32 a_at = shared_address(queries + lane_a<DIM_QK>(lane)), b_at = shared_address(keys + lane_b<DIM_QK>(lane));
#pragma unroll
  for (int i = 0; i < M_TILES * N_TILES * 4; i++)
    scores[i / (N_TILES * 4)][i / 4 % N_TILES][i % 4] = 0;
  /* Two steps at a time: more would only ask for more registers. */
#pragma unroll 2
  for (int k = 0; k < DIM_QK; k += 16) {
    u32 a_high[M_TILES][4], a_low[M_TILES][4];
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
      ldmatrix_x4(a_high[m], at_column<DIM_QK>(a_at, k) + m * 16 * DIM_QK * 2);
      ldmatrix_x4(a_low[m], at_column<DIM_QK>(a_at, k) + (BLOCK_M + m * 16) * DIM_QK * 2);
    }
#pragma unroll
    for (int n = 0; n < N_TILES; n += 2) {
      u32 b_high[4], b_low[4];
      ldmatrix_x4(b_high, at_column<DIM_QK>(b_at, k) + n * 8 * DIM_QK * 2);
      ldmatrix_x4(b_low, at_column<DIM_QK>(b_at, k) + (BLOCK_N + n * 8) * DIM_QK * 2);
#pragma unroll
      for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float sum[4] = {};
          mma_m16n8k16(sum, a_low[m], b_high[2 * half], b_high[2 * half + 1]);
          mma_m16n8k16(sum, a_high[m], b_low[2 * half], b_low[2 * half + 1]);
          mma_m16n8k16(sum, a_high[m], b_high[2 * half], b_high[2 * half + 1]);
#pragma unroll
          for (int e = 0; e < 4; e++)
            scores[m][n + half][e] += sum[e];
        }
    }
  }
}

/* Keys whose terms a tensor core sums, in tiles of 16: it cuts off the bits behind 24 (before Hopper) or 25 at each step,
 * which shows where terms do not cancel. */
enum { SUM_TILES = ${min(block_n, sum_keys)} / 16 };

/* output = output * rescale + (weights V) * factor. */
static __device__ __forceinline__ void multiply_values(float (&output)[M_TILES][V_TILES][4],
                                                       const float (&weights)[M_TILES][N_TILES][4],
                                                       const struct rows &rows, float value_factor,
                                                       const half_bits *values)
{
  const u32 at = shared_address(values + lane_a<DIM_V>(threadIdx.x % 32));
  float factor = value_factor * (OUTPUT_UNIT / WEIGHT_UNIT);
  u32 a_high[M_TILES][BLOCK_N / 16][4], a_low[M_TILES][BLOCK_N / 16][4];
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int k = 0; k < BLOCK_N / 16; k++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        split_pair(weights[m][2 * k + i / 2][i % 2 * 2], weights[m][2 * k + i / 2][i % 2 * 2 + 1], a_high[m][k][i],
                   a_low[m][k][i]);
#pragma unroll
  for (int n = 0; n < V_TILES; n += 2) {
    __syncwarp(); /* keeps the loads of later columns where they are: there are no registers for them */
    float total[M_TILES][2][4] = {};
#pragma unroll
    for (int first = 0; first < BLOCK_N / 16; first += SUM_TILES) {
      u32 b_high[SUM_TILES][4];
      float sum[M_TILES][2][4] = {};
      /* The small terms first: what a sum loses by truncation is in proportion to its size. */
#pragma unroll
      for (int i = 0; i < SUM_TILES; i++) {
        int k = first + i;
        u32 b_low[4];
        ldmatrix_x4_trans(b_high[i], at_column<DIM_V>(at, n * 8) + k * 16 * DIM_V * 2);
        ldmatrix_x4_trans(b_low, at_column<DIM_V>(at, n * 8) + (BLOCK_N + k * 16) * DIM_V * 2);
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            mma_m16n8k16(sum[m][half], a_low[m][k], b_high[i][2 * half], b_high[i][2 * half + 1]);
            mma_m16n8k16(sum[m][half], a_high[m][k], b_low[2 * half], b_low[2 * half + 1]);
          }
      }
#pragma unroll
      for (int i = 0; i < SUM_TILES; i++)
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            mma_m16n8k16(sum[m][half], a_high[m][first + i], b_high[i][2 * half], b_high[i][2 * half + 1]);
#pragma unroll
      for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int i = 0; i < 8; i++)
          total[m][i / 4][i % 4] += sum[m][i / 4][i % 4];
    }
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          output[m][n + half][e] = output[m][n + half][e] * rows.rescale[m][e / 2] + total[m][half][e] * factor;
  }
}
