"""What can be done wrong with mbarriers and bulk copies is found."""

from __future__ import annotations

import numpy as np
import pytest

from emulator.machine import EmulatorError, Settings
from emulator.small import Mapped, run

# Right with mode 0; each other mode is a mistake.
LOAD = """
extern "C" __global__ void kernel(const __grid_constant__ tensor_map in_a, float *out_x, int mode) {
  extern __shared__ __align__(1024) unsigned char shared[];
  float *tile = (float *)shared;
  u32 at = shared_address(shared), barrier = at + 2048;
  if (threadIdx.x == 0) {
    if (mode != 1)
      barrier_init(barrier + (mode == 2 ? 4 : 0), mode == 3 ? 0 : 1);
    if (mode == 4)
      barrier_init(barrier, 1);
    if (mode != 5)
      barrier_init_done();
  }
  if (mode != 6)
    __syncthreads();
  if (threadIdx.x == (mode == 6 ? 32 : 0)) {
    if (mode == 7)
      tile[0] = 1;
    barrier_expect(barrier, mode == 8 ? 2048 + 16 : mode == 9 ? 2048 - 16 : 2048);
    if (mode == 10)
      barrier_arrive(barrier);
    if (mode == 11)
      tensor_load(at + 64, &in_a, barrier, 0, 0);
    else if (mode == 12)
      tensor_load(at, &in_a, barrier, 0, 0, 0);
    else if (mode == 13)
      tensor_load(at + 1024, &in_a, barrier, 0, 0);
    else if (mode == 14) {
      tensor_map map = {};
      tensor_load(at, &map, barrier, 0, 0);
    } else
      tensor_load(at, &in_a, barrier, 0, 0);
  }
  if (mode == 15)
    return;
  if (mode != 16 && (mode != 17 || threadIdx.x % 32 == 0))
    barrier_wait(barrier, mode == 18);
  if (mode == 19 && threadIdx.x == 1)
    ((u64 *)shared)[256] = 0;
  float x = tile[threadIdx.x];
  if (mode == 20 && threadIdx.x == 0) {
    barrier_expect(barrier, 2048);
    tensor_load(at, &in_a, barrier, 0, 0);
    barrier_wait(barrier, 1);
  }
  out_x[threadIdx.x] = x;
}
"""
LOAD_MISTAKES = {
    1: "barrier_(expect|try): no mbarrier has been initialised at shared memory \\+ 2048",
    2: "an mbarrier's address is a multiple of 8",
    3: "0 arrivals",
    4: "there is an mbarrier at shared memory \\+ 2048 already",
    5: "no barrier_init_done has made the mbarrier at shared memory \\+ 2048 known",
    6: "was initialised by warp 0 lane 0 at small.cu:\\d+ .* no barrier in between|no mbarrier has been initialised",
    7: "copy writes shared memory \\+ 0, written by .* no fence_async_shared behind it",
    8: "deadlock: (.|\\n)*waits for mbarrier at shared memory \\+ 2048: parity 0 is awaited, "
    "phase 0 \\(parity 0\\) goes on, 0 of 1 arrivals and 16 bytes are missing",
    9: "bytes come in phase 1 of the mbarrier|still writes shared memory when its block ends|deadlock",
    10: "more than 1 arrivals in phase 0 of the mbarrier",
    11: "not aligned to 128 bytes",
    12: "the tensor map has 2 dimensions, the instruction 3",
    13: "tensor_load: shared memory \\+2048, out of bounds|where an mbarrier is",
    14: "this is no tensor map",
    15: "a load still writes shared memory when its block ends",
    16: "race: reads shared memory .* brings data, and phase 0 of the barrier at shared memory \\+ 2048 has not",
    17: "race: reads shared memory .* brings data",
    18: "race: reads shared memory .* brings data",
    19: "writes shared memory \\+ 2048, where an mbarrier is that was initialised by",
    20: "race: copy writes shared memory .* read by warp \\d lane \\d+ at small.cu",
}


