/* The block's results to the caller's tensors: output, and what backward needs to know of each row. */
//% include "cuda/store.h"

//% if precision == "full"
/* What exponents count from and the sum of weights, so that a weight is exp2((score - max) * factor) / sum. */
static __device__ __forceinline__ void store_statistics(float *lse, const struct rows &rows, int m, int h)
{
//%   if dtype == "fp32"
  lse[0] = rows.max[m][h] * rows.query_factor[m][h] * MAX_UNIT;
//%   else
  lse[0] = rows.max[m][h];
//%   end
  lse[1] = rows.sum[m][h];
}

//% end
static __device__ __forceinline__ void store_output(const struct fa_params &params, u32 batch, u32 head,
                                                    float (&output)[M_TILES][V_TILES][4], const struct rows &rows)
{
  const struct fa_tensor &to = params.output;
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      u32 query = rows.first + 16 * m + 8 * h;
      bool present = query < (u32)params.seqlen_q;
//% if precision == "full"
      if (present && params.lse && threadIdx.x % 4 == 0)
        store_statistics(params.lse + ((batch * params.heads_q + head) * params.seqlen_q + query) * 2, rows, m, h);
      float divisor = rows.sum[m][h] * OUTPUT_UNIT;
//%   if dtype != "fp32"
      float inverse = 1 / divisor;
//%   end
//% else
      float inverse = 1 / (rows.sum[m][h] * WEIGHT_UNIT);
//% end
#pragma unroll
      for (int n = 0; n < V_TILES; n++)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++)
//% if dtype == "fp32" && precision == "full"
          output[m][n][e] /= divisor;
//% elif precision == "reduced"
          output[m][n][e] = output[m][n][e] * inverse * rows.output_unit; /* the unit may be tiny: it comes last */
//% else
          output[m][n][e] *= inverse;
//% end
      store_row<V_TILES, HEAD_DIM_V>(to, (element *)to.data + head_offset(to, batch, head, query), present, 0, output[m],
                                       h);
    }
}
