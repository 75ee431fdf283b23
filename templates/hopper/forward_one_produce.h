/* The producer where fp32 is computed in one product: one thread that loads tiles of K and V as the phase before has laid
 * them out, in the order in which the consumers need them. */
static __device__ __forceinline__ void produce(const struct fa_params &params, u32 shared)
{
  struct ring<STAGES> keys = {}, values = {};
  struct work w;
  for (u32 round = 0; next_work(params, round, w);) {
    struct operands from = find_operands(params, w);
    /* Keys go one block ahead of values. */
    for (int block = w.num_blocks - 1; block >= -1; block--) {
      if (block >= 0) {
        wait_empty(shared + KEY_EMPTY, keys);
        barrier_expect(shared + KEY_FULL + 8 * keys.stage, KEY_BYTES);
        bulk_load(shared + KEYS + keys.stage * KEY_BYTES, from.keys + (long long)block * KEY_BYTES, KEY_BYTES,
                  shared + KEY_FULL + 8 * keys.stage);
        advance(keys);
      }
      if (block < w.num_blocks - 1) {
        wait_empty(shared + VALUE_EMPTY, values);
        barrier_expect(shared + VALUE_FULL + 8 * values.stage, VALUE_BYTES);
        bulk_load(shared + VALUES + values.stage * VALUE_BYTES, from.values + (long long)(block + 1) * VALUE_BYTES,
                  VALUE_BYTES, shared + VALUE_FULL + 8 * values.stage);
        advance(values);
      }
    }
  }
}
