/*
 * Shared memory: rings of tiles of Q, K and V, and their barriers. Tiles begin at multiples of 1024 bytes, as the pattern
 * of the swizzle does. A tile is chunks of 64 columns, a chunk is rows of 128 bytes.
 */
enum {
  QUERIES = 0,
  KEYS = QUERIES + QUERY_STAGES * QUERY_BYTES,
  VALUES = KEYS + STAGES * KEY_BYTES,
  QUERY_FULL = VALUES + STAGES * VALUE_BYTES, /* barriers of 8 bytes, one for each stage */
  QUERY_EMPTY = QUERY_FULL + 8 * QUERY_STAGES,
  KEY_FULL = QUERY_EMPTY + 8 * QUERY_STAGES,
  KEY_EMPTY = KEY_FULL + 8 * STAGES,
  VALUE_FULL = KEY_EMPTY + 8 * STAGES,
  VALUE_EMPTY = VALUE_FULL + 8 * STAGES,
  SHARED_END = VALUE_EMPTY + 8 * STAGES,
};
static_assert(SHARED_END == ${shared_bytes}, "as the generator reckons");

/* The producer fills a stage, every warp of the consumers says that it is empty. */
static __device__ __forceinline__ void init_ring(u32 full, u32 empty, int stages)
{
  for (int stage = 0; stage < stages; stage++) {
    barrier_init(full + 8 * stage, 1);
    barrier_init(empty + 8 * stage, 4 * CONSUMERS);
  }
}

static __device__ __forceinline__ void init_barriers(u32 shared)
{
  init_ring(shared + QUERY_FULL, shared + QUERY_EMPTY, QUERY_STAGES);
  init_ring(shared + KEY_FULL, shared + KEY_EMPTY, STAGES);
  init_ring(shared + VALUE_FULL, shared + VALUE_EMPTY, STAGES);
  barrier_init_done();
}

/* Where the producer, or a consumer, is in a ring: the stage, and how often (odd or even) it has come round. */
template <int STAGES_OF_IT>
struct ring {
  int stage;
  u32 phase;
};

template <int N>
static __device__ __forceinline__ void advance(struct ring<N> &ring)
{
  ring.stage++;
  if (ring.stage == N) {
    ring.stage = 0;
    ring.phase ^= 1;
  }
}

template <int N>
static __device__ __forceinline__ void wait_full(u32 barriers, const struct ring<N> &ring)
{
  barrier_wait(barriers + 8 * ring.stage, ring.phase);
}

/* On the first round nothing has to become empty: a new barrier has the other phase behind it. */
template <int N>
static __device__ __forceinline__ void wait_empty(u32 barriers, const struct ring<N> &ring)
{
  barrier_wait(barriers + 8 * ring.stage, ring.phase ^ 1);
}

/* This warp has done with the stage. */
template <int N>
static __device__ __forceinline__ void release(u32 barriers, struct ring<N> &ring)
{
  if (threadIdx.x % 32 == 0)
    barrier_arrive(barriers + 8 * ring.stage);
  advance(ring);
}

/* Consumers issue products in turn. Named barrier 0 is that of __syncthreads. */
static __device__ __forceinline__ void take_turn(int warpgroup)
{
  if constexpr (CONSUMERS > 1)
    named_barrier_wait(1 + warpgroup, 256);
}
static __device__ __forceinline__ void give_turn(int warpgroup)
{
  if constexpr (CONSUMERS > 1)
    named_barrier_arrive(1 + (warpgroup + 1) % CONSUMERS, 256);
}
