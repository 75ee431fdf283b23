/* The tiles of backward in shared memory, and weights and d_scores of one step. */
struct tiles {
  half_bits *keys, *values;          /* of the block, all along */
  half_bits *queries, *grad_outputs; /* STAGES each */
  half_bits *d_scores;               /* (key, query), of a step */
//% if d_splits > 1
  half_bits *weights; /* (key, query), of a step */
//% end
  struct row_stats *stats; /* STAGES times BLOCK_M */
//% if dtype == "fp32"
  float *query_factors, *grad_factors; /* STAGES each */
  float *d_score_factors;              /* 2^-k of the d_scores of each group of keys */
  u32 *largest;                        /* magnitude of the d_scores of each warp */
//% end
};

static __device__ __forceinline__ struct tiles lay_out(unsigned char *shared)
{
  struct tiles t;
  t.stats = (struct row_stats *)shared;
  t.keys = (half_bits *)(t.stats + STAGES * BLOCK_M);
  t.values = t.keys + KEY_TILE;
  t.queries = t.values + VALUE_TILE;
  t.grad_outputs = t.queries + STAGES * QUERY_TILE;
  t.d_scores = t.grad_outputs + STAGES * GRAD_TILE;
//% if d_splits > 1
  t.weights = t.d_scores + SCORE_TILE;
//% end
//% if dtype == "fp32"
  t.query_factors = (float *)(t.d_scores + SCORE_STAGES * SCORE_TILES * SCORE_TILE);
  t.grad_factors = t.query_factors + STAGES;
  t.d_score_factors = t.grad_factors + STAGES;
  t.largest = (u32 *)(t.d_score_factors + SCORE_STAGES * GROUPS);
//% end
  return t;
}

//% if num_stages > 2
/* After a step: the next one's scores go elsewhere. */
static __device__ __forceinline__ void use_other_scores(struct tiles &tiles, int step)
{
  int other = step % 2 ? -1 : 1;
  tiles.d_scores += other * SCORE_TILES * SCORE_TILE;
//%   if d_splits > 1
  tiles.weights += other * SCORE_TILES * SCORE_TILE;
//%   end
//%   if dtype == "fp32"
  tiles.d_score_factors += other * GROUPS;
//%   end
}

//% end

static __device__ __forceinline__ void load_key_values(const struct tiles &tiles, const struct fa_params &params,
                                                       const struct work &w)
{
//% if dtype == "fp32"
  struct split_tiles from = find_split_tiles(params, w.batch, w.kv_head);
  load_split<BLOCK_N, DIM_QK>(tiles.keys, from.keys, w.key_block);
  load_split<BLOCK_N, DIM_V>(tiles.values, from.values, w.key_block);
//% else
  load_tile<BLOCK_N, HEAD_DIM, DIM_QK, ${load_bytes_qk}>(
      tiles.keys, (const half_bits *)params.key.data + head_offset(params.key, w.batch, w.kv_head, w.first_key),
      params.key, w.seqlen_k - w.first_key, is_aligned(params.key, ${load_bytes_qk}));
  load_tile<BLOCK_N, HEAD_DIM_V, DIM_V, ${load_bytes_v}>(
      tiles.values, (const half_bits *)params.value.data + head_offset(params.value, w.batch, w.kv_head, w.first_key),
      params.value, w.seqlen_k - w.first_key, is_aligned(params.value, ${load_bytes_v}));
//% end
}

