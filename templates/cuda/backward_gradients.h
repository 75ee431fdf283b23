/* What a step adds to the three gradients. */
//% let split = dtype == "fp32"

//% if split
/* weights in units of 2^-14, so that fp16 holds their parts (split.h); d_scores in a unit of each group of keys. */
#define WEIGHT_UNIT 0x1p-14f

//% end
/* d_scores of a warp (and weights where the warps of a group exchange them) to shared memory.
//% if split
 * Both are scaled by powers of two, d_scores by what the largest of the group asks for.
//% end
 */
static __device__ __forceinline__ void share_scores(struct scores (&s)[KEY_TILES], const struct tiles &tiles)
{
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / D_SPLITS;
//% if split
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < KEY_TILES * M_PART / 2; i++) {
    u32 magnitude = finite_magnitude(s[i / (M_PART / 2)].d_scores[i / 4 % (M_PART / 8)][i % 4]);
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = __reduce_max_sync(0xffffffffu, largest);
//%   if d_splits > 1
  if (lane == 0)
    tiles.largest[warp] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < D_SPLITS; i++) {
    u32 other = tiles.largest[group * D_SPLITS + i];
    largest = other > largest ? other : largest;
  }
//%   end
  int exponent = scale_exponent(largest, MOST_OF_D_SCORES);
  float scale = power_of_two(exponent);
  if (lane == 0 && warp % D_SPLITS == 0)
    tiles.d_score_factors[group] = power_of_two(-exponent);
//% end
  /* Lane (g, t) holds keys g and g + 8, queries 2t and 2t + 1 of each tile. */
  int row = group * WARP_KEYS + lane / 4, first = warp % D_SPLITS * M_PART + lane % 4 * 2;
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
    for (int n = 0; n < M_PART / 8; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int at = tile_index<BLOCK_M>(row + 16 * t + 8 * h, first + n * 8);
        float(&d_scores)[4] = s[t].d_scores[n];
//% if split || d_splits > 1
        float(&weights)[4] = s[t].weights[n];
//% end
//% if split
        weights[2 * h] *= 1 / WEIGHT_UNIT;
        weights[2 * h + 1] *= 1 / WEIGHT_UNIT;
        d_scores[2 * h] *= scale;
        d_scores[2 * h + 1] *= scale;
        u32 high, low;
        split_pair(d_scores[2 * h], d_scores[2 * h + 1], high, low);
        *(u32 *)(tiles.d_scores + at) = high;
        *(u32 *)(tiles.d_scores + at + SCORE_TILE / 2) = low;
//%   if d_splits > 1
        split_pair(weights[2 * h], weights[2 * h + 1], high, low);
        *(u32 *)(tiles.weights + at) = high;
        *(u32 *)(tiles.weights + at + SCORE_TILE / 2) = low;
//%   end
//% else
        *(u32 *)(tiles.d_scores + at) = pack(d_scores[2 * h], d_scores[2 * h + 1]);
//%   if d_splits > 1
        *(u32 *)(tiles.weights + at) = pack(weights[2 * h], weights[2 * h + 1]);
//%   end
//% end
      }
}

/* gradient += left^T (WARP_KEYS x BLOCK_M queries) times a warp's TILES x 8 columns of rows (BLOCK_M x DIM), times factor;
 * left is weights or d_scores. Where TILES is odd, the last 8 columns are read of two blocks of 16 rows at once, if
 * BLOCK_M has such. */
