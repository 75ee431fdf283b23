/*
 * From rows of floats to the operands of tile products. Rows of a tensor are split into groups of 32 columns (the k of
 * one product) or 16 (the rows or columns of one); what is missing at the end is zero.
 */

/* An infinity in the operands of scores becomes NaN, so that it makes NaN of every row that attends to it: a score of
 * -inf would get weight 0 and vanish. */
static inline vec infinity_to_nan(vec x)
{
//% if parts == 1
  return x * 0.0f + x;
//% else
  return x; /* of which store_pairs makes an infinity and a NaN */
//% end
}

static inline __attribute__((always_inline)) vec load_columns(const element *row, long long stride_col, int column,
                                                              int dim)
{
  return stride_col == 1 && column + LANES <= dim ? load_elements(row + column)
                                                  : load_row(row, stride_col, column, dim);
}

/* `count` rows (16 at a time) as they are: row r is row r % 16 of tile out[r / 16][group of columns][part]. */
static inline __attribute__((always_inline)) void pack_row_tiles(tile *out, const element *in, long long stride_row,
                                                                 long long stride_col, int dim, long rows, long count)
{
  int groups = (dim + 31) / 32;
  for (long row = 0; row < count; row++) {
    tile *to = out + row / 16 * groups * PARTS;
    const element *from = in + row * stride_row;
    for (int group = 0; group < groups; group++) {
      vec low = {0}, high = {0};
      if (row < rows) {
        low = load_columns(from, stride_col, 32 * group, dim);
        if (32 * group + 16 < dim)
          high = load_columns(from, stride_col, 32 * group + 16, dim);
      }
      store_pairs(to + group * PARTS, 1, row % 16, infinity_to_nan(low), infinity_to_nan(high));
    }
  }
}

/* 32 * groups rows transposed: column c is row c % 16 of tile out[group of rows][c / 16][part]. */
static inline __attribute__((always_inline)) void pack_column_tiles(tile *out, int column_tiles, const element *in,
                                                                    long long stride_row, long long stride_col, int dim,
                                                                    long rows, long groups)
{
  for (long group = 0; group < groups; group++)
    for (int tile_column = 0; tile_column < column_tiles; tile_column++) {
      vec low[LANES], high[LANES];
      const element *from = in + 32 * group * stride_row;
      long left = 16 * tile_column < dim ? rows - 32 * group : 0;
//% for i in 0 .. 16
      low[${i}] = ${i} < left ? load_columns(from + ${i} * stride_row, stride_col, 16 * tile_column, dim) : (vec){0};
      high[${i}] = ${i + 16} < left ? load_columns(from + ${i + 16} * stride_row, stride_col, 16 * tile_column, dim) : (vec){0};
//% end
      transpose(low);
      transpose(high);
      tile *to = out + (group * column_tiles + tile_column) * PARTS;
      for (int i = 0; i < 16; i++)
        store_pairs(to, 1, i, low[i], high[i]);
    }
}

/* A transposed block of 32 rows, in[column][32], as tiles out[group of columns][part][half of the rows]. */
static inline void pack_transposed_tiles(tile *out, const float *in, int dim)
{
  for (int column = 0; column < dim; column += 32)
    for (int i = 0; i < 16; i++)
      for (int half = 0; half < 2; half++) {
        vec low = column + i < dim ? load(in + (column + i) * 32 + half * 16) : (vec){0};
        vec high = column + 16 + i < dim ? load(in + (column + 16 + i) * 32 + half * 16) : (vec){0};
        store_pairs(out + column / 32 * 2 * PARTS + half, 2, i, infinity_to_nan(low), infinity_to_nan(high));
      }
}
