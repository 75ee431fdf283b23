"""The mutations of the portable backward kernels, in the order in which a kernel runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from emulator.calls import Call, Repeated, call
from emulator.mutation import Mutation

SMALL_BLOCKS = "block_m=32,block_n=32,num_warps=4,num_stages=2,warp_keys=16"  # two warps share keys
TALL_BLOCKS = "block_m=32,block_n=64,num_warps=4,num_stages=2,warp_keys=16"  # each has its own
LONG_BLOCKS = "block_m=64,block_n=32,num_warps=4,num_stages=1,warp_keys=16"  # more queries than keys
FEW_WARPS = "block_m=32,block_n=32,num_warps=2,num_stages=1,warp_keys=16"
BROAD_BLOCKS = "block_m=32,block_n=64,num_warps=4,num_stages=1,warp_keys=32"  # two warps share 32 keys

CAUSAL = call("backward", "fp16", 40, seqlen_q=100, heads_q=1, causal=True, config=SMALL_BLOCKS)
# Each warp has rows of dQ to itself, with all columns.
ONE_COLUMN_WARP = call(
    "backward",
    head_dim=40,
    seqlen_q=70,
    seqlen_k=141,
    heads_q=1,
    config="block_m=64,block_n=64,num_warps=2,num_stages=1,warp_keys=32",
)
TALL = call("backward", "fp16", 40, seqlen_q=70, seqlen_k=141, heads_q=1, config=TALL_BLOCKS)
GROUPED = call("backward", "fp16", 40, batch=2, seqlen_q=37, heads_q=4, heads_kv=2, config=SMALL_BLOCKS)
ODD_DIM = call("backward", "fp16", 33, seqlen_q=70, heads_q=1, config=SMALL_BLOCKS)
UNWANTED = call("backward", "fp16", 40, seqlen_q=70, heads_q=1, without=("grad_query", "grad_key"), config=SMALL_BLOCKS)
HUGE = call("backward", "fp16", 40, seqlen_q=37, seqlen_k=66, layout="huge", config=SMALL_BLOCKS)
ODD_LAYOUT = call("backward", "fp16", 40, seqlen_q=37, seqlen_k=66, layout="odd", config=SMALL_BLOCKS)
FAR_ROWS = call("backward", "fp16", 40, seqlen_q=37, layout="far_rows", config=SMALL_BLOCKS)  # 2^31 over 8 rows
# The only key has scores far below 0: of a key that is not there, 0 would be far above them.
ONE_KEY = call("backward", "fp16", 40, seqlen_q=70, seqlen_k=1, heads_q=1, data="large", config=SMALL_BLOCKS)
ORDERED = call("backward", "fp16", 40, seqlen_q=100, causal=True, deterministic=True, config=SMALL_BLOCKS)
ORDERED_MORE_KEYS = call(
    "backward", "fp16", 40, seqlen_q=20, seqlen_k=70, causal=True, deterministic=True, config=LONG_BLOCKS
)
FP32 = call("backward", "fp32", 40, seqlen_q=70, seqlen_k=66, heads_q=2, heads_kv=1, config=SMALL_BLOCKS)
# An infinity or NaN in each input, each in a head of keys of its own.
INFINITE = call(
    "backward", "fp16", 40, causal=True, batch=7, seqlen_q=40, seqlen_k=60, data="infinite", config=SMALL_BLOCKS
)
MANY_KEYS = call("backward", "fp16", 40, seqlen_q=70, seqlen_k=141, heads_q=1, config=BROAD_BLOCKS)
MANY_KEYS_CAUSAL = replace(MANY_KEYS, case=replace(MANY_KEYS.case, causal=True))
MANY_KEYS_32 = replace(MANY_KEYS, case=replace(MANY_KEYS.case, dtype="fp32"))
# Each warp has its own keys, and all columns: an odd number of tiles of 8.
MANY_QUERIES = call(
    "backward", "fp16", 40, seqlen_q=70, heads_q=1, config=LONG_BLOCKS.replace("block_n=32", "block_n=64")
)
# Columns of dQ, 48 a warp.
THREE_UNITS = call("backward", "fp16", 96, seqlen_q=40, heads_q=1, config=FEW_WARPS)
INFINITE_32 = replace(INFINITE, case=replace(INFINITE.case, dtype="fp32"))
# Four steps, so that three stages go round.
ONE_BARRIER = call(
    "backward", "fp16", 40, seqlen_q=130, heads_q=1, config=SMALL_BLOCKS.replace("num_stages=2", "num_stages=3")
)
TURNS = Repeated(ORDERED.case, (0, 1, 2))
ONE_BY_ONE = Call(ORDERED.case, (2,))  # one block at a time

_mutation = partial(Mutation, "backward")

MUTATIONS = [
    # --- first phase
    _mutation("D: half of a row", CAUSAL,
              "int other = LANES / 2; other > 0;", "int other = LANES / 4; other > 0;"),
    _mutation("D: columns of the neighbour", CAUSAL,
              "*(const uint4 *)(grad + 8 * lane)", "*(const uint4 *)(grad + 8 * (lane ^ 1))"),
    _mutation("D: odd columns of a piece as the even ones", CAUSAL,
              "(of_grad[i / 2] >> i % 2 * 16)", "(of_grad[i / 2] >> i % 1 * 16)"),
    _mutation("D: pieces of a tensor that does not allow them", ODD_LAYOUT,
              "is_aligned(params.output, 16) && is_aligned(params.grad_output, 16)", "true"),
    _mutation("sum of weights not inverted", CAUSAL,
              "1 / lse[2 * row + 1]", "lse[2 * row + 1]"),
    _mutation("rows behind the last have weights that are NaN", CAUSAL,
              "row_stats{0, 0, 0, 0}", "row_stats{0, __uint_as_float(0x7fc00000u), 0, 0}"),
    _mutation("fp32: sum of weights not inverted", FP32,
              "1 / lse[2 * row + 1]", "lse[2 * row + 1]"),
    _mutation("statistics of another head", GROUPED,
              "((batch * params.heads_q + head) * params.seqlen_q + first) * 2",
              "(batch * params.heads_q * params.seqlen_q + first) * 2"),
    _mutation("dQ's sums not cleared", CAUSAL,
              "grad_query[i] = make_float4(0, 0, 0, 0);", ";"),
    _mutation("half of dQ's sums cleared", CAUSAL,
              "i < BLOCK_M * DIM_QK / 4; i += BEGIN_THREADS", "i < BLOCK_M * DIM_QK / 8; i += BEGIN_THREADS"),
    _mutation("turns not cleared", ORDERED,
              "w.turns[block * WARPS + threadIdx.x] = 0;", ";"),
    # --- workspace and steps
    _mutation("workspace: turns lie in dQ", ORDERED,
              "at += all * (BLOCK_M * DIM_QK * 4);", "at += all * (BLOCK_M * DIM_QK * 2);"),
    _mutation("fp32: workspace begins in K and V", FP32,
              "at += split_bytes(params);", ";"),
    _mutation("first head of a group", GROUPED,
              "int head = w.kv_head * w.group_size;", "int head = w.kv_head;"),
    _mutation("all steps with the first head of a group", GROUPED,
              "c.head++;", ";"),
    _mutation("a step too few", CAUSAL,
              "w.num_steps = w.group_size * w.blocks;", "w.num_steps = w.group_size * w.blocks - 1;"),
    _mutation("causal: begins a block of queries late", CAUSAL,
              "w.first_block = w.first_key / BLOCK_M;", "w.first_block = w.first_key / BLOCK_M + 1;"),
    _mutation("keys that some see have no steps", ORDERED_MORE_KEYS,
              "w.first_key >= w.seqlen_q)", "w.first_key + BLOCK_N > w.seqlen_q)"),
    _mutation("one stage for all", CAUSAL,
              "c.stage = c.stage + 1 < STAGES ? c.stage + 1 : 0;", "c.stage = 0;"),
    _mutation("a stage too many", CAUSAL,
              "c.stage + 1 < STAGES ?", "c.stage < STAGES ?"),
    _mutation("statistics of a row not loaded", CAUSAL,
              "row < BLOCK_M; row += THREADS", "row < BLOCK_M - 1; row += THREADS"),
    _mutation("dO's offset in 32 bits", HUGE,
              "row * tensor.stride_row", "(int)(row * tensor.stride_row)", within="head_offset"),
    _mutation("O's row in 32 bits", FAR_ROWS,
              "row * params.output.stride_row", "(int)(row * params.output.stride_row)"),
    # --- copies and barriers
    _mutation("Q's tile not waited for", CAUSAL,
              "copy_wait<0>();", ";"),
    _mutation("Q's tile: one group too many under way", CAUSAL,
              "copy_wait<0>();", "copy_wait<1>();"),
    _mutation("no barrier before the tiles are used", CAUSAL,
              "__syncthreads(); /* every warp is past", "; /* every warp is past"),
    _mutation("no barrier before d_scores are used", CAUSAL,
              "__syncthreads();\n", ";\n", within="backward", times=2, only=2),
    _mutation("fp32: no barrier for the largest d_score", FP32,
              "__syncthreads();", ";", within="share_scores"),
    # --- weights and d_scores
    _mutation("maximum not subtracted", CAUSAL,
              "(x * sign - row.max) * factor", "x * sign * factor"),
    _mutation("D not subtracted", CAUSAL,
              "dx = x * (dx - row.delta);", "dx = x * dx;"),
    _mutation("D added", CAUSAL,
              "dx = x * (dx - row.delta);", "dx = x * (dx + row.delta);"),
    _mutation("weights not divided by their sum", CAUSAL,
              "* factor) * row.inverse_sum;", "* factor);"),
    _mutation("statistics of the neighbour", CAUSAL,
              "stats[n * 8 + e]", "stats[n * 8 + 1 - e]"),
    _mutation("a key too many at the end", ONE_KEY,
              "bool hidden = key >= w.seqlen_k;", "bool hidden = key > w.seqlen_k;"),
    _mutation("causal: a key too few", CAUSAL,
              "key > query ||", "key >= query ||"),
    _mutation("causal: a key too many", CAUSAL,
              "key > query ||", "key > query + 1 ||"),
    _mutation("causal: a block of the diagonal not masked", CAUSAL,
              "> c.block * BLOCK_M + 1;", "> c.block * BLOCK_M + BLOCK_M;"),
    _mutation("last partial block not masked", ONE_KEY,
              "bool masked = w.first_key + BLOCK_N > w.seqlen_k;", "bool masked = false;"),
    _mutation("rows of keys exchanged in the mask", CAUSAL,
              "first_key + e / 2 * 8", "first_key + e % 2 * 8"),
    # --- infinities
    _mutation("a sum of weights that is NaN taken for that of no keys", INFINITE,
              "1 / lse[2 * row + 1]", "(lse[2 * row + 1] > 0 ? 1 / lse[2 * row + 1] : 0.0f)"),
    _mutation("hidden weights multiplied by 0", INFINITE,
              "s.weights[n][e] = hidden ? 0 :", "s.weights[n][e] = hidden ? 0 * s.weights[n][e] :"),
    _mutation("hidden d_scores multiplied by 0", INFINITE,
              "s.d_scores[n][e] = hidden ? 0 :", "s.d_scores[n][e] = hidden ? 0 * s.d_scores[n][e] :"),
    # --- gradients
    _mutation("d_scores not transposed for dQ", CAUSAL,
              "load_fragment_trans(a[m], at_column", "load_fragment(a[m], at_column"),
    _mutation("dV from d_scores", TALL,
              "add_gradient<TILES_V, DIM_V, true>", "add_gradient<TILES_V, DIM_V, false>"),
    _mutation("an odd number of tiles: the last 8 columns always from the first rows", MANY_QUERIES,
              "last_at + k * 16 * DIM * 2", "last_at"),
    _mutation("an odd number of tiles: the last 8 columns of other rows", TALL,
              "b, is_last ? k % (LAST_ROWS / 16) : half", "b, half"),
    _mutation("two warps share an odd number of tiles: the second begins at an even one", CAUSAL,
              "(ODD_START ? 0 : first) + n * 8", "(ODD_START ? first / 16 * 16 : first) + n * 8"),
    _mutation("dQ: a tile with columns of the tensor left out", CAUSAL,
              "(2 * first_unit + n) * 8 >= HEAD_DIM)", "(2 * first_unit + n) * 8 >= HEAD_DIM - 8)"),
    _mutation("dQ: the tile of the last columns left out at the end", ODD_DIM,
              "ceil_div(HEAD_DIM, 8), GROUPS_OF_4", "HEAD_DIM / 8, GROUPS_OF_4"),
    _mutation("the last 8 columns not multiplied", CAUSAL,
              "if constexpr (WHOLE < DIM)", "if constexpr (false)"),
    _mutation("the last 8 columns: the second 16 keys multiplied as the first", MANY_KEYS,
              "a[2 * t], a[2 * t + 1], b[", "a[0], a[1], b["),
    _mutation("the last 8 columns: queries of the second pair of tiles as the first", MANY_QUERIES,
              "b[n % (ROWS / 8)]);", "b[n % 2]);"),
    _mutation("one barrier a step: its scores go over those of the step before", ONE_BARRIER,
              "int other = step % 2 ? -1 : 1;", "int other = 0;"),
    _mutation("one barrier a step: the next step's queries not waited for", ONE_BARRIER,
              "copy_wait<STAGES - 3>();", "copy_wait<STAGES - 2>();"),
    _mutation("one barrier a step: the first step's queries not waited for", ONE_BARRIER,
              "copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();"),
    _mutation("one barrier a step: queries loaded where those of the step are", ONE_BARRIER,
              "c.stage + 1 < STAGES ?", "c.stage + 2 < STAGES ?"),
    _mutation("eight columns too many are taken for zeros", ONE_COLUMN_WARP,
              "16 * unit + 8 >= HEAD", "16 * unit + 24 >= HEAD"),
    _mutation("dQ's units begin as if they were spread evenly", CAUSAL,
              "column_warp < more ? column_warp : more", "0"),
    _mutation("32 keys a warp: the second 16 multiplied as the first", MANY_KEYS,
              "load_fragment(a[t], at_column<DIM>(a_at, k) + t * 16 * DIM * 2,",
              "load_fragment(a[t], at_column<DIM>(a_at, k),"),
    _mutation("32 keys a warp: d_scores of the second 16 in the place of the first", MANY_KEYS,
              "tile_index<BLOCK_M>(row + 16 * t + 8 * h,", "tile_index<BLOCK_M>(row + 8 * h,"),
    _mutation("32 keys a warp: the second 16 masked as the first", MANY_KEYS_CAUSAL,
              "w.first_key + group * WARP_KEYS + t * 16 + lane / 4", "w.first_key + group * WARP_KEYS + lane / 4"),
    _mutation("32 keys a warp: gradients of the second 16 stored over the first", MANY_KEYS,
              "* WARP_KEYS + t * 16;", "* WARP_KEYS;"),
    _mutation("32 keys a warp: dK of the second 16 from the d_scores of the first", MANY_KEYS,
              "at_column<BLOCK_M>(a_at, k * 16) + t * 16 * BLOCK_M * 2", "at_column<BLOCK_M>(a_at, k * 16)"),
    _mutation("dQ's columns are those of the first warps", THREE_UNITS,
              "at_column<DIM_QK>(b_at, (first_unit + unit) * 16)", "at_column<DIM_QK>(b_at, unit * 16)"),
    _mutation("pieces of d_scores' rows do not change places", CAUSAL,
              "tile_index<BLOCK_M>(row + 16 * t + 8 * h, first + n * 8)",
              "(row + 16 * t + 8 * h) * BLOCK_M + first + n * 8"),
    _mutation("dV from the weights of the other warp's place", CAUSAL,
              "warp % D_SPLITS * M_PART + lane % 4 * 2;", "lane % 4 * 2;", within="share_scores"),
    _mutation("dK from the next stage", CAUSAL,
              "tiles.queries + stage * QUERY_TILE,",
              "tiles.queries + (stage + 1) % STAGES * QUERY_TILE,", within="add_grad_key"),
    _mutation("dQ: plain sums", CAUSAL,
              "reduce_add(sum + e, x[e]);", "sum[e] += x[e];"),
    _mutation("dQ: an element of a tile", CAUSAL,
              "+ lane) * 4;", "+ lane % 16) * 4;", within="dq_offset"),
    _mutation("scale of dK forgotten", CAUSAL,
              "grad_key[t], (float)params.softmax_scale);", "grad_key[t], 1.0f);"),
    _mutation("scale of dQ forgotten", CAUSAL,
              "gradient, (float)params.softmax_scale);", "gradient, 1.0f);", within="end_queries"),
    _mutation("rows of dQ exchanged", CAUSAL,
              "threadIdx.x % 32 / 4 + 8 * h;", "threadIdx.x % 32 / 4 + 4 * h;"),
    _mutation("a row behind the last of dK is written", CAUSAL,
              "at < (u32)rows, 8 * first_tile", "at <= (u32)rows, 8 * first_tile"),
    _mutation("dQ computed where it is not wanted", UNWANTED,
              "if (!params.grad_query.data)", "if (false)", within="end_queries"),
    _mutation("dK stored where it is not wanted", UNWANTED,
              "if (params.grad_key.data)", "if (true)", within="backward", times=2, only=2),
    _mutation("odd head dim: tails not cleared", ODD_DIM,
              "clear_shared(shared, ", "clear_shared(shared, 0 * "),
    # --- dQ in a fixed order
    _mutation("nobody waits for a turn", TURNS,
              "while (load_acquire(turns) != turn) {", "while (false) {"),
    _mutation("a turn read without acquire", TURNS,
              "load_acquire(turns)", "atomicAdd(turns, 0)"),
    _mutation("a turn given without release", TURNS,
              "store_release(turns, turn + 1);", "*(volatile int *)turns = turn + 1;"),
    _mutation("a turn given before all lanes have added", TURNS,
              "__syncwarp();\n", ";\n", within="add_grad_query", times=2, only=2),
    _mutation("only one lane waits for its turn", TURNS,
              "__syncwarp();\n", ";\n", within="add_grad_query", times=2, only=1),
    _mutation("a turn not given", ORDERED,
              "store_release(turns, turn + 1);", "store_release(turns, turn);"),
    _mutation("a turn that nobody gives", ORDERED,
              "turn = w.key_block;", "turn = w.key_block + 1;"),
    _mutation("blocks begin against their order", ONE_BY_ONE,
              "blockIdx.x / key_blocks, blockIdx.x % key_blocks);",
              "blockIdx.x / key_blocks, key_blocks - 1 - blockIdx.x % key_blocks);"),
    _mutation("first part of dQ added, not written", ORDERED,
              "if (turn == 0)", "if (turn == 1)", within="add_grad_query"),
    _mutation("parts of dQ overwrite each other", ORDERED,
              "if (turn == 0)", "if (true)", within="add_grad_query"),
    # --- fp32
    _mutation("fp32: low part of a dropped", FP32,
              "mma_m16n8k16(sum, a.part[1], b.part[0][2 * half], b.part[0][2 * half + 1]);", ";"),
    _mutation("fp32: low part of b dropped", FP32,
              "mma_m16n8k16(sum, a.part[0], b.part[1][2 * half], b.part[1][2 * half + 1]);", ";"),
    _mutation("fp32: unit of the weights not undone", FP32,
              "tiles.grad_factors[stage] * WEIGHT_UNIT", "tiles.grad_factors[stage]"),
    _mutation("fp32: factor of d_scores of another group", FP32,
              "tiles.d_score_factors[k / KEY_TILES] * w.key_factor", "tiles.d_score_factors[0] * w.key_factor"),
    _mutation("fp32: factor of d_scores of every 16 keys, where it is of 32", MANY_KEYS_32,
              "tiles.d_score_factors[k / KEY_TILES]", "tiles.d_score_factors[k]"),
    _mutation("a tile of keys too many is weighed", FP32,
              "h < 2 * TILES; h++", "h <= 2 * TILES; h++"),
    _mutation("fp32: low d_scores in the high ones' place", FP32,
              "tiles.d_scores + at + SCORE_TILE / 2) = low;", "tiles.d_scores + at) = low;"),
    _mutation("fp32: an infinite d_score decides the scale of its tile", INFINITE_32,
              "magnitude = finite_magnitude(s[i / (M_PART / 2)].d_scores[i / 4 % (M_PART / 8)][i % 4]);",
              "magnitude = __float_as_uint(s[i / (M_PART / 2)].d_scores[i / 4 % (M_PART / 8)][i % 4]) & 0x7fffffffu;"),
    _mutation("fp32: factors of Q and dO exchanged", FP32,
              "tiles.grad_factors[stage] * w.value_factor", "tiles.query_factors[stage] * w.value_factor"),
]  # fmt: skip
