"""The mutations of Hopper's forward in fp32 by one product: what differs from the kernels of 16 bits and of three."""

from __future__ import annotations

from functools import partial

from emulator.calls import call
from emulator.mutation import Mutation

_call = partial(
    call, dtype="fp32", precision="reduced", without=("lse",), target="cuda:sm_90a", heads_q=1, seeds=(0, 1, 2)
)
SMALL_BLOCKS = "block_m=128,block_n=64,num_stages=2,persistent=1"

# A block has several tiles of queries, and more blocks of keys than there are stages.
CAUSAL = _call(head_dim=64, seqlen_q=300, causal=True, config=SMALL_BLOCKS)
FULL = _call(head_dim=64, seqlen_q=140, seqlen_k=250, config=SMALL_BLOCKS)
CHUNKS = _call(head_dim=128, seqlen_q=70, seqlen_k=250, config=SMALL_BLOCKS)  # two of 64 columns
# Blocks of keys whose scales are far apart, the largest first and last.
UNEVEN = _call(head_dim=64, seqlen_q=140, seqlen_k=250, data="uneven", config=SMALL_BLOCKS)
NEGATIVE = _call(head_dim=64, seqlen_q=140, seqlen_k=250, scale=-0.1, data="large", config=SMALL_BLOCKS)
# Exponents that fp32 does not tell from their neighbours, and those that are beyond its range.
STEEP = _call(head_dim=64, seqlen_q=140, seqlen_k=250, scale=1e5, data="integers", config=SMALL_BLOCKS)
STEEPEST = _call(head_dim=64, seqlen_q=140, seqlen_k=250, scale=1e30, data="integers", config=SMALL_BLOCKS)
INFINITE = _call(head_dim=64, batch=7, seqlen_q=40, seqlen_k=130, data="infinite", config=SMALL_BLOCKS)
FEW_KEYS = _call(head_dim=64, seqlen_q=70, seqlen_k=20, data="positive", config=SMALL_BLOCKS)
# One block of keys for each tile of queries, and V's stage is wanted again two tiles later.
ONE_BLOCK = _call(head_dim=64, seqlen_q=700, seqlen_k=60, config=SMALL_BLOCKS)

_mutation = partial(Mutation, "hopper fp32 one-product forward")

