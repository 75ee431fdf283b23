"""The mutations of Hopper's forward kernels, of what differs from the portable ones."""

from __future__ import annotations

from functools import partial

from emulator.calls import Call, call
from emulator.mutation import Mutation
from emulator.sweep import MANY_KEYS

_call = partial(call, target="cuda:sm_90a", seeds=(0, 1, 2))
SMALL_BLOCKS = "block_m=128,block_n=64,num_stages=2,persistent=1"
ONE_TILE = "block_m=128,block_n=64,num_stages=2,persistent=0"

# A block has several tiles of queries, and more blocks of keys than there are stages.
CAUSAL = _call(head_dim=64, seqlen_q=300, heads_q=2, causal=True, config=SMALL_BLOCKS)
FULL = _call(head_dim=64, seqlen_q=140, seqlen_k=250, config=SMALL_BLOCKS)
GROUPED = _call(head_dim=64, batch=2, seqlen_q=140, seqlen_k=130, heads_q=4, heads_kv=2, config=SMALL_BLOCKS)
GROUPED_CAUSAL = _call(head_dim=64, batch=2, seqlen_q=140, heads_q=4, heads_kv=2, causal=True, config=ONE_TILE)
CHUNKS = _call(head_dim=128, seqlen_q=140, seqlen_k=250, heads_q=1, config=SMALL_BLOCKS)  # two of 64 columns
NEGATIVE = _call(head_dim=64, seqlen_q=140, seqlen_k=250, heads_q=1, scale=-0.1, data="large", config=SMALL_BLOCKS)
THREE = _call(head_dim=64, seqlen_q=200, seqlen_k=250, heads_q=1, config="block_m=192,block_n=64,num_stages=2")
# One block of keys for each tile of queries, and more stages of K than of Q: only Q's own barrier holds Q back.
SHORT = _call(head_dim=64, seqlen_q=700, seqlen_k=60, config="block_m=128,block_n=64,num_stages=4,persistent=1")
# One block of keys for each tile of queries, and V's stage is wanted again two tiles later.
ONE_BLOCK = _call(head_dim=64, seqlen_q=700, seqlen_k=60, config=SMALL_BLOCKS)
# One stage of Q, and a block has several tiles of queries.
ONE_QUERY = _call(head_dim=128, seqlen_q=300, config="block_m=128,block_n=176,num_stages=2,persistent=1")
# After many blocks of keys the largest scores of few rows change.
LARGE_BLOCKS = _call(
    head_dim=64, seqlen_q=128, seqlen_k=600, heads_q=1, data="large", config="block_m=128,block_n=16,num_stages=2"
)
# Three tiles of queries of 192, the last with rows for one consumer; blocks of 128 keys, of which some see half.
HALVES = _call(head_dim=64, seqlen_q=400, heads_q=2, causal=True, config="block_m=192,block_n=128,num_stages=2")
# Blocks of keys that some consumers skip: all but one at the end of the queries, and some under the diagonal.
SKIPPED = _call(
    head_dim=64,
    seqlen_q=193,
    seqlen_k=640,
    heads_q=2,
    heads_kv=1,
    causal=True,
    config=("block_m=192,block_n=128,num_stages=2,persistent=1"),
)
SKIPPED_ALONE = _call(
    head_dim=64, seqlen_q=450, heads_q=2, causal=True, config=("block_m=192,block_n=64,num_stages=1,persistent=1")
)
GROUPS_OF_HEADS = Call(MANY_KEYS, seeds=(0,))
# An infinity or NaN in each input, each in a head of keys of its own.
INFINITE = _call(head_dim=64, batch=7, seqlen_q=40, seqlen_k=130, data="infinite", config=SMALL_BLOCKS)
LARGE = _call(head_dim=64, seqlen_q=140, seqlen_k=250, heads_q=1, data="large", config=SMALL_BLOCKS)
# After many blocks of keys, those in which no row has its largest score so far.
HUGE_SCORES = _call(head_dim=64, seqlen_q=10, seqlen_k=600, heads_q=1, data="integers", scale=1e12, config=SMALL_BLOCKS)
ALL_NEGATIVE = _call(head_dim=64, seqlen_q=70, seqlen_k=250, heads_q=1, data="negative", scale=8, config=SMALL_BLOCKS)

