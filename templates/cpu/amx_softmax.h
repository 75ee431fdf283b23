/*
 * The online softmax of one tile of 32 queries (FlashAttention-2, arXiv:2307.08691, algorithm 1), a group of 32 keys at
 * a time: scores[key half][query half], queries along the lanes, become weights exp2((score - max) * factor) * UNIT, as
 * pairs in weights[part][query half].
 */
static const float LOWEST = -0x1p126f; /* below every finite score; its difference to any of them is finite */

/* One group of keys and what is known of the queries. */
struct weigh_work {
  vec factor[2], max[2], sums[4];
  const tile *scores;
  tile *weights;
  /* Key j of the group is seen by query i where i + diagonal >= j and j < keys. */
  long diagonal, keys;
};

static inline ivec visible(const struct weigh_work *work, long key, int lanes)
{
  return lane_index() + (int)(lanes + work->diagonal - key) >= (key < work->keys ? 0 : 1 << 30);
}

/* Keys i and i + 16. Sums are of 8 such pairs at a time: one long chain of additions would cost more accuracy than all
 * the rest. */
static inline __attribute__((always_inline)) void weigh_pair(struct weigh_work *work, int i, _Bool mask)
{
//% for half in 0 .. 2
  vec low_${half} = exp2_units((load(work->scores[${half}].row[i]) - work->max[${half}]) * work->factor[${half}]);
  vec high_${half} = exp2_units((load(work->scores[${2 + half}].row[i]) - work->max[${half}]) * work->factor[${half}]);
  if (mask) {
    low_${half} = blend(visible(work, i, ${half} * LANES), low_${half}, (vec){0});
    high_${half} = blend(visible(work, i + 16, ${half} * LANES), high_${half}, (vec){0});
  }
  work->sums[i / 8 * 2 + ${half}] += low_${half} + high_${half};
  store_computed_pairs(work->weights + ${half}, 2, i, low_${half}, high_${half});
//% end
}

static inline __attribute__((always_inline)) void weigh(struct weigh_work *work, int i) { weigh_pair(work, i, 0); }

static __attribute__((noinline)) void weigh_group(struct weigh_work *work)
{
  for (int i = 0; i < 16; i++)
    weigh_pair(work, i, 0);
}

static __attribute__((noinline)) void weigh_masked_group(struct weigh_work *work)
{
  for (int i = 0; i < 16; i++)
    weigh_pair(work, i, 1);
}

/* The largest scores of a group join `high`. */
static __attribute__((noinline)) void find_largest(const struct weigh_work *work, vec *high, _Bool mask)
{
  vec high_0 = high[0], high_1 = high[1], high_2 = high_0, high_3 = high_1;
  if (!mask)
    for (int i = 0; i < 16; i++) {
      high_0 = larger(load(work->scores[0].row[i]), high_0);
      high_1 = larger(load(work->scores[1].row[i]), high_1);
      high_2 = larger(load(work->scores[2].row[i]), high_2);
      high_3 = larger(load(work->scores[3].row[i]), high_3);
    }
  else
    for (int i = 0; i < 16; i++) {
      high_0 = larger(blend(visible(work, i, 0), load(work->scores[0].row[i]), splat(LOWEST)), high_0);
      high_1 = larger(blend(visible(work, i, LANES), load(work->scores[1].row[i]), splat(LOWEST)), high_1);
      high_2 = larger(blend(visible(work, i + 16, 0), load(work->scores[2].row[i]), splat(LOWEST)), high_2);
      high_3 = larger(blend(visible(work, i + 16, LANES), load(work->scores[3].row[i]), splat(LOWEST)), high_3);
    }
  high[0] = larger(high_2, high_0);
  high[1] = larger(high_3, high_1);
}