/* Q, dO and the statistics of a step, to its stage of the tiles. */
static __device__ __forceinline__ void load_queries(const struct tiles &tiles, const struct fa_params &params,
                                                    const struct work &w, const struct cursor &c)
{
  const struct workspace &from = c.at;
  int stage = c.stage, block = c.block;
//% if dtype == "fp32"
  load_split<BLOCK_M, DIM_QK>(tiles.queries + stage * QUERY_TILE, from.queries, block);
  load_split<BLOCK_M, DIM_V>(tiles.grad_outputs + stage * GRAD_TILE, from.grad_outputs, block);
  if (threadIdx.x == 0) {
    copy_async<4>(shared_address(tiles.query_factors + stage), from.query_factors + block, true);
    copy_async<4>(shared_address(tiles.grad_factors + stage), from.grad_factors + block, true);
  }
//% else
  int first = block * BLOCK_M;
  load_tile<BLOCK_M, HEAD_DIM, DIM_QK, ${load_bytes_qk}>(
      tiles.queries + stage * QUERY_TILE,
      (const half_bits *)params.query.data + head_offset(params.query, w.batch, c.head, first), params.query,
      w.seqlen_q - first, is_aligned(params.query, ${load_bytes_qk}));
  load_tile<BLOCK_M, HEAD_DIM_V, DIM_V, ${load_bytes_v}>(
      tiles.grad_outputs + stage * GRAD_TILE,
      (const half_bits *)params.grad_output.data + head_offset(params.grad_output, w.batch, c.head, first),
      params.grad_output, w.seqlen_q - first, is_aligned(params.grad_output, ${load_bytes_v}));
//% end
  for (int row = threadIdx.x; row < BLOCK_M; row += THREADS)
    copy_async<16>(shared_address(tiles.stats + stage * BLOCK_M + row), from.stats + block * BLOCK_M + row, true);
}

/* rows (WARP_KEYS x DIM) times columns^T (M_PART x DIM), to weights or to d_scores. */
template <int HEAD, int DIM, bool WEIGHTS>
static __device__ __forceinline__ void multiply_rows(struct scores (&s)[KEY_TILES], const half_bits *rows,
                                                     const half_bits *columns)
{
  int lane = threadIdx.x % 32;
  /* Where there is but one tile of columns, its second half is not there to be loaded. */
  u32 a_at = shared_address(rows + lane_a<DIM>(lane));
  u32 b_at = shared_address(columns + lane_b<DIM>(M_PART == 8 ? lane % 16 : lane));
#pragma unroll
  for (int i = 0; i < KEY_TILES * M_PART / 8 * 4; i++)
    products<WEIGHTS>(s[i / 4 / (M_PART / 8)])[i / 4 % (M_PART / 8)][i % 4] = 0;
//% if dtype == "fp32"
  constexpr int WHOLE = DIM;
#pragma unroll 2
//% else
  constexpr int WHOLE = DIM - HEAD >= 8 ? DIM - 16 : DIM;
#pragma unroll
//% end
  for (int k = 0; k < WHOLE; k += 16) {
    struct fragment a[KEY_TILES], b;
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++)
      load_fragment(a[t], at_column<DIM>(a_at, k) + t * 16 * DIM * 2, BLOCK_N * DIM);
#pragma unroll
    for (int n = 0; n < M_PART / 8; n += 2) {
      load_fragment(b, at_column<DIM>(b_at, k) + n * 8 * DIM * 2, BLOCK_M * DIM);
#pragma unroll
      for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
        for (int half = 0; half < 2 && n + half < M_PART / 8; half++) {
//% if dtype == "fp32"
          float sum[4] = {};
          multiply(sum, a[t], b, half);
#pragma unroll
          for (int e = 0; e < 4; e++)
            products<WEIGHTS>(s[t])[n + half][e] += sum[e];
//% else
          multiply(products<WEIGHTS>(s[t])[n + half], a[t], b, half);
//% end
        }
    }
  }
//% if dtype != "fp32"
  if constexpr (WHOLE < DIM) { /* 8 columns are left: both tiles of keys, and four of queries, in one load each */
    constexpr int ROWS = M_PART % 32 == 0 ? 32 : M_PART % 16 == 0 ? 16 : 8; /* of queries, that a load finds */
    u32 a[4], b[4];
    ldmatrix_x4(a, shared_address(rows + tile_index<DIM>(lane % WARP_KEYS, WHOLE)));
    b_at = shared_address(columns + tile_index<DIM>(lane % ROWS, WHOLE));
#pragma unroll
    for (int n = 0; n < M_PART / 8; n++) {
      if (n % (ROWS / 8) == 0)
        ldmatrix_x4(b, b_at + n * 8 * DIM * 2);
#pragma unroll
      for (int t = 0; t < KEY_TILES; t++)
        mma_m16n8k8(products<WEIGHTS>(s[t])[n], a[2 * t], a[2 * t + 1], b[n % (ROWS / 8)]);
    }
  }
