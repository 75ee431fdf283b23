"""The mutations of the portable forward kernels, in the order in which a kernel runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from emulator.calls import call
from emulator.mutation import Mutation

SMALL_BLOCKS = "block_m=64,block_n=32,num_warps=4,num_stages=2"
WIDE_BLOCKS = "block_m=128,block_n=32,num_warps=4,num_stages=1"  # two tiles of rows a warp

CAUSAL = call(head_dim=40, seqlen_q=130, heads_q=1, causal=True, config=SMALL_BLOCKS)
FULL = call(head_dim=40, seqlen_q=70, seqlen_k=141, heads_q=1, config=SMALL_BLOCKS)
WIDE = call(head_dim=40, seqlen_q=130, heads_q=1, causal=True, config=WIDE_BLOCKS)
WIDE_KEYS = call(head_dim=40, seqlen_q=20, seqlen_k=70, heads_q=1, config="block_m=16,block_n=64,num_warps=1")
LARGE = call(head_dim=40, seqlen_q=70, heads_q=1, causal=True, data="large", config=SMALL_BLOCKS)
# After many blocks of keys the largest scores of few rows change.
LARGE_BLOCKS = call(
    head_dim=40, seqlen_q=64, seqlen_k=600, heads_q=1, data="large", config="block_m=64,block_n=16,num_warps=4"
)
MANY_BLOCKS = call(head_dim=40, seqlen_q=64, seqlen_k=600, heads_q=1, config="block_m=64,block_n=16,num_warps=4")
HUGE_SCORES = call(head_dim=40, seqlen_q=70, heads_q=1, data="integers", scale=1e12, config=SMALL_BLOCKS)
NEGATIVE = call(head_dim=40, seqlen_q=70, heads_q=1, causal=True, data="large", scale=-0.1, config=SMALL_BLOCKS)
GROUPED = call(head_dim=40, batch=2, seqlen_q=37, seqlen_k=66, heads_q=4, heads_kv=2, config=SMALL_BLOCKS)
# A row of 16 pieces: with 64 threads, their copies are 4 rows apart.
MANY_STEPS = call(head_dim=128, seqlen_q=32, seqlen_k=40, heads_q=1, config="block_m=32,block_n=32,num_warps=2")
ODD_DIM = call(head_dim=33, seqlen_q=70, seqlen_k=66, heads_q=1, config=SMALL_BLOCKS)
TWO_DIMS = call(head_dim=40, head_dim_v=24, seqlen_q=70, seqlen_k=66, heads_q=1, config=SMALL_BLOCKS)
HUGE = call(head_dim=40, batch=2, seqlen_q=37, seqlen_k=66, layout="huge", config=SMALL_BLOCKS)
HUGE_STEPS = call(head_dim=40, seqlen_q=3, layout="huge", config=SMALL_BLOCKS)  # 2^31 from a row to the next
FAR_ROWS = call(head_dim=40, seqlen_q=37, layout="far_rows", config=SMALL_BLOCKS)  # 2^31 over 8 rows
ODD_LAYOUT = call(head_dim=40, batch=2, seqlen_q=37, seqlen_k=66, layout="odd", config=SMALL_BLOCKS)
EVEN_LAYOUT = call(head_dim=40, batch=2, seqlen_q=37, seqlen_k=66, layout="even", config=SMALL_BLOCKS)
OFFSET = call(head_dim=40, batch=2, seqlen_q=37, seqlen_k=66, layout="offset", config=SMALL_BLOCKS)
NO_LSE = call(head_dim=40, seqlen_q=70, heads_q=1, without=("lse",), config=SMALL_BLOCKS)
# Forward: fp32.
FULL_32 = call("forward", "fp32", 40, seqlen_q=70, seqlen_k=141, heads_q=2, heads_kv=1, config=SMALL_BLOCKS)
CAUSAL_32 = call("forward", "fp32", 40, seqlen_q=130, heads_q=1, causal=True, config=SMALL_BLOCKS)
# An infinity or NaN in each input, each in a head of keys of its own.
INFINITE = call(head_dim=40, batch=7, seqlen_q=40, seqlen_k=61, heads_q=2, data="infinite", config=SMALL_BLOCKS)
INFINITE_32 = replace(INFINITE, case=replace(INFINITE.case, dtype="fp32", causal=True))
# Keys in parts; K and V of fp32, split as they are read.
SPLIT_BLOCKS = "block_m=64,block_n=32,num_warps=4,num_stages=1,split_blocks=256"
DIRECT_BLOCKS = "block_m=32,block_n=32,num_warps=2,num_stages=1,split_blocks=256,direct=1"
SPLITS = call(head_dim=40, seqlen_q=3, seqlen_k=1100, heads_q=2, config=SPLIT_BLOCKS)
MANY_SPLITS = call(head_dim=40, seqlen_q=1, seqlen_k=10000, heads_q=1, config=SPLIT_BLOCKS)  # 39 parts
LARGE_SPLITS = call(head_dim=40, seqlen_q=3, seqlen_k=1100, heads_q=1, data="large", config=SPLIT_BLOCKS)
DIRECT = call(
    "forward", "fp32", 40, seqlen_q=70, seqlen_k=1100, heads_q=2, heads_kv=1, data="uneven", config=DIRECT_BLOCKS
)
DIRECT_SPLITS = call("forward", "fp32", 40, seqlen_q=3, seqlen_k=1100, heads_q=1, data="large", config=DIRECT_BLOCKS)
ODD_DIRECT = call("forward", "fp32", 40, seqlen_q=37, seqlen_k=66, layout="odd", config=DIRECT_BLOCKS)

_mutation = partial(Mutation, "forward")

MUTATIONS = [
    # --- what a block works on
    _mutation("blocks of heads mixed up", GROUPED,
              "blockIdx.x % query_blocks", "blockIdx.x / query_blocks", within="find_work"),
    _mutation("K and V of another group of heads", GROUPED,
              "w.head / (int)(params.heads_q / params.heads_kv)", "w.head % (int)params.heads_kv"),
    _mutation("last block of keys left out", CAUSAL,
              "end < w.seqlen_k ? end : w.seqlen_k, BLOCK_N)",
              "(end < w.seqlen_k ? end : w.seqlen_k) - BLOCK_N + 1, BLOCK_N)"),
    _mutation("a block of keys too few on the diagonal", CAUSAL,
              "int end = w.first_query + BLOCK_M;", "int end = w.first_query + BLOCK_M - BLOCK_N;"),
    _mutation("strides of rows and heads exchanged", GROUPED,
              "head * tensor.stride_head + row * tensor.stride_row",
              "head * tensor.stride_row + row * tensor.stride_head"),
    _mutation("stride of the batch forgotten", GROUPED,
              "batch * tensor.stride_batch + ", ""),
    _mutation("a tensor's offset in 32 bits", HUGE,
              "row * tensor.stride_row", "(int)(row * tensor.stride_row)", within="head_offset"),
    _mutation("a tile's offset in 32 bits", HUGE_STEPS,
              "from + row * tensor.stride_row", "from + (int)(row * tensor.stride_row)", within="load_tile"),
    _mutation("step to a thread's next row in 32 bits", FAR_ROWS,
              "source += ROW_STEP * tensor.stride_row;", "source += (int)(ROW_STEP * tensor.stride_row);"),
    _mutation("block of keys times stride in 32 bits", HUGE,
              "(long long)(block) * BLOCK_N * params.key.stride_row",
              "(int)(block) * BLOCK_N * (int)params.key.stride_row"),
    # --- tiles
    _mutation("odd head dim: tails not cleared", ODD_DIM,
              "clear_shared(shared, SHARED_BYTES);", ";"),
    _mutation("odd head dim: tails cleared while others load", ODD_DIM,
              "__syncthreads();", ";", within="forward", times=3, only=1),
    _mutation("rows of K's tile as long as those of V's", TWO_DIMS,
              "at_column<DIM_QK>(b_at, k) + n * 8 * DIM_QK * 2", "at_column<DIM_QK>(b_at, k) + n * 8 * DIM_V * 2"),
    _mutation("pieces of K's rows have not changed places for ldmatrix", MANY_STEPS,
              "at_column<DIM_QK>(b_at, k) + n", "b_at + k * 2 + n"),
    _mutation("pieces of copied rows do not change places", FULL,
              "tile_index<DIM>(row, part * WIDTH)", "row * DIM + part * WIDTH"),
    _mutation("all rows of a thread's copies have the first one's turn", MANY_STEPS,
              "(shared ^ turn<DIM>(first) * 16) + first", "shared + first"),
    _mutation("element by element, pieces do not change places", ODD_LAYOUT,
              "tile[tile_index<DIM>(row, col)]", "tile[row * DIM + col]"),
    _mutation("rows change places in groups larger than a row has", FULL,
              "return DIM % 64 == 0 ? 8 : DIM % 32 == 0 ? 4 : 2;", "return 8;"),
    _mutation("V's tile overlaps K's ring", CAUSAL,
              "*values = keys + STAGES * KEY_TILE", "*values = keys + (STAGES - 1) * KEY_TILE"),
    _mutation("a stage too few in K's ring", FULL,
              "keys + (block) % STAGES * KEY_TILE", "keys + (block) % (STAGES - 1) * KEY_TILE"),
    _mutation("a stage too many in V's ring", FULL,
              "values + (block) % STAGES * VALUE_TILE", "values + (block) % (STAGES + 1) * VALUE_TILE"),
    _mutation("tiles come one turn late", FULL,
              "LOAD_KEYS(block - STAGES);", "LOAD_KEYS(block - STAGES + 1);"),
    _mutation("rows beyond the last are loaded", FULL,
              "first + row < rows)", "first + row <= rows)", within="load_tile"),
    _mutation("rows beyond the last are loaded, one by one", ODD_LAYOUT,
              "row < rows ?", "row <= rows ?", within="load_tile_slowly"),
    _mutation("alignment of a tensor not asked for", ODD_LAYOUT,
              "return tensor.stride_col == 1 && together % bytes == 0;", "return tensor.stride_col == 1;"),
    _mutation("alignment of a tensor's start not asked for", OFFSET,
              "(unsigned long long)tensor.data | ", "", within="is_aligned"),
    _mutation("alignment of a result not asked for", ODD_LAYOUT,
              "to.stride_col == 1 && together % columns == 0", "to.stride_col == 1"),
    # --- copies and barriers
    _mutation("K's tile not waited for", CAUSAL,
              "copy_wait<2 * STAGES - 2>();", ";", within="forward", times=2, only=1),
    _mutation("V's tile not waited for", CAUSAL,
              "copy_wait<2 * STAGES - 2>();", ";", within="forward", times=2, only=2),
    _mutation("K's tile: one group too many under way", CAUSAL,
              "copy_wait<2 * STAGES - 2>();", "copy_wait<2 * STAGES - 1>();", within="forward", times=2, only=1),
    _mutation("V's tile: one group too many under way", CAUSAL,
              "copy_wait<2 * STAGES - 2>();", "copy_wait<2 * STAGES - 1>();", within="forward", times=2, only=2),
    _mutation("a group of copies not closed", CAUSAL,
              "copy_commit();", ";", within="forward", times=5, only=4),
    _mutation("no barrier before K's tile is used", CAUSAL,
              "__syncthreads();", ";", within="forward", times=2, only=1),
    _mutation("no barrier before V's tile is used", CAUSAL,
              "__syncthreads();", ";", within="forward", times=2, only=2),
    _mutation("one warp passes by a barrier", CAUSAL,
              "__syncthreads();", "if (warp) __syncthreads();", within="forward", times=2, only=2),
    _mutation("no barrier behind -Q", NEGATIVE,
              "__syncthreads();", ";", within="negate_queries"),
    # --- products
    _mutation("V not transposed", FULL,
              "ldmatrix_x4_trans(b, at_column", "ldmatrix_x4(b, at_column"),
    _mutation("a fragment of K used twice", FULL,
              "mma_m16n8k16(scores[m][n + 1], a[m], b[2], b[3]);", "mma_m16n8k16(scores[m][n + 1], a[m], b[0], b[1]);"),
    _mutation("scores not cleared", FULL,
              "scores[m][n][e] = 0;", ";"),
    _mutation("last 16 columns left out", FULL,
              "k < WHOLE; k += 16", "k < WHOLE - 16; k += 16", within="multiply_keys"),
    _mutation("lanes point at other rows", FULL,
              "(lane >> 4) * 8 + (lane & 7)", "(lane >> 3 & 1) * 8 + (lane & 7)"),
    _mutation("second tile of rows is the first", WIDE,
              "at_column<DIM_QK>(a_at, k) + m * 16 * DIM_QK * 2", "at_column<DIM_QK>(a_at, k)"),
    # --- products where tiles of 16 columns are too many
    _mutation("last 8 columns left out", FULL,
              "if constexpr (WHOLE < DIM_QK)", "if constexpr (WHOLE > DIM_QK)"),
    _mutation("last 8 columns: second tile of rows is the first", WIDE,
              "a[m * 16 / ROWS_A][m * 16 % ROWS_A / 8],", "a[m * 16 / ROWS_A][0],"),
    _mutation("last 8 columns: keys of the first 8", FULL,
              "b[n % (ROWS_B / 8)]", "b[0]"),
    _mutation("last 8 columns: keys of the first 32", WIDE_KEYS,
              "ldmatrix_x4(b, b_at + n * 8 * DIM_QK * 2);", "ldmatrix_x4(b, b_at);"),
    _mutation("last 8 columns: pieces of K's rows have not changed places", FULL,
              "keys + tile_index<DIM_QK>(lane % ROWS_B, WHOLE)", "keys + lane % ROWS_B * DIM_QK + WHOLE"),
    _mutation("last 8 columns: pieces of Q's rows have not changed places", FULL,
              "queries + tile_index<DIM_QK>(lane % ROWS_A, WHOLE)", "queries + lane % ROWS_A * DIM_QK + WHOLE"),
    _mutation("V's last 8 columns: first 16 keys of 32", FULL,
              "last[k % LAST_ROWS / 8], last[k % LAST_ROWS / 8 + 1]", "last[0], last[1]"),
    _mutation("V's last 8 columns: 32 keys where a block has 16", MANY_BLOCKS,
              "LAST_ROWS = BLOCK_N % 32 == 0 ? 32 : 16", "LAST_ROWS = 32"),
    _mutation("V's last 8 columns: first 32 keys", WIDE_KEYS,
              "last_at + k * DIM_V * 2", "last_at"),
    _mutation("V's last 8 columns not rescaled", LARGE,
              "n < V_TILES; n++", "n < V_TILES - 1; n++", within="rescale_output"),
    # --- masks
    _mutation("a key too many at the end", FULL,
              "int last_key = seqlen_k - 1;", "int last_key = seqlen_k;"),
    _mutation("a key too few at the end", FULL,
              "int last_key = seqlen_k - 1;", "int last_key = seqlen_k - 2;"),
    _mutation("last partial block not masked", FULL,
              "bool masked = end > seqlen_k;", "bool masked = false;"),
    _mutation("causal: a key too many", CAUSAL,
              "rows.first + 16 * m + 8 * h);", "rows.first + 16 * m + 8 * h + 1);"),
    _mutation("causal: a key too few", CAUSAL,
              "rows.first + 16 * m + 8 * h);", "rows.first + 16 * m + 8 * h - 1);"),
    _mutation("causal: a block of the diagonal not masked", CAUSAL,
              "end > rows.first / 16 * 16 + 1;", "end > rows.first / 16 * 16 + 17;"),
    _mutation("mask of the odd columns moved", FULL,
              "8 * n + e > last_key ?", "8 * n > last_key ?"),
    # --- softmax
    _mutation("softmax scale forgotten", FULL,
              "fabs(params.softmax_scale) * 1.4426950408889634", "1.4426950408889634"),
    _mutation("base 2 taken for e", FULL,
              "* 1.4426950408889634", ""),
    _mutation("sign of the scale forgotten", NEGATIVE,
              "is_negative(params.softmax_scale))", "false)"),
    _mutation("first maximum 0, not -inf", LARGE,
              "rows.max[m][h] = -INF;", "rows.max[m][h] = 0;"),
    _mutation("sign of an exponent", FULL,
              "WEIGHT_EXPONENT - (is_large(product)", "WEIGHT_EXPONENT + (is_large(product)"),
    _mutation("maximum of half a row", FULL,
              "__shfl_xor_sync(0xffffffffu, high, 2)", "__shfl_xor_sync(0xffffffffu, high, 1)"),
    _mutation("sum of half a row", FULL,
              "__shfl_xor_sync(0xffffffffu, sum, 2)", "__shfl_xor_sync(0xffffffffu, sum, 1)"),
    _mutation("output not rescaled", LARGE,
              "output[m][n][e] *= rows.rescale[m][e / 2];", ";"),
    _mutation("output rescaled by the other row's", LARGE,
              "output[m][n][e] *= rows.rescale[m][e / 2];", "output[m][n][e] *= rows.rescale[m][e % 2];"),
    _mutation("half of the rows have no vote on a move", LARGE_BLOCKS,
              "seldom |= must_move(", "seldom |= h == 0 && must_move("),
    _mutation("weights larger than fp16 holds", LARGE_BLOCKS,
              "#define SLACK 8.0f", "#define SLACK 20.0f"),
    _mutation("sum not rescaled", LARGE,
              "rows.sum[m][h] *= rows.rescale[m][h];", ";"),
    _mutation("large maxima not subtracted first", HUGE_SCORES,
              "bool mine = is_large(__fmul_rn(new_max, rows.factor));", "bool mine = false;"),
    # --- infinities
    _mutation("a score of -inf forgotten", INFINITE,
              "rows.poisoned |= low == -INF ? 1u << (2 * m + h) : 0;", ";"),
    _mutation("a score of -inf forgotten at the next block", INFINITE,
              "rows.poisoned |= low == -INF ?", "rows.poisoned = low == -INF ?"),
    _mutation("a score of -inf known to one lane", INFINITE,
              "rows.poisoned |= __shfl_xor_sync(0xffffffffu, rows.poisoned, 1);", ";"),
    # --- results
    _mutation("not divided by the sum", FULL,
              "float inverse = 1 / divisor;", "float inverse = 1;"),
    _mutation("lse of another query", FULL,
              "params.seqlen_q + query) * 2", "params.seqlen_q + query / 2 * 2) * 2"),
    _mutation("largest score in lse off", FULL,
              "lse[0] = rows.max[m][h];", "lse[0] = rows.max[m][h] * 1.001f;"),
    _mutation("sum in lse of another row", FULL,
              "lse[1] = rows.sum[m][h];", "lse[1] = rows.sum[m][1 - h];"),
    _mutation("lse written where it is not wanted", NO_LSE,
              "if (present && params.lse && threadIdx.x % 4 == 0)", "if (present && threadIdx.x % 4 == 0)"),
    _mutation("a row behind the last is written", FULL,
              "bool present = query < (u32)params.seqlen_q;", "bool present = query <= (u32)params.seqlen_q;"),
    _mutation("alignment of eight columns of a result not asked for", EVEN_LAYOUT,
              "is_together(to, TOGETHER)", "is_together(to, 2)"),
    _mutation("columns of any layout one tile further", ODD_LAYOUT,
              "x[i] = x[i + 1];", ";"),
    _mutation("columns of lanes exchanged before they are stored", FULL,
              "received = __shfl_xor_sync(0xffffffffu, upper ?", "received = __shfl_xor_sync(0xffffffffu, !upper ?"),
    _mutation("a column behind the last is written", ODD_DIM,
              "if (col + 1 < DIM)", "if (col + 1 <= DIM)"),
    _mutation("last column left out", ODD_DIM,
              "if (col < DIM)", "if (col + 1 < DIM)"),
    # --- fp32
    _mutation("fp32: low part of Q dropped", FULL_32,
              "mma_m16n8k16(sum, a_low[m], b_high[2 * half], b_high[2 * half + 1]);", ";"),
    _mutation("fp32: low part of K dropped", FULL_32,
              "mma_m16n8k16(sum, a_high[m], b_low[2 * half], b_low[2 * half + 1]);", ";"),
    _mutation("fp32: low part of the weights dropped", FULL_32,
              "mma_m16n8k16(sum[m][half], a_low[m][k], b_high[i][2 * half], b_high[i][2 * half + 1]);", ";"),
    _mutation("fp32: low part of V dropped", FULL_32,
              "mma_m16n8k16(sum[m][half], a_high[m][k], b_low[2 * half], b_low[2 * half + 1]);", ";"),
    _mutation("fp32: low parts from the high ones' place", FULL_32,
              "(BLOCK_N + k * 16) * DIM_V * 2", "k * 16 * DIM_V * 2"),
    _mutation("fp32: pieces of Q's rows do not change places", FULL_32,
              "tile + tile_index<DIM_QK>(row, col)) = high", "tile + row * DIM_QK + col) = high"),
    _mutation("fp32: pieces of K's and V's rows do not change places", FULL_32,
              "tile_index<DIM>(pair / (DIM / 2), pair % (DIM / 2) * 2)", "2 * pair"),
    _mutation("fp32: scale too large for fp16", FULL_32,
              "int k = 14 + 127 -", "int k = 16 + 127 -"),
    _mutation("fp32: an infinity without the NaN beside it", INFINITE_32,
              "low = pack(x - to_float((half_bits)high),",
              "low = pack(x - x == 0 ? x - to_float((half_bits)high) : 0.0f,"),
    _mutation("fp32: an infinity decides the scale of its tile", INFINITE_32,
              "return bits < 0x7f800000u ? bits : 0;", "return bits;"),
    _mutation("fp32: factor of K's block forgotten", FULL_32,
              "rows.key_factor = key_factor;", "rows.key_factor = 1;"),
    _mutation("fp32: factor of V's block forgotten", FULL_32,
              "total[m][half][e] * factor;", "total[m][half][e];"),
    _mutation("fp32: factors of V lie in those of K", FULL_32,
              "factors + all + first};", "factors + first};"),
    _mutation("fp32: tiles of V lie in those of K", FULL_32,
              "*values = keys + all * (2 * BLOCK_N * DIM_QK);", "*values = keys + all * (BLOCK_N * DIM_QK);"),
    _mutation("fp32: no barrier for the largest of a tile", FULL_32,
              "__syncthreads();", ";", within="find_exponent"),
    _mutation("fp32: largest of one warp", FULL_32,
              "warp < NUM_THREADS / 32; warp++", "warp < 1; warp++", within="find_exponent"),
    _mutation("fp32: no __syncwarp behind the queries' factors", CAUSAL_32,
              "__syncwarp();", ";", within="forward"),
    _mutation("fp32: first rows of queries only", FULL_32,
              "(warp + 1) * 16 * M_TILES; first", "(warp + 1) * 16 * M_TILES - 4; first"),
    # --- keys in parts
    _mutation("parts of another head", SPLITS, "index %= heads;", "index = 0;"),
    _mutation("a block of keys in no part", SPLITS,
              "blocks * w.split + params.num_splits - 1)", "blocks * w.split + 2 * params.num_splits - 1)"),
    _mutation("a block of keys in two parts", SPLITS,
              "blocks * (w.split + 1) + params.num_splits - 1)", "blocks * (w.split + 1) + 2 * params.num_splits - 1)"),
    _mutation("a part's rows behind the last query", SPLITS,
              "query >= (int)params.seqlen_q", "query > (int)params.seqlen_q", within="store_split"),
    _mutation("a part's output where another's is", SPLITS, "at = split * all + row", "at = split + row"),
    _mutation("parts weigh alike", LARGE_SPLITS, "float mine = exp2_approx(exponent);", "float mine = 1;"),
    _mutation("a part's sum is not rescaled", LARGE_SPLITS, "row.sum * mine", "row.sum"),
    _mutation("the largest score of the first warp's parts", MANY_SPLITS,
              "x = fmaxf(x, room[warp]);", ";", within="combine_max"),
    _mutation("sum of the first warp's parts", MANY_SPLITS, "x += room[warp];", ";", within="combine_sum"),
    _mutation("parts' largest read before they are there", MANY_SPLITS, "__syncthreads();", ";", within="combine_max"),
    _mutation("parts' sums read before they are there", MANY_SPLITS, "__syncthreads();", ";", within="combine_sum"),
    _mutation("columns read before they are there", SPLITS, "__syncthreads();", ";", within="combine_splits"),
    _mutation("a warp's parts left out", SPLITS, "all += columns[other][col];", ";"),
    _mutation("row of another head's output", SPLITS,
              "query = (int)(blockIdx.x % params.seqlen_q)", "query = (int)(blockIdx.x % params.heads_q)"),
    _mutation("lse of parts: the largest score of one", MANY_SPLITS,
              "params.lse[2 * blockIdx.x] = max;", "params.lse[2 * blockIdx.x] = row.max;"),
    _mutation("fp32: parts' maxima in another unit", DIRECT_SPLITS,
              "rows.sum[m][h], rows.query_factor[m][h], 0}", "rows.sum[m][h], 1, 0}"),
    # --- fp32 that blocks of threads split
    _mutation("direct: read before it is split", DIRECT, "__syncthreads();", ";", within="forward", times=2, only=2),
    _mutation("direct: one room for two maxima", DIRECT, "largest + WARPS)", "largest)"),
    _mutation("direct: scale of the first warp's elements", DIRECT,
              "largest = shared_largest[warp] > largest ? shared_largest[warp] : largest;", ";"),
    _mutation("direct: 16 bytes at once, wherever they are", ODD_DIRECT,
              "if (HEAD % 4 == 0 && together)", "if (HEAD % 4 == 0)"),
    _mutation("direct: rows behind the last key", DIRECT,
              "bool inside = row < rows;", "bool inside = true;", within="read_piece"),
]  # fmt: skip