template <int TILES, int DIM, bool WEIGHTS>
static __device__ __forceinline__ void add_gradient(float (&gradient)[KEY_TILES][TILES][4],
                                                    struct scores (&s)[KEY_TILES], const struct tiles &tiles,
                                                    const half_bits *rows, float factor)
{
  /* Two warps can begin at an odd tile, and then pieces change places in pairs (tile.h: DIM is no multiple of 32). */
  constexpr bool ODD_START = D_SPLITS > 1 && TILES % 2 == 1;
  constexpr int LAST_ROWS = BLOCK_M % 32 == 0 ? 32 : 16;
  static_assert(!ODD_START || group_pieces<DIM>() == 2, "what is 16 columns further is 32 bytes further");
  int lane = threadIdx.x % 32, first = threadIdx.x / 32 % D_SPLITS * TILES * 8;
  struct fragment a[KEY_TILES][BLOCK_M / 16], b;
//% if d_splits > 1
  u32 a_at = shared_address((WEIGHTS ? tiles.weights : tiles.d_scores) +
                            threadIdx.x / 32 / D_SPLITS * WARP_KEYS * BLOCK_M + lane_a<BLOCK_M>(lane));
//% end
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
    for (int k = 0; k < BLOCK_M / 16; k++)
//% if d_splits > 1
      load_fragment(a[t][k], at_column<BLOCK_M>(a_at, k * 16) + t * 16 * BLOCK_M * 2, BLOCK_N * BLOCK_M);
//% else
      set_fragment(a[t][k], products<WEIGHTS>(s[t])[2 * k], products<WEIGHTS>(s[t])[2 * k + 1]);
//% end
  u32 b_at = shared_address(rows + (ODD_START ? tile_index<DIM>(lane & 15, first + (lane >> 4) * 8) : lane_a<DIM>(lane)));
  u32 last_at = shared_address(rows + tile_index<DIM>(lane % LAST_ROWS, first + (TILES - 1) * 8));
#pragma unroll
  for (int n = 0; n < TILES; n += 2) {
    if (TILES * D_SPLITS * 8 > DIM && first + n * 8 >= DIM)
      break;
//% if split
    __syncwarp(); /* keeps the loads of later columns where they are: there are no registers for them */
    float sum[KEY_TILES][2][4] = {};
//% end
#pragma unroll
    for (int k = 0; k < BLOCK_M / 16; k++) {
      const bool is_last = n + 1 == TILES;
      if (!is_last)
        load_fragment_trans(b, at_column<DIM>(b_at, (ODD_START ? 0 : first) + n * 8) + k * 16 * DIM * 2, BLOCK_M * DIM);
      else if (k * 16 % LAST_ROWS == 0)
        load_fragment_trans(b, last_at + k * 16 * DIM * 2, BLOCK_M * DIM);
#pragma unroll
      for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
        for (int half = 0; half < 2 && n + half < TILES; half++)
//% if split
          multiply(sum[t][half], a[t][k], b, is_last ? k % (LAST_ROWS / 16) : half);
//% else
          multiply(gradient[t][n + half], a[t][k], b, is_last ? k % (LAST_ROWS / 16) : half);
//% end
    }
//% if split
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
      for (int half = 0; half < 2 && n + half < TILES; half++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          gradient[t][n + half][e] += sum[t][half][e] * factor;
//% end
  }
  (void)s, (void)tiles, (void)factor;
}

static __device__ __forceinline__ void add_grad_value(float (&gradient)[KEY_TILES][TILES_V][4],
                                                      struct scores (&s)[KEY_TILES], const struct tiles &tiles,
                                                      int stage)
{
  add_gradient<TILES_V, DIM_V, true>(gradient, s, tiles, tiles.grad_outputs + stage * GRAD_TILE,
//% if split
                                 tiles.grad_factors[stage] * WEIGHT_UNIT);
//% else
                                 1.0f);
//% end
}

static __device__ __forceinline__ void add_grad_key(float (&gradient)[KEY_TILES][TILES_QK][4],
                                                    struct scores (&s)[KEY_TILES], const struct tiles &tiles, int stage)
{
  add_gradient<TILES_QK, DIM_QK, false>(gradient, s, tiles, tiles.queries + stage * QUERY_TILE,
//% if split
                                        tiles.query_factors[stage] *
                                            tiles.d_score_factors[threadIdx.x / 32 / D_SPLITS]);
//% else
                                        1.0f);
//% end
}

/* Of the two tiles of 8 columns of a unit of dQ, those with columns of a tensor, where one warp has all units. */
static __device__ __forceinline__ constexpr int tiles_of_unit(int unit)
{
  return DQ_COLUMN_WARPS == 1 && 16 * unit + 8 >= HEAD_DIM ? 1 : 2;
}

