/*
 * The online softmax of one tile, scores[key][query]: queries lie along the lanes, so a row's maximum and sum
 * are plain vector operations (FlashAttention-2, arXiv:2307.08691, algorithm 1).
 *
 * On entry row_max and row_sum describe the keys seen so far; on return also these, the scores have become
 * exp2((score - row_max) * factor) * UNIT, and rescale is what the sums of before must be multiplied by.
 * Keys from first_masked on may be hidden: key j is seen by query i where i + diagonal >= j.
 *
 * A score of -inf comes only from an infinity in the input. It would get weight 0 and vanish; it makes the
 * row NaN instead, as +inf and NaN do by themselves.
 */
//% let sum_keys = 8
static const float LOWEST = -0x1p126f; /* below every finite score; its difference to any of them is finite */

//% if causal
static inline __attribute__((always_inline)) ivec visible(long key, long diagonal, int lanes)
{
  return lane_index() + (int)(lanes + diagonal - key) >= 0;
}

//% end
static __attribute__((noinline)) void softmax_tile(float *scores, long keys, long first_masked, long diagonal,
                                                   const float *factor, float *row_max, float *row_sum, vec *rescale)
{
  vec not_a_number = splat(__builtin_nanf(""));
//% for v in 0 .. vectors
  vec high_${v} = splat(LOWEST), low_${v} = splat(0.0f), sum_${v} = {0};
//% end
  for (long key = 0; key < first_masked; key++) {
//% for v in 0 .. vectors
    vec x_${v} = load(scores + key * TILE_M + ${v} * LANES);
    high_${v} = larger(x_${v}, high_${v});
    low_${v} = smaller(x_${v}, low_${v});
//% end
  }
//% if causal
  for (long key = first_masked; key < keys; key++) {
//%   for v in 0 .. vectors
    vec x_${v} = load(scores + key * TILE_M + ${v} * LANES);
    ivec seen_${v} = visible(key, diagonal, ${v} * LANES);
    high_${v} = larger(blend(seen_${v}, x_${v}, splat(LOWEST)), high_${v});
    low_${v} = smaller(blend(seen_${v}, x_${v}, splat(0.0f)), low_${v});
//%   end
  }
//% end
//% for v in 0 .. vectors
  vec factor_${v} = load(factor + ${v} * LANES);
  vec old_max_${v} = load(row_max + ${v} * LANES);
  vec max_${v} = larger(high_${v}, old_max_${v});
  max_${v} = blend(low_${v} == splat(-__builtin_inff()), not_a_number, max_${v});
  rescale[${v}] = exp2_units((old_max_${v} - max_${v}) * factor_${v}) * (1.0f / UNIT);
  store(row_max + ${v} * LANES, max_${v});
//% end
  /* Sums of ${sum_keys} keys at a time: one long chain of additions would cost more accuracy than all the rest. */
  for (long key = 0; key < first_masked;) {
    long end = key + ${sum_keys} < first_masked ? key + ${sum_keys} : first_masked;
//% for v in 0 .. vectors
    vec part_${v} = {0};
//% end
    for (; key < end; key++) {
//% for v in 0 .. vectors
      float *x_${v} = scores + key * TILE_M + ${v} * LANES;
      vec p_${v} = exp2_units((load(x_${v}) - max_${v}) * factor_${v});
      part_${v} += p_${v};
      store(x_${v}, p_${v});
//% end
    }
//% for v in 0 .. vectors
    sum_${v} += part_${v};
//% end
  }
//% if causal
  for (long key = first_masked; key < keys; key++) {
//%   for v in 0 .. vectors
    float *x_${v} = scores + key * TILE_M + ${v} * LANES;
    vec p_${v} = exp2_units((load(x_${v}) - max_${v}) * factor_${v});
    p_${v} = blend(visible(key, diagonal, ${v} * LANES), p_${v}, (vec){0});
    sum_${v} += p_${v};
    store(x_${v}, p_${v});
//%   end
  }
//% else
  (void)keys, (void)diagonal; /* every key counts, for every query */
//% end
//% for v in 0 .. vectors
  store(row_sum + ${v} * LANES, load(row_sum + ${v} * LANES) * rescale[${v}] + sum_${v});
//% end
}
