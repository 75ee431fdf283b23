/*
 * The functions of templates/cuda/hopper.h and wgmma.h, as ordinary functions: each here stands for one with inline
 * assembly there, where the kernel has it (EMU_HAS_name, which build.py defines).
 */
#pragma once

extern "C" {
void emu_mbarrier_init(unsigned address, unsigned arrivals);
void emu_mbarrier_init_done();
void emu_mbarrier_arrive(unsigned address);
void emu_mbarrier_arrive_at(unsigned address, unsigned rank);
void emu_mbarrier_expect(unsigned address, unsigned bytes);
int emu_mbarrier_try(unsigned address, unsigned parity);
void emu_tensor_prefetch(const void *map);
void emu_tensor_load(unsigned shared, const void *map, unsigned barrier, unsigned mask, unsigned rank, const int *c);
void emu_tensor_store(const void *map, unsigned shared, int add, unsigned rank, const int *c);
void emu_bulk_load(unsigned shared, const void *global, unsigned bytes, unsigned barrier);
void emu_bulk_store(void *global, unsigned shared, unsigned bytes, int add);
void emu_bulk_commit();
void emu_bulk_wait(int pending, int only_reads);
void emu_fence_async_shared();
void emu_wgmma(float *c, const unsigned *a_registers, unsigned long a, unsigned long b, int accumulate, int n,
               int trans_a, int trans_b, int type);
void emu_wgmma_fence();
void emu_wgmma_commit();
void emu_wgmma_wait(int pending);
void emu_named_barrier(int id, int threads, int waits);
void emu_registers(int count, int increase);
void emu_stmatrix(const unsigned *r, unsigned address, int count, int trans);
int emu_elect();
unsigned emu_cluster_rank();
void emu_cluster_arrive();
void emu_cluster_wait();
unsigned emu_map_shared(unsigned address, unsigned rank);
void emu_store_shared_cluster(unsigned mapped, float x);
float emu_load_shared_cluster(unsigned mapped);
}

struct tensor_map;

/* --- barriers ---------------------------------------------------------------------------------------------------- */

#ifdef EMU_HAS_barrier_init
static __forceinline__ void barrier_init(unsigned barrier, unsigned arrivals) { emu_mbarrier_init(barrier, arrivals); }
#endif
#ifdef EMU_HAS_barrier_init_done
static __forceinline__ void barrier_init_done() { emu_mbarrier_init_done(); }
#endif
#ifdef EMU_HAS_barrier_arrive
static __forceinline__ void barrier_arrive(unsigned barrier) { emu_mbarrier_arrive(barrier); }
#endif
#ifdef EMU_HAS_barrier_arrive_at
static __forceinline__ void barrier_arrive_at(unsigned barrier, unsigned rank) {
  emu_mbarrier_arrive_at(barrier, rank);
}
#endif
#ifdef EMU_HAS_barrier_expect
static __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) { emu_mbarrier_expect(barrier, bytes); }
#endif
#ifdef EMU_HAS_barrier_try
static __forceinline__ bool barrier_try(unsigned barrier, unsigned parity) {
  return emu_mbarrier_try(barrier, parity) != 0;
}
#endif
#ifdef EMU_HAS_named_barrier_wait
static __forceinline__ void named_barrier_wait(int id, int threads) { emu_named_barrier(id, threads, 1); }
#endif
#ifdef EMU_HAS_named_barrier_arrive
static __forceinline__ void named_barrier_arrive(int id, int threads) { emu_named_barrier(id, threads, 0); }
#endif

/* --- bulk copies: the coordinates are all arguments behind the others --------------------------------------------- */

