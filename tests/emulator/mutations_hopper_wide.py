"""The mutations of Hopper's dK and dV of head dims above 128: steps that belong to two warpgroups by turns.

What the first phase, weights and masks do is mutated in the narrow kernel (mutations_hopper_backward.py), which shares
their text. An own step's stage may be given back before all of its products have read it in one place: where the
other warpgroup, which has still to add that step, gives it back later in any case.
"""

from __future__ import annotations

from functools import partial

from emulator.calls import call
from emulator.mutation import Mutation

_call = partial(call, "backward", target="cuda:sm_90a", heads_q=1, without=("grad_query",), seeds=(0, 1, 2))

# Stages are used again: an odd number of steps, so that the last is the first warpgroup's; and an even one.
ODD = _call(head_dim=136, seqlen_q=300, seqlen_k=60)
EVEN = _call(head_dim=136, seqlen_q=250, seqlen_k=60)
ONE_STEP = _call(head_dim=136, seqlen_q=60, seqlen_k=60)
CAUSAL = _call(head_dim=136, seqlen_q=140, causal=True)
TWO_DIMS = _call(head_dim=256, head_dim_v=136, seqlen_q=70, seqlen_k=60)  # four chunks of columns, and three
FEW_COLUMNS = _call(head_dim=192, head_dim_v=128, seqlen_q=150, seqlen_k=60)  # dV has none behind the first 128
GROUPED = _call(head_dim=136, batch=2, heads_q=4, heads_kv=2, seqlen_q=70, seqlen_k=70)
ONLY_KEYS = _call(head_dim=136, seqlen_q=60, without=("grad_query", "grad_value"))

_mutation = partial(Mutation, "hopper wide backward")

