/*
 * Keys in num_splits parts (split-KV, as in FlashDecoding): each block of threads leaves the sums of its own part in the
 * workspace, and a last phase rescales and adds those of a row.
 */
struct split_row {
  float max, sum; /* as in struct rows; -inf and 0 where the row sees none of the part's keys */
  float unit, unused; /* of max */
};

struct split_rows { /* (num_splits, batch, heads_q, seqlen_q) */
  float *outputs; /* DIM_V sums, of which there are 8 V_TILES */
  struct split_row *rows;
};

static __device__ __forceinline__ struct split_rows find_split_rows(const struct fa_params &params, long long split,
                                                                    long long row)
{
  long long all = params.batch * params.heads_q * params.seqlen_q, at = split * all + row;
  char *workspace = (char *)params.workspace;
//% if dtype == "fp32" && !direct
  workspace += split_bytes(params);
//% end
  float *outputs = (float *)workspace;
  return {outputs + at * DIM_V, (struct split_row *)(outputs + params.num_splits * all * DIM_V) + at};
}

static __device__ __forceinline__ long long row_of(const struct fa_params &params, int batch, int head, int query)
{
  return (batch * params.heads_q + head) * params.seqlen_q + query;
}

static __device__ __forceinline__ void store_split(const struct fa_params &params, int split, int batch, int head,
                                                   const float (&output)[M_TILES][V_TILES][4], const struct rows &rows)
{
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int query = rows.first + 16 * m + 8 * h;
      if (query >= (int)params.seqlen_q)
        continue;
      struct split_rows to = find_split_rows(params, split, row_of(params, batch, head, query));
      if (threadIdx.x % 4 == 0)
//% if dtype == "fp32"
        *to.rows = {rows.max[m][h], rows.sum[m][h], rows.query_factor[m][h], 0};
//% else
        *to.rows = {rows.max[m][h], rows.sum[m][h], 1, 0};
//% end
#pragma unroll
      for (int n = 0; n < V_TILES; n++)
        *(float2 *)(to.outputs + 8 * n + threadIdx.x % 4 * 2) =
            make_float2(output[m][n][2 * h], output[m][n][2 * h + 1]);
    }
}

enum { COMBINE_THREADS = ${combine_threads}, COMBINE_WARPS = COMBINE_THREADS / 32 };

/* The largest of, and the sum of, what the threads have, for every thread; `room` is not in use. */
static __device__ __forceinline__ float combine_max(float x, float *room)
{
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  if (threadIdx.x % 32 == 0)
    room[threadIdx.x / 32] = x;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < COMBINE_WARPS; warp++)
    x = fmaxf(x, room[warp]);
  return x;
}
static __device__ __forceinline__ float combine_sum(float x, float *room)
{
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, lanes);
  if (threadIdx.x % 32 == 0)
    room[threadIdx.x / 32] = x;
  __syncthreads();
  x = room[0];
#pragma unroll
  for (int warp = 1; warp < COMBINE_WARPS; warp++)
    x += room[warp];
  return x;
}

/* The last phase, a block of threads for a row. First a thread has a part, of which there are no more than threads; then
 * a warp has every COMBINE_WARPSth part, and four columns a lane; then a thread has a column. */
extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
combine_splits(const __grid_constant__ struct fa_params params)
{
  constexpr int PIECES = ceil_div(V_TILES, 16);
  __shared__ float largest[COMBINE_WARPS], sums[COMBINE_WARPS], weights[COMBINE_THREADS];
  __shared__ float columns[COMBINE_WARPS][8 * V_TILES];
  const int splits = (int)params.num_splits, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  struct split_row row = {-INF, 0, 0, 0};
  if (threadIdx.x < splits)
    row = *find_split_rows(params, threadIdx.x, blockIdx.x).rows;
  float max = combine_max(row.max, largest), factor = softmax_factor(params);
//% if dtype == "fp32"
  float unit = find_split_rows(params, 0, blockIdx.x).rows->unit; /* the same in all that see a key, as the first does */
  float exponent = (row.max - max) * factor * MAX_UNIT * unit;
//% else
  float exponent = (row.max - max) * factor;
//% end
  float mine = exp2_approx(exponent);
  weights[threadIdx.x] = mine;
  float sum = combine_sum(row.sum * mine, sums);

  float output[PIECES][4] = {};
#pragma unroll 4
  for (int split = warp; split < splits; split += COMBINE_WARPS) {
    const float *from = find_split_rows(params, split, blockIdx.x).outputs;
    float weight = weights[split];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      int col = 4 * lane + 128 * i;
      if (V_TILES % 16 != 0 && col >= 8 * V_TILES)
        continue;
      float4 part = *(const float4 *)(from + col);
      output[i][0] += part.x * weight;
      output[i][1] += part.y * weight;
      output[i][2] += part.z * weight;
      output[i][3] += part.w * weight;
    }
  }
#pragma unroll
  for (int i = 0; i < PIECES; i++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (V_TILES % 16 == 0 || 4 * lane + 128 * i < 8 * V_TILES)
        columns[warp][4 * lane + 128 * i + e] = output[i][e];
  __syncthreads();

  int head = (int)(blockIdx.x / params.seqlen_q), query = (int)(blockIdx.x % params.seqlen_q);
  int batch = head / (int)params.heads_q;
  const struct fa_tensor &to = params.output;
  element *out = (element *)to.data + head_offset(to, batch, head % (int)params.heads_q, query);
  for (int col = threadIdx.x; col < HEAD_DIM_V; col += COMBINE_THREADS) {
    float all = columns[0][col];
#pragma unroll
    for (int other = 1; other < COMBINE_WARPS; other++)
      all += columns[other][col];
    all /= sum * OUTPUT_UNIT;
//% if dtype == "fp32"
    out[col * to.stride_col] = all;
//% else
    out[col * to.stride_col] = (element)pack(all, 0);
//% end
  }
  if (params.lse && threadIdx.x == 0) {
//% if dtype == "fp32"
    params.lse[2 * blockIdx.x] = max * unit * MAX_UNIT;
//% else
    params.lse[2 * blockIdx.x] = max;
//% end
    params.lse[2 * blockIdx.x + 1] = sum;
  }
}
