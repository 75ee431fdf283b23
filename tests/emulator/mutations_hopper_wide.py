"""The mutations of Hopper's dK and dV of head dims above 128: a warpgroup for scores, and one for each gradient.

What the first phase does is mutated in the narrow kernel (mutations_hopper_backward.py), and what becomes of scores in
dQ's pass (mutations_hopper_two_pass.py): they share their text.
"""

from __future__ import annotations

from functools import partial

from emulator.calls import call
from emulator.mutation import Mutation

_call = partial(call, "backward", target="cuda:sm_90a", heads_q=1, without=("grad_query",), seeds=(0, 1, 2))

# Stages are used again.
ODD = _call(head_dim=136, seqlen_q=300, seqlen_k=60)
ONE_STEP = _call(head_dim=136, seqlen_q=60, seqlen_k=60)
CAUSAL = _call(head_dim=136, seqlen_q=140, causal=True)
TWO_DIMS = _call(head_dim=256, head_dim_v=136, seqlen_q=300, seqlen_k=60)  # four chunks of columns, and three
FEW_COLUMNS = _call(head_dim=192, head_dim_v=128, seqlen_q=150, seqlen_k=60)  # dV is one instruction's
GROUPED = _call(head_dim=136, batch=2, heads_q=4, heads_kv=2, seqlen_q=70, seqlen_k=70)
ONLY_KEYS = _call(head_dim=136, seqlen_q=60, without=("grad_query", "grad_value"))

_mutation = partial(Mutation, "hopper wide backward")

