/* Registers of fragments as wgmma takes them: the four of column block n are [n][0] to [n][3]. */
template <int N>
static __device__ __forceinline__ float (&flat(float (&fragments)[N][4]))[4 * N]
{
  return reinterpret_cast<float(&)[4 * N]>(fragments);
}

/* Fragments of sums, rounded to 16 bits, are those of a left operand. */
template <int N>
static __device__ __forceinline__ void pack_fragments(u32 (&left)[N / 2][4], const float (&fragments)[N][4])
{
#pragma unroll
  for (int k = 0; k < N / 2; k++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      left[k][i] = pack(fragments[2 * k + i / 2][i % 2 * 2], fragments[2 * k + i / 2][i % 2 * 2 + 1]);
}
