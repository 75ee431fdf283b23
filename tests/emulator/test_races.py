"""No access that a later one must be ordered behind is forgotten, whatever came in between."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emulator.machine import EmulatorError, Settings
from emulator.small import run

# Where all is right; below, what takes the place of each barrier. Warp 0 is told of what the others do by flags, one of
# each of them.
BEGIN = """
static __device__ __forceinline__ void tell(int *flag) { store_release(flag, 1); }
static __device__ __forceinline__ void await(int *flag) { while (load_acquire(flag) != 1) {} }
extern "C" __global__ void kernel(int *inout_flag, int *inout_x, int *out_y) {
  __shared__ int s[4];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x < 4)
    s[threadIdx.x] = 0;
  __syncthreads();
"""

ATOMICS = """
  if (warp > 0 && lane == 0) {
    atomicAdd(MEMORY, 1);
    tell(inout_flag + warp);
  }
  if (threadIdx.x == 0) {
    await(inout_flag + 1);
    await(inout_flag + 2);
    await(inout_flag + 3);
    USE;
  }
}"""

READS = """
  if (warp > 0 && lane % 16 == 0) {
    out_y[threadIdx.x] = MEMORY[0];
    tell(inout_flag + threadIdx.x / 16);
  }
  if (threadIdx.x == 0) {
    for (int i = 2; i < 8; i++)
      await(inout_flag + i);
    USE;
  }
}"""


def kernel(text: str, memory: str, use: str = "") -> str:
    return BEGIN + text.replace("MEMORY", memory).replace("USE", use)


def launch(text: str, seed: int) -> None:
    run(text, *(np.zeros(n, np.int32) for n in (8, 4, 128)), block=128, settings=Settings(seed))


def must_race(text: str, expected: str) -> None:
    """Whoever comes later says so; `expected` is what must be said where it is the one that should have waited."""
    found = ""
    for seed in range(8):
        with pytest.raises(EmulatorError, match="race: ") as error:
            launch(text, seed)
        found += str(error.value)
    assert re.search(expected, found), found


@pytest.mark.parametrize("memory", ["s", "inout_x"])
@pytest.mark.parametrize(
    ("use", "finding"),
    [("out_y[0] = MEMORY[0]", r"reads"), ("MEMORY[0] = 5", r"writes"), ("atomicAdd(MEMORY, 1)", None)],
)
def test_each_of_several_atomics(memory: str, use: str, finding: str | None) -> None:
    """A plain access must be ordered behind all of them, not only behind the last."""
    text = kernel(ATOMICS, memory, use.replace("MEMORY", memory))
    launch(text, 0)
    for missing in (1, 2, 3):
        broken = text.replace(f"await(inout_flag + {missing});", "")
        if finding:
            must_race(broken, rf"race: {finding} .* added to by warp {missing} lane 0 at small")
        else:
            launch(broken, missing)


@pytest.mark.parametrize("memory", ["s", "inout_x"])
@pytest.mark.parametrize("use", ["MEMORY[0] = 5", "atomicAdd(MEMORY, 1)"])
def test_each_of_several_readers(memory: str, use: str) -> None:
    """Two lanes of each of three warps read; a write must be ordered behind all six."""
    text = kernel(READS, memory, use.replace("MEMORY", memory))
    launch(text, 0)
    for missing in range(2, 8):
        broken = text.replace("      await", f"      if (i != {missing}) await")
        assert broken != text
        must_race(broken, rf"race: writes .* read by warp {missing // 2} lane {missing % 2 * 16} at small")


def test_a_write_behind_a_reader_and_an_atomic() -> None:
    """An atomic that is not ordered behind a write, or a read, is said even if another one was."""
    text = kernel(
        """
  if (warp == 0 && lane == 0) {
    inout_x[0] = 1;
    tell(inout_flag);
  }
  if (warp == 1 && lane == 0) {
    await(inout_flag);
    atomicAdd(inout_x, 1);
    tell(inout_flag + 1);
  }
  if (warp == 2 && lane == 0) {
    await(inout_flag + 1);
    atomicAdd(inout_x, 1);
  }
}""",
        "",
    )
    launch(text, 0)
    broken = text.replace("await(inout_flag + 1);", "while (atomicAdd(inout_flag + 1, 0) == 0) {}")
    assert broken != text
    must_race(broken, r"race: writes inout_x \+ 0, written by block 0 warp 0 lane 0")


def test_an_earlier_read_by_another_lane() -> None:
    """Lane 0 reads, lane 1 reads at a later time and tells: nobody knows of lane 0's."""
    text = kernel(
        """
  if (warp == 1 && lane == 0) {
    out_y[0] = s[1];
    FIRST;
  }
  if (warp == 1)
    __shfl_sync(0xffffffffu, 0, 0);
  if (warp == 1 && lane == 1) {
    out_y[1] = s[1];
    tell(inout_flag + 2);
  }
  if (threadIdx.x == 0) {
    await(inout_flag + 2);
    s[1] = 1;
  }
}""",
        "",
    )
    launch(text.replace("FIRST", "").replace("__shfl_sync(0xffffffffu, 0, 0)", "__syncwarp()"), 0)
    for first in ("", "tell(inout_flag + 1)"):
        must_race(text.replace("FIRST", first), r"race: writes static shared memory s \+ 4, read by warp 1")


