/* A block of queries to the caller's tensors: output, and what backward needs to know of each row. */
static void store_outputs(struct scratch *s, const struct fa_params *params, long long batch, long long head,
                          long long first, long rows)
{
  const struct fa_tensor *output = &params->output;
  float *lse = params->lse ? params->lse + ((batch * params->heads_q + head) * params->seqlen_q + first) * 2 : 0;
  for (int i = 0; lse && i < rows; i++) {
    lse[2 * i] = s->row_max[i];
    lse[2 * i + 1] = s->row_sum[i] * (1.0f / UNIT);
  }
  for (int tile = 0; tile < TILES && tile * TILE_M < rows; tile++)
    unpack_transposed(at(output, batch, head, first + tile * TILE_M), output->stride_row, output->stride_col,
                      HEAD_DIM_V, rows - tile * TILE_M, s->outputs[tile], s->row_sum + tile * TILE_M);
}
