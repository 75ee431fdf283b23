/* Q where fp32 is computed in one product: the consumers round their own rows, once for a tile. A phase before would move
 * three times the bytes, and take as long as a tenth of the products of 8192 keys with a causal mask. */
enum {
  QUERY_BARRIER = 1 + CONSUMERS, /* of the first consumer; named barriers before it are those of the turns */
  ROWS_AT_ONCE = CONSUMERS > 2 ? 4 : 8, /* of a warp: more would spill what has to be kept beside them */
};
static_assert(CONSUMERS > 1, "a consumer alone takes no turns");

/* The 16 rows of this warp, to the tile that all four warps of the consumer multiply with, once they have met at their
 * turn: it is a barrier of theirs too. */
static __device__ __forceinline__ void round_queries(struct rows &rows, unsigned char *tile,
                                                     const struct fa_params &params, const struct work &w)
{
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int first = 64 * warpgroup + 16 * warp, present = (int)params.seqlen_q - w.first_query - first;
  const float *from = (const float *)params.query.data +
                      head_offset(params.query, w.batch, w.head, w.first_query + first);
  const bool pairs = is_together(params.query, 2);
  /* A negative softmax scale becomes a positive one of -Q: the largest score is then still the one that weighs most. */
  const float sign = params.softmax_scale < 0 ? -1.0f : 1.0f;
  /* A product is one of all four warps. The ISA does not say that a warp's wait for it covers no more than the rows that
   * the warp's own part reads, so none writes before all have waited. */
  named_barrier_wait(QUERY_BARRIER + warpgroup, 128);
#pragma unroll ROWS_AT_ONCE
  for (int row = 0; row < 16; row++) {
    float x[CHUNKS_QK][2];
    load_row<HEAD_DIM, 64>(x, from + row * params.query.stride_row, params.query, row < present, pairs);
    int k = scale_exponent(__reduce_max_sync(0xffffffffu, largest_magnitude(x)), MOST_OF_SCORES);
    store_row<BLOCK_M>((char *)tile, x, first + row, power_of_two(k) * sign);
    if (row % 8 == lane / 4)
      (row < 8 ? rows.query_factor[0][0] : rows.query_factor[0][1]) = power_of_two(-k);
  }
  fence_async_shared();
}