def test_a_flag_that_is_written_plainly() -> None:
    """A reader by an atomic is one as well; to a plain reader it does nothing."""
    text = kernel(
        """
  if (threadIdx.x == 32) {
    await(inout_flag);
    tell(inout_flag + 1);
  }
  if (threadIdx.x == 0) {
    out_y[0] = inout_flag[0];
    tell(inout_flag);
    await(inout_flag + 1);
    inout_flag[0] = 0;
  }
}""",
        "",
    )
    launch(text, 0)
    with pytest.raises(EmulatorError) as error:
        launch(text.replace("    await(inout_flag + 1);\n", ""), 3)
    assert re.search(r"race: .* inout_flag \+ 0", str(error.value))


def test_readers_of_several_blocks() -> None:
    """The last one that ends may write what all have read, if it knows that they have."""
    text = """
extern "C" __global__ void kernel(int *inout_count, int *inout_x, int *out_y, int blocks) {
  out_y[blockIdx.x * 32 + threadIdx.x] = inout_x[0];
  __syncwarp();
  if (threadIdx.x == 0)
    store_release(inout_count + blockIdx.x, 1);
  if (blockIdx.x == blocks - 1 && threadIdx.x == 0) {
    for (int i = 0; i < blocks; i++)
      while (load_acquire(inout_count + i) != 1) {}
    inout_x[0] = 1;
  }
}"""

    def launch_blocks(text: str) -> None:
        # the flags, what is read, the results
        run(text, *(np.zeros(n, np.int32) for n in (8, 4, 128)), 4, grid=4, settings=Settings(0, resident=1))

    launch_blocks(text)
    for missing in range(3):
        broken = text.replace("      while", f"      if (i != {missing}) while")
        assert broken != text
        with pytest.raises(EmulatorError, match=rf"race: writes inout_x \+ 0, read by block {missing} warp 0"):
            launch_blocks(broken)


@pytest.mark.parametrize("memory", ["s", "inout_x"])
def test_lanes_that_write_the_same(memory: str) -> None:
    """What is written does not matter, nor that it is one instruction of one warp: see docs/emulator.md."""
    use = "if (warp == 1 && lane < 2) MEMORY[0] = 7;\n  __syncthreads();\n  out_y[threadIdx.x] = MEMORY[0];\n}"
    text = kernel(use, memory)
    must_race(text, r"race: writes .* written by block 0 warp 1 lane [01] at small")
    launch(text.replace("lane < 2", "lane < 1"), 0)