def load(mode: int, settings: Settings) -> None:
    tensor, out = np.arange(16 * 32, dtype=np.float32).reshape(16, 32), np.zeros(64, np.float32)
    run(LOAD, Mapped(tensor, "fp32", (32, 16)), out, mode, block=64, shared=2056, widths=(), settings=settings)
    np.testing.assert_array_equal(out, tensor.reshape(-1)[:64])


def test_right_load() -> None:
    for seed, timing in enumerate(("early", "late", "random", "random")):
        load(0, Settings(seed, timing))


@pytest.mark.parametrize("timing", ["late", "random"])
@pytest.mark.parametrize("mode", LOAD_MISTAKES)
def test_mistake_with_a_load(mode: int, timing: str) -> None:
    with pytest.raises(EmulatorError, match=LOAD_MISTAKES[mode]):
        load(mode, Settings(1, timing))


def test_phase_that_does_not_wait_for_all_bytes() -> None:
    """Whether the phase ends before the rest comes, or never, is a matter of luck; both are found."""
    messages = []
    for seed in range(12):
        with pytest.raises(EmulatorError) as error:
            load(9, Settings(seed, "random"))
        messages.append(str(error.value))
    assert any("bytes come in phase 1 of the mbarrier" in m for m in messages)
    assert any("deadlock" in m for m in messages)


STORE = """
extern "C" __global__ void kernel(float *out_x, float *inout_y, int mode) {
  extern __shared__ __align__(128) unsigned char shared[];
  float *row = (float *)shared;
  if (mode != 1)
    row[threadIdx.x] = threadIdx.x;
  if (mode != 2)
    fence_async_shared();
  if (mode == 3)
    row[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    u32 at = shared_address(shared) + (mode == 4 ? 8 : 0);
    if (mode == 5)
      bulk_reduce_add(out_x, at, 256);
    else
      bulk_store(out_x, at, mode == 6 ? 24 : mode == 7 ? 512 : 256);
    if (mode != 8)
      bulk_commit();
    bulk_reduce_add(inout_y, shared_address(shared), 128);
    if (mode != 8)
      bulk_commit();
    if (mode == 9)
      row[3] = 0; /* is still being read */
    if (mode == 10)
      bulk_wait_read<1>();
    else if (mode != 11)
      bulk_wait_read<0>();
    if (mode == 12)
      inout_y[0] = out_x[0]; /* may not be there */
    if (mode == 13)
      row[0] = 1; /* the others do not know that it has been read; but it is this thread who writes */
  }
  if (mode == 14 && threadIdx.x == 33)
    row[33] = 0;
  if (mode == 15) {
    if (threadIdx.x == 0)
      bulk_wait<0>();
    __syncthreads();
    if (threadIdx.x == 40)
      inout_y[0] += out_x[0];
  }
}
"""
STORE_MISTAKES = {
    1: "copy reads|which nobody has written",
    2: "copy reads shared memory .* no fence_async_shared behind it",
    3: "copy reads shared memory .* no fence_async_shared behind it",
    4: "not aligned to 16 bytes",
    5: "adds to out_x \\+ 0, which nobody has written",
    6: "24 bytes are no multiple of 16",
    7: "out of bounds",
    8: "has not been committed when its thread ends|may still read|still reads",
    9: "race: writes shared memory \\+ 12, which an asynchronous operation of warp 0 still reads",
    10: "may still read shared memory when its thread ends",
    11: "may still read shared memory when its thread ends",
    12: "race: reads out_x \\+ 0, which a bulk copy writes that nobody has waited for",
    14: "race: writes shared memory .* (still reads|no barrier in between)",
}


def store(mode: int, settings: Settings) -> np.ndarray:
    out, added = np.zeros(64, np.float32), np.ones(32, np.float32)
    run(STORE, out, added, mode, block=64, shared=256, widths=(), settings=settings)
    np.testing.assert_array_equal(out, np.arange(64))
    return added


@pytest.mark.parametrize("mode", [0, 13, 15])
def test_right_store(mode: int) -> None:
    for seed, timing in enumerate(("early", "late", "random")):
        np.testing.assert_array_equal(store(mode, Settings(seed, timing)), 1 + np.arange(32))


