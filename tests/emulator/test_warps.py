"""mbarriers, named barriers, stmatrix, elect, registers and clusters do what the PTX ISA says."""

from __future__ import annotations

import numpy as np
import pytest

from emulator.machine import TIMINGS, EmulatorError, Settings
from emulator.small import run
from emulator.test_instructions import GROUP, LANES, THREAD, words

# Two warps hand a number to and fro: each phase of a barrier is one message.
MESSAGES = """
extern "C" __global__ void kernel(float *out_x, int count) {
  __shared__ __align__(8) u64 barriers[2];
  __shared__ float message[32];
  u32 full = shared_address(&barriers[0]), empty = shared_address(&barriers[1]);
  if (threadIdx.x == 0) {
    barrier_init(full, 32);
    barrier_init(empty, 1);
  }
  __syncthreads();
  int lane = threadIdx.x % 32;
  float sum = 0;
  for (int i = 0; i < count; i++)
    if (threadIdx.x < 32) {
      barrier_wait(empty, i % 2 ^ 1);
      message[lane] = i * 100 + lane;
      barrier_arrive(full);
    } else {
      barrier_wait(full, i % 2);
      sum = sum * 2 + message[31 - lane];
      __syncwarp(); /* all have read */
      if (lane == 5)
        barrier_arrive(empty);
    }
  if (threadIdx.x >= 32)
    out_x[lane] = sum;
}
"""


@pytest.mark.parametrize("seed", range(3))
def test_phases_of_mbarriers(seed: int) -> None:
    out, expected = np.zeros(32, np.float32), np.zeros(32, np.float32)
    run(MESSAGES, out, 7, block=64, widths=(), settings=Settings(seed))
    for i in range(7):
        expected = expected * 2 + (i * 100 + 31 - LANES)
    np.testing.assert_array_equal(out, expected)


def test_wait_that_gives_up() -> None:
    """By luck, barrier_try says no before the phase has ended; never when it has."""
    text = """
extern "C" __global__ void kernel(int *out_x) {
  __shared__ __align__(8) u64 barrier[1];
  u32 at = shared_address(barrier);
  if (threadIdx.x == 0)
    barrier_init(at, 1);
  __syncthreads();
  if (threadIdx.x == 40)
    barrier_arrive(at);
  int no = 0;
  if (threadIdx.x == 0)
    while (!barrier_try(at, 0))
      no++;
  __syncthreads();
  if (threadIdx.x == 0) {
    out_x[0] = no;
    out_x[1] = barrier_try(at, 0);
  }
}"""
    failed = set()
    for seed in range(24):
        out = np.zeros(2, np.int32)
        run(text, out, block=64, widths=(), settings=Settings(seed))
        assert out[1] == 1
        failed.add(bool(out[0]))
    assert failed == {False, True}


@pytest.mark.parametrize("seed", range(6))
def test_lane_that_arrives_speaks_for_itself(seed: int) -> None:
    """Without __syncwarp, what the other lanes have read is not known to those who wait, even if they were earlier."""
    text = MESSAGES.replace("__syncwarp();", "__shfl_sync(0xffffffffu, 0, 0);")
    with pytest.raises(EmulatorError, match=r"race: writes static shared memory .* read by warp 1"):
        run(text, np.zeros(32, np.float32), 2, block=64, widths=(), settings=Settings(seed))


@pytest.mark.parametrize("seed", range(6))
def test_lane_that_waits_learns_for_itself(seed: int) -> None:
    """One lane waits; the others, even if they go on after it, know of nothing before __syncwarp."""
    text = MESSAGES.replace("barrier_wait(full, i % 2);", "if (lane == 3) barrier_wait(full, i % 2); MEET")
    out = np.zeros(32, np.float32)
    run(text.replace("MEET", "__syncwarp();"), out, 7, block=64, widths=(), settings=Settings(seed))
    with pytest.raises(EmulatorError, match=r"race: reads static shared memory"):
        run(
            text.replace("MEET", "__shfl_sync(0xffffffffu, 0, 0);"), out, 7,
            block=64, widths=(), settings=Settings(seed),
        )  # fmt: skip


def test_named_barriers() -> None:
    """One warp waits for what two others have written, who do not wait for it."""
    text = """
extern "C" __global__ void kernel(float *out_x) {
  __shared__ float x[64];
  if (threadIdx.x < 64) {
    x[threadIdx.x] = threadIdx.x;
    named_barrier_arrive(3, 96);
  } else {
    named_barrier_wait(3, 96);
    out_x[threadIdx.x - 64] = x[threadIdx.x - 64] + x[threadIdx.x - 32];
  }
}"""
    out = np.zeros(32, np.float32)
    run(text, out, block=96, widths=())
    np.testing.assert_array_equal(out, 2 * LANES + 32)
    late = text.replace("named_barrier_arrive(3, 96);", "named_barrier_arrive(3, 96); x[threadIdx.x] = 1;")
    with pytest.raises(EmulatorError, match="race: "):
        run(late, out, block=96, widths=())


