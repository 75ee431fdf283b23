/*
 * CUDA C++ for the system's C++ compiler: the words that a kernel may use without a header, and the functions of
 * templates/cuda/ptx.h. Included in front of a kernel's text; nothing here includes a header, as nothing in NVRTC does.
 */
#pragma once

#define __device__
#define __host__
#define __global__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__ const
#define __align__(n) __attribute__((aligned(n)))
/* Static shared variables lie together, with room in between (variables.py); the scheduler exchanges them when another
 * block runs. */
#define __shared__ static __attribute__((section("emu_shared")))

extern "C" {
extern unsigned char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __start_emu_variables[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_emu_variables[] __attribute__((weak, visibility("hidden")));
unsigned emu_shared_window(const void *pointer);
void *emu_dynamic_shared();
int emu_barrier(int vote);
void emu_syncwarp(unsigned mask);
unsigned long emu_shuffle(unsigned mask, unsigned long value, int lane, int width, int mode);
unsigned emu_vote(unsigned mask, unsigned value, int kind);
void emu_yield();
void emu_touch_atomic(const void *address, int bytes);
void emu_atomic_changed();
void emu_ldmatrix(unsigned *r, unsigned address, int count, int trans);
void emu_mma_m16n8k16(float *c, const unsigned *a, unsigned b0, unsigned b1, int type);
void emu_mma_m16n8k8(float *c, unsigned a0, unsigned a1, unsigned b, int type);
void emu_copy_async(unsigned shared, const void *global, int bytes, int valid);
void emu_copy_commit();
void emu_copy_wait(int pending);
float emu_exp2_approx(float x);
float emu_to_float(unsigned short bits, int type);
unsigned short emu_from_float(float x, int type);
int emu_load_acquire(const int *flag);
void emu_store_release(int *flag, int value);
int printf(const char *format, ...);
}

/* --- indices and vectors ----------------------------------------------------------------------------------------- */

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {};
struct emu_ids {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern "C" const emu_ids emu_ids_now;
#define threadIdx (emu_ids_now.thread)
#define blockIdx (emu_ids_now.block)
#define blockDim (emu_ids_now.block_dim)
#define gridDim (emu_ids_now.grid_dim)
#define warpSize 32

#define EMU_VECTORS(T, NAME)                                                                                           \
  struct __attribute__((aligned(2 * sizeof(T)))) NAME##2 {                                                             \
    T x, y;                                                                                                            \
  };                                                                                                                   \
  struct __attribute__((aligned(4 * sizeof(T)))) NAME##4 {                                                             \
    T x, y, z, w;                                                                                                      \
  };                                                                                                                   \
  static __forceinline__ NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                           \
  static __forceinline__ NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(float, float)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
struct __attribute__((aligned(16))) double2 {
  double x, y;
};
struct __attribute__((aligned(16))) longlong2 {
  long long x, y;
};

/* --- arithmetic -------------------------------------------------------------------------------------------------- */

