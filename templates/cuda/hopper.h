/*
 * The instructions that only sm_90a has, one function each, behind ptx.h: barriers in shared memory that count bytes,
 * copies by the Tensor Memory Accelerator, products of warpgroups (wgmma.h has the products themselves), registers
 * that warpgroups hand on, clusters. Addresses in shared memory are those of shared_address().
 */
typedef unsigned long long u64;

/* --- barriers (mbarrier) in 8 bytes of shared memory: PTX ISA 9.7.13.15 -------------------------------------------- */

/* A barrier whose phase ends after `arrivals` arrivals, and once all bytes that it expects have come. By one thread;
 * before others use it, barrier_init_done() and a barrier of the block or the cluster. */
static __device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals)
{
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* Makes barriers known to the cluster and to asynchronous copies. */
static __device__ __forceinline__ void barrier_init_done()
{
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void barrier_arrive(u32 barrier)
{
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrive at the barrier that lies at this address in block `rank` of the cluster. */
static __device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank)
{
  asm volatile("{\n"
               ".reg .b32 remote;\n"
               "mapa.shared::cluster.u32 remote, %0, %1;\n"
               "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
               "}" ::"r"(barrier),
               "r"(rank)
               : "memory");
}

/* Arrive, and let the phase also wait for `bytes` that copies will bring. */
static __device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes)
{
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Has the phase of this parity (0, 1, 0, ... from the first) ended? Waits a moment before it says no. */
static __device__ __forceinline__ bool barrier_try(u32 barrier, u32 parity)
{
  u32 ended;
  asm volatile("{\n"
               ".reg .pred ended;\n"
               "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
               "selp.u32 %0, 1, 0, ended;\n"
               "}"
               : "=r"(ended)
               : "r"(barrier), "r"(parity)
               : "memory");
  return ended != 0;
}

/* Wait until the phase of this parity has ended. A new barrier's phase "before the first" has parity 1 and has ended. */
static __device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity)
{
  while (!barrier_try(barrier, parity)) {
  }
}

/* --- copies of boxes of a tensor, and of bytes (TMA): PTX ISA 9.7.9.25 and 9.7.9.27 -------------------------------- */

/* What the driver encodes of a tensor: cuTensorMapEncodeTiled. A kernel takes it as
 * `const __grid_constant__ tensor_map name`. */
struct __align__(64) tensor_map {
  u64 words[16];
};

static __device__ __forceinline__ void tensor_prefetch(const tensor_map *map)
{
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
//% let rank = 2
//% let coordinates = "int c0, int c1"
//% let places = "%0, %1"
//% include "cuda/tensor_copy.h"
//% let rank = 3
//% let coordinates = "int c0, int c1, int c2"
//% let places = "%0, %1, %2"
//% include "cuda/tensor_copy.h"
//% let rank = 4
//% let coordinates = "int c0, int c1, int c2, int c3"
//% let places = "%0, %1, %2, %3"
//% include "cuda/tensor_copy.h"
//% let rank = 5
//% let coordinates = "int c0, int c1, int c2, int c3, int c4"
//% let places = "%0, %1, %2, %3, %4"
//% include "cuda/tensor_copy.h"

/* Bytes from global to shared memory, in multiples of 16; the barrier counts them. */
static __device__ __forceinline__ void bulk_load(u32 shared, const void *global, u32 bytes, u32 barrier)
{
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
               "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
}

/* Bytes from shared to global memory, in multiples of 16; part of the group that bulk_commit closes. */
static __device__ __forceinline__ void bulk_store(void *global, u32 shared, u32 bytes)
{
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared), "r"(bytes)
               : "memory");
}

/* Adds floats in shared memory to floats in global memory; the rest as bulk_store. */
static __device__ __forceinline__ void bulk_reduce_add(float *global, u32 shared, u32 bytes)
{
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global), "r"(shared),
               "r"(bytes)
               : "memory");
}

