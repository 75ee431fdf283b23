/*
 * Operands of mma with their parts, and products of them: 16 rows and 16 columns of `a`, two 8-column tiles of `b`.
//% if dtype == "fp32"
 * The small terms come first: what a sum loses by truncation is in proportion to its size.
//% end
 */
struct fragment {
  u32 part[PARTS][4];
};

/* Parts lie `stride` elements apart. */
static __device__ __forceinline__ void load_fragment(struct fragment &f, u32 address, int stride)
{
#pragma unroll
  for (int p = 0; p < PARTS; p++)
    ldmatrix_x4(f.part[p], address + p * stride * 2);
}
static __device__ __forceinline__ void load_fragment_trans(struct fragment &f, u32 address, int stride)
{
#pragma unroll
  for (int p = 0; p < PARTS; p++)
    ldmatrix_x4_trans(f.part[p], address + p * stride * 2);
}

/* sum += a * (tile `half` of b) */
static __device__ __forceinline__ void multiply(float (&sum)[4], const struct fragment &a, const struct fragment &b,
                                                int half)
{
//% if dtype == "fp32"
  mma_m16n8k16(sum, a.part[1], b.part[0][2 * half], b.part[0][2 * half + 1]);
  mma_m16n8k16(sum, a.part[0], b.part[1][2 * half], b.part[1][2 * half + 1]);
//% end
  mma_m16n8k16(sum, a.part[0], b.part[0][2 * half], b.part[0][2 * half + 1]);
}

/* Registers i = 0 .. 3 of a left operand from accumulators of two neighbouring 16x8 tiles. */
static __device__ __forceinline__ void set_fragment(struct fragment &f, const float (&left)[4], const float (&right)[4])
{
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float x = i < 2 ? left[2 * i] : right[2 * i - 4], y = i < 2 ? left[2 * i + 1] : right[2 * i - 3];
//% if dtype == "fp32"
    split_pair(x, y, f.part[0][i], f.part[1][i]);
//% else
    f.part[0][i] = pack(x, y);
//% end
  }
}
