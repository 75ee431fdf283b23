/*
 * From the caller's tensors (any type and strides) to the packed floats that the matmuls read, and back.
 */
static inline element *at(const struct fa_tensor *tensor, long long batch, long long head, long long row)
{
  return (element *)tensor->data + batch * tensor->stride_batch + head * tensor->stride_head + row * tensor->stride_row;
}

/*
 * LANES elements of a row from `column` on, zeros beyond `dim`; and the way back. Not inlined: they stand in unrolled
 * code, where a copy each would double what the compiler has to do.
 */
static __attribute__((noinline)) vec load_row(const element *row, long long stride_col, int column, int dim)
{
  if (stride_col == 1 && column + LANES <= dim)
    return load_elements(row + column);
  return load_strided(row + column * stride_col, stride_col, dim - column < LANES ? dim - column : LANES);
}
static __attribute__((noinline)) void store_row(element *row, long long stride_col, int column, int dim, vec x)
{
  if (stride_col == 1 && column + LANES <= dim)
    store_elements(row + column, x);
  else
    store_strided(row + column * stride_col, stride_col, dim - column < LANES ? dim - column : LANES, x);
}

/* rows x dim as they are, out[row * leading + column]; zeros fill the rows from `rows` to `padded_rows`. Inlined, so
 * that dim is a constant: with few queries, packing is what a block of keys costs most after its products. */
static inline __attribute__((always_inline)) void pack_rows(float *out, int leading, const element *in,
                                                            long long stride_row, long long stride_col, int dim,
                                                            long rows, long padded_rows)
{
  int whole = stride_col == 1 ? dim / LANES * LANES : 0;
  for (long row = 0; row < rows && whole > 0; row++)
#pragma GCC unroll 16
    for (int column = 0; column < dim / LANES * LANES; column += LANES)
      store(out + row * leading + column, load_elements(in + row * stride_row + column));
  if (whole < dim)
    for (long row = 0; row < rows; row++)
      for (int column = whole; column < dim; column += LANES)
        store(out + row * leading + column, load_row(in + row * stride_row, stride_col, column, dim));
  for (long i = rows * leading; i < padded_rows * leading; i += LANES)
    store(out + i, (vec){0});
}

//% if dot
/*
 * Pairs of bf16, as vdpbf16ps takes them: the two terms that one step adds share a float's place, the first
 * in the low half.
 */

/* Neighbouring columns pair up: out[row * leading + column / 2]; the odd last column pairs with zero, rows up to
 * padded_rows are zero. */
static void pack_column_pairs(float *out, int leading, const element *in, long long stride_row, long long stride_col,
                              int dim, long rows, long padded_rows)
{
  for (long row = 0; row < padded_rows; row++) {
    element *to = (element *)(out + row * leading);
    const element *from = in + row * stride_row;
    int column = 0, end = row < rows ? dim : 0;
    if (stride_col == 1)
      for (; column + LANES <= end; column += LANES)
        *(half_vec_unaligned *)(to + column) = *(const half_vec_unaligned *)(from + column);
    for (; column < end; column++)
      to[column] = from[column * stride_col];
    for (; column < 2 * leading; column++)
      to[column] = 0;
  }
}

/* Neighbouring rows pair up: out[row / 2 * leading + column]; an odd last row pairs with zeros, pairs up to
 * padded_pairs are zero. */
static void pack_row_pairs(float *out, int leading, const element *in, long long stride_row, long long stride_col,
                           int dim, long rows, long padded_pairs)
{
  long pair = 0;
  for (; 2 * pair < rows; pair++)
    for (int column = 0; column < leading; column += LANES) {
      const element *from = in + 2 * pair * stride_row;
      _Bool inside = column < dim;
      uvec low = inside ? (uvec)load_row(from, stride_col, column, dim) : (uvec){0};
      uvec high = {0};
      if (inside && 2 * pair + 1 < rows)
        high = (uvec)load_row(from + stride_row, stride_col, column, dim);
      store(out + pair * leading + column, (vec)(high | low >> 16));
    }
  for (long i = pair * leading; i < padded_pairs * leading; i += LANES)
    store(out + i, (vec){0});
}