#ifdef EMU_HAS_tensor_prefetch
static __forceinline__ void tensor_prefetch(const tensor_map *map) { emu_tensor_prefetch(map); }
#endif
#ifdef EMU_HAS_tensor_load
template <class... C>
static __forceinline__ void tensor_load(unsigned shared, const tensor_map *map, unsigned barrier, C... c) {
  const int coordinates[] = {(int)c...};
  emu_tensor_load(shared, map, barrier, 0, sizeof...(C), coordinates);
}
#endif
#ifdef EMU_HAS_tensor_load_multicast
template <class... C>
static __forceinline__ void tensor_load_multicast(unsigned shared, const tensor_map *map, unsigned barrier,
                                                  unsigned short mask, C... c) {
  const int coordinates[] = {(int)c...};
  if (mask)
    emu_tensor_load(shared, map, barrier, mask, sizeof...(C), coordinates);
}
#endif
#ifdef EMU_HAS_tensor_store
template <class... C> static __forceinline__ void tensor_store(const tensor_map *map, unsigned shared, C... c) {
  const int coordinates[] = {(int)c...};
  emu_tensor_store(map, shared, 0, sizeof...(C), coordinates);
}
#endif
#ifdef EMU_HAS_tensor_reduce_add
template <class... C> static __forceinline__ void tensor_reduce_add(const tensor_map *map, unsigned shared, C... c) {
  const int coordinates[] = {(int)c...};
  emu_tensor_store(map, shared, 1, sizeof...(C), coordinates);
}
#endif
#ifdef EMU_HAS_bulk_load
static __forceinline__ void bulk_load(unsigned shared, const void *global, unsigned bytes, unsigned barrier) {
  emu_bulk_load(shared, global, bytes, barrier);
}
#endif
#ifdef EMU_HAS_bulk_store
static __forceinline__ void bulk_store(void *global, unsigned shared, unsigned bytes) {
  emu_bulk_store(global, shared, bytes, 0);
}
#endif
#ifdef EMU_HAS_bulk_reduce_add
static __forceinline__ void bulk_reduce_add(float *global, unsigned shared, unsigned bytes) {
  emu_bulk_store(global, shared, bytes, 1);
}
#endif
#ifdef EMU_HAS_bulk_commit
static __forceinline__ void bulk_commit() { emu_bulk_commit(); }
#endif
#ifdef EMU_HAS_bulk_wait
template <int PENDING> static __forceinline__ void bulk_wait() { emu_bulk_wait(PENDING, 0); }
#endif
#ifdef EMU_HAS_bulk_wait_read
template <int PENDING> static __forceinline__ void bulk_wait_read() { emu_bulk_wait(PENDING, 1); }
#endif
#ifdef EMU_HAS_fence_async_shared
static __forceinline__ void fence_async_shared() { emu_fence_async_shared(); }
#endif

/* --- products: EMU_WGMMA(n) for each width that the kernel has -----------------------------------------------------
 */

/* The kernel's own (hopper.h), which its statement of four products calls. */
template <int TRANS, int CHUNK> static unsigned long long along_k(unsigned long long descriptor, int k);

#define EMU_WGMMA(N)                                                                                                   \
  template <int TRANS_A, int TRANS_B>                                                                                  \
  static __forceinline__ void wgmma_m64n##N##k16(float(&c)[N / 2], unsigned long long a, unsigned long long b,         \
                                                 int accumulate) {                                                     \
    static_assert((TRANS_A | TRANS_B | 1) == 1, "0 or 1");                                                             \
    emu_wgmma(c, nullptr, a, b, accumulate != 0, N, TRANS_A, TRANS_B, EMU_TYPE);                                       \
  }                                                                                                                    \
  template <int TRANS_B>                                                                                               \
  static __forceinline__ void wgmma_m64n##N##k16(float(&c)[N / 2], const unsigned(&a)[4], unsigned long long b,        \
                                                 int accumulate) {                                                     \
    static_assert((TRANS_B | 1) == 1, "0 or 1");                                                                       \
    emu_wgmma(c, a, 0, b, accumulate != 0, N, 0, TRANS_B, EMU_TYPE);                                                   \
  }                                                                                                                    \
  template <int TRANS_A, int TRANS_B>                                                                                  \
  static __forceinline__ void wgmma_m64n##N##k64(float(&c)[N / 2], unsigned long long a, unsigned long long b,         \
                                                 int accumulate) {                                                     \
    for (int step = 0; step < 4; step++)                                                                               \
      wgmma_m64n##N##k16<TRANS_A, TRANS_B>(c, along_k<TRANS_A, 0>(a, 16 * step), along_k<TRANS_B, 0>(b, 16 * step),    \
                                           accumulate || step > 0);                                                    \
  }                                                                                                                    \
  template <int TRANS_B>                                                                                               \
  static __forceinline__ void wgmma_m64n##N##k64(float(&c)[N / 2], const unsigned(&a)[16], unsigned long long b,       \
                                                 int accumulate) {                                                     \
    for (int step = 0; step < 4; step++)                                                                               \
      wgmma_m64n##N##k16<TRANS_B>(c, reinterpret_cast<const unsigned(&)[4]>(a[4 * step]),                              \
                                  along_k<TRANS_B, 0>(b, 16 * step), accumulate || step > 0);                          \
  }
