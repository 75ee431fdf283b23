/* The two products of a warpgroup's 64 rows, three of fp16 each, and what its registers need between them. Small terms
 * come first, high * high last: what a sum loses by truncation is in proportion to its size. */

enum { LAST_COLUMNS = DIM_QK - 64 * (CHUNKS_QK - 1) }; /* of the last chunk of Q and K; others have 64 */

/* Issue scores = Q K^T over the columns of a chunk. */
template <int COLUMNS>
static __device__ __forceinline__ void multiply_chunk(float (&scores)[N_TILES][4], u32 queries, u32 panel)
{
  u64 a_high = matrix_descriptor(queries, 0, 1024, 128), a_low = a_high + BLOCK_M * 128 / 16;
  u64 b_high = matrix_descriptor(panel, 0, 1024, 128), b_low = b_high + BLOCK_N * 128 / 16;
  keep_registers(flat(scores));
  wgmma_fence();
  wgmma_m64n${block_n}<COLUMNS, 0, 0>(flat(scores), a_low, b_high, 0);
  wgmma_m64n${block_n}<COLUMNS, 0, 0>(flat(scores), a_high, b_low, 1);
  wgmma_m64n${block_n}<COLUMNS, 0, 0>(flat(scores), a_high, b_high, 1);
  wgmma_commit();
}

/* Wait for the sums of a chunk and add them to those before, which are waited for as well where they are the first. */
static __device__ __forceinline__ void add_chunk(float (&scores)[N_TILES][4], float (&sums)[N_TILES][4], int chunk,
                                                 u32 shared, struct panels &panels)
{
  if (chunk == 1) {
    wgmma_wait<1>();
    keep_registers(flat(scores));
    release_panel(shared, panels);
  }
  wgmma_wait<0>();
  keep_registers(flat(sums));
  release_panel(shared, panels);
#pragma unroll
  for (int i = 0; i < 4 * N_TILES; i++)
    flat(scores)[i] += flat(sums)[i];
}

/* scores = Q K^T. The turn is given away as soon as all of it has been issued. */
static __device__ __forceinline__ void multiply_keys(float (&scores)[M_TILES][N_TILES][4], u32 queries, u32 shared,
                                                     struct panels &panels, int warpgroup)
{
  float sums[N_TILES][4];
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS_QK; chunk++) {
    if (chunk >= 2)
      add_chunk(scores[0], sums, chunk - 1, shared, panels);
    u32 panel = take_panel(shared, panels);
    u32 columns = queries + chunk * BLOCK_M * 256;
    if (chunk == 0)
      multiply_chunk<(CHUNKS_QK > 1 ? 64 : LAST_COLUMNS)>(scores[0], columns, panel);
    else if (chunk < CHUNKS_QK - 1)
      multiply_chunk<64>(sums, columns, panel);
    else
      multiply_chunk<LAST_COLUMNS>(sums, columns, panel);
  }
  give_turn(warpgroup);
  if (CHUNKS_QK > 1) {
    add_chunk(scores[0], sums, CHUNKS_QK - 1, shared, panels);
  } else {
    wgmma_wait<0>();
    keep_registers(flat(scores[0]));
    release_panel(shared, panels);
  }
}

/* Weights as left operands, 16 keys each. */
struct weights {
  u32 high[BLOCK_N / 16][4], low[BLOCK_N / 16][4];
};

static __device__ __forceinline__ void split_weights(struct weights &weights,
                                                     const float (&scores)[M_TILES][N_TILES][4])
{
#pragma unroll
  for (int k = 0; k < BLOCK_N / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      split_pair(scores[0][2 * k + i / 2][i % 2 * 2], scores[0][2 * k + i / 2][i % 2 * 2 + 1], weights.high[k][i],
                 weights.low[k][i]);
}

/* Issue sums = weights V for SUM_KEYS keys from `first` on and a chunk of columns. */
static __device__ __forceinline__ void multiply_columns(float (&sums)[WIDTH_V / 2], const struct weights &weights,
                                                        u32 panel, int first)
{
  u64 b_high = matrix_descriptor(panel, 0, 1024, 128), b_low = b_high + BLOCK_N * 128 / 16;
  keep_registers(sums);
  wgmma_fence();
  typedef const u32 (&left)[SUM_KEYS / 16][4];
  left high = reinterpret_cast<left>(weights.high[first / 16]), low = reinterpret_cast<left>(weights.low[first / 16]);
  wgmma_m64n${width_v}<SUM_KEYS, 1>(sums, low, along_k<1>(b_high, first), 0);
  wgmma_m64n${width_v}<SUM_KEYS, 1>(sums, high, along_k<1>(b_low, first), 1);
  wgmma_m64n${width_v}<SUM_KEYS, 1>(sums, high, along_k<1>(b_high, first), 1);
  wgmma_commit();
}

/* Add sums that have been waited for to a chunk of columns; those of the first keys rescale what was there. */
static __device__ __forceinline__ void add_columns(float (&output)[M_TILES][V_TILES][4], float (&sums)[WIDTH_V / 2],
                                                   const struct rows &rows, float factor, int chunk, bool is_first)
{
  keep_registers(sums);
#pragma unroll
  for (int i = 0; i < WIDTH_V / 2; i++) {
    float &x = output[0][WIDTH_V / 8 * chunk + i / 4][i % 4];
    x = (is_first ? x * rows.rescale[0][i / 2 % 2] : x) + sums[i] * factor;
  }
}

/* output = output * rescale + (weights V) * factor, in pieces of a chunk of columns and SUM_KEYS keys. Where there are
 * registers for two of them, one is multiplied while the one before is added. */
static __device__ __forceinline__ void multiply_values(float (&output)[M_TILES][V_TILES][4],
                                                       const struct weights &weights, const struct rows &rows,
                                                       float value_factor, u32 shared, struct panels &panels)
{
  float factor = value_factor * (OUTPUT_UNIT / WEIGHT_UNIT), sums[PIECES_AT_ONCE][WIDTH_V / 2];
  u32 panel;
//% let parts = block_n / sum_keys
//% let pieces = chunks_v * parts
//% let ahead = pieces_at_once - 1
//% for piece in 0 .. pieces + ahead
//%   if piece < pieces
//%     if piece % parts == 0
  panel = take_panel(shared, panels);
//%     end
  multiply_columns(sums[${piece % pieces_at_once}], weights, panel, ${piece % parts * sum_keys});
//%   end
//%   if piece >= ahead
//%     let done = piece - ahead
  wgmma_wait<${min(ahead, pieces - 1 - done)}>();
//%     if done % parts == parts - 1
  release_panel(shared, panels);
//%     end
  add_columns(output, sums[${done % pieces_at_once}], rows, factor, ${done / parts}, ${done % parts == 0});
//%   end
//% end
}
