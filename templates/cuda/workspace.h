/* Where backward keeps what its phases hand on. Sizes are multiples of 256 bytes. */
struct row_stats { /* of a query row; what lies beyond the last row has weight 0 */
//% if log2_sums
  float max, log2_sum, delta, unused; /* a sum's logarithm is taken off the exponent: no product for it */
//% else
  float max, inverse_sum, delta, unused;
//% end
};

struct workspace {
  struct row_stats *stats; /* (batch, heads_q, query blocks, BLOCK_M) */
//% if dq_sums
  float *grad_query;       /* (batch, heads_q, query blocks, BLOCK_M x DIM_QK), see dq_offset */
  int *turns;              /* (batch, heads_q, query blocks, WARPS): how many parts of dQ have been added */
//% end
//% if dtype == "fp32"
  half_bits *queries, *grad_outputs;        /* tiles of fp16 parts, of each block of queries */
  float *query_factors, *grad_factors;      /* 2^-k of each block */
//% end
};

static __device__ __forceinline__ int query_blocks(const struct fa_params &params)
{
  return ceil_div((int)params.seqlen_q, BLOCK_M);
}

/* The part of one head. */
static __device__ __forceinline__ struct workspace find_workspace(const struct fa_params &params, u32 batch, u32 head)
{
//% if dq_sums
  long long per_head = query_blocks(params), all = params.batch * params.heads_q * per_head;
//% else
  long long per_head = query_blocks(params);
//% end
  long long first = (batch * params.heads_q + head) * per_head;
  struct workspace w;
  char *at = (char *)params.workspace;
//% if dtype == "fp32"
  /* K and V come first, see split_keys.h. */
  at += split_bytes(params);
  w.queries = (half_bits *)at + first * (2 * BLOCK_M * DIM_QK);
  at += all * (2 * BLOCK_M * DIM_QK * 2);
  w.grad_outputs = (half_bits *)at + first * (2 * BLOCK_M * DIM_V);
  at += all * (2 * BLOCK_M * DIM_V * 2);
//% end
  w.stats = (struct row_stats *)at + first * BLOCK_M;
//% if dq_sums
  at += all * (long long)(BLOCK_M * sizeof(struct row_stats));
  w.grad_query = (float *)at + first * (BLOCK_M * DIM_QK);
  at += all * (BLOCK_M * DIM_QK * 4);
  w.turns = (int *)at + first * WARPS;
//% end
//% if dtype == "fp32"
  at += (all * WARPS * 4 + 255) / 256 * 256;
  w.query_factors = (float *)at + first;
  w.grad_factors = (float *)at + all + first;
//% end
  return w;
}
//% if dq_sums

/* dQ of a block of queries lies in the workspace as the accumulators of mma hold it: 16x8 tiles, four elements of each
 * lane together, so that a warp adds 512 bytes in one go. */
static __device__ __forceinline__ int dq_offset(int row_tile, int column_tile, int lane)
{
  return ((row_tile * (DIM_QK / 8) + column_tile) * 32 + lane) * 4;
}
//% end
