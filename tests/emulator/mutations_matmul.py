"""The mutations of templates/cuda/matmul.cu: a ring of tiles, barriers that count bytes, TMA, wgmma, roles of warps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from emulator import launches
from emulator.machine import EmulatorError
from emulator.mutation import Change, Mutation
from emulator.sweep import settings_of
from gpu.matmul import Call, Matmul


@dataclass(frozen=True)
class Multiply:
    """A matmul, run with some seeds."""

    problem: Matmul
    seeds: tuple[int, ...] = (0, 1, 2)

    def run(self, change: Change) -> None:
        for seed in self.seeds:
            call = Call(self.problem, change("matmul", self.problem.source()))
            launches.run(call.launch, settings_of(seed))
            if wrong := call.check():
                raise EmulatorError(f"matmul (seed {seed}): {wrong}")

    def describe(self) -> str:
        p = self.problem
        majors = f"{'MK'[not p.a_is_m_major]}-major A, {'NK'[not p.b_is_n_major]}-major B"
        return f"{p.m} x {p.n} x {p.k} {p.dtype} {p.result}, block_n {p.block_n}, {p.num_stages} stages, {majors}"


# A block has several tiles, and steps that are no multiple of the stages; tiles and k end within a box.
RING = Multiply(Matmul(200, 150, 456, block_n=64, blocks=1))
SINGLE = Multiply(Matmul(100, 60, 60, block_n=64))  # one tile, one step: nothing comes after it
WIDE = Multiply(Matmul(130, 200, 200, block_n=128))
COLUMNS = Multiply(replace(WIDE.problem, a_is_m_major=True, b_is_n_major=True, dtype="fp16"))
ADD = Multiply(Matmul(200, 136, 320, block_n=64, result="add", splits=2, blocks=2))

_mutation = partial(Mutation, "matmul")

MUTATIONS = [
    # --- barriers
    _mutation("full stage: parity of the phase", RING,
              "barrier_wait(shared + FULL + at.stage * 8, at.parity);",
              "barrier_wait(shared + FULL + at.stage * 8, at.parity ^ 1);"),
    _mutation("full stage: not waited for", RING,
              "barrier_wait(shared + FULL + at.stage * 8, at.parity);", ";"),
    _mutation("full stage: another one is waited for", RING,
              "barrier_wait(shared + FULL + at.stage * 8, at.parity);", "barrier_wait(shared + FULL, at.parity);"),
    _mutation("empty stage: parity of the phase", RING,
              "barrier_wait(shared + EMPTY + at.stage * 8, at.parity ^ 1);",
              "barrier_wait(shared + EMPTY + at.stage * 8, at.parity);"),
    _mutation("empty stage: not waited for", RING,
              "barrier_wait(shared + EMPTY + at.stage * 8, at.parity ^ 1);", ";"),
    _mutation("parity stays when the ring is through", RING,
              "at.parity ^= 1;", ";"),
    _mutation("a stage too many in the ring", RING,
              "++at.stage == NUM_STAGES", "++at.stage == NUM_STAGES + 1"),
    _mutation("fewer bytes expected than come", RING,
              "barrier_expect(full, A_BYTES + B_BYTES);", "barrier_expect(full, A_BYTES);"),
    _mutation("more bytes expected than come", RING,
              "barrier_expect(full, A_BYTES + B_BYTES);", "barrier_expect(full, A_BYTES + B_BYTES + 16);"),
    _mutation("no bytes expected", RING,
              "barrier_expect(full, A_BYTES + B_BYTES);", "barrier_arrive(full);"),
    _mutation("bytes expected of another stage's barrier", RING,
              "barrier_expect(full, A_BYTES + B_BYTES);", "barrier_expect(shared + FULL, A_BYTES + B_BYTES);"),
    _mutation("full stage: an arrival too many asked for", RING,
              "barrier_init(shared + FULL + stage * 8, 1);", "barrier_init(shared + FULL + stage * 8, 2);"),
    _mutation("empty stage: arrivals of one consumer asked for", RING,
              "barrier_init(shared + EMPTY + stage * 8, CONSUMERS * 4);",
              "barrier_init(shared + EMPTY + stage * 8, 4);"),
    _mutation("empty stage: an arrival too many asked for", RING,
              "barrier_init(shared + EMPTY + stage * 8, CONSUMERS * 4);",
              "barrier_init(shared + EMPTY + stage * 8, CONSUMERS * 4 + 1);"),
    _mutation("barriers not made known", RING,
              "barrier_init_done();", ";", within="matmul"),
    _mutation("barriers used before they are made", RING,
              "__syncthreads();", ";"),
    _mutation("a barrier not made", RING,
              "stage < NUM_STAGES; stage++", "stage < NUM_STAGES - 1; stage++"),
    _mutation("barriers of full and empty stages overlap", RING,
              "EMPTY = FULL + NUM_STAGES * 8,", "EMPTY = FULL + (NUM_STAGES - 1) * 8,"),
    _mutation("a stage given back by one warp only", RING,
              "threadIdx.x % 32 == 0", "threadIdx.x % WARPGROUP == 0", within="release_stage"),
    _mutation("a stage given back by all lanes", RING,
              "if (threadIdx.x % 32 == 0)", "if (true)", within="release_stage"),
    _mutation("a stage given back while it is read", RING,
              "release_stage(shared, last);", "release_stage(shared, at.stage);", times=2, only=1),
    _mutation("the last stage of a tile not given back", RING,
              "release_stage(shared, last);", ";", times=2, only=2),
    # --- copies
    _mutation("coordinates of A exchanged", RING,
              "tensor_load(a, a_map, full, k, w.row);", "tensor_load(a, a_map, full, w.row, k);"),
    _mutation("B from A's tensor", RING,
              "tensor_load(b, b_map, full, k, w.col);", "tensor_load(b, a_map, full, k, w.col);"),
    _mutation("B's tile to A's place", RING,
              "tensor_load(b, b_map, full, k, w.col);", "tensor_load(a, b_map, full, k, w.col);"),
    _mutation("B's bytes counted by the empty barrier", RING,
              "tensor_load(b, b_map, full, k, w.col);", "tensor_load(b, b_map, full + EMPTY - FULL, k, w.col);"),
    _mutation("blocks of k overlap", RING,
              "w, block * BLOCK_K);", "w, block * (BLOCK_K / 2));"),
    _mutation("stages of B overlap", RING,
              "b = shared + B_TILES + stage * B_BYTES;", "b = shared + B_TILES + stage * (B_BYTES / 2);",
              times=2),
    _mutation("last stage of B lies in C's tile", RING,
              "C_TILES = B_TILES + NUM_STAGES * B_BYTES,", "C_TILES = B_TILES + (NUM_STAGES - 1) * B_BYTES,"),
    _mutation("every lane of the producer loads", RING,
              "threadIdx.x < 32 && elect_one()", "threadIdx.x < 32"),
    _mutation("producer and consumers disagree on the tiles", RING,
              "k_end = blocks_k * (split + 1) / splits;",
              "k_end = blocks_k * (split + 1) / splits - (threadIdx.x < 32);"),
    _mutation("shared memory aligned to 128 bytes only", RING,
              "extern __shared__ __align__(1024)", "extern __shared__ __align__(128)"),
    # --- products
    _mutation("stride of A's descriptor", RING,
              "matrix_descriptor(a + k * 2, 16, 1024, 128)", "matrix_descriptor(a + k * 2, 16, 512, 128)"),
    _mutation("swizzle of A's descriptor", RING,
              "matrix_descriptor(a + k * 2, 16, 1024, 128)", "matrix_descriptor(a + k * 2, 16, 1024, 64)"),
    _mutation("no swizzle in B's descriptor", RING,
              "matrix_descriptor(b + k * 2, 16, 1024, 128)", "matrix_descriptor(b + k * 2, 16, 1024, 0)"),
    _mutation("step of A's descriptor along k", RING,
              "matrix_descriptor(a + k * 2,", "matrix_descriptor(a + k,"),
    _mutation("step of B's descriptor along k", RING,
              "matrix_descriptor(b + k * 2,", "matrix_descriptor(b + k * 4,"),
    _mutation("rows of the other consumer", RING,
              "+ consumer * SQUARE,", "+ (1 - consumer) * SQUARE,"),
    _mutation("leading offset of B's descriptor", COLUMNS,
              "matrix_descriptor(b + k * 128, SQUARE,", "matrix_descriptor(b + k * 128, SQUARE / 2,"),
    _mutation("A's transpose bit", COLUMNS,
              "wgmma_m64n128k16<1, 1>(", "wgmma_m64n128k16<0, 1>("),
    _mutation("B's transpose bit", COLUMNS,
              "wgmma_m64n128k16<1, 1>(", "wgmma_m64n128k16<1, 0>("),
    _mutation("B's second square where A's is", COLUMNS,
              "tensor_load(b + i * SQUARE,", "tensor_load(b + i * (SQUARE / 2),"),
    _mutation("sums not cleared", RING,
              "consumer, block != w.k_begin);", "consumer, 1);"),
    _mutation("sums cleared at each block of k", RING,
              "consumer, block != w.k_begin);", "consumer, 0);"),
    _mutation("sums cleared at each 16 of k", RING,
              "accumulate | k);", "accumulate);"),
    _mutation("no wgmma_fence", RING,
              "wgmma_fence();", ";", within="multiply"),
    _mutation("products not committed", RING,
              "wgmma_commit();", ";", within="multiply_stage"),
    _mutation("products not waited for before their stage is given back", RING,
              "wgmma_wait<1>();", "wgmma_wait<2>();"),
    _mutation("products not waited for before their sums are read", RING,
              "wgmma_wait<0>();", "wgmma_wait<1>();"),
    _mutation("sums read before the products are done", SINGLE,
              "wgmma_wait<0>();", "wgmma_wait<1>();"),
    _mutation("products of the only step not committed", SINGLE,
              "wgmma_commit();", ";", within="multiply_stage"),
    # --- the result
    _mutation("no fence before the tile is stored", RING,
              "fence_async_shared();", ";", within="matmul"),
    _mutation("tile written before it has left", RING,
              "bulk_wait_read<0>();", ";", within="matmul", times=2, only=1),
    _mutation("block ends before the tile has left", RING,
              "bulk_wait_read<0>();", ";", within="matmul", times=2, only=2),
    _mutation("one store may still read the tile", RING,
              "bulk_wait_read<0>();", "bulk_wait_read<1>();", within="matmul", times=2, only=1),
    _mutation("stores not committed", RING,
              "bulk_commit();", ";", within="send_result"),
    _mutation("no barrier before the tile is written", RING,
              "named_barrier_wait(1 + consumer, WARPGROUP);", ";", times=2, only=1),
    _mutation("no barrier before the tile is stored", RING,
              "named_barrier_wait(1 + consumer, WARPGROUP);", ";", times=2, only=2),
    _mutation("fewer threads at a named barrier", RING,
              "named_barrier_wait(1 + consumer, WARPGROUP);", "named_barrier_wait(1 + consumer, WARPGROUP / 2);",
              times=2, only=2),
    _mutation("more threads at a named barrier", RING,
              "named_barrier_wait(1 + consumer, WARPGROUP);", "named_barrier_wait(1 + consumer, WARPGROUP + 32);",
              times=2, only=2),
    _mutation("both consumers at one named barrier", RING,
              "named_barrier_wait(1 + consumer, WARPGROUP);", "named_barrier_wait(1, WARPGROUP);", times=2, only=2),
    _mutation("swizzle of the result", RING,
              "(chunk % 8 ^ row % 8) * 16, pairs)", "chunk % 8 * 16, pairs)"),
    _mutation("lanes of stmatrix", RING,
              "int chunk = j + lane / 16;", "int chunk = j + 1 - lane / 16;"),
    _mutation("result of both consumers to the same rows", RING,
              "w.row + consumer * 64);", "w.row);", within="send_result"),
    _mutation("stored where it is to be added", ADD,
              "tensor_reduce_add(c_map,", "tensor_store(c_map,"),
    _mutation("result staged without its rows' order", ADD,
              "int row = 16 * warp + lane / 4 + i / 2 % 2 * 8,", "int row = 16 * warp + lane / 4 + i % 2 * 8,"),
    # --- registers
    _mutation("registers no multiple of 8", RING,
              "PRODUCER_REGISTERS = 24,", "PRODUCER_REGISTERS = 28,"),
    _mutation("more registers asked for than there are", RING,
              "CONSUMER_REGISTERS = 240,", "CONSUMER_REGISTERS = 248,"),
    _mutation("registers not given up", RING,
              "registers_decrease<PRODUCER_REGISTERS>();", ";", within="matmul"),
]  # fmt: skip
