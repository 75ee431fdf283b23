//%# The products of a warpgroup, ${wgmma_n} columns wide. Included behind hopper.h once for each width that a kernel
//%# has, with `let wgmma_n` (8 to 256 in steps of 8) in front.

//% for over_64 in 0 .. 2
//%   let steps = 1 + 3 * over_64
//%   let k = 16 * steps
//%   let c = wgmma_n / 2
//%   if over_64
/* The same over 64, four instructions in one statement: of the time to compile forward at d 128, a sixth is saved. */
//%   else
/* c = a * b, or c += a * b: a is 64x16, b is 16x${wgmma_n}, c is 64x${wgmma_n} in fp32; by the four warps of a warpgroup,
 * and not done before wgmma_wait. Lane (g = l / 4, t = l % 4) of warp w holds in c[4j + 2h + e] the element
 * (16w + g + 8h, 8j + 2t + e). a and b are descriptors of matrices in shared memory, K-major, or M- and N-major where
 * TRANS_A and TRANS_B are 1. */
//%   end
template <int TRANS_A, int TRANS_B>
static __device__ __forceinline__ void wgmma_m64n${wgmma_n}k${k}(float (&c)[${c}], u64 a, u64 b, int accumulate)
{
  asm volatile("{\n"
               ".reg .pred accumulate;\n"
               "setp.ne.b32 accumulate, %${c + 2 * steps}, 0;\n"
//%   for step in 0 .. steps
//%     if step == 1
               "setp.ne.b32 accumulate, 1, 0;\n"
//%     end
//%     if dtype_16 == "bf16"
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.bf16.bf16 {%0, %1, %2, %3"
//%     else
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.f16.f16 {%0, %1, %2, %3"
//%     end
//%     for j in 1 .. wgmma_n / 8
               ", %${4 * j}, %${4 * j + 1}, %${4 * j + 2}, %${4 * j + 3}"
//%     end
               "}, %${c + 2 * step}, %${c + 2 * step + 1}, accumulate, 1, 1, %${c + 2 * steps + 1}, %${c + 2 * steps + 2};\n"
//%   end
               "}"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
//%   for j in 1 .. wgmma_n / 8
               , "+f"(c[${4 * j}]), "+f"(c[${4 * j + 1}]), "+f"(c[${4 * j + 2}]), "+f"(c[${4 * j + 3}])
//%   end
               : "l"(a), "l"(b)
//%   for step in 1 .. steps
               , "l"(along_k<TRANS_A>(a, ${16 * step})), "l"(along_k<TRANS_B>(b, ${16 * step}))
//%   end
               , "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));
}

//%   if over_64
/* And with a from registers. */
//%   else
/* The same with a from registers: lane (g, t) of warp w holds pairs at (16w + g, 2t), (16w + g + 8, 2t),
 * (16w + g, 2t + 8), (16w + g + 8, 2t + 8). They may not be written before wgmma_wait. */
//%   end
template <int TRANS_B>
static __device__ __forceinline__ void wgmma_m64n${wgmma_n}k${k}(float (&c)[${c}], const u32 (&a)[${4 * steps}], u64 b,
                                                      int accumulate)
{
  asm volatile("{\n"
               ".reg .pred accumulate;\n"
               "setp.ne.b32 accumulate, %${c + 5 * steps}, 0;\n"
//%   for step in 0 .. steps
//%     let first = c + 5 * step
//%     if step == 1
               "setp.ne.b32 accumulate, 1, 0;\n"
//%     end
//%     if dtype_16 == "bf16"
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.bf16.bf16 {%0, %1, %2, %3"
//%     else
               "wgmma.mma_async.sync.aligned.m64n${wgmma_n}k16.f32.f16.f16 {%0, %1, %2, %3"
//%     end
//%     for j in 1 .. wgmma_n / 8
               ", %${4 * j}, %${4 * j + 1}, %${4 * j + 2}, %${4 * j + 3}"
//%     end
               "}, {%${first}, %${first + 1}, %${first + 2}, %${first + 3}}, "
               "%${first + 4}, accumulate, 1, 1, %${c + 5 * steps + 1};\n"
//%   end
               "}"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
//%   for j in 1 .. wgmma_n / 8
               , "+f"(c[${4 * j}]), "+f"(c[${4 * j + 1}]), "+f"(c[${4 * j + 2}]), "+f"(c[${4 * j + 3}])
//%   end
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
//%   for step in 1 .. steps
               , "r"(a[${4 * step}]), "r"(a[${4 * step + 1}]), "r"(a[${4 * step + 2}]), "r"(a[${4 * step + 3}])
               , "l"(along_k<TRANS_B>(b, ${16 * step}))
//%   end
               , "r"(accumulate), "n"(TRANS_B));
}
//% end

/* c = a * b, or c += a * b, over K. */
template <int K, int TRANS_A, int TRANS_B, int CHUNK_A = 0, int CHUNK_B = 0>
static __device__ __forceinline__ void wgmma_m64n${wgmma_n}(float (&c)[${wgmma_n / 2}], u64 a, u64 b, int accumulate)
{
#pragma unroll
  for (int k = 0; k + 64 <= K; k += 64)
    wgmma_m64n${wgmma_n}k64<TRANS_A, TRANS_B>(c, along_k<TRANS_A, CHUNK_A>(a, k), along_k<TRANS_B, CHUNK_B>(b, k),
                                              accumulate || k > 0);
#pragma unroll
  for (int k = K / 64 * 64; k < K; k += 16)
    wgmma_m64n${wgmma_n}k16<TRANS_A, TRANS_B>(c, along_k<TRANS_A, CHUNK_A>(a, k), along_k<TRANS_B, CHUNK_B>(b, k),
                                              accumulate || k > 0);
}
template <int K, int TRANS_B>
static __device__ __forceinline__ void wgmma_m64n${wgmma_n}(float (&c)[${wgmma_n / 2}], const u32 (&a)[K / 16][4], u64 b,
                                                   int accumulate)
{
#pragma unroll
  for (int k = 0; k + 64 <= K; k += 64)
    wgmma_m64n${wgmma_n}k64<TRANS_B>(c, reinterpret_cast<const u32(&)[16]>(a[k / 16]), along_k<TRANS_B>(b, k),
                                     accumulate || k > 0);
#pragma unroll
  for (int k = K / 64 * 64; k < K; k += 16)
    wgmma_m64n${wgmma_n}k16<TRANS_B>(c, a[k / 16], along_k<TRANS_B>(b, k), accumulate || k > 0);
}
