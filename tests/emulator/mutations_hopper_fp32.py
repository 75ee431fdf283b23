"""The mutations of Hopper's forward in fp32: parts and their scales, panels, turns, sums from zero."""

from __future__ import annotations

from functools import partial

from emulator.calls import call
from emulator.mutation import Mutation

_call = partial(call, dtype="fp32", target="cuda:sm_90a", seeds=(0, 1, 2))
SMALL_BLOCKS = "block_m=128,block_n=64,num_stages=3,turns=2,persistent=1"

# A block has several tiles of queries, and more panels than there are stages.
CAUSAL = _call(head_dim=64, seqlen_q=300, heads_q=2, causal=True, config=SMALL_BLOCKS)
FULL = _call(head_dim=64, seqlen_q=140, seqlen_k=250, config=SMALL_BLOCKS)
GROUPED = _call(head_dim=64, batch=2, seqlen_q=140, seqlen_k=130, heads_q=4, heads_kv=2, config=SMALL_BLOCKS)
LARGE = _call(head_dim=64, seqlen_q=140, seqlen_k=250, heads_q=1, data="large", config=SMALL_BLOCKS)
NEGATIVE = _call(head_dim=64, seqlen_q=140, seqlen_k=250, heads_q=1, scale=-0.1, data="large", config=SMALL_BLOCKS)
# Two chunks of K and of V, a block of keys in two sums, two sums under way; three chunks, one sum.
CHUNKS = _call(head_dim=128, seqlen_q=140, seqlen_k=250, heads_q=1, config="block_n=128,num_stages=5,turns=2")
THREE = _call(head_dim=192, seqlen_q=70, seqlen_k=200, heads_q=1, config="block_n=96,num_stages=5,turns=2")
TOGETHER = _call(head_dim=64, seqlen_q=140, seqlen_k=250, config="block_n=64,num_stages=3,turns=1,persistent=1")
ODD = _call(head_dim=33, seqlen_q=70, seqlen_k=200, heads_q=1, layout="odd", config=SMALL_BLOCKS)
ODD_ROWS = _call(head_dim=40, seqlen_q=70, seqlen_k=200, heads_q=1, layout="odd_row", config=SMALL_BLOCKS)
# Chunks of V of 40 columns.
NARROW = _call(head_dim=40, head_dim_v=80, seqlen_q=70, seqlen_k=100, heads_q=1, config=SMALL_BLOCKS)
# One block of keys for each tile of queries: only Q's own barrier holds Q back.
SHORT = _call(head_dim=64, seqlen_q=700, seqlen_k=60, config="block_n=64,num_stages=8,turns=2,persistent=1")
# The second consumer has no queries.
SKIPPED = _call(head_dim=64, seqlen_q=40, seqlen_k=250, heads_q=2, config=SMALL_BLOCKS)
SKIPPED_TOGETHER = _call(head_dim=64, seqlen_q=40, seqlen_k=250, config="block_n=64,num_stages=3,turns=1,persistent=1")
# A ring that K and V of a block do not fit into together.
SKIPPED_WIDE = _call(head_dim=256, seqlen_q=40, seqlen_k=130, heads_q=1, config="block_n=64,num_stages=6,turns=2")

_mutation = partial(Mutation, "hopper fp32 forward")