/* Rows of TILE_M floats that are exact in bf16 pair up in place: 2 i and 2 i + 1 become i. */
static void fold_exact_pairs(float *x, int rows)
{
  for (int row = 0; row < rows; row += 2)
    for (int lanes = 0; lanes < TILE_M; lanes += LANES) {
      uvec low = (uvec)load(x + row * TILE_M + lanes);
      uvec high = row + 1 < rows ? (uvec)load(x + (row + 1) * TILE_M + lanes) : (uvec){0};
      store(x + row / 2 * TILE_M + lanes, (vec)(high | low >> 16));
    }
}

/* The same for any floats, rounded to the nearest bf16. */
static void fold_rounded_pairs(float *out, const float *in, long rows)
{
  for (long row = 0; row < rows; row += 2)
    for (int lanes = 0; lanes < TILE_M; lanes += LANES) {
      uvec low = (uvec)load(in + row * TILE_M + lanes) + 0x8000u;
      uvec high = row + 1 < rows ? (uvec)load(in + (row + 1) * TILE_M + lanes) + 0x8000u : (uvec){0};
      store(out + row / 2 * TILE_M + lanes, (vec)((high & 0xffff0000u) | low >> 16));
    }
}

//% end
/* rows x dim transposed, out[column * TILE_M + row] for one tile of TILE_M rows; zeros beyond `rows`. */
static void pack_transposed(float *out, const element *in, long long stride_row, long long stride_col, int dim,
                            long rows)
{
  for (int lanes = 0; lanes < TILE_M; lanes += LANES)
    for (int column = 0; column < dim; column += LANES) {
      vec x[LANES];
//% for i in 0 .. lanes
      x[${i}] = lanes + ${i} < rows ? load_row(in + (lanes + ${i}) * stride_row, stride_col, column, dim) : (vec){0};
//% end
      transpose(x);
      float *to = out + column * TILE_M + lanes;
//% for i in 0 .. lanes
      if (column + ${i} < dim)
        store(to + ${i} * TILE_M, x[${i}]);
//% end
    }
}

//% if op == "forward"
/* The way back: in[column * TILE_M + row] to `rows` rows of the caller's tensor, each divided by divisor[row]. */
//% else
/* The way back: in[column * TILE_M + row] to `rows` rows of the caller's tensor, each times factor[row]. */
//% end
static void unpack_transposed(element *out, long long stride_row, long long stride_col, int dim, long rows,
//% if op == "forward"
                              const float *in, const float *divisor)
//% else
                              const float *in, const float *factor)
//% end
{
  for (int lanes = 0; lanes < TILE_M && lanes < rows; lanes += LANES)
    for (int column = 0; column < dim; column += LANES) {
      const float *from = in + column * TILE_M + lanes;
      vec x[LANES];
//% if op == "forward"
      /* The product with 1 / divisor, corrected once: as good as a division and several times as fast. */
      vec whole = load(divisor + lanes), inverse = 1.0f / whole;
//%   for i in 0 .. lanes
      x[${i}] = column + ${i} < dim ? load(from + ${i} * TILE_M) : (vec){0};
      vec quotient_${i} = x[${i}] * inverse;
      vec rest_${i} = (x[${i}] - quotient_${i} * whole) * inverse; /* NaN beside an infinite quotient */
      x[${i}] = quotient_${i} + blend(rest_${i} - rest_${i} == 0, rest_${i}, (vec){0});
//%   end
//% else
      vec scale = load(factor + lanes);
//%   for i in 0 .. lanes
      x[${i}] = column + ${i} < dim ? load(from + ${i} * TILE_M) * scale : (vec){0};
//%   end
//% end
      transpose(x);
//% for i in 0 .. lanes
      if (lanes + ${i} < rows)
        store_row(out + (lanes + ${i}) * stride_row, stride_col, column, dim, x[${i}]);
//% end
    }
}