@pytest.mark.parametrize("trans", [False, True])
def test_stmatrix(trans: bool) -> None:
    """Lane 8 i + r points at row r of matrix i; a lane gives two neighbours of a row, or of a column."""
    values = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    registers = np.ascontiguousarray(words(values[:, GROUP, THREAD * 2], values[:, GROUP, THREAD * 2 + 1]).T)
    out = np.zeros((32, 8), np.uint16)
    run(
        f"""
extern "C" __global__ void kernel(const u32 *in_r, half_bits *out_m) {{
  extern __shared__ __align__(16) unsigned char shared[];
  half_bits *tile = (half_bits *)shared;
  u32 r[4];
  for (int i = 0; i < 4; i++)
    r[i] = in_r[threadIdx.x * 4 + i];
  stmatrix_x4{"_trans" * trans}(shared_address(tile + threadIdx.x * 24), r);
  __syncwarp();
  for (int i = 0; i < 8; i++)
    out_m[threadIdx.x * 8 + i] = tile[threadIdx.x * 24 + i];
}}""",
        registers, out, shared=32 * 48, widths=(),
    )  # fmt: skip
    np.testing.assert_array_equal(out.reshape(4, 8, 8), values.transpose(0, 2, 1) if trans else values)


def test_elect_chooses_one_lane_and_always_the_same() -> None:
    text = """
extern "C" __global__ void kernel(int *out_x) {
  out_x[threadIdx.x] = elect_one() + 2 * elect_one();
}"""
    chosen = set()
    for seed in range(6):
        out = np.zeros(32, np.int32)
        run(text, out, widths=(), settings=Settings(seed))
        assert sorted(out) == [0] * 31 + [3]
        chosen.add(int(out.argmax()))
    assert len(chosen) > 1  # nobody may rely on which


REGISTERS = """
extern "C" __global__ void __launch_bounds__(384, 1) kernel(int *out_x) {
  if (threadIdx.x < 128)
    registers_decrease<24>();
  else
    registers_increase<240>();
  out_x[threadIdx.x] = threadIdx.x;
}"""


def test_registers_are_handed_on() -> None:
    """65536 / 384 threads is 170, of which 168 are given: 3 x 168 = 24 + 240 + 240."""
    out = np.zeros(384, np.int32)
    for seed in range(3):
        run(REGISTERS, out, block=384, widths=(), settings=Settings(seed))
    np.testing.assert_array_equal(out, np.arange(384))


CLUSTER = """
/* Each block gives its neighbour numbers, by its shared memory, and gets back what it makes of them. */
extern "C" __global__ void kernel(float *out_x) {
  __shared__ __align__(8) u64 barrier[1];
  __shared__ float box[32], result[32];
  u32 rank = cluster_rank(), other = (rank + 1) % 3;
  if (threadIdx.x == 0) {
    barrier_init(shared_address(barrier), 32);
    barrier_init_done();
  }
  cluster_arrive();
  cluster_wait(); /* initialised */
  store_shared_cluster_f32(map_shared(shared_address(&box[threadIdx.x]), other), blockIdx.x * 100.0f + threadIdx.x);
  barrier_arrive_at(shared_address(barrier), other);
  barrier_wait(shared_address(barrier), 0);
  __syncwarp();
  result[threadIdx.x] = box[31 - threadIdx.x] + 0.5f;
  cluster_arrive();
  cluster_wait(); /* results are there */
  u32 result_there = map_shared(shared_address(&result[threadIdx.x]), other);
  out_x[blockIdx.x * 32 + threadIdx.x] = load_shared_cluster_f32(result_there);
  cluster_arrive();
  cluster_wait(); /* nobody needs them */
}"""


@pytest.mark.parametrize("timing", TIMINGS)
def test_cluster(timing: str) -> None:
    """Block r writes into block r + 1 of its cluster of 3, and reads what that made of it."""
    for seed in range(3):
        out = np.zeros((6, 32), np.float32)
        run(CLUSTER, out, grid=6, cluster=3, widths=(), settings=Settings(seed, timing, resident=1))
        expected = np.arange(6)[:, None] * 100.0 + (31 - LANES) + 0.5
        np.testing.assert_array_equal(out, expected)
