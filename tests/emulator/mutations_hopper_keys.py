"""The mutations of dK's and dV's pass of Hopper's two, up to head dim 128.

What the first phase and the rings do is mutated in one pass (mutations_hopper_backward.py), which shares their text.
Some lines can be changed and the results stay right, so that they are not here. A stage of dO is given back before that
of Q of the same step, which the producer waits for first: how early dO's is given back does not matter. Fences before
the products of a step reach as far as dK's. Where d_scores are hidden, weights have been; what is left there, the
reference does not keep finite either.
"""

from __future__ import annotations

from functools import partial

from emulator.calls import call
from emulator.mutation import Mutation

_call = partial(call, "backward", target="cuda:sm_90a", deterministic=True, seeds=(0, 1, 2))
TALL_BLOCKS = "block_m=96,block_n=128,num_stages=2"  # a head dim of up to 64
BLOCKS = "block_m=64,block_n=128,num_stages=2"  # larger ones
THREE_STAGES = "block_m=64,block_n=128,num_stages=3"

# More steps than there are stages, so that each is used again.
LONG = _call(head_dim=64, seqlen_q=650, seqlen_k=100, heads_q=1, config=TALL_BLOCKS)
WIDE = _call(head_dim=128, seqlen_q=330, seqlen_k=100, heads_q=1, config=BLOCKS)  # two chunks of columns
WIDE_3 = _call(head_dim=128, seqlen_q=420, seqlen_k=100, heads_q=1, config=THREE_STAGES)
ONE_STEP = _call(head_dim=128, seqlen_q=60, seqlen_k=100, heads_q=1, config=BLOCKS)
CAUSAL = _call(head_dim=64, seqlen_q=300, heads_q=1, causal=True, config=TALL_BLOCKS)
CAUSAL_WIDE = _call(head_dim=128, seqlen_q=200, heads_q=1, causal=True, config=BLOCKS)
MORE_KEYS = _call(head_dim=64, seqlen_q=20, seqlen_k=150, heads_q=1, causal=True, config=TALL_BLOCKS)
GROUPED = _call(head_dim=64, batch=2, seqlen_q=140, seqlen_k=130, heads_q=4, heads_kv=2, config=TALL_BLOCKS)
TWO_DIMS = _call(head_dim=72, head_dim_v=128, seqlen_q=140, seqlen_k=130, heads_q=1, config=BLOCKS)
UNWANTED = _call(head_dim=64, seqlen_q=140, heads_q=1, without=("grad_query", "grad_key"), config=TALL_BLOCKS)
# An infinity or NaN in each input, each in a head of keys of its own.
INFINITE = _call(head_dim=64, causal=True, batch=7, seqlen_q=40, seqlen_k=60, data="infinite", config=TALL_BLOCKS)

_mutation = partial(Mutation, "hopper two-pass backward")

