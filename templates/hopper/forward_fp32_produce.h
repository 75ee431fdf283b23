/* The producer: one thread that loads what the consumers need, in the order in which they need it. */

/* CHUNKS panels of a block, one behind the other in the workspace. */
template <int CHUNKS>
static __device__ __forceinline__ void load_panels(u32 shared, struct ring<STAGES> &panels, const char *from)
{
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    u32 full = shared + PANEL_FULL + 8 * panels.stage;
    wait_empty(shared + PANEL_EMPTY, panels);
    barrier_expect(full, PANEL_BYTES);
    bulk_load(shared + PANELS + panels.stage * PANEL_BYTES, from + chunk * PANEL_BYTES, PANEL_BYTES, full);
    advance(panels);
  }
}

static __device__ __forceinline__ void produce(const struct fa_params &params, u32 shared)
{
  struct ring<1> queries = {};
  struct ring<STAGES> panels = {};
  struct work w;
  for (u32 round = 0; next_work(params, round, w);) {
    struct operands from = find_operands(params, w);
    for (int block = w.num_blocks - 1; block >= 0; block--) {
      load_panels<CHUNKS_QK>(shared, panels, from.keys + (long long)block * KEY_BYTES);
      if (block == w.num_blocks - 1) {
        wait_empty(shared + QUERY_EMPTY, queries);
        barrier_expect(shared + QUERY_FULL, QUERY_BYTES);
        bulk_load(shared + QUERIES, from.queries, QUERY_BYTES, shared + QUERY_FULL);
        advance(queries);
      }
      load_panels<CHUNKS_V>(shared, panels, from.values + (long long)block * VALUE_BYTES);
    }
  }
}
