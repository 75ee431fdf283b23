"""Threads that wait for what never comes are found at once, whatever way they wait, and a list says who waits where."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

import numpy as np
import pytest

from emulator.machine import EmulatorError, Settings, library
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
    "a flag that one thread hands on to the block": (
        "do { if (threadIdx.x == 0) seen = load_acquire(inout_flag); __syncthreads(); value = seen; __syncthreads(); }"
        " while (value != 1);",
        r"spins on inout_flag \+ 0, which is 0, at small\.cu:LINE .*\(0,0,0\)/0\[lanes 0x1\]",
    ),
    "a barrier, and the block votes": (
        "while (!__syncthreads_or(barrier_try(at, 0))) {}",
        r"mbarrier at static shared memory barrier \+ 0: parity 0 is awaited, .*, at small\.cu:LINE ",
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


def test_work_that_looks() -> None:
    """Atomics that change nothing, and flags that are there already, beside barriers that let all pass."""
    text = f"""{BEGIN}
  for (int i = 0; i < 1000; i++) {{
    value += load_acquire(inout_flag + 1) + atomicMax(inout_flag, 0);
    __syncthreads();
  }}
  out_x[threadIdx.x] = value;
}}"""
    out = np.zeros(64, np.int32)
    run(text, np.array([0, 1], np.int32), out, block=64, widths=())
    np.testing.assert_array_equal(out, 1000)


@pytest.fixture
def limits() -> Iterator[ctypes.CDLL]:
    """Of time, which a test may make shorter."""
    names = ("emu_seconds_to_pass", "emu_seconds_to_end")
    found = [ctypes.c_int.in_dll(library(), name) for name in names]
    before = [limit.value for limit in found]
    yield library()
    for limit, value in zip(found, before, strict=True):
        limit.value = value


@pytest.mark.parametrize("where", ["inout_flag", "shared"])
def test_volatile_reads_are_looks(where: str) -> None:
    """What they read, and where, is in the list at once; not a place in the emulator, some seconds later."""
    flag = "__shared__ volatile int shared[1];\n  if (threadIdx.x == 0) shared[0] = 0;\n  __syncthreads();"
    text = f"{BEGIN}  {flag}\n  while (*(volatile int *){where} == 0) {{}}\n  out_x[threadIdx.x] = value;\n}}"
    with pytest.raises(EmulatorError, match=r"deadlock: threads spin") as error:
        run(text, np.zeros(2, np.int32), np.zeros(64, np.int32), block=64, widths=())
    assert re.search(rf"spins on .*{where}\S* \+ 0, which is 0, at small\.cu:\d+", str(error.value))


def test_a_loop_that_no_look_tells(limits: ctypes.CDLL) -> None:
    """Votes alone, beside a warp that waits: after some seconds, with who is where."""
    ctypes.c_int.in_dll(limits, "emu_seconds_to_pass").value = 3
    loop = "if (threadIdx.x < 32) for (int i = 0; i >= 0; i = (i + 1) % 7) __any_sync(~0u, i);"
    text = f"{BEGIN}  {loop}\n  __syncthreads();\n  out_x[threadIdx.x] = value;\n}}"
    with pytest.raises(EmulatorError, match=r"an endless loop") as error:
        run(text, np.zeros(2, np.int32), np.zeros(64, np.int32), block=64, widths=())
    assert re.search(r"(waits for a vote|was last seen) at small\.cu:\d+ .*\(0,0,0\)/0", str(error.value))
    assert re.search(r"waits for __syncthreads \(barrier 0, where 32 of 64 threads are\) .*/1$", str(error.value), re.M)


def test_a_loop_that_barriers_let_pass(limits: ctypes.CDLL) -> None:
    """Each round is right, and there is no last one."""
    ctypes.c_int.in_dll(limits, "emu_seconds_to_end").value = 3
    text = f"{BEGIN}\n  for (int i = 0; i >= 0; i = (i + 1) % 7) __syncthreads();\n  out_x[0] = value;\n}}"
    with pytest.raises(EmulatorError, match=r"an endless loop: (.|\n)* small\.cu:\d+ .*\(0,0,0\)/[01]"):
        run(text, np.zeros(2, np.int32), np.zeros(64, np.int32), block=64, widths=())