MUTATIONS = [
    # --- barriers
    _mutation("scores: arrivals of both warpgroups", ONE_STEP,
              "barrier_init(shared + wide::SCORE_FULL + 8 * stage, 4);",
              "barrier_init(shared + wide::SCORE_FULL + 8 * stage, 8);"),
    _mutation("empty stage: arrivals of one warpgroup", EVEN,
              "barrier_init(shared + wide::STAGE_EMPTY + 8 * stage, 4 * CONSUMERS);",
              "barrier_init(shared + wide::STAGE_EMPTY + 8 * stage, 4);"),
    # --- producer
    _mutation("an empty stage not waited for", ODD,
              "wait_empty(shared + wide::STAGE_EMPTY, ring);", ";"),
    _mutation("bytes of the statistics not expected", ODD,
              "wide::QUERY_BYTES + wide::STATS_BYTES);", "wide::QUERY_BYTES);"),
    _mutation("statistics of the first block of queries", ODD,
              "now.at.stats + first_query,", "now.at.stats,"),
    _mutation("dO of the group's first head", GROUPED,
              "first_query, now.head, w.batch);\n    advance(ring);",
              "first_query, w.kv_head * w.group_size, w.batch);\n    advance(ring);"),
    # --- consumers: what is waited for and given back
    _mutation("K and V not waited for", ONE_STEP,
              "barrier_wait(shared + wide::KEY_FULL, 0);", ";"),
    _mutation("Q not waited for", ODD,
              "wait_full(shared + wide::QUERY_FULL, stage);", ";"),
    _mutation("dO not waited for", ODD,
              "wait_full(shared + wide::GRAD_FULL, stage);", ";"),
    _mutation("the other's scores not waited for", ODD,
              "wait_full(shared + wide::SCORE_FULL, stage);", ";"),
    _mutation("scores read before they are there", ODD,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="consume_step", times=3, only=1),
    _mutation("d_weights read before they are there, products under way", ODD,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="consume_step", times=3, only=2),
    _mutation("d_weights of the first step read before they are there", ONE_STEP,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="consume_step", times=2, only=1),
    _mutation("the other's stage given back before products have read it", EVEN,
              "wgmma_wait<1>();", ";", within="consume_step", times=3, only=3),
    _mutation("the other's stage not given back", ODD,
              "release(shared + wide::STAGE_EMPTY, last);", ";"),
    _mutation("an own stage not given back", ODD,
              "release(shared + wide::STAGE_EMPTY, step.stage);", ";"),
    _mutation("the first step gives back what was not there", ODD,
              "if (step.number > 0)\n    release(", "release("),
    _mutation("sums read before they are there", ODD,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="consume_step", times=2, only=2),
    _mutation("sums of the other's last step read before they are there", EVEN,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="consume_steps"),
    # --- scores to both warpgroups
    _mutation("scores not fenced", ONE_STEP,
              "fence_async_shared();", ";", within="publish_scores"),
    _mutation("scores told before all lanes have fenced", ONE_STEP,
              "__syncwarp();", ";", within="publish_scores"),
    _mutation("scores told before they are fenced", ONE_STEP,
              "fence_async_shared();\n  __syncwarp();\n  release(shared + wide::SCORE_FULL, stage);",
              "release(shared + wide::SCORE_FULL, stage);\n  fence_async_shared();\n  __syncwarp();"),
    _mutation("weights always to the first tile", ODD,
              "shared + wide::WEIGHTS + step.stage.stage * wide::CHUNK, scores.weights",
              "shared + wide::WEIGHTS, scores.weights"),
    _mutation("scores not swizzled", ONE_STEP,
              "((2 * k + lane / 16) ^ key % 8) * 16", "(2 * k + lane / 16) * 16"),
    # --- products
    _mutation("no fence before sums are added to", ONE_STEP,
              "wgmma_fence();", ";", within="add_gradients"),
    _mutation("products not committed", ONE_STEP,
              "wgmma_commit();", ";", within="add_gradients"),
    _mutation("dV from d_scores", ONE_STEP,
              "warpgroup == 0 ? weights : d_scores", "warpgroup == 0 ? d_scores : weights"),
    _mutation("dK's columns behind the first 128 from weights", ONE_STEP,
              "warpgroup == 0 ? d_scores : weights", "weights"),
    _mutation("columns behind the first 128: a chunk too early", ONE_STEP,
              "+ 2 * wide::CHUNK, leading", "+ wide::CHUNK, leading"),
    _mutation("columns behind the first 128: a chunk that is not there", TWO_DIMS,
              "> 3 ? wide::CHUNK : 0;", "> 2 ? wide::CHUNK : 0;"),
    _mutation("leading offset of the first 128 columns", ONE_STEP,
              "grads : queries, wide::CHUNK, 1024, 128)", "grads : queries, 2 * wide::CHUNK, 1024, 128)"),
    _mutation("gradients not transposed", ONE_STEP,
              "k16<0, 1>(flat(sums.major)", "k16<0, 0>(flat(sums.major)"),
    _mutation("sums of the last step alone", ODD,
              "major_right + k * 128 / 16, 1);", "major_right + k * 128 / 16, k > 0);"),
    _mutation("the step after the other's", ODD,
              "add_others(sums, last, warpgroup, shared);", "add_others(sums, step.stage, warpgroup, shared);"),
    # --- steps and results
    _mutation("both warpgroups own the same steps", ODD,
              "if (warpgroup == 1)\n    advance(step, params, w);", ";"),
    _mutation("the other's last step left out", ODD,
              "if (step.number == w.num_steps)", "if (false)"),
    _mutation("the other's last step of an even number left out", EVEN,
              "if (step.number == w.num_steps)", "if (step.number == w.num_steps && warpgroup == 1)"),
    _mutation("a mask of the step before", CAUSAL,
              "first_key + lane / 4, step.at.block * BLOCK_M", "first_key + lane / 4, (step.at.block - 1) * BLOCK_M"),
    _mutation("rows of another warp in the mask", CAUSAL,
              "threadIdx.x / 32 % 4 * 16;", "threadIdx.x / 32 * 16;", within="weigh_step"),
    _mutation("statistics of another stage", ODD,
              "step.stage.stage * wide::STATS_BYTES", "(step.stage.stage + 1) % STAGES * wide::STATS_BYTES"),
    _mutation("scale of dK's columns behind the first 128 forgotten", ONE_STEP,
              "sums.minor, params.softmax_scale);", "sums.minor, 1);"),
    _mutation("dV's columns behind the last are stored", FEW_COLUMNS,
              "(warpgroup == 0 ? HEAD_DIM : HEAD_DIM_V) > 128;", "true;"),
    _mutation("a gradient stored where it is not wanted", ONLY_KEYS,
              "if (to.data)", "if (true)"),
    # --- registers
    _mutation("registers not given up", ONE_STEP,
              "registers_decrease<24>();", ";", within="backward_keys"),
]  # fmt: skip
