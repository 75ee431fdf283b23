/*
 * Shared memory: a tile of Q, a ring of panels of K and V, and their barriers. Q and panels begin at multiples of 1024
 * bytes, as the pattern of the swizzle does. Q is chunks of 64 columns; a chunk, and a panel, is rows of 128 bytes of
 * high parts, then as many of low ones.
 */
enum {
  QUERIES = 0,
  PANELS = QUERIES + QUERY_BYTES,
  QUERY_FULL = PANELS + STAGES * PANEL_BYTES, /* barriers of 8 bytes, one for each stage */
  QUERY_EMPTY = QUERY_FULL + 8,
  PANEL_FULL = QUERY_EMPTY + 8,
  PANEL_EMPTY = PANEL_FULL + 8 * STAGES,
  SHARED_END = PANEL_EMPTY + 8 * STAGES,
};
static_assert(SHARED_END == ${shared_bytes}, "as the generator reckons");

static __device__ __forceinline__ void init_barriers(u32 shared)
{
  init_ring(shared + QUERY_FULL, shared + QUERY_EMPTY, 1, 4 * CONSUMERS);
  init_ring(shared + PANEL_FULL, shared + PANEL_EMPTY, STAGES, 4 * CONSUMERS);
  barrier_init_done();
}

/* Where a consumer is in the ring of panels: several are in use at once. */
struct panels {
  struct ring<STAGES> next, oldest; /* the one to be used next, and the one to be given back next */
};

/* The next panel's address, once it is there. */
static __device__ __forceinline__ u32 take_panel(u32 shared, struct panels &panels)
{
  wait_full(shared + PANEL_FULL, panels.next);
  u32 panel = shared + PANELS + panels.next.stage * PANEL_BYTES;
  advance(panels.next);
  return panel;
}
static __device__ __forceinline__ void release_panel(u32 shared, struct panels &panels)
{
  release_and_advance(shared + PANEL_EMPTY, panels.oldest);
}
