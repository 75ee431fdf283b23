/* Rings of tiles in shared memory: each stage has a barrier that its copies complete, and one at which consumers say that
 * they have done with it. */

/* One thread expects a stage's copies; `readers` warps say that it is empty. */
static __device__ __forceinline__ void init_ring(u32 full, u32 empty, int stages, u32 readers)
{
  for (int stage = 0; stage < stages; stage++) {
    barrier_init(full + 8 * stage, 1);
    barrier_init(empty + 8 * stage, readers);
  }
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
static __device__ __forceinline__ struct ring<N> one_before(const struct ring<N> &ring)
{
  return {ring.stage == 0 ? N - 1 : ring.stage - 1, ring.stage == 0 ? ring.phase ^ 1 : ring.phase};
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
static __device__ __forceinline__ void release(u32 barriers, const struct ring<N> &ring)
{
  if (threadIdx.x % 32 == 0)
    barrier_arrive(barriers + 8 * ring.stage);
}

template <int N>
static __device__ __forceinline__ void release_and_advance(u32 barriers, struct ring<N> &ring)
{
  release(barriers, ring);
  advance(ring);
}

/* ROWS rows of a tensor from `row` on, in chunks of 64 columns; what lies outside of the tensor becomes zero. The barrier
 * has been told how many bytes come. A box of the tensor's map has BOX rows. */
template <int ROWS, int CHUNKS, int BOX = ROWS>
static __device__ __forceinline__ void load_rows(u32 tile, const struct tensor_map *map, u32 full, int row, int head,
                                                 int batch)
{
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
    for (int first = 0; first < ROWS; first += BOX)
      tensor_load(tile + (chunk * ROWS + first) * 128, map, full, 64 * chunk, row + first, head, batch);
}
