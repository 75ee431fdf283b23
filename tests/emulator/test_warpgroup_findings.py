"""What can be done wrong with wgmma, named barriers, registers and clusters is found."""

from __future__ import annotations

import numpy as np
import pytest

from emulator.machine import EmulatorError, Settings
from emulator.small import run
from emulator.test_warps import CLUSTER, REGISTERS

# A is the first 2 KB, K-major without a swizzle, B the next 512 bytes; both are ones, so that the sums are 16.
PRODUCT = """
extern "C" __global__ void __launch_bounds__(256) kernel(float *out_x, int mode) {
  extern __shared__ __align__(1024) unsigned char shared[];
  u32 *image = (u32 *)shared;
  for (int i = threadIdx.x; i < 640; i += 128)
    if (mode != 1 || i != 600)
      image[i] = 0x3c003c00; /* two ones */
  if (mode != 2)
    fence_async_shared();
  if (mode == 3)
    image[600] = 0x3c003c00;
  if (mode != 4)
    __syncthreads();
  float c[8] = {};
  u32 a[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
  if (mode != 5)
    wgmma_fence();
  if (mode == 6)
    c[3] = 0;
  if (mode == 7)
    a[2] = 0x3c003c00;
  if (mode == 8)
    wgmma_fence();
  u32 at = shared_address(shared);
  u64 from_a = matrix_descriptor(at, 128, 256, 0), from_b = matrix_descriptor(at + 2048, 128, 256, 0);
  if (mode == 9)
    from_b |= 1ull << 46;
  if (mode == 10)
    from_b = matrix_descriptor(at + 2304, 128, 256, 0);
  if (mode == 11 && threadIdx.x / 32 == 2)
    from_a = matrix_descriptor(at, 128, 512, 0);
  if (mode == 12 && threadIdx.x == 9)
    from_a = matrix_descriptor(at + 16, 128, 256, 0);
  if ((mode != 13 || threadIdx.x >= 32) && (mode != 14 || threadIdx.x % 32 != 7))
    wgmma_m64n16k16<0, 0>(c, from_a, from_b, 1);
  if (mode == 7 || mode == 15 || mode == 8)
    wgmma_m64n16k16<0>(c, a, from_b, 1);
  if (mode != 16)
    wgmma_commit();
  if (mode == 15)
    a[1] = 0;
  if (mode == 17)
    c[5] += 1;
  if (mode == 18)
    out_x[0] = c[5];
  if (mode == 19)
    image[600] = 0;
  if (mode == 20)
    wgmma_wait<1>();
  if (mode == 22) /* a mark of the sum in another shape */
    wgmma_m64n8k16<0, 0>((float (&)[4])c, from_a, from_b, 1);
  if (mode != 20 && mode != 21)
    wgmma_wait<0>();
  if (mode == 21)
    return;
  if (mode == 23 && threadIdx.x == 0)
    image[600] = 1; /* the other warps have not said that they have read it */
  for (int i = 0; i < 8; i++)
    out_x[threadIdx.x * 8 + i] = c[i];
}
"""
PRODUCT_MISTAKES = {
    1: "which nobody has written",
    2: "wgmma reads shared memory .* no fence_async_shared behind it",
    3: "race: |wgmma reads shared memory .* no fence_async_shared behind it",
    4: "race: wgmma reads shared memory|which nobody has written",
    5: "wgmma: no wgmma_fence before it",
    6: "registers of the accumulator were used since the last wgmma_fence",
    7: "registers of A were used since the last wgmma_fence",
    9: "bits that must be 0 are set in the descriptor",
    10: "wgmma: shared memory \\+2560, out of bounds",
    11: "warps of a warpgroup ask for different products",
    12: "lanes ask for different products",
    13: "wgmma: warp \\d has begun \\d, warp \\d of its warpgroup \\d",
    14: "deadlock: (.|\\n)*waits for wgmma",
    15: "writes a register of A of a wgmma under way",
    16: "(reads|writes) register \\d of the accumulator of a wgmma under way|is under way when a thread",
    17: "(reads|writes) register 5 of the accumulator of a wgmma under way that nobody has waited for",
    18: "reads register 5 of the accumulator of a wgmma under way that nobody has waited for",
    19: "race: writes shared memory \\+ 2400, which an asynchronous operation of warp \\d still reads",
    20: "reads register \\d of the accumulator of a wgmma under way|is under way when a thread",
    21: "a wgmma is under way when a thread of its warp ends",
    22: "overlaps with that of another shape",
    23: "race: (writes|wgmma reads) shared memory \\+ 2400, (read by|written by|which an asynchronous)",
}


