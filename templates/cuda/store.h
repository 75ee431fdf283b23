/* The block's results to the caller's tensors: output, and what backward needs to know of each row. */

static __device__ __forceinline__ void store_output(const struct fa_params &params, int batch, int head,
                                                    const float (&output)[M_TILES][DIM_V / 8][4],
                                                    const struct rows &rows)
{
  const struct fa_tensor &to = params.output;
  int lane = threadIdx.x % 32;
  /* Two neighbours at once where they lie together. */
  unsigned long long together = (unsigned long long)to.data / sizeof(element) | to.stride_batch | to.stride_head |
                                to.stride_row;
  bool pairs = to.stride_col == 1 && together % 2 == 0;
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int query = rows.first + 16 * m + 8 * h;
      if (query >= (int)params.seqlen_q)
        continue;
      float sum = rows.sum[m][h];
      if (params.lse && lane % 4 == 0) {
        float *lse = params.lse + ((batch * params.heads_q + head) * params.seqlen_q + query) * 2;
//% if dtype == "fp32"
        lse[0] = rows.max[m][h] * rows.query_factor[m][h];
        lse[1] = sum;
//% else
        /* Weights were exp2(score * factor - origin), origin being rounded; backward subtracts the maximum first. */
        float origin = __fmul_rn(rows.max[m][h], rows.factor);
        float rest = fabsf(origin) > 0x1p21f ? 0.0f : fmaf(rows.max[m][h], rows.factor, -origin);
        lse[0] = rows.max[m][h];
        lse[1] = sum * exp2_approx(-rest);
//% end
      }
      element *row = (element *)to.data + head_offset(to, batch, head, query);
      float divisor = sum * OUTPUT_UNIT;
//% if dtype != "fp32"
      float inverse = 1 / divisor;
//% end
#pragma unroll
      for (int n = 0; n < DIM_V / 8; n++) {
        int col = 8 * n + lane % 4 * 2;
//% if dtype == "fp32"
        float x = output[m][n][2 * h] / divisor, y = output[m][n][2 * h + 1] / divisor;
        if (pairs && (DIM_V == HEAD_DIM_V || col + 1 < HEAD_DIM_V)) {
          *(float2 *)(row + col) = make_float2(x, y);
        } else {
          if (col < HEAD_DIM_V)
            row[col * to.stride_col] = x;
          if (col + 1 < HEAD_DIM_V)
            row[(col + 1) * to.stride_col] = y;
        }
//% else
        u32 pair = pack(output[m][n][2 * h] * inverse, output[m][n][2 * h + 1] * inverse);
        if (pairs && (DIM_V == HEAD_DIM_V || col + 1 < HEAD_DIM_V)) {
          *(u32 *)(row + col) = pair;
        } else {
          if (col < HEAD_DIM_V)
            row[col * to.stride_col] = (half_bits)pair;
          if (col + 1 < HEAD_DIM_V)
            row[(col + 1) * to.stride_col] = (half_bits)(pair >> 16);
        }
//% end
      }
    }
}
