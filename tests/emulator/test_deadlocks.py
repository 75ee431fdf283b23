"""Threads that wait for what never comes are found at once, whatever way they wait, and a list says who waits where."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emulator.machine import EmulatorError, Settings
from emulator.small import run

BEGIN = """
extern "C" __global__ void kernel(int *inout_flag, int *out_x) {
  __shared__ __align__(8) u64 barrier[1];
  __shared__ int seen;
  u32 at = shared_address(barrier);
  if (threadIdx.x == 0) {
    barrier_init(at, 1);
    seen = 0;
  }
  __syncthreads();
  int lane = threadIdx.x % 32, value = 0;
"""

# What is in the loop, and what the list says of who is in it.
POLLING = {
    "a flag, by one lane": (
        "if (threadIdx.x == 0) while (load_acquire(inout_flag) != 1) {}",
        r"spins on inout_flag \+ 0, which is 0, at small\.cu:LINE .*\(0,0,0\)/0\[lanes 0x1\]",
    ),
    "a flag, and the lanes meet": (
        "do { value = load_acquire(inout_flag); __syncwarp(); } while (value != 1);",
        r"spins on inout_flag \+ 0, which is 0, at small\.cu:LINE .*\(0,0,0\)/0-1",
    ),
    "a flag that one lane hands on": (
        "do { if (!lane) value = load_acquire(inout_flag); value = __shfl_sync(~0u, value, 0); } while (value != 1);",
        r"spins on inout_flag \+ 0, which is 0, at small\.cu:LINE .*\(0,0,0\)/0-1\[lanes 0x1\]",
    ),
    "a flag that one lane hands on in memory": (
        "do { if (threadIdx.x == 0) seen = load_acquire(inout_flag); __syncwarp(); value = threadIdx.x < 32 ? seen : 1;"
        " __syncwarp(); } while (value != 1);",
        r"spins on inout_flag \+ 0, which is 0, at small\.cu:LINE .*\(0,0,0\)/0\[lanes 0x1\]",
    ),
    "a flag by an atomic": (
        "while (!__all_sync(~0u, atomicAdd(inout_flag, 0) == 1)) {}",
        r"spins on inout_flag \+ 0, which is 0, at small\.cu:LINE .*\(0,0,0\)/0-1",
    ),
    "a lock": (
        "while (atomicExch(inout_flag + 1, 1) != 0) __nanosleep(20);",
        r"spins on inout_flag \+ 4, which is 1, at small\.cu:LINE .*\(0,0,0\)/0-1",
    ),
    "a barrier, and the lanes vote": (
        "while (!__all_sync(~0u, barrier_try(at, 0))) {}",
        r"(spins on|waits for) mbarrier at static shared memory barrier \+ 0: parity 0 is awaited, phase 0 .parity 0. "
        r"goes on, 1 of 1 arrivals .*, at small\.cu:LINE ",
    ),
    "a barrier and a flag": (
        "if (threadIdx.x < 32) barrier_wait(at, 0); else while (!__any_sync(~0u, load_acquire(inout_flag))) {}",
        r"spins on inout_flag \+ 0, .*\(0,0,0\)/1\n(.|\n)*waits for mbarrier at static shared memory barrier .*/0",
    ),
}


@pytest.mark.parametrize("name", POLLING)
def test_threads_that_poll(name: str) -> None:
    loop, expected = POLLING[name]
    text = f"{BEGIN}  {loop}\n  out_x[threadIdx.x] = value;\n}}"
    expected = expected.replace("LINE", str(text.strip().splitlines().index(f"  {loop}") + 1))
    for seed in range(3):
        with pytest.raises(EmulatorError, match=r"\ndeadlock: ") as error:
            run(text, np.array([0, 1], np.int32), np.zeros(64, np.int32), block=64, widths=(), settings=Settings(seed))
        assert re.search(expected, str(error.value), re.MULTILINE), error.value
        assert "an unknown place" not in str(error.value)


def test_a_loop_that_no_look_tells() -> None:
    """Plain reads, beside a warp that waits: after some seconds, with who is where."""
    loop = "while (__any_sync(~0u, threadIdx.x < 32 ? *(volatile int *)inout_flag == 0 : 0)) {}"
    text = f"{BEGIN}  {loop}\n  __syncthreads();\n  out_x[threadIdx.x] = value;\n}}"
    with pytest.raises(EmulatorError, match=r"an endless loop") as error:
        run(text, np.zeros(2, np.int32), np.zeros(64, np.int32), block=64, widths=())
    assert re.search(r"(waits for a vote|was last seen) at small\.cu:\d+ .*\(0,0,0\)/0", str(error.value))
    assert re.search(r"waits for __syncthreads \(barrier 0, where 32 of 64 threads are\) .*/1$", str(error.value), re.M)
