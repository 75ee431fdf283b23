//%# C = A * B^T, and C += A * B^T, by the pattern of a Hopper attention kernel: no more is in it, so that the pattern
//%# can be read, tested and broken on purpose. Nothing of the package calls it.
//%#
//%# Constants: dtype_16 of A and B ("fp16", "bf16"); block_n, a multiple of 64 up to 192; num_stages, at least 2;
//%# a_is_m_major, b_is_n_major: 0 where neighbours in memory are neighbours along k, 1 where along m or n;
//%# result: "store", C in the type of A through a tensor map;
//%#         "add", added to fp32 through a tensor map;
//%#         "add_fragments", added to fp32 as the accumulators lie in registers.
//% if block_n % 64 != 0 || block_n > 192
//%   error "block_n is ${block_n}; it must be 64, 128 or 192"
//% end
//% if num_stages < 2
//%   error "num_stages is ${num_stages}; a stage is given back when the next one's products have begun, so it must be 2"
//% end
//% let wgmma_n = block_n
//% let op = "forward"
/*
 * A block of three warpgroups: one thread of the first lets tiles of A and B come into a ring of ${num_stages} stages,
 * the other two multiply 64 rows each. Each stage has two barriers:
 *     full    the tiles have come      one arrival, and the bytes of the tiles
 *     empty   they have been read      one arrival of each warp that multiplies
 * Phases of a barrier are told apart by their parity, which changes each time that the ring is through.
 *
 * All tiles have rows of 128 bytes, 128-byte swizzled: the 16-byte chunk c of row r lies where chunk c ^ (r % 8) would.
 */
//% include "cuda/ptx.h"
//% include "cuda/hopper.h"
//% include "cuda/wgmma.h"

enum {
  BLOCK_M = 128, /* 64 of each consumer */
  BLOCK_N = ${block_n},
  BLOCK_K = 64, /* 128 bytes */
  NUM_STAGES = ${num_stages},
  CONSUMERS = 2,
  WARPGROUP = 128,
  THREADS = (1 + CONSUMERS) * WARPGROUP,
  /* The launch gives 65536 / THREADS registers, rounded down to 8: 168. They are handed on. */
  PRODUCER_REGISTERS = 24,
  CONSUMER_REGISTERS = 240,

  A_BYTES = BLOCK_M * BLOCK_K * 2,
  B_BYTES = BLOCK_N * BLOCK_K * 2,
  SQUARE = 64 * 128, /* bytes of 64 rows of 128 bytes */
//% if result == "store"
  C_SIZE = 2, /* bytes of an element */
//% else
  C_SIZE = 4,
//% end
  C_BYTES = 64 * BLOCK_N * C_SIZE, /* of one consumer */

  /* Shared memory, from an address that is a multiple of 1024. */
  A_TILES = 0,
  B_TILES = A_TILES + NUM_STAGES * A_BYTES,
  C_TILES = B_TILES + NUM_STAGES * B_BYTES,
  FULL = C_TILES + CONSUMERS * C_BYTES,
  EMPTY = FULL + NUM_STAGES * 8,
  SHARED_BYTES = EMPTY + NUM_STAGES * 8
};

/* Where a thread is in the ring. */
struct place {
  int stage;
  u32 parity;
};

static __device__ __forceinline__ void advance(place &at)
{
  if (++at.stage == NUM_STAGES) {
    at.stage = 0;
    at.parity ^= 1;
  }
}

/* One tile of C, and which blocks of k are summed. */
struct work {
  int row, col;
  int k_begin, k_end;
};

/* Neighbouring numbers share rows of A. Each tile is cut into `splits` along k. */
static __device__ __forceinline__ work find_work(int index, int n, int k, int splits)
{
  int tiles_n = (n + BLOCK_N - 1) / BLOCK_N, blocks_k = (k + BLOCK_K - 1) / BLOCK_K;
  int split = index % splits, tile = index / splits;
  work w;
  w.row = tile / tiles_n * BLOCK_M;
  w.col = tile % tiles_n * BLOCK_N;
  w.k_begin = blocks_k * split / splits;
  w.k_end = blocks_k * (split + 1) / splits;
  return w;
}

static __device__ __forceinline__ int count_work(int m, int n, int splits)
{
  return (m + BLOCK_M - 1) / BLOCK_M * ((n + BLOCK_N - 1) / BLOCK_N) * splits;
}