MUTATIONS = [
    # --- parts and scales
    _mutation("rows swizzled the same", FULL,
              "(lane / 4 ^ row % 8) * 16", "(lane / 4) * 16"),
    _mutation("swizzle by the rows of four", FULL,
              "(lane / 4 ^ row % 8) * 16", "(lane / 4 ^ row % 4) * 16"),
    _mutation("parts exchanged", FULL,
              "*(u32 *)(to + chunk * ROWS * 256) = high;", "*(u32 *)(to + chunk * ROWS * 256) = low;"),
    _mutation("low parts over the next chunk", CHUNKS,
              "to + chunk * ROWS * 256 + ROWS * 128", "to + chunk * ROWS * 256 + ROWS * 256"),
    _mutation("largest magnitude of a warp only", FULL,
              "largest = max(largest, largest_of_warp[i]);", ";"),
    _mutation("no barrier before the largest magnitudes are read", FULL,
              "__syncthreads();", ";", within="split_keys"),
    _mutation("K and V exchanged factors", FULL,
              "is_value ? to.key_factors[block].y : to.key_factors[block].x",
              "is_value ? to.key_factors[block].x : to.key_factors[block].y"),
    _mutation("factor of V forgotten", FULL,
              "rows, factors.y, shared, panels", "rows, 1, shared, panels"),
    _mutation("factor of K forgotten", FULL,
              "rows.key_factor = factors.x;", "rows.key_factor = 1;"),
    _mutation("factors of the block before", FULL,
              "from.key_factors[block];", "from.key_factors[max(block - 1, 0)];"),
    _mutation("Q's factor of another row", FULL,
              "from.query_factors + row);", "from.query_factors + (row ^ 1));"),
    _mutation("sign of the scale dropped", NEGATIVE,
              "params.softmax_scale < 0 ? -1.0f : 1.0f", "1.0f"),
    _mutation("causal: rows behind the last key", _call(head_dim=64, seqlen_q=140, seqlen_k=70, heads_q=1, causal=True,
              config=SMALL_BLOCKS),
              "min((int)params.seqlen_k, (int)params.seqlen_q) - first", "(int)params.seqlen_q - first"),
    _mutation("a row too many", FULL,
              "row < rows && row < BLOCK_N, pairs", "row <= rows && row < BLOCK_N, pairs"),
    _mutation("a row of Q too few", FULL,
              "params.query, row < rows, pairs", "params.query, row + 1 < rows, pairs"),
    _mutation("odd head dim: a column of the next row", ODD,
              "inside && col + 1 < HEAD ? row", "inside && col < HEAD ? row"),
    _mutation("pairs where the layout has none", ODD_ROWS,
              "bool pairs = is_together(tensor, 2);", "bool pairs = true;"),
    _mutation("narrow chunks: columns of 64", NARROW,
              "int col = WIDTH * chunk", "int col = 64 * chunk"),
    _mutation("narrow chunks: sums of 64 columns", NARROW,
              "WIDTH_V / 8 * chunk + i / 4", "min(8 * chunk + i / 4, DIM_V / 8 - 1)"),
    _mutation("V's first tile behind K's", FULL,
              "tile -= is_value ? all_keys : 0;", ";"),
    _mutation("K and V of another head", GROUPED,
              "w.kv_head = index % (int)params.heads_kv;", "w.kv_head = index % (int)params.heads_q;"),
    _mutation("tiles of Q of another head", GROUPED,
              "w.head = index % (int)params.heads_q;", "w.head = index % (int)params.heads_kv;",
              within="split_operands"),
    # --- panels and barriers
    _mutation("an empty panel not waited for", FULL,
              "wait_empty(shared + PANEL_EMPTY, panels);", ";"),
    _mutation("a full panel not waited for", FULL,
              "wait_full(shared + PANEL_FULL, panels.next);", ";"),
    _mutation("Q not waited for", FULL,
              "wait_full(shared + QUERY_FULL, queries);", ";"),
    _mutation("an empty tile of Q not waited for", SHORT,
              "wait_empty(shared + QUERY_EMPTY, queries);", ";"),
    _mutation("fewer bytes expected than come", FULL,
              "barrier_expect(full, PANEL_BYTES);", "barrier_expect(full, PANEL_BYTES / 2);"),
    _mutation("half of a panel", FULL,
              "from + chunk * PANEL_BYTES, PANEL_BYTES, full);", "from + chunk * PANEL_BYTES, PANEL_BYTES / 2, full);"),
    _mutation("all panels are the first", CHUNKS,
              "from + chunk * PANEL_BYTES, PANEL_BYTES", "from, PANEL_BYTES"),
    _mutation("scores: panel released before its products are done", FULL,
              "wgmma_wait<0>();\n", ";\n", within="multiply_keys"),
    _mutation("values: panel released before its products are done", FULL,
              "wgmma_wait<0>();\n", "wgmma_wait<1>();\n", within="multiply_values"),
    _mutation("values: first of two sums not waited for", CHUNKS,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="multiply_values", times=3, only=1),
    _mutation("scores: first chunk not waited for", CHUNKS,
              "wgmma_wait<1>();", ";", within="add_chunk"),
    _mutation("panel not released", FULL,
              "release_and_advance(shared + PANEL_EMPTY, panels.oldest);", "advance(panels.oldest);"),
    _mutation("Q released before the last scores", FULL,
              "release_and_advance(shared + QUERY_EMPTY, queries);",
              "release_and_advance(shared + QUERY_EMPTY, queries), advance(queries);"),
    # --- turns
    _mutation("turn of P V not taken", FULL,
              "take_turn(warpgroup);", ";", within="attend", times=2, only=2),
    _mutation("turn kept after P V", FULL,
              "if (TURNS == 2 || block == 0)", "if (false)"),
    _mutation("one turn: kept at the end of a tile", TOGETHER,
              "if (TURNS == 2 || block == 0)", "if (TURNS == 2)"),
    _mutation("one turn: taken again for Q K^T", TOGETHER,
              "if (TURNS == 2 || block == w.num_blocks - 1)", "if (true)"),
    # --- blocks of keys that only another consumer's queries see
    _mutation("skipped: turn of Q K^T kept", SKIPPED,
              "give_turn(warpgroup);", ";", times=2, only=1, within="skip_block"),
    _mutation("skipped: turn of P V kept", SKIPPED,
              "give_turn(warpgroup);", ";", times=2, only=2, within="skip_block"),
    _mutation("skipped: a panel given back before all lanes know that it is there", SKIPPED,
              "__syncwarp();", ";", within="skip_panels"),
    _mutation("skipped: panels of V not given back", SKIPPED,
              "skip_panels(CHUNKS_V, shared, panels);", ";"),
    _mutation("skipped: K kept until the turn of P V", SKIPPED_WIDE,
              "  skip_panels(CHUNKS_QK, shared, panels);\n  take_turn(warpgroup);",
              "  take_turn(warpgroup);\n  skip_panels(CHUNKS_QK, shared, panels);"),
    _mutation("skipped: one turn taken again", SKIPPED_TOGETHER,
              "TURNS == 2 || is_first", "true"),
    # --- products
    _mutation("low part of Q dropped", LARGE,
              "a_low, b_high, 0);", "a_high, b_low, 0);"),
    _mutation("low part of K taken where Q's is", LARGE,
              "b_low = b_high + BLOCK_N * 128 / 16;", "b_low = b_high + BLOCK_M * 128 / 16;", within="multiply_chunk"),
    _mutation("scores not cleared", FULL,
              "a_low, b_high, 0);", "a_low, b_high, 1);"),
    _mutation("scores cleared before the product of high parts", FULL,
              "a_high, b_high, 1);", "a_high, b_high, 0);"),
    _mutation("second chunk of K not added", CHUNKS,
              "flat(scores)[i] += flat(sums)[i];", ";"),
    _mutation("Q's chunks as far apart as one part", CHUNKS,
              "queries + chunk * BLOCK_M * 256", "queries + chunk * BLOCK_M * 128"),
    _mutation("third chunk over the second", THREE,
              "if (chunk >= 2)", "if (chunk >= 3)"),
    _mutation("step along V", FULL,
              "TRANS ? k * 128", "TRANS ? k * 64"),
    _mutation("V not transposed", FULL,
              "wgmma_m64n64<SUM_KEYS, 1>(sums, high, along_k<1>(b_high",
              "wgmma_m64n64<SUM_KEYS, 0>(sums, high, along_k<1>(b_high"),
    _mutation("sums of values not cleared", CHUNKS,
              "along_k<1>(b_high, first), 0);", "along_k<1>(b_high, first), 1);"),
    _mutation("second keys' sums from the first keys' weights", CHUNKS,
              "weights.high[first / 16]", "weights.high[0]"),
    _mutation("low part of the weights dropped", _call(head_dim=64, seqlen_q=70, seqlen_k=250, heads_q=1,
              data="positive", config=SMALL_BLOCKS),
              "(sums, low, along_k", "(sums, high, along_k"),
    _mutation("output not rescaled", FULL,
              "x * rows.rescale[0][i / 2 % 2]", "x"),
    _mutation("output rescaled by the other row's", FULL,
              "x * rows.rescale[0][i / 2 % 2]", "x * rows.rescale[0][i % 2]"),
    _mutation("output rescaled again with the second keys", CHUNKS,
              "is_first ? x * rows", "true ? x * rows"),
    _mutation("columns of the first chunk twice", CHUNKS,
              "WIDTH_V / 8 * chunk + i / 4", "i / 4"),
    # --- registers
    _mutation("more registers asked for than there are", FULL,
              "registers_increase<240>();", "registers_increase<248>();", within="forward"),
]  # fmt: skip