MUTATIONS = [
    # --- barriers
    _mutation("dK and dV: keys and values: arrivals", ONE_STEP,
              "barrier_init(shared + KEY_FULL, 1);", "barrier_init(shared + KEY_FULL, 2);"),
    _mutation("dK and dV: barriers not made known", ONE_STEP,
              "barrier_init_done();", ";", within="init_barriers"),
    _mutation("dK and dV: the stage before the first is the one before the last", WIDE_3,
              "ring.stage == 0 ? N - 1 :", "ring.stage == 0 ? N - 2 :"),
    # --- producer
    _mutation("dK and dV: keys that nobody waits for", MORE_KEYS,
              "if (w.num_steps == 0)", "if (false)", within="produce"),
    _mutation("dK and dV: bytes of V not expected", ONE_STEP,
              "barrier_expect(shared + KEY_FULL, KEY_BYTES + VALUE_BYTES);",
              "barrier_expect(shared + KEY_FULL, KEY_BYTES);"),
    _mutation("dK and dV: bytes of the statistics not expected", LONG,
              "QUERY_BYTES + STATS_BYTES);", "QUERY_BYTES);"),
    _mutation("dK and dV: half of the statistics loaded", ONE_STEP,
              "now.block * BLOCK_M, STATS_BYTES, full);", "now.block * BLOCK_M, STATS_BYTES / 2, full);"),
    _mutation("dK and dV: statistics of the first block of queries", LONG,
              "now.at.stats + now.block * BLOCK_M,", "now.at.stats,"),
    _mutation("dK and dV: statistics always to the first stage", LONG,
              "shared + STATS + queries.stage * STATS_BYTES, now", "shared + STATS, now"),
    _mutation("dK and dV: dO counted by Q's barrier", LONG,
              "full = shared + GRAD_FULL + 8 * grads.stage;", "full = shared + QUERY_FULL + 8 * grads.stage;"),
    _mutation("dK and dV: dO of the group's first head", GROUPED,
              "full,\n                                            now.block * BLOCK_M, now.head",
              "full,\n                                            now.block * BLOCK_M, w.kv_head * w.group_size"),
    _mutation("dK and dV: V of the block of keys before", GROUPED,
              "value_map, shared + KEY_FULL, w.first_key,", "value_map, shared + KEY_FULL, 0,"),
    # --- consumers: what is waited for
    _mutation("dK and dV: K and V not waited for", ONE_STEP,
              "barrier_wait(shared + KEY_FULL, 0);", ";"),
    _mutation("dK and dV: Q not waited for", LONG,
              "wait_full(shared + QUERY_FULL, step.stage);", ";"),
    _mutation("dK and dV: dO not waited for", LONG,
              "wait_full(shared + GRAD_FULL, step.stage);", ";"),
    _mutation("dK and dV: scores read before they are there", LONG,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="consume_steps", times=2, only=2),
    # --- consumers: what is given back
    _mutation("dK and dV: Q not given back", LONG,
              "release(shared + QUERY_EMPTY, one_before(step.stage));", ";"),
    _mutation("dK and dV: Q given back a step early", LONG,
              "release(shared + QUERY_EMPTY, one_before(step.stage));", "release(shared + QUERY_EMPTY, step.stage);"),
    _mutation("dK and dV: dO not given back", LONG,
              "release(shared + GRAD_EMPTY, step.stage);", ";"),
    # --- d_scores to all warpgroups
    # --- products
    _mutation("dK and dV: no fence before dV's product", LONG,
              "wgmma_fence();", ";", within="add_grad_value"),
    _mutation("dK and dV: dK's product not committed", LONG,
              "wgmma_commit();", ";", within="add_grad_key"),
    _mutation("dK and dV: Q's chunks as far apart as K's", WIDE,
              "CHUNK_ROWS * 128, 64 * 128>", "CHUNK_ROWS * 128, CHUNK_ROWS * 128>"),
    _mutation("dK and dV: leading offset of dO's descriptor", WIDE,
              "b = matrix_descriptor(grads, BLOCK_M * 128, 1024, 128)",
              "b = matrix_descriptor(grads, BLOCK_N * 128, 1024, 128)"),
    _mutation("dK and dV: leading offset of Q's descriptor", WIDE,
              "b = matrix_descriptor(queries, BLOCK_M * 128, 1024, 128)",
              "b = matrix_descriptor(queries, BLOCK_N * 128, 1024, 128)"),
    _mutation("dK and dV: dO not transposed", ONE_STEP,
              "BLOCK_M, 1>(flat(grad_value)", "BLOCK_M, 0>(flat(grad_value)"),
    _mutation("dK and dV: scores of the first warpgroup's keys", ONE_STEP,
              "shared + KEYS + warpgroup * 64 * 128,", "shared + KEYS,"),
    _mutation("dK and dV: d_weights: as many columns as scores have", TWO_DIMS,
              "multiply_rows<DIM_VALUES, BLOCK_N>", "multiply_rows<DIM_QK, BLOCK_N>"),
    _mutation("dK and dV: dV of the last step alone", LONG,
              "weights, b, 1);", "weights, b, 0);", within="add_grad_value"),
    _mutation("dK and dV: dK of the last step alone", LONG,
              "d_scores, b, 1);", "d_scores, b, 0);", within="add_grad_key"),
    # --- dQ
    # --- weights and d_scores
    _mutation("dK and dV: delta not subtracted", ONE_STEP,
              "dx = x * (dx - row.delta);", "dx = x * dx;"),
    _mutation("dK and dV: sum of weights forgotten", ONE_STEP,
              "factor, -row.log2_sum)", "factor, 0.0f)"),
    _mutation("dK and dV: maximum not subtracted", ONE_STEP,
              "fmaf(x * sign - row.max, factor", "fmaf(x * sign, factor"),
    _mutation("dK and dV: statistics of another stage", LONG,
              "STATS + step.stage.stage * STATS_BYTES", "STATS + (step.stage.stage + 1) % STAGES * STATS_BYTES"),
    _mutation("dK and dV: statistics of the step before", LONG,
              "find_stats(next, memory)", "find_stats(step, memory)"),
    _mutation("dK and dV: statistics of another lane's queries", ONE_STEP,
              "+ threadIdx.x % 4 * 2;", "+ threadIdx.x % 4;", within="find_stats"),
    _mutation("dK and dV: scale of dK forgotten", ONE_STEP,
              "grad_key,\n                                        (float)params.softmax_scale);",
              "grad_key,\n                                        1.0f);"),
    _mutation("dK and dV: dV's weights from d_scores", ONE_STEP,
              "pack_fragments(weights, scores.weights);", "pack_fragments(weights, scores.d_scores);"),
    # --- masks
    _mutation("dK and dV: causal: a block of the diagonal not masked", CAUSAL_WIDE,
              "> step.at.block * BLOCK_M + 1)", "> step.at.block * BLOCK_M + BLOCK_M)"),
    _mutation("dK and dV: causal: a key too many", CAUSAL,
              "key > query ||", "key > query + 1 ||"),
    _mutation("dK and dV: causal: a key too few", CAUSAL,
              "key > query ||", "key >= query ||"),
    _mutation("dK and dV: rows of another warp in the mask", CAUSAL,
              "w.first_key + (threadIdx.x / 32 - 4) * 16;", "w.first_key + threadIdx.x / 32 % 4 * 16;",
              within="mask_step"),
    _mutation("dK and dV: columns of another lane in the mask", CAUSAL,
              "step.at.block * BLOCK_M + lane % 4 * 2);", "step.at.block * BLOCK_M + lane % 4);"),
    _mutation("dK and dV: weights of the first step not masked", CAUSAL,
              "mask_step<true, false>(scores, step, w);", ";"),
    _mutation("dK and dV: weights of later steps not masked", CAUSAL_WIDE,
              "mask_step<true, false>(scores, next, w);", ";"),
    _mutation("dK and dV: hidden weights multiplied by 0", INFINITE,
              "s.weights[n][e] = hidden ? 0 :", "s.weights[n][e] = hidden ? 0 * s.weights[n][e] :"),
    # --- steps and results
    _mutation("dK and dV: last step left out", LONG,
              "while (step.number + 1 < w.num_steps)", "while (step.number + 2 < w.num_steps)"),
    _mutation("dK and dV: steps of keys that nobody sees", MORE_KEYS,
              "if (w.num_steps > 0)", "if (true)", within="consume"),
    _mutation("dK and dV: rows of dK of another warp", ONE_STEP,
              "w.first_key + (threadIdx.x / 32 - 4) * 16; /* of", "w.first_key + threadIdx.x / 32 % 4 * 16; /* of"),
    _mutation("dK and dV: dK stored where it is not wanted", UNWANTED,
              "if (params.grad_key.data)", "if (true)", within="consume"),
    # --- registers
]  # fmt: skip
