//%# The products of a warpgroup, ${wgmma_n} columns wide. Included behind hopper.h once for each width that a kernel
//%# has, with `let wgmma_n` (8 to 256 in steps of 8) in front.

/* c = a * b, or c += a * b: a is 64x16, b is 16x${wgmma_n}, c is 64x${wgmma_n} in fp32; by the four warps of a warpgroup,
 * and not done before wgmma_wait. Lane (g = l / 4, t = l % 4) of warp w holds in c[4j + 2h + e] the element
 * (16w + g + 8h, 8j + 2t + e). a and b are descriptors of matrices in shared memory, K-major, or M- and N-major where
 * TRANS_A and TRANS_B are 1. */
template <int TRANS_A, int TRANS_B>
static __device__ __forceinline__ void wgmma_m64n${wgmma_n}k16(float (&c)[${wgmma_n / 2}], u64 a, u64 b, int accumulate)
{
  asm volatile("{\n"
               ".reg .pred accumulate;\n"
               "setp.ne.b32 accumulate, %${wgmma_n / 2 + 2}, 0;\n"
//% if dtype_16 == "bf16"
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.bf16.bf16 {%0, %1, %2, %3"
//% else
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.f16.f16 {%0, %1, %2, %3"
//% end
//% for j in 1 .. wgmma_n / 8
               ", %${4 * j}, %${4 * j + 1}, %${4 * j + 2}, %${4 * j + 3}"
//% end
               "}, %${wgmma_n / 2}, %${wgmma_n / 2 + 1}, accumulate, 1, 1, %${wgmma_n / 2 + 3}, %${wgmma_n / 2 + 4};\n"
               "}"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
//% for j in 1 .. wgmma_n / 8
               , "+f"(c[${4 * j}]), "+f"(c[${4 * j + 1}]), "+f"(c[${4 * j + 2}]), "+f"(c[${4 * j + 3}])
//% end
               : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));
}

/* The same with a from registers: lane (g, t) of warp w holds pairs at (16w + g, 2t), (16w + g + 8, 2t),
 * (16w + g, 2t + 8), (16w + g + 8, 2t + 8). They may not be written before wgmma_wait. */
template <int TRANS_B>
static __device__ __forceinline__ void wgmma_m64n${wgmma_n}k16(float (&c)[${wgmma_n / 2}], const u32 (&a)[4], u64 b,
                                                      int accumulate)
{
  asm volatile("{\n"
               ".reg .pred accumulate;\n"
               "setp.ne.b32 accumulate, %${wgmma_n / 2 + 5}, 0;\n"
//% if dtype_16 == "bf16"
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.bf16.bf16 {%0, %1, %2, %3"
//% else
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.f16.f16 {%0, %1, %2, %3"
//% end
//% for j in 1 .. wgmma_n / 8
               ", %${4 * j}, %${4 * j + 1}, %${4 * j + 2}, %${4 * j + 3}"
//% end
               "}, {%${wgmma_n / 2}, %${wgmma_n / 2 + 1}, %${wgmma_n / 2 + 2}, %${wgmma_n / 2 + 3}}, "
               "%${wgmma_n / 2 + 4}, accumulate, 1, 1, %${wgmma_n / 2 + 6};\n"
               "}"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
//% for j in 1 .. wgmma_n / 8
               , "+f"(c[${4 * j}]), "+f"(c[${4 * j + 1}]), "+f"(c[${4 * j + 2}]), "+f"(c[${4 * j + 3}])
//% end
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS_B));
}
