"""The mutations of Hopper's dK and dV of head dims above 128, of what differs from one pass.

Both share the text of their roles (mutations_hopper_backward.py).
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
    _mutation("loads: an empty stage of Q not waited for", ODD,
              "wait_empty(shared + QUERY_EMPTY, next.stage);", ";"),
    _mutation("loads: a step left out", ODD,
              "while (next.left > 0);", "while (next.left > 1);"),
    _mutation("loads: dO of the group's first head", GROUPED,
              "maps.grad_output, full, first_query,\n                                          next.at.head,",
              "maps.grad_output, full, first_query, next.w.kv_head * next.w.group_size,"),
    _mutation("d_scores read by two warpgroups", ODD,
              "init_barriers(shared, 1, 1);", "init_barriers(shared, 1, 2);"),
    _mutation("empty dO: arrivals of one warpgroup", ODD,
              "STAGES, 4 * (scorers + 1));", "STAGES, 4);"),
    _mutation("empty weights not waited for", ODD,
              "wait_empty(shared + WEIGHT_EMPTY, weight_tile);", ";"),
    _mutation("an empty tile of d_scores not waited for", ODD,
              "wait_empty(shared + D_SCORE_EMPTY, tile);", ";"),
    _mutation("a mask of the step before", CAUSAL,
              "first_query = at.block * BLOCK_M;", "first_query = (at.block - 1) * BLOCK_M;", within="make_scores"),
    _mutation("weights or d_scores not waited for", ODD,
              "barrier_wait(of.left_full + 8 * (tile.stage * PARTS + part), tile.phase);", ";"),
    _mutation("sums read before they are there", ODD,
              "wgmma_wait<0>();", ";", within="sum_gradient"),
    _mutation("columns behind the first 128: the first ones again", ONE_STEP,
              "b + FIRST / 64 * CHUNK / 16", "b"),
    _mutation("the first chunk of columns twice", TWO_DIMS,
              "matrix_descriptor(right, CHUNK, 1024, 128)", "matrix_descriptor(right, 0, 1024, 128)"),
    _mutation("columns behind the first 128 left out", FEW_COLUMNS,
              "if constexpr (REST > 0)", "if constexpr (REST > 64)"),
    _mutation("dV from d_scores", TWO_DIMS,
              "{&params.grad_value, 1, shared + WEIGHTS,", "{&params.grad_value, 1, shared + D_SCORES,"),
    _mutation("scale of dK forgotten", ONE_STEP,
              "{&params.grad_key, params.softmax_scale,", "{&params.grad_key, 1,"),
    _mutation("a gradient stored where it is not wanted", ONLY_KEYS,
              "if (to.data)", "if (true)", within="store_sums"),
    _mutation("registers not given up", ONE_STEP,
              "registers_decrease<24>();", ";", within="backward_keys"),
]  # fmt: skip
