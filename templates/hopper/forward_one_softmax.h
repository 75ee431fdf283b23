/*
 * The softmax of fp32 in one product. The scales of Q's rows and of blocks of K (forward_fp32_split.h) are undone in the
 * factor from scores to exponents, those of V in the weights: sums of the output go on over all blocks of keys, so they
 * are in one unit, the largest 2^-k so far. Weights of a block of smaller values are smaller by what its 2^-k is.
 */
/* Those of the block to come, from memory: they are there by the time that its largest scores are known. */
static __device__ __forceinline__ void use_factors(struct rows &rows, float2 factors)
{
  rows.key_factor = factors.x;
  rows.value_factor = factors.y;
}

/* Scores become weights in place, and rows say what the sums must be multiplied by. */
static __device__ __forceinline__ void softmax(float (&scores)[M_TILES][N_TILES][4], struct rows &rows, int first_key,
                                               int seqlen_k)
{
  mask_block(scores, rows, first_key, seqlen_k);
  float largest[M_TILES][2], origin[M_TILES][2];
  find_largest(largest, scores, rows);
  const float unit = rows.key_factor / MAX_UNIT, old_unit = rows.output_unit;
  rows.output_unit = fmaxf(old_unit, rows.value_factor);
  const float growth = old_unit * inverse_power(rows.output_unit);
  /* Of what is smaller by 2^60, fp16 would hold nothing in any case. */
  const int less_by = min(biased_exponent(rows.output_unit) - biased_exponent(rows.value_factor), 60);
  bool seldom = false, large = false; /* as in softmax.h */
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float new_max = fmaxf(rows.max[m][h], largest[m][h] * unit);
      seldom = seldom || largest[m][h] < 0 ||
               is_large(__fmul_rn(__fmul_rn(new_max, rows.factor), MAX_UNIT * rows.query_factor[m][h]));
    }
  seldom = __any_sync(0xffffffffu, seldom);
  if (seldom)
    find_largest_negative(largest, scores);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float old_max = rows.max[m][h], new_max = fmaxf(old_max, largest[m][h] * unit);
      rows.max[m][h] = new_max;
      new_max = new_max == -INF ? 0.0f : new_max;
      /* Exponents are rounded once, by the first factor; the others are powers of two. */
      float row_unit = MAX_UNIT * rows.query_factor[m][h];
      float product = __fmul_rn(__fmul_rn(new_max, rows.factor), row_unit);
      bool mine = is_large(product);
      large = large || mine;
      largest[m][h] = mine ? new_max * inverse_power(unit) : 0.0f;
      origin[m][h] = mine ? 0.0f : product;
      rows.rescale[m][h] = exp2_approx((old_max - new_max) * rows.factor * row_unit);
    }
  if (seldom)
    subtract_largest(scores, largest, large);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = 0, factor = bounded(rows.factor * (rows.query_factor[m][h] * rows.key_factor));
      float start = (float)(WEIGHT_EXPONENT - less_by) - origin[m][h];
#pragma unroll
      for (int n = 0; n < N_TILES; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float &x = scores[m][n][2 * h + e];
          x = exp2_approx(fmaf(x, factor, start));
          sum += x;
        }
      rows.sum[m][h] = rows.sum[m][h] * rows.rescale[m][h] + sum * power_of_two(less_by);
      rows.rescale[m][h] *= growth;
    }
  rows.moved = __any_sync(0xffffffffu, rows.rescale[0][0] != 1 || rows.rescale[0][1] != 1);
}