MUTATIONS = [
    # --- barriers
    _mutation("weights: arrivals of two warpgroups", ONE_STEP,
              "barrier_init(shared + wide::WEIGHT_FULL + 8 * stage, 4);",
              "barrier_init(shared + wide::WEIGHT_FULL + 8 * stage, 8);"),
    _mutation("empty dO: arrivals of one warpgroup", ODD,
              "barrier_init(shared + wide::GRAD_EMPTY + 8 * stage, 4 * 2);",
              "barrier_init(shared + wide::GRAD_EMPTY + 8 * stage, 4);"),
    _mutation("empty Q: arrivals of a warp", ODD,
              "barrier_init(shared + wide::QUERY_EMPTY + 8 * stage, 4);",
              "barrier_init(shared + wide::QUERY_EMPTY + 8 * stage, 1);"),
    # --- producer
    _mutation("an empty stage of Q not waited for", ODD,
              "wait_empty(shared + wide::QUERY_EMPTY, ring);", ";"),
    _mutation("an empty stage of dO not waited for", ODD,
              "wait_empty(shared + wide::GRAD_EMPTY, ring);", ";"),
    _mutation("bytes of the statistics not expected", ODD,
              "wide::QUERY_BYTES + wide::STATS_BYTES);", "wide::QUERY_BYTES);"),
    _mutation("statistics of the first block of queries", ODD,
              "now.at.stats + first_query,", "now.at.stats,"),
    _mutation("dO of the group's first head", GROUPED,
              "grad_output_map, full,\n                                            first_query, now.head,",
              "grad_output_map, full, first_query, w.kv_head * w.group_size,"),
    # --- scores: what is waited for and given back
    _mutation("K and V not waited for", ONE_STEP,
              "barrier_wait(shared + wide::KEY_FULL, 0);", ";"),
    _mutation("Q not waited for", ODD,
              "wait_full(shared + wide::QUERY_FULL, stage);", ";", within="make_scores"),
    _mutation("dO not waited for", ODD,
              "wait_full(shared + wide::GRAD_FULL, stage);", ";", within="make_scores"),
    _mutation("scores read before they are there", ODD,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="make_scores"),
    _mutation("d_weights read before they are there", ODD,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="make_scores"),
    _mutation("dO not given back", ODD,
              "release(shared + wide::GRAD_EMPTY, stage);", ";"),
    _mutation("dO given back before products have read it", ODD,
              "wgmma_wait<0>();\n    keep_registers(flat(d_scores));\n    release(shared + wide::GRAD_EMPTY, stage);",
              "release(shared + wide::GRAD_EMPTY, stage);\n    wgmma_wait<0>();\n    keep_registers(flat(d_scores));"),
    _mutation("statistics of another stage", ODD,
              "stage.stage * wide::STATS_BYTES)", "(stage.stage + 1) % STAGES * wide::STATS_BYTES)"),
    _mutation("statistics of another warp", ONE_STEP,
              "first_row = threadIdx.x / 32 % 4 * 16;", "first_row = 0;"),
    _mutation("weights not masked", CAUSAL,
              "hide_keys(weights, rows, w.first_key, w.seqlen_k);", ";"),
    _mutation("a mask of the step before", CAUSAL,
              "first_query = at.block * BLOCK_M;", "first_query = (at.block - 1) * BLOCK_M;"),
    _mutation("the diagonal not masked", CAUSAL,
              "w.first_key + BLOCK_N > first_query + 1", "w.first_key + BLOCK_N > first_query + BLOCK_M"),
    _mutation("every step in the first stage", ODD,
              "advance(stage);\n    advance(at, params, w);", "advance(at, params, w);"),
    # --- scores to the other warpgroups
    _mutation("scores not fenced", ONE_STEP,
              "fence_async_shared();", ";", within="share_scores"),
    _mutation("scores told before all lanes have fenced", ONE_STEP,
              "__syncwarp();", ";", within="share_scores"),
    _mutation("scores told before they are fenced", ONE_STEP,
              "fence_async_shared();\n  __syncwarp();\n  release(full, stage);",
              "release(full, stage);\n  fence_async_shared();\n  __syncwarp();"),
    _mutation("scores always to the first tile", ODD,
              "row = tiles + stage.stage * wide::CHUNK + query * 128;", "row = tiles + query * 128;"),
    _mutation("scores not swizzled", ONE_STEP,
              "((2 * k + lane / 16) ^ query % 8) * 16", "(2 * k + lane / 16) * 16"),
    _mutation("d_scores over the weights", ONE_STEP,
              "share_scores(shared + wide::D_SCORES,", "share_scores(shared + wide::WEIGHTS,"),
    # --- sums
    _mutation("weights or d_scores not waited for", ODD,
              "wait_full(from.left_full, stage);", ";"),
    _mutation("a tile of dO or Q given back before products have read it", ODD,
              "wgmma_wait<0>();\n    keep_registers(flat(sums));\n    release_and_advance(from.right_empty, stage);",
              "release_and_advance(from.right_empty, stage);\n    wgmma_wait<0>();\n    keep_registers(flat(sums));"),
    _mutation("sums read before they are there", ODD,
              "wgmma_wait<0>();", ";", within="add_steps"),
    _mutation("a tile of dO or Q not given back", ODD,
              "release_and_advance(from.right_empty, stage);", "advance(stage);"),
    _mutation("no fence before sums are added to", ONE_STEP,
              "wgmma_fence();", ";", within="add_product"),
    _mutation("dV's and dK's products not committed", ONE_STEP,
              "wgmma_commit();", ";", within="add_product"),
    _mutation("weights of the first stage", ODD,
              "from.left + stage.stage * wide::CHUNK", "from.left"),
    _mutation("dO and Q of the first stage", ODD,
              "from.right + stage.stage * from.right_bytes", "from.right"),
    _mutation("weights not transposed", ONE_STEP,
              "m64n128k16<1, 1>(sums", "m64n128k16<0, 1>(sums"),
    _mutation("gradients not transposed", ONE_STEP,
              "m64n128k16<1, 1>(sums", "m64n128k16<1, 0>(sums"),
    _mutation("sums of the last product alone", ODD,
              "m64n128k16<1, 1>(sums, a, b, 1);", "m64n128k16<1, 1>(sums, a, b, 0);"),
    _mutation("columns behind the first 128: the first ones again", ONE_STEP,
              "(FIRST / 64 * wide::CHUNK + k * 128) / 16", "k * 128 / 16"),
    _mutation("the first chunk of columns twice", TWO_DIMS,
              "matrix_descriptor(right, wide::CHUNK, 1024, 128)", "matrix_descriptor(right, 0, 1024, 128)"),
    _mutation("columns behind the first 128 left out", FEW_COLUMNS,
              "if constexpr (REST > 0)", "if constexpr (REST > 64)"),
    _mutation("dV from d_scores", ONE_STEP,
              "{shared + wide::WEIGHTS, shared + wide::WEIGHT_FULL,",
              "{shared + wide::D_SCORES, shared + wide::WEIGHT_FULL,"),
    _mutation("dK told to be waited for as dV is", ODD,
              "{shared + wide::D_SCORES, shared + wide::D_SCORE_FULL,",
              "{shared + wide::D_SCORES, shared + wide::WEIGHT_FULL,"),
    # --- results
    _mutation("scale of dK forgotten", ONE_STEP,
              "store_sums<HEAD_DIM>(params.grad_key, w, sums, params.softmax_scale);",
              "store_sums<HEAD_DIM>(params.grad_key, w, sums, 1);"),
    _mutation("rows of another warp", ONE_STEP,
              "w.first_key + threadIdx.x / 32 % 4 * 16, w.seqlen_k, 0, sums,",
              "w.first_key + threadIdx.x / 32 % 2 * 16, w.seqlen_k, 0, sums,"),
    _mutation("a gradient stored where it is not wanted", ONLY_KEYS,
              "if (to.data)", "if (true)", within="store_sums"),
    # --- registers
    _mutation("registers not given up", ONE_STEP,
              "registers_decrease<24>();", ";", within="backward_keys"),
]  # fmt: skip