//% end
}

//% if sums_like_hopper
/* K Q^T as hopper/forward_fp32_products.h sums it, bit for bit: forward's maximum is subtracted from the scores, and
 * where they are large a unit in the last place is a wrong weight. */
static __device__ __forceinline__ void multiply_like_hopper(struct scores (&s)[KEY_TILES], const half_bits *keys,
                                                             const half_bits *queries)
{
  int lane = threadIdx.x % 32;
  u32 a_at = shared_address(keys + lane_a<DIM_QK>(lane));
  u32 b_at = shared_address(queries + lane_b<DIM_QK>(M_PART == 8 ? lane % 16 : lane));
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
    for (int first = 0; first < DIM_QK; first += 64) {
      float sum[M_PART / 8][4] = {};
#pragma unroll
      for (int pass = 0; pass < 3; pass++) /* with the low parts of Q, with those of K, with none */
#pragma unroll
        for (int k = first; k < min(DIM_QK, first + 64); k += 16) {
          u32 a[4], b[4];
          ldmatrix_x4(a, at_column<DIM_QK>(a_at, k) + (t * 16 + (pass == 1 ? BLOCK_N : 0)) * DIM_QK * 2);
#pragma unroll
          for (int n = 0; n < M_PART / 8; n += 2) {
            ldmatrix_x4(b, at_column<DIM_QK>(b_at, k) + (n * 8 + (pass == 0 ? BLOCK_M : 0)) * DIM_QK * 2);
#pragma unroll
            for (int half = 0; half < 2 && n + half < M_PART / 8; half++)
              mma_m16n8k16(sum[n + half], a, b[2 * half], b[2 * half + 1]);
          }
        }
#pragma unroll
      for (int n = 0; n < M_PART / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          s[t].weights[n][e] = first ? s[t].weights[n][e] + sum[n][e] : sum[n][e];
    }
}
//% end

/* Weights and d_scores of a step. */
static __device__ __forceinline__ void compute_scores(struct scores (&s)[KEY_TILES], const struct tiles &tiles,
                                                      const struct fa_params &params, const struct work &w,
                                                      const struct cursor &c)
{
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stage = c.stage;
  int group = warp / D_SPLITS, first_query = warp % D_SPLITS * M_PART; /* in the block */
  const half_bits *keys = tiles.keys + group * WARP_KEYS * DIM_QK;
  const half_bits *queries = tiles.queries + stage * QUERY_TILE + first_query * DIM_QK;
//% if sums_like_hopper
  multiply_like_hopper(s, keys, queries);
//% else
  multiply_rows<HEAD_DIM, DIM_QK, true>(s, keys, queries);
//% end
  multiply_rows<HEAD_DIM_V, DIM_V, false>(s, tiles.values + group * WARP_KEYS * DIM_V,
                                          tiles.grad_outputs + stage * GRAD_TILE + first_query * DIM_V);
  weigh<true, true>(s, tiles.stats + stage * BLOCK_M + first_query + lane % 4 * 2, w, params
//% if dtype == "fp32"
        , tiles.query_factors[stage] * w.key_factor, tiles.grad_factors[stage] * w.value_factor
//% end
  );
  bool masked = w.first_key + BLOCK_N > w.seqlen_k;
//% if causal
  masked = masked || w.first_key + BLOCK_N > c.block * BLOCK_M + 1;
//% end
  if (masked)
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++)
      mask_scores<true, true>(s[t], w, w.first_key + group * WARP_KEYS + t * 16 + lane / 4,
                              c.block * BLOCK_M + first_query + lane % 4 * 2);
}