/* dQ of a step, summed in the workspace. */
static __device__ __forceinline__ void add_grad_query(const struct tiles &tiles, const struct work &w,
                                                      const struct cursor &c)
{
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int first_row_tile = warp % DQ_ROW_WARPS * DQ_ROWS, column_warp = warp / DQ_ROW_WARPS;
  int first_unit = dq_units_before(column_warp, DQ_COLUMN_WARPS);
  int units = dq_units_before(column_warp + 1, DQ_COLUMN_WARPS) - first_unit;
  float *sums = c.at.grad_query + (long long)c.block * (BLOCK_M * DIM_QK);
//% if ordered
  int *turns = c.at.turns + c.block * WARPS + warp;
  const int turn = w.key_block; /* whoever sees a block of keys sees all before it */
  bool my_turn = turn == 0;
//% end
  for (int row = first_row_tile; row < BLOCK_M / 16; row += DQ_ROW_WARPS * DQ_ROWS) {
    u32 a_at = at_column<BLOCK_M>(shared_address(tiles.d_scores + lane_b<BLOCK_M>(lane)), row * 16);
    u32 b_at = shared_address(tiles.keys + lane_a<DIM_QK>(lane));
    float gradient[DQ_ROWS][2 * DQ_UNITS][4] = {};
#pragma unroll
    for (int k = 0; k < BLOCK_N / 16; k++) {
      struct fragment a[DQ_ROWS], b;
#pragma unroll
      for (int m = 0; m < DQ_ROWS; m++)
        load_fragment_trans(a[m], at_column<BLOCK_M>(a_at, m * 16) + k * 16 * BLOCK_M * 2, BLOCK_N * BLOCK_M);
//% if split
      float factor = tiles.d_score_factors[k / KEY_TILES] * w.key_factor;
//% end
#pragma unroll
      for (int unit = 0; unit < DQ_UNITS; unit++) {
        if (!DQ_EVEN && unit >= units)
          break;
//% if split
        __syncwarp(); /* as above */
//% end
        load_fragment_trans(b, at_column<DIM_QK>(b_at, (first_unit + unit) * 16) + k * 16 * DIM_QK * 2, BLOCK_N * DIM_QK);
#pragma unroll
        for (int m = 0; m < DQ_ROWS; m++)
#pragma unroll
          for (int half = 0; half < tiles_of_unit(unit); half++) {
//% if split
            float sum[4] = {};
            multiply(sum, a[m], b, half);
#pragma unroll
            for (int e = 0; e < 4; e++)
              gradient[m][2 * unit + half][e] += sum[e] * factor;
//% else
            multiply(gradient[m][2 * unit + half], a[m], b, half);
//% end
          }
      }
    }
//% if ordered
    /* Every block of keys gives this part of dQ to the warp of the same number: warps wait for their own kind. */
    if (!my_turn) {
      if (lane == 0)
        while (load_acquire(turns) != turn) {
        }
      __syncwarp();
      my_turn = true;
    }
//% end
#pragma unroll
    for (int m = 0; m < DQ_ROWS; m++)
#pragma unroll
      for (int n = 0; n < 2 * DQ_UNITS; n++) {
        if (!DQ_EVEN && n >= 2 * units)
          break;
        if (n % 2 >= tiles_of_unit(n / 2) || (DIM_QK - HEAD_DIM >= 8 && (2 * first_unit + n) * 8 >= HEAD_DIM))
          continue; /* no columns of the tensor */
        float *sum = sums + dq_offset(row + m, first_unit * 2 + n, lane);
        const float(&x)[4] = gradient[m][n];
//% if ordered
        if (turn == 0) {
          *(float4 *)sum = make_float4(x[0], x[1], x[2], x[3]);
          continue;
        }
//% end
//% if vector_reduce
        reduce_add_4(sum, x[0], x[1], x[2], x[3]);
//% else
#pragma unroll
        for (int e = 0; e < 4; e++)
          reduce_add(sum + e, x[e]);
//% end
      }
  }
//% if ordered
  __syncwarp();
  if (lane == 0)
    store_release(turns, turn + 1);
//% end
}