/* Close the group of this thread's stores and reductions since the last one. */
static __device__ __forceinline__ void bulk_commit()
{
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Wait until at most PENDING of this thread's latest groups are under way: the rest is in global memory. */
template <int PENDING>
static __device__ __forceinline__ void bulk_wait()
{
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* The same, until shared memory has been read: it may be written again. */
template <int PENDING>
static __device__ __forceinline__ void bulk_wait_read()
{
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

/* What this thread sees and wrote in shared memory as instructions do comes before what asynchronous copies and wgmma
 * read and write after this. */
static __device__ __forceinline__ void fence_async_shared()
{
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* --- products of a warpgroup (wgmma): PTX ISA 9.7.15 --------------------------------------------------------------- */

/* Where a matrix lies in shared memory and how; all of it begins at a multiple of 1024 bytes.
 *     swizzle 32, 64 or 128   8 rows of `swizzle` bytes, one behind the other, are an atom; chunks of 16 bytes are
 *                             swizzled by the address. K-major, a row is one m or n, and the next 8 are `stride_bytes`
 *                             on. MN-major, a row is one k, and the next 8 are `stride_bytes` on, while the next
 *                             `swizzle` bytes of m or n are `leading_bytes` on. K-major, that is not used.
 *     0                       atoms are 8 chunks of 16 bytes, one behind the other: along m or n the next is
 *                             `stride_bytes` on, along k `leading_bytes`
 * Along k, the next 16 of a K-major matrix begin 32 bytes further on inside of its swizzled rows. */
static __device__ __forceinline__ u64 matrix_descriptor(u32 address, u32 leading_bytes, u32 stride_bytes, int swizzle)
{
  u64 layout = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return (u64)((address & 0x3ffff) >> 4) | (u64)((leading_bytes & 0x3ffff) >> 4) << 16 |
         (u64)((stride_bytes & 0x3ffff) >> 4) << 32 | layout << 62;
}

/* The descriptor of a matrix with swizzle 128 from column k of it on (K-major, TRANS 0) or row k (M- or N-major): 16 along k
 * are 32 bytes of a row, or 16 rows of 128 bytes. K-major, a row goes on behind its 64 columns CHUNK bytes further. */
template <int TRANS, int CHUNK = 0>
static __device__ __forceinline__ u64 along_k(u64 descriptor, int k)
{
  return descriptor + (TRANS ? k * 128 : k / 64 * CHUNK + k % 64 * 2) / 16;
}

/* What registers of accumulators and of A hold is there before the products that follow. */
static __device__ __forceinline__ void wgmma_fence()
{
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Close the group of this warp's products since the last one. */
static __device__ __forceinline__ void wgmma_commit()
{
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Wait until at most PENDING of the latest groups are under way. */
template <int PENDING>
static __device__ __forceinline__ void wgmma_wait()
{
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* For the compiler: these registers are read and written here, so that it moves no use of them over this point. It
 * does not know that a product goes on behind its instruction. */
template <int N>
static __device__ __forceinline__ void keep_registers(float (&c)[N])
{
#pragma unroll
  for (int i = 0; i < N; i++)
    asm volatile("" : "+f"(c[i])::"memory");
}

/* Of the calling warpgroup, known to the compiler to be the same for all lanes: descriptors are then reckoned once a warp. */
static __device__ __forceinline__ int warpgroup_index() { return __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0); }

/* --- warps --------------------------------------------------------------------------------------------------------- */

/* Barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads, of which some may only arrive. */
static __device__ __forceinline__ void named_barrier_wait(int id, int threads)
{
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
static __device__ __forceinline__ void named_barrier_arrive(int id, int threads)
{
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* From here on each thread of this warpgroup has N registers, 24 to 256 in steps of 8. To increase waits until others
 * have decreased theirs; all together may not have more than the launch gave. */
template <int N>
static __device__ __forceinline__ void registers_increase()
{
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
static __device__ __forceinline__ void registers_decrease()
{
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* Four 8x8 matrices of 16-bit elements, as ldmatrix_x4 reads them; _trans: as ldmatrix_x4_trans does. */
static __device__ __forceinline__ void stmatrix_x4(u32 address, const u32 (&r)[4])
{
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}
static __device__ __forceinline__ void stmatrix_x4_trans(u32 address, const u32 (&r)[4])
{
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/* True in one lane of the warp, always the same one; the whole warp must be here. */
static __device__ __forceinline__ bool elect_one()
{
  u32 elected;
  asm volatile("{\n"
               ".reg .pred elected;\n"
               "elect.sync _|elected, 0xffffffff;\n"
               "selp.u32 %0, 1, 0, elected;\n"
               "}"
               : "=r"(elected)::"memory");
  return elected != 0;
}

/* --- clusters ------------------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ u32 cluster_rank()
{
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/* A barrier of all threads of the cluster, in two halves. */
static __device__ __forceinline__ void cluster_arrive()
{
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
static __device__ __forceinline__ void cluster_wait()
{
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

/* The address of what lies at `address` in block `rank` of the cluster; only for the two functions below. */
static __device__ __forceinline__ u32 map_shared(u32 address, u32 rank)
{
  u32 mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
static __device__ __forceinline__ void store_shared_cluster_f32(u32 mapped, float x)
{
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(mapped), "f"(x) : "memory");
}
static __device__ __forceinline__ float load_shared_cluster_f32(u32 mapped)
{
  float x;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(mapped) : "memory");
  return x;
}