/* The tiles of one block of k come into a stage. Beyond the tensors' ends there are zeros. */
static __device__ __forceinline__ void load_stage(u32 shared, int stage, const tensor_map *a_map,
                                                  const tensor_map *b_map, const work &w, int k)
{
  u32 full = shared + FULL + stage * 8, a = shared + A_TILES + stage * A_BYTES, b = shared + B_TILES + stage * B_BYTES;
  barrier_expect(full, A_BYTES + B_BYTES);
//% if a_is_m_major
  for (int i = 0; i < BLOCK_M / 64; i++)
    tensor_load(a + i * SQUARE, a_map, full, w.row + i * 64, k);
//% else
  tensor_load(a, a_map, full, k, w.row);
//% end
//% if b_is_n_major
  for (int i = 0; i < BLOCK_N / 64; i++)
    tensor_load(b + i * SQUARE, b_map, full, w.col + i * 64, k);
//% else
  tensor_load(b, b_map, full, k, w.col);
//% end
}

/* The producer: one thread. It runs ahead of the consumers as far as stages are empty. */
static __device__ __forceinline__ void produce(u32 shared, const tensor_map *a_map, const tensor_map *b_map, int m,
                                               int n, int k, int splits)
{
  place at = {0, 0};
  int count = count_work(m, n, splits);
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    work w = find_work(index, n, k, splits);
    for (int block = w.k_begin; block < w.k_end; block++) {
      barrier_wait(shared + EMPTY + at.stage * 8, at.parity ^ 1); /* the first time, it has always been */
      load_stage(shared, at.stage, a_map, b_map, w, block * BLOCK_K);
      advance(at);
    }
  }
}

/* Start the products of one stage: 64 rows of A with all of B. */
static __device__ __forceinline__ void multiply_stage(float (&c)[BLOCK_N / 2], u32 shared, int stage, int consumer,
                                                      int accumulate)
{
  u32 a = shared + A_TILES + stage * A_BYTES + consumer * SQUARE, b = shared + B_TILES + stage * B_BYTES;
#pragma unroll
  for (int k = 0; k < BLOCK_K; k += 16) {
    /* Along k: 16 elements of each row, or 16 rows. Squares of 64 columns, where there are more, follow each other. */
//% if a_is_m_major
    u64 from_a = matrix_descriptor(a + k * 128, SQUARE, 1024, 128);
//% else
    u64 from_a = matrix_descriptor(a + k * 2, 16, 1024, 128);
//% end
//% if b_is_n_major
    u64 from_b = matrix_descriptor(b + k * 128, SQUARE, 1024, 128);
//% else
    u64 from_b = matrix_descriptor(b + k * 2, 16, 1024, 128);
//% end
    wgmma_m64n${block_n}k16<${a_is_m_major}, ${b_is_n_major}>(c, from_a, from_b, accumulate | k);
  }
  wgmma_commit();
}

static __device__ __forceinline__ void release_stage(u32 shared, int stage)
{
  if (threadIdx.x % 32 == 0)
    barrier_arrive(shared + EMPTY + stage * 8);
}

/* The sum over this work's blocks of k. The products of a stage run while those of the next are started; then the stage
 * is given back. */
static __device__ __forceinline__ void multiply(float (&c)[BLOCK_N / 2], u32 shared, const work &w, place &at,
                                                int consumer)
{
  int last = at.stage;
  keep_registers(c);
  for (int block = w.k_begin; block < w.k_end; block++) {
    barrier_wait(shared + FULL + at.stage * 8, at.parity);
    wgmma_fence();
    multiply_stage(c, shared, at.stage, consumer, block != w.k_begin);
    wgmma_wait<1>();
    if (block != w.k_begin)
      release_stage(shared, last);
    last = at.stage;
    advance(at);
  }
  wgmma_wait<0>();
  keep_registers(c);
  release_stage(shared, last);
}