def product(mode: int, settings: Settings, block: int = 128) -> np.ndarray:
    out = np.zeros((block, 8), np.float32)
    run(PRODUCT, out, mode, block=block, shared=2560, widths=(8, 16), settings=settings)
    return out


def test_right_product() -> None:
    for seed, timing in enumerate(("early", "late", "random")):
        for mode, expected in ((0, 16), (8, 32)):
            np.testing.assert_array_equal(product(mode, Settings(seed, timing)), np.full((128, 8), expected))


@pytest.mark.parametrize("timing", ["early", "late", "random"])
@pytest.mark.parametrize("mode", PRODUCT_MISTAKES)
def test_mistake_with_a_product(mode: int, timing: str) -> None:
    with pytest.raises(EmulatorError, match=PRODUCT_MISTAKES[mode]):
        product(mode, Settings(3, timing))


def test_warpgroup_that_is_not_whole() -> None:
    with pytest.raises(EmulatorError, match="wgmma by a warpgroup that is not whole"):
        product(0, Settings(), block=96)


WARPS = """
extern "C" __global__ void kernel(int *out_x, int mode) {
  int warp = threadIdx.x / 32;
  if (mode == 1)
    named_barrier_wait(16, 128);
  if (mode == 2)
    named_barrier_wait(1, 72);
  if (mode == 3)
    named_barrier_wait(1, 256);
  if (mode == 4)
    named_barrier_wait(1, warp == 2 ? 96 : 128);
  if (mode == 5 && threadIdx.x % 32 < 16)
    named_barrier_wait(1, 128);
  if (mode == 6 && warp < 3)
    named_barrier_wait(2, 128);
  if (mode == 7 && threadIdx.x % 32 < 16)
    out_x[0] = elect_one();
  if (mode == 8)
    registers_increase<32>();
  out_x[threadIdx.x] = 0;
}
"""
WARP_MISTAKES = {
    1: "barrier 16 does not exist",
    2: "72 threads are no whole number of warps",
    3: "256 threads are more than the block has",
    4: "barrier 1: this thread expects \\d+ threads, an earlier one \\d+",
    5: "deadlock: (.|\\n)*waits for the other lanes of its warp at a named barrier",
    6: "deadlock: (.|\\n)*waits for a named barrier \\(barrier 2, where 96 of 128 threads are\\)",
    7: "deadlock: (.|\\n)*waits for elect",
    8: "without __launch_bounds__ it is ignored",
}


@pytest.mark.parametrize("mode", WARP_MISTAKES)
def test_mistake_of_warps(mode: int) -> None:
    with pytest.raises(EmulatorError, match=WARP_MISTAKES[mode]):
        run(WARPS, np.zeros(128, np.int32), mode, block=128, widths=())


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("increase<240>", "increase<244>", "244 registers; it must be 24 to 256 in steps of 8"),
        ("increase<240>", "increase<248>", "deadlock: (.|\\n)*waits for registers: 248 each, 80 more"),
        ("registers_decrease<24>();", ";", "deadlock: (.|\\n)*waits for registers: 240 each, 72 more, and 0 are free"),
        ("increase<240>", "increase<160>", "registers_increase: to 160 registers from 168"),
        ("decrease<24>", "decrease<176>", "registers_decrease: to 176 registers from 168"),
        ("threadIdx.x < 128)", "threadIdx.x < 128 && threadIdx.x >= 32)", "warp \\d has executed|waits for registers"),
        ("__launch_bounds__(384, 1)", "__launch_bounds__(256, 1)", "384 threads, more than its __launch_bounds__"),
    ],
)
def test_mistake_with_registers(old: str, new: str, finding: str) -> None:
    assert old in REGISTERS
    with pytest.raises(EmulatorError, match=finding):
        run(REGISTERS.replace(old, new), np.zeros(384, np.int32), block=384, widths=())


def line_of(text: str, words: str) -> int:
    """The first with these words, as findings count them."""
    return next(i for i, line in enumerate(text.strip().splitlines(), 1) if words in line)