MUTATIONS = [
    # --- K and V in the workspace
    _mutation("chunks as far apart as with two parts", CHUNKS,
              "to + chunk * ROWS * 128", "to + chunk * ROWS * 64"),
    _mutation("infinities stay what they are", INFINITE,
              "return x + (x - x);", "return x;"),
    _mutation("V's tiles behind K's of one head", _call(head_dim=64, heads_q=2, seqlen_q=70, seqlen_k=70,
              config=SMALL_BLOCKS),
              "*values = keys + all_keys * KEY_BYTES;", "*values = keys + key_blocks * KEY_BYTES;"),
    # --- Q, by the consumers
    _mutation("Q: a row too many", FULL,
              "row < present, pairs", "row <= present, pairs"),
    _mutation("Q: rows of the other consumer", FULL,
              "const int first = 64 * warpgroup + 16 * warp, present",
              "const int first = 64 * (1 - warpgroup) + 16 * warp, present"),
    _mutation("Q: factor of the other half of the rows", UNEVEN,
              "(row < 8 ? rows", "(row >= 8 ? rows"),
    _mutation("Q: factor of another row", UNEVEN,
              "if (row % 8 == lane / 4)", "if (row % 8 == (lane / 4 ^ 1))"),
    _mutation("Q: factor forgotten", FULL,
              "rows.query_factor[0][1]) = power_of_two(-k);", "rows.query_factor[0][1]) = 1;"),
    _mutation("sign of the scale dropped", NEGATIVE,
              "params.softmax_scale < 0 ? -1.0f : 1.0f", "1.0f"),
    _mutation("Q written and not fenced", FULL,
              "fence_async_shared();", ";", within="round_queries"),
    # --- producer
    _mutation("an empty stage of K not waited for", FULL,
              "wait_empty(shared + KEY_EMPTY, keys);", ";"),
    _mutation("an empty stage of V not waited for", FULL,
              "wait_empty(shared + VALUE_EMPTY, values);", ";"),
    _mutation("half of a tile of K", FULL,
              "block * KEY_BYTES, KEY_BYTES,", "block * KEY_BYTES, KEY_BYTES / 2,"),
    _mutation("fewer bytes of V expected than come", FULL,
              "8 * values.stage, VALUE_BYTES);", "8 * values.stage, VALUE_BYTES / 2);"),
    _mutation("V one block behind", FULL,
              "(long long)(block + 1) * VALUE_BYTES", "(long long)max(block, 0) * VALUE_BYTES"),
    _mutation("V counted by K's barrier", FULL,
              "VALUE_BYTES, shared + VALUE_FULL", "VALUE_BYTES, shared + KEY_FULL"),
    _mutation("V's place not moved on", FULL,
              "advance(values);", ";", within="produce"),
    # --- scales in the softmax
    _mutation("factor of K forgotten", FULL,
              "rows.key_factor = factors.x;", "rows.key_factor = 1;"),
    _mutation("factor of V forgotten", FULL,
              "rows.value_factor = factors.y;", "rows.value_factor = 1;"),
    _mutation("factors of the block after", UNEVEN,
              "use_factors(rows, factors[block]);", "use_factors(rows, factors[block + 1]);", times=2, only=2),
    _mutation("factors of another head", _call(head_dim=64, heads_q=2, seqlen_q=70, seqlen_k=130, data="uneven",
              config=SMALL_BLOCKS),
              "o.key_factors = (float2 *)end + key;", "o.key_factors = (float2 *)end;"),
    _mutation("largest score in the block's own unit", UNEVEN,
              "fmaxf(old_max, largest[m][h] * unit)", "fmaxf(old_max, largest[m][h])"),
    _mutation("negative scores: the largest is not found",
              _call(head_dim=64, seqlen_q=70, seqlen_k=250, data="negative", scale=1, config=SMALL_BLOCKS),
              "seldom = seldom || largest[m][h] < 0 ||", "seldom = seldom ||"),
    _mutation("large scores not voted on",
              _call(head_dim=64, seqlen_q=10, seqlen_k=600, data="large", scale=1e7, config=SMALL_BLOCKS),
              "is_large(__fmul_rn(__fmul_rn(new_max,", "false && is_large(__fmul_rn(__fmul_rn(new_max,"),
    _mutation("larger values: output keeps its unit", UNEVEN,
              "rows.rescale[m][h] *= growth;", ";"),
    _mutation("smaller values: weights keep their size", UNEVEN,
              "WEIGHT_EXPONENT - less_by", "WEIGHT_EXPONENT"),
    _mutation("smaller values: smaller weights are summed as they are", UNEVEN,
              "sum * power_of_two(less_by)", "sum"),
    _mutation("output's unit forgotten", FULL,
              "* inverse * rows.output_unit;", "* inverse;"),
    _mutation("steep: largest score subtracted in another block's unit", STEEP,
              "new_max * inverse_power(unit)", "new_max"),
    _mutation("steep: largest score subtracted twice", STEEP,
              "mine ? 0.0f : product;", "product;"),
    _mutation("steep: largest score not subtracted first", STEEPEST,
              "bool mine = is_large(product);", "bool mine = false;"),
    _mutation("row's factor left out of exponents", FULL,
              "bounded(rows.factor * (rows.query_factor[m][h] * rows.key_factor))",
              "bounded(rows.factor * rows.key_factor)"),
    _mutation("weights before their largest score is taken off", FULL,
              "(float)(WEIGHT_EXPONENT - less_by) - origin[m][h];", "(float)(WEIGHT_EXPONENT - less_by);"),
    # --- what the kernels of 16 bits have too
    _mutation("a key too many at the end", FEW_KEYS,
              "int last_key = seqlen_k - 1;", "int last_key = seqlen_k;"),
    _mutation("causal: a key too many", CAUSAL,
              "rows.first + 16 * m + 8 * h);", "rows.first + 16 * m + 8 * h + 1);"),
    _mutation("last V given back before it has been read", ONE_BLOCK,
              "finish_rows(rows);\n  wgmma_wait<0>();\n  keep_registers(flat(output[0]));\n"
              "  release_and_advance(shared + VALUE_EMPTY, values);",
              "release_and_advance(shared + VALUE_EMPTY, values);\n  finish_rows(rows);\n  wgmma_wait<0>();\n"
              "  keep_registers(flat(output[0]));"),
]  # fmt: skip
