/*
 * Which part of dQ of a block of queries each warp computes: `rows` tiles of 16 queries at a time, and some of the
 * units of 16 columns. Where units do not spread evenly (head dims 40, 72, 80, 136), it matters how: warps w and w + 4
 * are on the same quarter of an SM, and the block is done when the busiest quarter is.
 */
static __device__ constexpr int dq_row_warps(int rows)
{
  return BLOCK_M / (16 * rows) < WARPS ? BLOCK_M / (16 * rows) : WARPS;
}

static __device__ constexpr int dq_units_before(int column_warp, int column_warps)
{
  constexpr int UNITS = DIM_QK / 16;
  int more = UNITS % column_warps; /* warps have one more, the first */
  return column_warp * (UNITS / column_warps) + (column_warp < more ? column_warp : more);
}

/* Products of the busiest quarter of an SM. */
static __device__ constexpr int dq_most_products(int rows)
{
  int most = 0, row_warps = dq_row_warps(rows), column_warps = WARPS / row_warps;
  for (int quarter = 0; quarter < 4; quarter++) {
    int units = 0;
    for (int warp = quarter; warp < WARPS; warp += 4)
      units += dq_units_before(warp / row_warps + 1, column_warps) - dq_units_before(warp / row_warps, column_warps);
    units *= BLOCK_M / (16 * row_warps);
    most = units > most ? units : most;
  }
  return most;
}

enum {
  /* Two tiles of queries share what is read of K. */
  DQ_ROWS = BLOCK_M % 32 == 0 && WARPS > 1 && dq_most_products(2) <= dq_most_products(1) ? 2 : 1,
  DQ_ROW_WARPS = dq_row_warps(DQ_ROWS),
  DQ_COLUMN_WARPS = WARPS / DQ_ROW_WARPS,
  DQ_UNITS = dq_units_before(1, DQ_COLUMN_WARPS), /* at most: the first has the most */
  DQ_EVEN = DIM_QK / 16 % DQ_COLUMN_WARPS == 0,
};
static_assert(BLOCK_M % (16 * DQ_ROWS * DQ_ROW_WARPS) == 0 && WARPS % DQ_ROW_WARPS == 0,
              "the generator lets only such configs through");
