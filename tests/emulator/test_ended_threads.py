"""__syncthreads waits for the threads of the block that have not ended, and for all of those."""

from __future__ import annotations

import numpy as np
import pytest

from emulator.machine import EmulatorError, Settings
from emulator.small import run

# The first `count` threads reverse their numbers; the others end before they come to a barrier, at once or when a
# thread that is about to wait has told them.
TEXT = """
extern "C" __global__ void kernel(int *inout_flag, int *out_x, int count) {
  __shared__ int x[128], written;
  int i = threadIdx.x;
  if (i >= count) {
    WAIT
    return;
  }
  x[i] = i;
  if (i == 0)
    store_release(inout_flag, 1);
  int came = __syncthreads_count(i % 2);
  out_x[i] = 1000 * came + x[count - 1 - i];
  __syncthreads();
  x[i] = 0;
}"""
COUNTS = [1, 32, 40, 64, 127, 128]


def launch(text: str, count: int, settings: Settings) -> np.ndarray:
    out = np.zeros(128, np.int32)
    run(text, np.zeros(1, np.int32), out, count, block=128, settings=settings)
    return out[:count]


@pytest.mark.parametrize("wait", ["", "while (load_acquire(inout_flag) != 1) {}"])
@pytest.mark.parametrize("count", COUNTS)
def test_those_that_have_ended_are_not_waited_for(count: int, wait: str) -> None:
    """Whole warps and some lanes of one, before the others wait and while they do."""
    for seed in range(4):
        result = launch(TEXT.replace("WAIT", wait), count, Settings(seed))
        np.testing.assert_array_equal(result, 1000 * (count // 2) + count - 1 - np.arange(count))


def test_those_that_have_not_ended_are() -> None:
    """A warp that does something else, forever; the list says how many could still come."""
    wait = "if (i < 96) while (load_acquire(inout_flag) != 2) {}"
    with pytest.raises(EmulatorError, match=r"deadlock: (.|\n)*\(barrier 0, where 64 of 96 threads are\)"):
        launch(TEXT.replace("WAIT", wait), 64, Settings(1))


def test_what_those_did_is_not_known() -> None:
    """Only who comes to a barrier tells of what it did before."""
    text = TEXT.replace("WAIT", "if (i == 127) written = 1;").replace("x[i] = 0", "x[i] = written")
    with pytest.raises(EmulatorError, match=r"race: (reads|writes) static shared memory written \+ 0"):
        launch(text, 64, Settings(0))
