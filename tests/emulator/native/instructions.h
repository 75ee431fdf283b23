/*
 * The functions of templates/cuda/ptx.h, as ordinary functions: each here stands for one with inline assembly there,
 * where the kernel has it (EMU_HAS_name, which build.py defines).
 */
#pragma once

#ifndef EMU_TYPE /* of the 16-bit tensors: 0 fp16, 1 bf16 */
#define EMU_TYPE 0
#endif

#ifdef EMU_HAS_ldmatrix_x4
static __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned address) { emu_ldmatrix(r, address, 4, 0); }
#endif
#ifdef EMU_HAS_ldmatrix_x4_trans
static __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], unsigned address) { emu_ldmatrix(r, address, 4, 1); }
#endif
#ifdef EMU_HAS_mma_m16n8k16
static __forceinline__ void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  emu_mma_m16n8k16(c, a, b0, b1, EMU_TYPE);
}
#endif
#ifdef EMU_HAS_mma_m16n8k8
static __forceinline__ void mma_m16n8k8(float (&c)[4], unsigned a0, unsigned a1, unsigned b) {
  emu_mma_m16n8k8(c, a0, a1, b, EMU_TYPE);
}
#endif
#ifdef EMU_HAS_copy_async
template <int BYTES> static __forceinline__ void copy_async(unsigned shared, const void *global, bool valid) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  emu_copy_async(shared, global, BYTES, valid);
}
#endif
#ifdef EMU_HAS_copy_commit
static __forceinline__ void copy_commit() { emu_copy_commit(); }
#endif
#ifdef EMU_HAS_copy_wait
template <int PENDING> static __forceinline__ void copy_wait() { emu_copy_wait(PENDING); }
#endif
#ifdef EMU_HAS_exp2_approx
static __forceinline__ float exp2_approx(float x) { return emu_exp2_approx(x); }
#endif
#ifdef EMU_HAS_pack
static __forceinline__ unsigned pack(float low, float high) {
  return emu_from_float(low, EMU_TYPE) | (unsigned)emu_from_float(high, EMU_TYPE) << 16;
}
#endif
#ifdef EMU_HAS_to_float
static __forceinline__ float to_float(unsigned short bits) { return emu_to_float(bits, EMU_TYPE); }
#endif
#ifdef EMU_HAS_load_acquire
static __forceinline__ int load_acquire(const int *flag) { return emu_load_acquire(flag); }
#endif
#ifdef EMU_HAS_store_release
static __forceinline__ void store_release(int *flag, int value) { emu_store_release(flag, value); }
#endif
#ifdef EMU_HAS_reduce_add
static __forceinline__ void reduce_add(float *address, float x) { atomicAdd(address, x); }
#endif
#ifdef EMU_HAS_reduce_add_4
static __forceinline__ void reduce_add_4(float *address, float x, float y, float z, float w) {
  emu_touch_atomic(address, 16);
  atomicAdd(address, x), atomicAdd(address + 1, y), atomicAdd(address + 2, z), atomicAdd(address + 3, w);
}
#endif