@pytest.mark.parametrize("timing", ["early", "late", "random"])
@pytest.mark.parametrize("mode", STORE_MISTAKES)
def test_mistake_with_a_store(mode: int, timing: str) -> None:
    with pytest.raises(EmulatorError, match=STORE_MISTAKES[mode]):
        store(mode, Settings(2, timing))


# The tile is stored by one lane, or by two. Right with modes 0 and 3; in each other mode it is written again too early.
SHARED_TILE = """
extern "C" __global__ void __launch_bounds__(128) kernel(float *out_x, float *out_y, float *out_sums, int mode) {
  extern __shared__ __align__(1024) unsigned char shared[];
  u32 *image = (u32 *)shared, at = shared_address(shared);
  for (int i = threadIdx.x; i < 640; i += 128)
    image[i] = 0x3c003c00; /* two ones */
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out_x, at, 128);
    bulk_commit();
  }
  if (threadIdx.x == 1) {
    bulk_store(out_y, at, 128);
    bulk_commit();
  }
  if (mode == 2 && threadIdx.x == 1)
    bulk_wait_read<0>();
  __syncwarp();
  float c[8] = {};
  if (mode < 2) {
    wgmma_fence();
    wgmma_m64n16k16<0, 0>(c, matrix_descriptor(at, 128, 256, 0), matrix_descriptor(at + 2048, 128, 256, 0), 1);
    wgmma_commit();
    wgmma_wait<0>(); /* ends what it has read of the tile, not what the stores read */
  }
  if (threadIdx.x < 2 && (mode == 0 || mode == 3))
    bulk_wait_read<0>();
  __syncthreads();
  if (threadIdx.x == 0)
    image[0] = 0;
  __syncthreads();
  if (threadIdx.x < 2)
    bulk_wait<0>();
  for (int i = 0; i < 8; i++)
    out_sums[threadIdx.x * 8 + i] = c[i];
}
"""


def shared_tile(mode: int, settings: Settings) -> None:
    outs = [np.zeros(32, np.float32), np.zeros(32, np.float32), np.zeros((128, 8), np.float32)]
    run(SHARED_TILE, *outs, mode, block=128, shared=2560, widths=(16,), settings=settings)
    np.testing.assert_array_equal(outs[2], 16 if mode < 2 else 0)


@pytest.mark.parametrize("timing", ["early", "late", "random"])
def test_tile_that_is_read_twice_at_once(timing: str) -> None:
    for mode in (0, 3):
        shared_tile(mode, Settings(1, timing))
    for mode in (1, 2):
        with pytest.raises(EmulatorError, match=r"race: writes .* asynchronous operation of warp 0 still"):
            shared_tile(mode, Settings(1, timing))


# A bulk load of what plain stores of the same launch have written.
SOURCE = """
extern "C" __global__ void
kernel(float *inout_x, float *out_y) {
  extern __shared__ __align__(128) unsigned char shared[];
  u32 at = shared_address(shared), barrier = at + 128;
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
  }
  inout_x[32 + threadIdx.x] = 1;
  __syncwarp();
  if (threadIdx.x == 0) {
    barrier_expect(barrier, 128);
    bulk_load(at, inout_x + FIRST, 128, barrier);
  }
  __syncwarp();
  barrier_wait(barrier, 0);
  out_y[threadIdx.x] = ((float *)shared)[threadIdx.x];
}
"""


@pytest.mark.parametrize("timing", ["early", "late", "random"])
def test_source_that_the_launch_has_written(timing: str) -> None:
    def copy(first: int) -> None:
        arrays = np.zeros(64, np.float32), np.zeros(32, np.float32)
        text = SOURCE.replace("FIRST", str(first))
        run(text, *arrays, shared=136, widths=(), settings=Settings(1, timing))

    copy(0)
    with pytest.raises(
        EmulatorError, match=r"copy reads inout_x \+ 128, written by .* a proxy fence for global memory"
    ):
        copy(16)
