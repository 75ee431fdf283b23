/* The block's results to the caller's tensors: output, and what backward needs to know of each row. */
//% include "cuda/store.h"

/* Largest score and sum of weights, so that a weight is exp2((score - largest) * factor) / sum. */
static __device__ __forceinline__ void store_statistics(float *lse, const struct rows &rows, int m, int h)
{
//% if dtype == "fp32"
  lse[0] = rows.max[m][h] * rows.query_factor[m][h] * MAX_UNIT;
  lse[1] = rows.sum[m][h];
//% else
  /* Weights were exp2(score * factor - origin), origin being rounded; backward subtracts the maximum first. */
  float origin = __fmul_rn(rows.max[m][h], rows.factor);
  float rest = is_large(origin) ? 0.0f : fmaf(rows.max[m][h], rows.factor, -origin);
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
//% if dtype != "fp32"
  bool pieces = has_pieces(to);
//% end
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int query = rows.first + 16 * m + 8 * h;
      bool present = query < (int)params.seqlen_q;
      if (present && params.lse && lane % 4 == 0)
        store_statistics(params.lse + ((batch * params.heads_q + head) * params.seqlen_q + query) * 2, rows, m, h);
      element *row = (element *)to.data + head_offset(to, batch, head, query);
      float divisor = rows.sum[m][h] * OUTPUT_UNIT;
//% if dtype == "fp32"
      if (present)
#pragma unroll
        for (int n = 0; n < DIM_V / 8; n++)
          store_two(to, row, 8 * n + lane % 4 * 2, HEAD_DIM_V, pairs, output[m][n][2 * h] / divisor,
                    output[m][n][2 * h + 1] / divisor);
//% else
      float inverse = 1 / divisor;
      constexpr int PIECES = HEAD_DIM_V % 8 == 0 ? HEAD_DIM_V / 32 * 4 : 0; /* columns / 8 that are stored in pieces */
#pragma unroll
      for (int n = 0; n < PIECES; n += 4) {
        u32 piece[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          piece[i] = pack(output[m][n + i][2 * h] * inverse, output[m][n + i][2 * h + 1] * inverse);
        if (pieces) {
          gather_piece(piece);
          if (present)
            *(uint4 *)(row + 8 * (n + lane % 4)) = make_uint4(piece[0], piece[1], piece[2], piece[3]);
        } else if (present) {
#pragma unroll
          for (int i = 0; i < 4; i++)
            store_pair(to, row, 8 * (n + i) + lane % 4 * 2, HEAD_DIM_V, pairs, piece[i]);
        }
      }
      if (present)
#pragma unroll
        for (int n = PIECES; n < DIM_V / 8; n++)
          store_two(to, row, 8 * n + lane % 4 * 2, HEAD_DIM_V, pairs, output[m][n][2 * h] * inverse,
                    output[m][n][2 * h + 1] * inverse);
//% end
    }
}
