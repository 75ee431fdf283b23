/*
 * The instructions that CUDA C++ has no words for, one function each: the only inline assembly of a kernel.
 * Each takes and returns what the PTX ISA says of it (the fragments of mma and ldmatrix: PTX ISA 9.7.14).
 */
typedef unsigned int u32;

/* What a 16-bit tensor holds: the bits of ${dtype_16}. */
typedef unsigned short half_bits;

#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ < 12 /* which has no word for it */
static __device__ __forceinline__ int __vimax3_s32(int a, int b, int c) { return max(max(a, b), c); }
static __device__ __forceinline__ u32 __vimax3_u32(u32 a, u32 b, u32 c) { return max(max(a, b), c); }
#endif

#define INF __uint_as_float(0x7f800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fffffffu)

/* The address that instructions on shared memory take. */
static __device__ __forceinline__ u32 shared_address(const void *pointer)
{
  return (u32)__cvta_generic_to_shared(pointer);
}

/* For the compiler: from here on the address may be another. What it reckons from it, such as the descriptors of a long
 * product, it does not keep in registers from one turn of a loop to the next. */
static __device__ __forceinline__ void forget_address(u32 &address)
{
  asm volatile("" : "+r"(address));
}

/* Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. Lane l receives of
 * each matrix the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4. */
static __device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address)
{
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/* The same, transposed: lane l receives rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4. */
static __device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address)
{
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/* c += a * b: a is 16x16, b is 16x8, c is 16x8 in fp32. Lane (g = l / 4, t = l % 4) holds of c the elements (g, 2t),
 * (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1); pairs of a at (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); pairs
 * of b at (2t, g), (2t + 8, g). */
static __device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
//% let mma_type = dtype_16
//% if mma_type == "bf16"
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
//% else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
//% end
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The same with half of the terms: a is 16x8, b is 8x8. Lane (g, t) holds pairs of a at (g, 2t), (g + 8, 2t), of b at
 * (2t, g). */
static __device__ __forceinline__ void mma_m16n8k8(float (&c)[4], u32 a0, u32 a1, u32 b)
{
//% if mma_type == "bf16"
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
//% else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
//% end
               "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b));
}

/* Copy BYTES (4, 8 or 16) from global to shared memory, both aligned to that; zeros where `valid` is false, and then
 * nothing is read. Done when copy_wait says so. 16 bytes pass by the first-level cache. */
template <int BYTES>
static __device__ __forceinline__ void copy_async(u32 shared, const void *global, bool valid)
{
  int source_bytes = valid ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(source_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(BYTES),
                 "r"(source_bytes)
                 : "memory");
}

/* Close the group of this thread's copies since the last one. */
static __device__ __forceinline__ void copy_commit()
{
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Wait until at most PENDING of this thread's latest groups are under way. */
template <int PENDING>
static __device__ __forceinline__ void copy_wait()
{
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* 2^x, within 2 units in the last place; 0 and infinity where it underflows and overflows. */
static __device__ __forceinline__ float exp2_approx(float x)
{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* Two floats rounded to the nearest ${dtype_16}, `low` in the low half. */
static __device__ __forceinline__ u32 pack(float low, float high)
{
  u32 pair;
//% if dtype_16 == "bf16"
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
//% else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
//% end
  return pair;
}

/* One ${dtype_16} as a float. */
static __device__ __forceinline__ float to_float(half_bits bits)
{
//% if dtype_16 == "bf16"
  return __uint_as_float((u32)bits << 16);
//% else
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
//% end
}
//% if op == "backward"

/* An int that another block wrote before it released it, and the way to release. */
static __device__ __forceinline__ int load_acquire(const int *flag)
{
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
static __device__ __forceinline__ void store_release(int *flag, int value)
{
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

/* *address += x, by the memory's own adder. */
static __device__ __forceinline__ void reduce_add(float *address, float x)
{
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(address), "f"(x) : "memory");
}
//%   if vector_reduce
/* The same for four neighbours, 16-byte aligned (sm_90). One instruction takes PTX ISA 8.1, so NVRTC 12.1. */
static __device__ __forceinline__ void reduce_add_4(float *address, float x, float y, float z, float w)
{
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(x), "f"(y), "f"(z),
               "f"(w)
               : "memory");
#else
  reduce_add(address, x);
  reduce_add(address + 1, y);
  reduce_add(address + 2, z);
  reduce_add(address + 3, w);
#endif
}
//%   end
//% end
