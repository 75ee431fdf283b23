/* The block's results to the caller's tensors: output, and what backward needs to know of each row. */
//% include "cuda/store.h"

/* Largest score and sum of weights, so that a weight is exp2((score - largest) * factor) / sum. */
static __device__ __forceinline__ void store_statistics(float *lse, const struct rows &rows, int m, int h)
{
//% if dtype == "fp32"
  lse[0] = rows.max[m][h] * rows.query_factor[m][h];
  lse[1] = rows.sum[m][h];
//% else
  /* Weights were exp2(score * factor - origin), origin being rounded; backward subtracts the maximum first. */
  float origin = __fmul_rn(rows.max[m][h], rows.factor);
  float rest = fabsf(origin) > 0x1p21f ? 0.0f : fmaf(rows.max[m][h], rows.factor, -origin);
  lse[0] = rows.max[m][h];
  lse[1] = rows.sum[m][h] * exp2_approx(-rest);
//% end
}

static __device__ __forceinline__ void store_output(const struct fa_params &params, int batch, int head,
                                                    const float (&output)[M_TILES][DIM_V / 8][4],
                                                    const struct rows &rows)
{
  const struct fa_tensor &to = params.output;
  int lane = threadIdx.x % 32;
  bool pairs = has_pairs(to);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int query = rows.first + 16 * m + 8 * h;
      if (query >= (int)params.seqlen_q)
        continue;
      if (params.lse && lane % 4 == 0)
        store_statistics(params.lse + ((batch * params.heads_q + head) * params.seqlen_q + query) * 2, rows, m, h);
      element *row = (element *)to.data + head_offset(to, batch, head, query);
      float divisor = rows.sum[m][h] * OUTPUT_UNIT;
//% if dtype != "fp32"
      float inverse = 1 / divisor;
//% end
#pragma unroll
      for (int n = 0; n < DIM_V / 8; n++) {
        float x = output[m][n][2 * h], y = output[m][n][2 * h + 1];
//% if dtype == "fp32"
        store_two(to, row, 8 * n + lane % 4 * 2, HEAD_DIM_V, pairs, x / divisor, y / divisor);
//% else
        store_two(to, row, 8 * n + lane % 4 * 2, HEAD_DIM_V, pairs, x * inverse, y * inverse);
//% end
      }
    }
}