/* A consumer's accumulators to its tile in shared memory. */
static __device__ __forceinline__ void stage_result(unsigned char *tile, const float (&c)[BLOCK_N / 2])
{
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
//% if result == "store"
  int row = 16 * warp + lane % 16;
#pragma unroll
  for (int j = 0; j < BLOCK_N / 8; j += 2) {
    u32 pairs[4] = {pack(c[4 * j], c[4 * j + 1]), pack(c[4 * j + 2], c[4 * j + 3]), pack(c[4 * j + 4], c[4 * j + 5]),
                    pack(c[4 * j + 6], c[4 * j + 7])};
    int chunk = j + lane / 16;
    stmatrix_x4(shared_address(tile) + chunk / 8 * SQUARE + row * 128 + (chunk % 8 ^ row % 8) * 16, pairs);
  }
//% elif result == "add"
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; i += 2) {
    int row = 16 * warp + lane / 4 + i / 2 % 2 * 8, col = i / 4 * 8 + lane % 4 * 2;
    int chunk = col / 4;
    float2 *to = (float2 *)(tile + chunk / 8 * SQUARE + row * 128 + (chunk % 8 ^ row % 8) * 16 + col % 4 * 4);
    *to = make_float2(c[i], c[i + 1]);
  }
//% else
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; i++)
    ((float *)tile)[i * WARPGROUP + warp * 32 + lane] = c[i];
//% end
}

/* By one thread of a consumer: what its tile holds goes to C. */
//% if result == "add_fragments"
static __device__ __forceinline__ void send_result(float *c, u32 tile, const work &w, int consumer, int n)
{
  int tiles_n = (n + BLOCK_N - 1) / BLOCK_N;
  long long which = (long long)(w.row / 64 + consumer) * tiles_n + w.col / BLOCK_N;
  bulk_reduce_add(c + which * (64 * BLOCK_N), tile, C_BYTES);
  bulk_commit();
}
//% else
static __device__ __forceinline__ void send_result(const tensor_map *c_map, u32 tile, const work &w, int consumer)
{
  for (int i = 0; i < BLOCK_N * C_SIZE / 128; i++)
//%   if result == "store"
    tensor_store(c_map, tile + i * SQUARE, w.col + i * (128 / C_SIZE), w.row + consumer * 64);
//%   else
    tensor_reduce_add(c_map, tile + i * SQUARE, w.col + i * (128 / C_SIZE), w.row + consumer * 64);
//%   end
  bulk_commit();
}
//% end

/* The tensor maps' boxes: of A and B 64 elements by as many rows as a tile has, 64 where the major dimension is not k;
 * of C 128 bytes by 64 rows. Rows of C are written up to a multiple of 16 bytes. `splits` is at most the number of
 * blocks of k, and 1 where C is stored. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
//% if result == "add_fragments"
  matmul(const __grid_constant__ tensor_map a_map, const __grid_constant__ tensor_map b_map, float *c, int m, int n,
         int k, int splits)
//% else
  matmul(const __grid_constant__ tensor_map a_map, const __grid_constant__ tensor_map b_map,
         const __grid_constant__ tensor_map c_map, int m, int n, int k, int splits)
//% end
{
  extern __shared__ __align__(1024) unsigned char dynamic_shared[];
  u32 shared = shared_address(dynamic_shared);
  if (threadIdx.x == 0) {
    tensor_prefetch(&a_map);
    tensor_prefetch(&b_map);
    for (int stage = 0; stage < NUM_STAGES; stage++) {
      barrier_init(shared + FULL + stage * 8, 1);
      barrier_init(shared + EMPTY + stage * 8, CONSUMERS * 4);
    }
    barrier_init_done();
  }
  __syncthreads();

  int warpgroup = threadIdx.x / WARPGROUP;
  if (warpgroup == 0) {
    registers_decrease<PRODUCER_REGISTERS>();
    if (threadIdx.x < 32 && elect_one())
      produce(shared, &a_map, &b_map, m, n, k, splits);
    return;
  }

  registers_increase<CONSUMER_REGISTERS>();
  int consumer = warpgroup - 1;
  bool is_sender = threadIdx.x % WARPGROUP == 0;
  unsigned char *tile = dynamic_shared + C_TILES + consumer * C_BYTES;
  place at = {0, 0};
  int count = count_work(m, n, splits);
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    work w = find_work(index, n, k, splits);
    float sums[BLOCK_N / 2];
    multiply(sums, shared, w, at, consumer);
    if (is_sender)
      bulk_wait_read<0>(); /* the last result has left the tile */
    named_barrier_wait(1 + consumer, WARPGROUP);
    stage_result(tile, sums);
    fence_async_shared();
    named_barrier_wait(1 + consumer, WARPGROUP);
    if (is_sender)
//% if result == "add_fragments"
      send_result(c, shared_address(tile), w, consumer, n);
//% else
      send_result(&c_map, shared_address(tile), w, consumer);
//% end
  }
  if (is_sender)
    bulk_wait_read<0>(); /* shared memory stays until it has been read */
}
