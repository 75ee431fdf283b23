"""The mutations of Hopper's dK and dV of head dims above 128: steps that belong to two warpgroups by turns.

What the first phase, weights and masks do is mutated in the narrow kernel (mutations_hopper_backward.py), which shares
their text.
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
TWO_DIMS = _call(head_dim=256, head_dim_v=136, seqlen_q=300, seqlen_k=60)  # four chunks of columns, and three
FEW_COLUMNS = _call(head_dim=192, head_dim_v=128, seqlen_q=150, seqlen_k=60)  # dV has none behind the first 128
GROUPED = _call(head_dim=136, batch=2, heads_q=4, heads_kv=2, seqlen_q=70, seqlen_k=70)
ONLY_KEYS = _call(head_dim=136, seqlen_q=60, without=("grad_query", "grad_value"))

_mutation = partial(Mutation, "hopper wide backward")

MUTATIONS = [
    # --- barriers
    _mutation("weights: arrivals of both warpgroups", ONE_STEP,
              "barrier_init(shared + wide::WEIGHT_FULL + 8 * stage, 4);",
              "barrier_init(shared + wide::WEIGHT_FULL + 8 * stage, 8);"),
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
              "wait_full(shared + wide::QUERY_FULL, stage);", ";", within="begin_wide_scores"),
    _mutation("dO not waited for", ODD,
              "wait_full(shared + wide::GRAD_FULL, stage);", ";", within="begin_wide_scores"),
    _mutation("the other's weights not waited for", ODD,
              "wait_full(shared + wide::WEIGHT_FULL, stage);", ";"),
    _mutation("the other's d_scores not waited for", ODD,
              "wait_full(shared + wide::D_SCORE_FULL, stage);", ";"),
    _mutation("scores read before they are there", ODD,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="consume_step"),
    _mutation("d_weights read before they are there", ODD,
              "wgmma_wait<gradients<WARPGROUP>::HAS_VALUES>();", "wgmma_wait<2>();", within="consume_step"),
    _mutation("the other's stage given back before products have read it", EVEN,
              "wgmma_wait<2>();", ";", within="consume_step"),
    _mutation("the other's stage given back before dK's product has read it", EVEN,
              "wgmma_wait<2>();", "wgmma_wait<3>();", within="consume_step"),
    _mutation("the other's stage not given back", ODD,
              "release(shared + wide::STAGE_EMPTY, last);", ";"),
    _mutation("an own stage not given back", ODD,
              "release(shared + wide::STAGE_EMPTY, step.stage);", ";"),
    _mutation("the first step gives back what was not there", ODD,
              "if (step.number > 0)\n    release(", "release("),
    _mutation("the first step adds one before it", ODD,
              "if (step.number > 0)\n    add_others(", "add_others("),
    _mutation("sums read before they are there", ODD,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="consume_step"),
    _mutation("sums of the other's last step read before they are there", EVEN,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="consume_steps"),
    # --- scores to both warpgroups
    _mutation("scores not fenced", ONE_STEP,
              "fence_async_shared();", ";", within="share_scores"),
    _mutation("scores told before all lanes have fenced", ONE_STEP,
              "__syncwarp();", ";", within="share_scores"),
    _mutation("scores told before they are fenced", ONE_STEP,
              "fence_async_shared();\n  __syncwarp();\n  release(full, stage);",
              "release(full, stage);\n  fence_async_shared();\n  __syncwarp();"),
    _mutation("scores always to the first tile", ODD,
              "row = tiles + stage.stage * wide::CHUNK + key * 128;", "row = tiles + key * 128;"),
    _mutation("scores not swizzled", ONE_STEP,
              "((2 * k + lane / 16) ^ key % 8) * 16", "(2 * k + lane / 16) * 16"),
    _mutation("d_scores over the weights", ONE_STEP,
              "share_scores(shared + wide::D_SCORES,", "share_scores(shared + wide::WEIGHTS,"),
    # --- products
    _mutation("no fence before sums are added to", ONE_STEP,
              "wgmma_fence();", ";", within="add_product"),
    _mutation("dV's and dK's products not committed", ONE_STEP,
              "wgmma_commit();", ";", within="add_product"),
    _mutation("dV from d_scores", ONE_STEP,
              "sums.values, shared + wide::WEIGHTS", "sums.values, shared + wide::D_SCORES"),
    _mutation("dK of the first stage's Q", ODD,
              "shared + wide::QUERIES + stage * wide::QUERY_BYTES, gradients", "shared + wide::QUERIES, gradients"),
    _mutation("columns behind the first 128: the first ones again", ONE_STEP,
              "right + first / 64 * wide::CHUNK,", "right,"),
    _mutation("columns of a chunk that is not there", TWO_DIMS,
              "<= CHUNKS ? wide::CHUNK : 0;", "<= CHUNKS + 1 ? wide::CHUNK : 0;"),
    _mutation("the first chunk of columns twice", ONE_STEP,
              "<= CHUNKS ? wide::CHUNK : 0;", "<= CHUNKS ? 0 : 0;"),
    _mutation("gradients not transposed", ONE_STEP,
              "m64n128k16<0, 1>(flat(sums)", "m64n128k16<0, 0>(flat(sums)"),
    _mutation("sums of the last step alone", ODD,
              "m64n128k16<0, 1>(flat(sums), a + k * 2 / 16, b + k * 128 / 16, 1);",
              "m64n128k16<0, 1>(flat(sums), a + k * 2 / 16, b + k * 128 / 16, k > 0);"),
    _mutation("an own step again, not the other's", ODD,
              "add_others(sums, last, shared);", "add_others(sums, step.stage, shared);"),
    # --- steps and results
    _mutation("both warpgroups own the same steps", ODD,
              "if (WARPGROUP == 1)\n    advance(step, params, w);", ";"),
    _mutation("the other's last step left out", ODD,
              "if (step.number == w.num_steps)", "if (false)"),
    _mutation("the other's last step of an even number left out", EVEN,
              "if (step.number == w.num_steps)", "if (step.number == w.num_steps && WARPGROUP == 1)"),
    _mutation("a mask of the step before", CAUSAL,
              "first_key + lane / 4, step.at.block * BLOCK_M", "first_key + lane / 4, (step.at.block - 1) * BLOCK_M"),
    _mutation("rows of another warp in the mask", CAUSAL,
              "threadIdx.x / 32 % 4 * 16;", "threadIdx.x / 32 * 16;", within="weigh_step"),
    _mutation("statistics of another stage", ODD,
              "step.stage.stage * wide::STATS_BYTES", "(step.stage.stage + 1) % STAGES * wide::STATS_BYTES"),
    _mutation("scale of dK forgotten", ONE_STEP,
              "sums.keys, params.softmax_scale);", "sums.keys, 1);"),
    _mutation("dV's columns that are not there are added to", FEW_COLUMNS,
              "HAS_VALUES = FIRST_VALUE < HEAD_DIM_V,", "HAS_VALUES = true,"),
    _mutation("a gradient stored where it is not wanted", ONLY_KEYS,
              "if (to.data && first < DIM)", "if (first < DIM)"),
    # --- registers
    _mutation("registers not given up", ONE_STEP,
              "registers_decrease<24>();", ";", within="backward_keys"),
]  # fmt: skip