def test_place_of_a_product_that_only_some_warps_begin() -> None:
    """The first that is not common to all, by a finding that is made when warps end."""
    for mode, words in ((13, "wgmma_m64n16k16<0, 0>(c, from_a"), (24, "wgmma_m64n16k16<0>(c, a, from_b, 1); /* more")):
        more = "if (mode == 24 && threadIdx.x >= 64)\n    wgmma_m64n16k16<0>(c, a, from_b, 1); /* more */\n"
        text = PRODUCT.replace("if (mode != 16)\n", f"{more}  if (mode != 16)\n")
        place = (
            rf"small\.cu:{line_of(text, words)} \(kernel\): wgmma: warp \d has begun \d, warp \d of its warpgroup \d"
        )
        with pytest.raises(EmulatorError, match=place):
            run(text, np.zeros((128, 8), np.float32), mode, block=128, shared=2560, widths=(8, 16))


@pytest.mark.parametrize("block", [128, 96])
def test_place_of_setmaxnreg_that_only_some_warps_execute(block: int) -> None:
    text = """
extern "C" __global__ void __launch_bounds__(128) kernel(int *out_x) {
  if (threadIdx.x >= 32)
    registers_decrease<32>();
  out_x[threadIdx.x] = 0;
}"""
    what = (
        "in a warpgroup of fewer than 4 warps" if block < 128 else "warp \\d has executed 1, warp 0 of its warpgroup 0"
    )
    place = rf"small\.cu:{line_of(text, 'decrease')} \(kernel\): setmaxnreg:? {what}"
    with pytest.raises(EmulatorError, match=place):
        run(text, np.zeros(128, np.int32), block=block, widths=())


WAIT = "cluster_arrive();\n  cluster_wait(); /* {} */"


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (WAIT.format("initialised"), "", "no mbarrier has been initialised|no barrier in between"),
        (WAIT.format("results are there"), "", "race: |nobody has written"),
        (WAIT.format("nobody needs them"), "", "block \\d of the cluster has ended, and its shared memory with it"),
        ("barrier_init_done();", "", "known to the cluster"),
        (
            "barrier_arrive_at(shared_address(barrier), other);",
            "barrier_arrive(shared_address(barrier));",
            "race: |nobody",
        ),
        ("cluster_wait(); /* results", "/* results", "this thread has arrived before and not waited"),
        (
            "cluster_arrive();\n  cluster_wait(); /* results",
            "cluster_wait(); /* results",
            "this thread has not arrived",
        ),
        ("(rank + 1) % 3;", "rank + 1;", "the cluster has no block 3"),
        ("barrier), 32)", "barrier), 33)", "deadlock: (.|\\n)*waits for mbarrier at static shared memory"),
        (
            "if (threadIdx.x == 0) {",
            "if (blockIdx.x == 1) return; if (threadIdx.x == 0) {",
            "has ended",
        ),
    ],
)
def test_mistake_in_a_cluster(old: str, new: str, finding: str) -> None:
    assert old in CLUSTER
    text = CLUSTER.replace(old, new)

    def all_seeds() -> None:
        for seed in range(4):
            out = np.zeros((6, 32), np.float32)
            run(text, out, grid=6, cluster=3, widths=(), settings=Settings(seed))

    with pytest.raises(EmulatorError, match=finding):
        all_seeds()


@pytest.mark.parametrize("second", ["named_barrier_arrive(1, 64)", "named_barrier_wait(1, 64)"])
@pytest.mark.parametrize("seed", range(4))
def test_thread_that_comes_twice_to_a_named_barrier(second: str, seed: int) -> None:
    """It ends the round alone only if it is the faster one, and is found if it is not, too."""
    text = f"""
extern "C" __global__ void kernel(int *out_x) {{
  if (threadIdx.x < 32) {{
    named_barrier_arrive(1, 64);
    {second};
  }} else {{
    named_barrier_wait(1, 64);
    named_barrier_wait(1, 64);
  }}
  out_x[threadIdx.x] = 0;
}}"""
    twice = "barrier 1: this thread (comes a second time before all 64|has arrived before)"
    with pytest.raises(EmulatorError, match=twice):
        run(text, np.zeros(64, np.int32), block=64, widths=(), settings=Settings(seed))