#define EMU_FLOAT_1(NAME)                                                                                              \
  static __forceinline__ float NAME(float x) { return __builtin_##NAME(x); }
#define EMU_FLOAT_2(NAME)                                                                                              \
  static __forceinline__ float NAME(float x, float y) { return __builtin_##NAME(x, y); }
#define EMU_DOUBLE_1(NAME)                                                                                             \
  static __forceinline__ double NAME(double x) { return __builtin_##NAME(x); }
// clang-format off
EMU_FLOAT_1(exp2f) EMU_FLOAT_1(expf) EMU_FLOAT_1(log2f) EMU_FLOAT_1(logf) EMU_FLOAT_1(sqrtf) EMU_FLOAT_1(fabsf)
EMU_FLOAT_1(floorf) EMU_FLOAT_1(ceilf) EMU_FLOAT_1(rintf) EMU_FLOAT_1(roundf) EMU_FLOAT_1(truncf)
EMU_FLOAT_2(fmaxf) EMU_FLOAT_2(fminf) EMU_FLOAT_2(powf) EMU_FLOAT_2(fmodf) EMU_FLOAT_2(copysignf)
EMU_DOUBLE_1(exp2) EMU_DOUBLE_1(exp) EMU_DOUBLE_1(log2) EMU_DOUBLE_1(log) EMU_DOUBLE_1(sqrt) EMU_DOUBLE_1(fabs)
    // clang-format on
    static __forceinline__ float fmaf(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
static __forceinline__ double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
static __forceinline__ float ldexpf(float x, int e) { return __builtin_ldexpf(x, e); }
static __forceinline__ float scalbnf(float x, int e) { return __builtin_ldexpf(x, e); }
static __forceinline__ float frexpf(float x, int *e) { return __builtin_frexpf(x, e); }
static __forceinline__ int ilogbf(float x) { return __builtin_ilogbf(x); }
static __forceinline__ float rsqrtf(float x) { return (float)(1.0 / __builtin_sqrt((double)x)); }
static __forceinline__ float __frcp_rn(float x) { return 1.0f / x; }
static __forceinline__ float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
static __forceinline__ float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
/* Sums and products that are never contracted to a fused multiply-add, as others are. */
static __forceinline__ float emu_as_it_is(float x) {
  asm("" : "+m"(x));
  return x;
}
static __forceinline__ float __fadd_rn(float a, float b) { return emu_as_it_is(a + b); }
static __forceinline__ float __fsub_rn(float a, float b) { return emu_as_it_is(a - b); }
static __forceinline__ float __fmul_rn(float a, float b) { return emu_as_it_is(a * b); }
static __forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
static __forceinline__ float __fdividef(float a, float b) { return a / b; }
static __forceinline__ float __expf(float x) { return __builtin_expf(x); }
static __forceinline__ float __logf(float x) { return __builtin_logf(x); }
static __forceinline__ float __log2f(float x) { return __builtin_log2f(x); }
template <class T> static __forceinline__ bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> static __forceinline__ bool isinf(T x) { return __builtin_isinf(x); }
template <class T> static __forceinline__ bool isnan(T x) { return __builtin_isnan(x); }
static __forceinline__ float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
static __forceinline__ float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
static __forceinline__ unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
static __forceinline__ int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
static __forceinline__ int __float2int_rn(float x) { return (int)__builtin_rintf(x); }
static __forceinline__ int __float2int_rd(float x) { return (int)__builtin_floorf(x); }
static __forceinline__ int __float2int_rz(float x) { return (int)x; }
static __forceinline__ float __int2float_rn(int x) { return (float)x; }
static __forceinline__ float __double2float_rn(double x) { return (float)x; }
static __forceinline__ int __double2hiint(double x) { return (int)(__builtin_bit_cast(long, x) >> 32); }
static __forceinline__ int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static __forceinline__ int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static __forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
static __forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
static __forceinline__ unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long)a * b >> 32); }
static __forceinline__ unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  unsigned long both = a | (unsigned long)b << 32;
  unsigned r = 0;
  for (int i = 0; i < 4; i++)
    r |= (unsigned)(both >> 8 * (s >> 4 * i & 7) & 255) << 8 * i;
  return r;
}
#define EMU_MIN_MAX(T)                                                                                                 \
  static __forceinline__ T min(T a, T b) { return b < a ? b : a; }                                                     \
  static __forceinline__ T max(T a, T b) { return a < b ? b : a; }
// clang-format off
EMU_MIN_MAX(int) EMU_MIN_MAX(unsigned) EMU_MIN_MAX(long) EMU_MIN_MAX(unsigned long) EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
    // clang-format on
    static __forceinline__ float min(float a, float b) {
  return __builtin_fminf(a, b);
}
static __forceinline__ float max(float a, float b) { return __builtin_fmaxf(a, b); }
static __forceinline__ double min(double a, double b) { return __builtin_fmin(a, b); }
static __forceinline__ double max(double a, double b) { return __builtin_fmax(a, b); }
static __forceinline__ int __vimax3_s32(int a, int b, int c) { return max(max(a, b), c); }
static __forceinline__ unsigned __vimax3_u32(unsigned a, unsigned b, unsigned c) { return max(max(a, b), c); }
static __forceinline__ int abs(int x) { return x < 0 ? -x : x; }

/* --- threads ----------------------------------------------------------------------------------------------------- */

static __forceinline__ void __syncthreads() { emu_barrier(0); }
static __forceinline__ int __syncthreads_count(int vote) { return emu_barrier(vote); }
static __forceinline__ int __syncthreads_or(int vote) { return emu_barrier(vote) != 0; }
static __forceinline__ int __syncthreads_and(int vote) { return emu_barrier(!vote) == 0; }
static __forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) { emu_syncwarp(mask); }
static __forceinline__ void __nanosleep(unsigned) { emu_yield(); }
static __forceinline__ void __trap() { __builtin_trap(); }
static __forceinline__ bool __any_sync(unsigned mask, int x) { return emu_vote(mask, x != 0, 0) != 0; }
static __forceinline__ bool __all_sync(unsigned mask, int x) { return emu_vote(mask, x == 0, 0) == 0; }
static __forceinline__ unsigned __ballot_sync(unsigned mask, int x) { return emu_vote(mask, x != 0, 0); }
static __forceinline__ unsigned __reduce_max_sync(unsigned mask, unsigned x) { return emu_vote(mask, x, 1); }
static __forceinline__ unsigned __reduce_min_sync(unsigned mask, unsigned x) { return emu_vote(mask, x, 2); }
static __forceinline__ unsigned __reduce_add_sync(unsigned mask, unsigned x) { return emu_vote(mask, x, 3); }
static __forceinline__ unsigned __reduce_or_sync(unsigned mask, unsigned x) { return emu_vote(mask, x, 4); }
static __forceinline__ unsigned __reduce_and_sync(unsigned mask, unsigned x) { return emu_vote(mask, x, 5); }
static __forceinline__ int __reduce_max_sync(unsigned mask, int x) {
  return (int)(emu_vote(mask, (unsigned)x ^ 0x80000000u, 1) ^ 0x80000000u);
}
static __forceinline__ int __reduce_min_sync(unsigned mask, int x) {
  return (int)(emu_vote(mask, (unsigned)x ^ 0x80000000u, 2) ^ 0x80000000u);
}
static __forceinline__ int __reduce_add_sync(unsigned mask, int x) { return (int)emu_vote(mask, (unsigned)x, 3); }