_mutation = partial(Mutation, "hopper forward")

MUTATIONS = [
    # --- what a block works on
    _mutation("a tile behind the last", FULL,
              "if (index >= heads)", "if (index > heads)"),
    _mutation("causal: a pair of tiles behind the last", CAUSAL,
              "if (index >= heads)", "if (index > heads)"),
    _mutation("causal: the second of a pair one tile further", CAUSAL,
              "block = second ? pair :", "block = second ? pair + 1 :"),
    _mutation("causal: the tile in the middle never taken", CAUSAL,
              "if (index >= heads)", "if (index >= heads || pair == middle)"),
    _mutation("causal: the tile in the middle goes with itself", CAUSAL,
              "pair == middle ? second : pair > middle", "pair > middle"),
    _mutation("causal: an odd number of tiles paired head by head", CAUSAL,
              "blocks % 2 && blocks > 1 ? 2 : 1", "1"),
    _mutation("heads of the last group counted as full", GROUPED_CAUSAL,
              "rest / present;", "rest / (present + 1);"),
    _mutation("heads of the first group only", GROUPS_OF_HEADS,
              "index = group * together + rest % present", "index = rest % present"),
    _mutation("the last group as large as the others", GROUPS_OF_HEADS,
              "min(together, heads - group * together)", "min(together, heads)"),
    _mutation("causal: a block of keys too few on the diagonal", CAUSAL,
              "min(w.first_query + BLOCK_M, w.seqlen_k)", "min(w.first_query + BLOCK_M - 64, w.seqlen_k)"),
    _mutation("last block of keys left out", FULL,
              "w.num_blocks = ceil_div(w.seqlen_k, BLOCK_N);", "w.num_blocks = w.seqlen_k / BLOCK_N;"),
    _mutation("K and V of another group of heads", GROUPED,
              "(u32)w.head / ((u32)params.heads_q / (u32)params.heads_kv)", "w.head % (u32)params.heads_kv"),
    # --- producer
    _mutation("head and batch exchanged in TMA's coordinates", GROUPED,
              "64 * chunk, row + first, head, batch);", "64 * chunk, row + first, batch, head);"),
    _mutation("all chunks are the first", CHUNKS,
              "full, 64 * chunk, row + first, head, batch);", "full, 0, row + first, head, batch);"),
    _mutation("bytes of one chunk expected", CHUNKS,
              "8 * keys.stage, KEY_BYTES);", "8 * keys.stage, KEY_BYTES / CHUNKS_QK);"),
    _mutation("bytes that TMA fills with zeros not expected", FULL,
              "8 * values.stage, VALUE_BYTES);",
              "8 * values.stage, VALUE_BYTES / BLOCK_N * min(BLOCK_N, w.seqlen_k - (block + 1) * BLOCK_N));"),
    _mutation("chunks overlap", CHUNKS,
              "tile + (chunk * ROWS + first) * 128,", "tile + (chunk * ROWS / 2 + first) * 128,"),
    _mutation("V one block behind", FULL,
              "(block + 1) * BLOCK_N, w.kv_head", "block * BLOCK_N, w.kv_head"),
    _mutation("K of the query's head", GROUPED,
              "block * BLOCK_N, w.kv_head, w.batch);", "block * BLOCK_N, w.head, w.batch);", times=1),
    _mutation("an empty stage of K not waited for", FULL,
              "wait_empty(shared + KEY_EMPTY, keys);", ";"),
    _mutation("an empty stage of V not waited for", FULL,
              "wait_empty(shared + VALUE_EMPTY, values);", ";"),
    _mutation("an empty stage of Q not waited for", SHORT,
              "wait_empty(shared + QUERY_EMPTY, queries);", ";"),
    _mutation("K's place not moved on", FULL,
              "advance(keys);", ";", within="produce"),
    _mutation("K counted by V's barrier", FULL,
              "shared + KEY_FULL + 8 * keys.stage,", "shared + VALUE_FULL + 8 * keys.stage,", times=2, only=2),
    _mutation("Q always to the first stage", CAUSAL,
              "shared + QUERIES + queries.stage * QUERY_BYTES, query_map", "shared + QUERIES, query_map"),
    # --- barriers
    _mutation("empty stage: parity", FULL,
              "ring.phase ^ 1);", "ring.phase);"),
    _mutation("full stage: parity", FULL,
              "barrier_wait(barriers + 8 * ring.stage, ring.phase);",
              "barrier_wait(barriers + 8 * ring.stage, ring.phase ^ 1);"),
    _mutation("parity stays when a ring is through", FULL,
              "ring.phase ^= 1;", ";"),
    _mutation("parity stays when a ring of one stage is through", ONE_QUERY,
              "ring.phase ^= 1;", "ring.phase ^= N > 1;"),
    _mutation("a stage too many in a ring", FULL,
              "if (ring.stage == N) {", "if (ring.stage == N + 1) {"),
    _mutation("empty stage: arrivals of one consumer", FULL,
              "barrier_init(empty + 8 * stage, readers);", "barrier_init(empty + 8 * stage, 4);"),
    _mutation("full stage: two arrivals", FULL,
              "barrier_init(full + 8 * stage, 1);", "barrier_init(full + 8 * stage, 2);"),
    _mutation("barriers not made known", FULL,
              "barrier_init_done();", ";", within="init_barriers"),
    _mutation("barriers used before they are made", FULL,
              "__syncthreads();", ";", within="forward"),
    _mutation("barriers of V not made", FULL,
              "init_ring(shared + VALUE_FULL, shared + VALUE_EMPTY, STAGES, 4 * CONSUMERS);", ";"),
    _mutation("a stage given back by one warp only", FULL,
              "threadIdx.x % 32 == 0", "threadIdx.x % 128 == 0", within="release"),
    # --- turns of the consumers
    _mutation("nobody begins", FULL,
              "give_turn(CONSUMERS - 1);", ";"),
    _mutation("a turn not given", FULL,
              "give_turn(warpgroup);", ";", times=2, only=2, within="attend"),
    _mutation("fewer threads at a turn's barrier", FULL,
              "named_barrier_wait(1 + warpgroup, 256);", "named_barrier_wait(1 + warpgroup, 128);"),
    _mutation("three consumers: turns of two", THREE,
              "(warpgroup + 1) % CONSUMERS", "(warpgroup + 1) % 2"),
    # --- consumers
    _mutation("Q not waited for", FULL,
              "wait_full(shared + QUERY_FULL, queries);", ";"),
    _mutation("first K not waited for", FULL,
              "wait_full(shared + KEY_FULL, keys);", ";", times=2, only=1, within="attend"),
    _mutation("K not waited for", FULL,
              "wait_full(shared + KEY_FULL, keys);", ";", times=2, only=2, within="attend"),
    _mutation("V not waited for", FULL,
              "wait_full(shared + VALUE_FULL, values);", ";", times=2, only=1, within="attend"),
    _mutation("last V not waited for", FULL,
              "wait_full(shared + VALUE_FULL, values);", ";", times=2, only=2, within="attend"),
    _mutation("K not given back", FULL,
              "release_and_advance(shared + KEY_EMPTY, keys);", "advance(keys);", times=2, only=2, within="attend"),
    _mutation("V not given back", FULL,
              "release_and_advance(shared + VALUE_EMPTY, values);", "advance(values);", within="attend", times=2,
              only=1),
    _mutation("last V given back before it has been read", ONE_BLOCK,
              "finish_rows(rows);\n  wgmma_wait<0>();\n  keep_registers(flat(output[0]));\n"
              "  release_and_advance(shared + VALUE_EMPTY, values);",
              "release_and_advance(shared + VALUE_EMPTY, values);\n  finish_rows(rows);\n  wgmma_wait<0>();\n"
              "  keep_registers(flat(output[0]));"),
    _mutation("Q not given back", CAUSAL,
              "release_and_advance(shared + QUERY_EMPTY, queries);", "advance(queries);"),
    # --- blocks of keys that only another consumer's queries see
    _mutation("a block too many skipped", CAUSAL,
              "min(first_query + 64, w.seqlen_k);", "min(first_query + 64 - 64 * warpgroup, w.seqlen_k);"),
    _mutation("skipped: V given back before it is there", SKIPPED_ALONE,
              "wait_full(shared + VALUE_FULL, values);", ";", within="skip_block"),
    _mutation("skipped: K given back before all lanes know that it is there", SKIPPED,
              "__syncwarp();", ";", times=2, only=1, within="skip_block"),
    _mutation("skipped: V given back before all lanes know that it is there", SKIPPED,
              "__syncwarp();", ";", times=2, only=2, within="skip_block"),
    _mutation("skipped: turn not waited for", SKIPPED,
              "take_turn(warpgroup);", ";", within="skip_block"),
    _mutation("skipped: turn not passed on", SKIPPED,
              "give_turn(warpgroup);", ";", within="skip_block"),
    _mutation("first block: half where more is seen", HALVES,
              "if (keys_seen > BLOCK_N / 2) {", "if (keys_seen > BLOCK_N) {"),
    _mutation("first block: second half not cleared", HALVES,
              "flat(scores[0])[i] = 0;", ";"),
    _mutation("first block: second half not masked", HALVES,
              "mask_block<HALF>(", "mask_block<N_TILES>("),
    _mutation("first block: half of it not masked", HALVES,
              "mask_scores<0>(half,", "mask_scores<HALF>(half,"),
    _mutation("first block: masked where it is not cut off", HALVES,
              "seqlen_k, keys_seen - block * BLOCK_N);", "seqlen_k, keys_seen);"),
    _mutation("first scores read before they are there", FULL,
              "wgmma_wait<0>();", ";", within="attend", times=3, only=1),
    _mutation("scores read before they are there", FULL,
              "wgmma_wait<1>();", "wgmma_wait<2>();", within="attend"),
    _mutation("output rescaled while it is summed", LARGE,
              "wgmma_wait<0>();", ";", within="attend", times=3, only=2),
    _mutation("output stored before it is there", FULL,
              "wgmma_wait<0>();", ";", within="attend", times=3, only=3),
    _mutation("rows of the other consumer", FULL,
              "queries.stage * QUERY_BYTES + warpgroup * 64 * 128;", "queries.stage * QUERY_BYTES;"),
    _mutation("rows of another warp", FULL,
              "64 * warpgroup + 16 * warp + lane / 4", "64 * warpgroup + 16 * (warp ^ 1) + lane / 4"),
    # --- products
    _mutation("no fence before Q K^T", FULL,
              "wgmma_fence();", ";", within="multiply_keys"),
    _mutation("no fence before P V", FULL,
              "wgmma_fence();", ";", within="multiply_values"),
    _mutation("Q K^T not committed", FULL,
              "wgmma_commit();", ";", within="multiply_keys"),
    _mutation("P V not committed", FULL,
              "wgmma_commit();", ";", within="multiply_values"),
    _mutation("stride of K's descriptor", FULL,
              "b = matrix_descriptor(keys, 0, 1024, 128);", "b = matrix_descriptor(keys, 0, 512, 128);"),
    _mutation("swizzle of Q's descriptor", FULL,
              "a = matrix_descriptor(queries, 0, 1024, 128)", "a = matrix_descriptor(queries, 0, 1024, 64)"),
    _mutation("leading offset of V's descriptor", CHUNKS,
              "matrix_descriptor(values, BLOCK_N * 128, 1024, 128)",
              "matrix_descriptor(values, BLOCK_N * 64, 1024, 128)"),
    _mutation("K's chunks as far apart as Q's", CHUNKS,
              "BLOCK_N * 128>(flat(scores[0])", "BLOCK_M * 128>(flat(scores[0])"),
    _mutation("step along a chunk goes on into the next", CHUNKS,
              "k / 64 * CHUNK + k % 64 * 2", "k / 64 * CHUNK + k * 2"),
    _mutation("step along V", FULL,
              "TRANS ? k * 128", "TRANS ? k * 64"),
    _mutation("V not transposed", FULL,
              "wgmma_m64n64<BLOCK_N, 1>(flat(output[0])", "wgmma_m64n64<BLOCK_N, 0>(flat(output[0])"),
    _mutation("scores not cleared", FULL,
              "flat(scores[0]), a, b, 0);", "flat(scores[0]), a, b, 1);"),
    _mutation("output cleared at each block", FULL,
              "weights, b, 1);", "weights, b, 0);"),
    _mutation("fragments of the weights exchanged", FULL,
              "pack(fragments[2 * k + i / 2][i % 2 * 2],", "pack(fragments[2 * k + i % 2][i / 2 * 2],"),
    _mutation("output not rescaled", LARGE,
              "output[0][n][e] *= rows.rescale[0][e / 2];", ";"),
    _mutation("output rescaled by the other row's", LARGE,
              "output[0][n][e] *= rows.rescale[0][e / 2];", "output[0][n][e] *= rows.rescale[0][e % 2];"),
    _mutation("half of the rows have no vote on a move", LARGE_BLOCKS,
              "seldom |= must_move(", "seldom |= h == 0 && must_move("),
    _mutation("negative scale: first scores only", NEGATIVE,
              "negate_scores(scores, params);", ";", times=2, only=2),
    # --- softmax
    _mutation("a key too many at the end", FULL,
              "int last_key = seqlen_k - 1;", "int last_key = seqlen_k;"),
    _mutation("causal: a key too many", CAUSAL,
              "rows.first + 16 * m + 8 * h);", "rows.first + 16 * m + 8 * h + 1);"),
    _mutation("largest score as if one were positive", ALL_NEGATIVE,
              "seldom |= largest[m][h] < 0;", ";"),
    _mutation("the largest of negative scores not searched for", ALL_NEGATIVE,
              "negative |= largest[m][0] < 0 || largest[m][1] < 0;", ";"),
    _mutation("first block: largest score as if one were positive", ALL_NEGATIVE,
              "rows.max[0][h] < 0 || ", ""),
    _mutation("first block: large scores not voted on", HUGE_SCORES,
              "seldom |= rows.max[0][h] < 0 || is_large(__fmul_rn(rows.max[0][h], rows.factor));",
              "seldom |= rows.max[0][h] < 0;"),
    _mutation("first block: large scores not subtracted", HUGE_SCORES,
              "largest[0][h] = mine ? rows.max[0][h] : 0.0f;", "largest[0][h] = 0;"),
    _mutation("large scores not voted on", HUGE_SCORES,
              "seldom |= is_large(__fmul_rn(rows.max[m][h], rows.factor));", ";"),
    _mutation("a score of -inf not among the lowest", INFINITE,
              "lowest >= 0xff800000u", "lowest > 0xff800000u"),
    _mutation("a score of -inf forgotten at the next block", INFINITE,
              "rows.poisoned |= lowest", "rows.poisoned = lowest"),
    # --- registers
    _mutation("more registers asked for than there are", FULL,
              "registers_increase<240>();", "registers_increase<248>();", within="forward"),
    _mutation("registers not given up", FULL,
              "registers_decrease<24>();", ";", within="forward"),
]  # fmt: skip
