"""The mutations of Hopper's backward in two passes, of what differs from one pass.

Some lines can be changed and the results stay right, so that they are not here. Where d_scores are hidden in dK's pass,
weights have been. Keys behind the last one are zeros, so that their d_scores do not matter unless they are infinite.
"""

from __future__ import annotations

from functools import partial

from emulator.calls import call
from emulator.mutation import Mutation

_call = partial(call, "backward", deterministic=True, target="cuda:sm_90a", heads_q=1, processors=1, seeds=(0, 1, 2))
TWO_STAGES = "block_m=64,block_n=128,num_stages=2,dq_block_n=64,dq_stages=2,persistent=1"
THREE_STAGES = "block_m=96,block_n=128,num_stages=3,dq_block_n=64,dq_stages=3,persistent=1"

# More steps than there are stages, in either pass, and more tiles than blocks of threads.
LONG = _call(head_dim=64, seqlen_q=330, seqlen_k=270, config=TWO_STAGES)
LONG_3 = _call(head_dim=64, seqlen_q=330, seqlen_k=330, config=THREE_STAGES)
CAUSAL = _call(head_dim=64, seqlen_q=200, causal=True, config=TWO_STAGES)
SHORT = _call(head_dim=64, seqlen_q=40, seqlen_k=100, config=TWO_STAGES)
ONE_KEY = _call(head_dim=64, seqlen_q=140, seqlen_k=1, data="large", config=TWO_STAGES)
UNWANTED = _call(head_dim=64, seqlen_q=140, without=("grad_query", "grad_key"), config=TWO_STAGES)
# An infinity or NaN in each input, each in a head of keys of its own.
INFINITE = _call(head_dim=64, causal=True, batch=7, seqlen_q=40, seqlen_k=60, data="infinite", config=TWO_STAGES)

_mutation = partial(Mutation, "hopper two-pass backward")

MUTATIONS = [
    # --- both passes
    _mutation("all boxes of a tile from its first rows", LONG,
              "64 * chunk, row + first, head, batch);", "64 * chunk, row, head, batch);"),
    # --- dK and dV
    _mutation("dK and dV left out where dK is not wanted", UNWANTED,
              "if (!params.grad_key.data && !params.grad_value.data)", "if (!params.grad_key.data)"),
    _mutation("Q given back before all lanes have read the statistics", LONG,
              "__syncwarp();", ";", within="finish_scores"),
    _mutation("weights while dK reads d_scores", LONG,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="finish_scores", times=2, only=1),
    _mutation("d_weights not waited for", LONG,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="finish_scores", times=2, only=2),
    _mutation("d_scores while dV reads weights", LONG,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="consume_steps", times=2, only=1),
    _mutation("scores of the next step not waited for", LONG,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="consume_steps", times=2, only=2),
    _mutation("Q of the last step not given back", LONG_3,
              "release(shared + QUERY_EMPTY, one_before(step.stage));", ";"),
    # --- dQ: the producer
    _mutation("dQ's pass where nobody wants dQ", UNWANTED,
              "if (!params.grad_query.data)", "if (false)", within="backward_queries"),
    _mutation("Q of the tile before overwritten", LONG,
              "wait_empty(shared + QUERY_EMPTY, queries);", ";", within="produce_tiles"),
    _mutation("K overwritten", LONG_3,
              "wait_empty(shared + KEY_EMPTY, keys);", ";", within="produce_tiles"),
    _mutation("half of dO expected", SHORT,
              "barrier_expect(shared + GRAD_FULL, GRAD_BYTES);", "barrier_expect(shared + GRAD_FULL, GRAD_BYTES / 2);"),
    # --- dQ: what consumers wait for
    _mutation("dO not waited for", SHORT,
              "wait_full(shared + GRAD_FULL, queries);", ";"),
    _mutation("V not waited for", LONG,
              "wait_full(shared + VALUE_FULL, values);", ";", within="differentiate", times=2, only=2),
    _mutation("K given back while dQ reads it", LONG,
              "wgmma_wait<2>();", "wgmma_wait<3>();", within="differentiate"),
    _mutation("scores not waited for", LONG,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="differentiate", times=2, only=2),
    _mutation("scores not waited for, with more stages", LONG_3,
              "wgmma_wait<2>();", "wgmma_wait<3>();", within="differentiate"),
    _mutation("d_weights of later blocks not waited for", LONG_3,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="differentiate", times=2, only=2),
    _mutation("d_scores while dQ reads those before", LONG_3,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="differentiate", times=3, only=2),
    _mutation("dQ of the last block not waited for", SHORT,
              "wgmma_wait<0>();", "wgmma_wait<1>();", within="differentiate", times=3, only=3),
    _mutation("Q not given back at the end of a tile", LONG,
              "release_and_advance(shared + QUERY_EMPTY, queries);", ";"),
    # --- dQ: rows, masks, results
    _mutation("statistics of rows that are not there", SHORT,
              "is_there ? stats[row_of_warp + 8 * h] : row_stats{};", "stats[row_of_warp + 8 * h];"),
    _mutation("delta of the first row for both", LONG,
              "- rows.delta[e / 2]);", "- rows.delta[0]);"),
    _mutation("a key too few", CAUSAL,
              "min(last, rows.first + 8 * h) : -1;", "min(last, rows.first + 8 * h - 1) : -1;"),
    _mutation("a block of the diagonal not masked", CAUSAL,
              "* 64 + 1, w.seqlen_k);", "* 64 + 64, w.seqlen_k);"),
    _mutation("last partial block not masked", ONE_KEY,
              "first_hidden = w.seqlen_k;", "first_hidden = w.seqlen_k + BLOCK_N;"),
    _mutation("hidden d_scores multiplied by 0", INFINITE,
              "n * 8 + e > last ? 0 :", "n * 8 + e > last ? 0 * values[n][2 * h + e] :", within="hide_keys"),
    _mutation("K of the next block for dQ", LONG,
              "last_keys.stage * KEY_BYTES", "keys.stage * KEY_BYTES"),
    _mutation("scale of dQ forgotten", SHORT,
              "(float)params.softmax_scale);", "1.0f);", within="differentiate"),
]  # fmt: skip