template <class T> static __forceinline__ T emu_shuffle_any(unsigned mask, T value, int lane, int width, int mode) {
  unsigned long bits;
  if constexpr (sizeof(T) == 8)
    bits = __builtin_bit_cast(unsigned long, value);
  else
    bits = __builtin_bit_cast(unsigned, value);
  bits = emu_shuffle(mask, bits, lane, width, mode);
  if constexpr (sizeof(T) == 8)
    return __builtin_bit_cast(T, bits);
  else
    return __builtin_bit_cast(T, (unsigned)bits);
}
#define EMU_SHUFFLE(NAME, MODE)                                                                                        \
  template <class T> static __forceinline__ T NAME(unsigned mask, T value, int lane, int width = 32) {                 \
    return emu_shuffle_any(mask, value, lane, width, MODE);                                                            \
  }
EMU_SHUFFLE(__shfl_sync, 0)
EMU_SHUFFLE(__shfl_up_sync, 1)
EMU_SHUFFLE(__shfl_down_sync, 2)
EMU_SHUFFLE(__shfl_xor_sync, 3)

/* --- memory ------------------------------------------------------------------------------------------------------ */

#define EMU_UNSEEN __attribute__((no_sanitize("thread")))
#define EMU_APART __attribute__((noinline))
static __forceinline__ unsigned long __cvta_generic_to_shared(const void *p) { return emu_shared_window(p); }
/* The access is seen where the atomic stands; the accesses that carry it out are in a function of their own, unseen. */
template <class T> EMU_UNSEEN static __forceinline__ void emu_set(T *address, T x) {
  if (__builtin_memcmp(address, &x, sizeof(T)))
    emu_atomic_changed();
  *address = x;
}
#define EMU_ATOMIC(NAME, RESULT)                                                                                       \
  template <class T> EMU_UNSEEN EMU_APART T emu_##NAME(T *address, T x) {                                              \
    T old = *address;                                                                                                  \
    emu_set(address, RESULT);                                                                                          \
    return old;                                                                                                        \
  }                                                                                                                    \
  template <class T, class V> static __forceinline__ T NAME(T *address, V value) {                                     \
    emu_touch_atomic(address, sizeof(T));                                                                              \
    return emu_##NAME(address, (T)value);                                                                              \
  }
EMU_ATOMIC(atomicAdd, old + x)
EMU_ATOMIC(atomicSub, old - x)
EMU_ATOMIC(atomicMax, old < x ? x : old)
EMU_ATOMIC(atomicMin, x < old ? x : old)
EMU_ATOMIC(atomicExch, x)
EMU_ATOMIC(atomicOr, old | x)
EMU_ATOMIC(atomicAnd, old &x)
template <class T> EMU_UNSEEN EMU_APART T emu_atomicCAS(T *address, T compare, T value) {
  T old = *address;
  if (old == compare)
    emu_set(address, value);
  return old;
}
template <class T> static __forceinline__ T atomicCAS(T *address, T compare, T value) {
  emu_touch_atomic(address, sizeof(T));
  T old = emu_atomicCAS(address, compare, value);
  if (old != compare)
    emu_yield();
  return old;
}

/* --- how the emulator calls a kernel: arguments by address, as cuLaunchKernel takes them
 * ------------------------------ */

template <class T> struct emu_plain { typedef T type; };
template <class T> struct emu_plain<const T> { typedef T type; };
template <int... I> struct emu_indices {};
template <int N, int... I> struct emu_count : emu_count<N - 1, N - 1, I...> {};
template <int... I> struct emu_count<0, I...> { typedef emu_indices<I...> type; };
template <class... A, int... I>
EMU_UNSEEN static __forceinline__ void emu_call(void (*kernel)(A...), void **arguments, emu_indices<I...>) {
  kernel(*(typename emu_plain<A>::type *)arguments[I]...);
}
/* Behind the name: what __launch_bounds__ says, threads and blocks of a multiprocessor. */
#define EMU_ENTRY(NAME, ...)                                                                                           \
  extern "C" EMU_UNSEEN void emu_entry_##NAME(void **arguments) { emu_enter(NAME, arguments); }                        \
  extern "C" EMU_UNSEEN int emu_bounds_##NAME(int i) {                                                                 \
    const int bounds[] = {__VA_ARGS__, 0, 0};                                                                          \
    return bounds[i];                                                                                                  \
  }
template <class... A> EMU_UNSEEN static __forceinline__ void emu_enter(void (*kernel)(A...), void **arguments) {
  emu_call(kernel, arguments, typename emu_count<sizeof...(A)>::type());
}
extern "C" void emu_static_range(void **range) {
  range[0] = __start_emu_shared;
  range[1] = __stop_emu_shared;
  range[2] = __start_emu_variables; /* the table that variables.py makes */
  range[3] = __stop_emu_variables;
}