#ifdef EMU_HAS_wgmma_fence
static __forceinline__ void wgmma_fence() { emu_wgmma_fence(); }
#endif
#ifdef EMU_HAS_wgmma_commit
static __forceinline__ void wgmma_commit() { emu_wgmma_commit(); }
#endif
#ifdef EMU_HAS_wgmma_wait
template <int PENDING> static __forceinline__ void wgmma_wait() {
  static_assert(PENDING >= 0 && PENDING <= 7, "wgmma.wait_group takes 0 to 7");
  emu_wgmma_wait(PENDING);
}
#endif
#ifdef EMU_HAS_keep_registers
template <int N> static __forceinline__ void keep_registers(float (&)[N]) {}
#endif
#ifdef EMU_HAS_forget_address
static __forceinline__ void forget_address(unsigned &) {}
#endif

/* --- warps ------------------------------------------------------------------------------------------------------- */

#ifdef EMU_HAS_registers_increase
template <int N> static __forceinline__ void registers_increase() { emu_registers(N, 1); }
#endif
#ifdef EMU_HAS_registers_decrease
template <int N> static __forceinline__ void registers_decrease() { emu_registers(N, 0); }
#endif
#ifdef EMU_HAS_stmatrix_x4
static __forceinline__ void stmatrix_x4(unsigned address, const unsigned (&r)[4]) { emu_stmatrix(r, address, 4, 0); }
#endif
#ifdef EMU_HAS_stmatrix_x4_trans
static __forceinline__ void stmatrix_x4_trans(unsigned address, const unsigned (&r)[4]) {
  emu_stmatrix(r, address, 4, 1);
}
#endif
#ifdef EMU_HAS_elect_one
static __forceinline__ bool elect_one() { return emu_elect() != 0; }
#endif

/* --- clusters ---------------------------------------------------------------------------------------------------- */

#ifdef EMU_HAS_cluster_rank
static __forceinline__ unsigned cluster_rank() { return emu_cluster_rank(); }
#endif
#ifdef EMU_HAS_cluster_arrive
static __forceinline__ void cluster_arrive() { emu_cluster_arrive(); }
#endif
#ifdef EMU_HAS_cluster_wait
static __forceinline__ void cluster_wait() { emu_cluster_wait(); }
#endif
#ifdef EMU_HAS_map_shared
static __forceinline__ unsigned map_shared(unsigned address, unsigned rank) { return emu_map_shared(address, rank); }
#endif
#ifdef EMU_HAS_store_shared_cluster_f32
static __forceinline__ void store_shared_cluster_f32(unsigned mapped, float x) { emu_store_shared_cluster(mapped, x); }
#endif
#ifdef EMU_HAS_load_shared_cluster_f32
static __forceinline__ float load_shared_cluster_f32(unsigned mapped) { return emu_load_shared_cluster(mapped); }
#endif
