"""Instructions that are .aligned are the same one for all lanes of a warp, wgmma and setmaxnreg for a warpgroup."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emulator.machine import EmulatorError, Settings
from emulator.small import run

TEXT = """
extern "C" __global__ void __launch_bounds__(128) kernel(float *out_x, int mode) {
  extern __shared__ __align__(1024) unsigned char shared[];
  u32 at = shared_address(shared), a[4] = {}, b[4] = {};
  float c[8] = {}, d[4] = {};
  for (int i = threadIdx.x; i < 1024; i += 128)
    ((u32 *)shared)[i] = 0;
  fence_async_shared();
  __syncthreads();
  u32 row = at + threadIdx.x * 16;
  unsigned long long left = matrix_descriptor(at, 128, 256, 0), right = matrix_descriptor(at + 2048, 128, 256, 0);
  bool first = mode == 1 ? threadIdx.x % 32 < 16 : mode == 2 ? threadIdx.x < 64 : true;
  wgmma_fence();
  if (first) {
    ONE;
    out_x[threadIdx.x] = 1;
  } else {
    out_x[threadIdx.x] = 2;
    OTHER;
  }
  wgmma_commit();
  wgmma_wait<0>();
  out_x[128 + threadIdx.x] = c[0] + d[0] + a[0] + b[0];
}"""

OF_A_WARP = {
    "ldmatrix": ("ldmatrix_x4(a, row)", "ldmatrix_x4(b, row)"),
    "stmatrix": ("stmatrix_x4(row, a)", "stmatrix_x4(row, b)"),
    "mma": ("mma_m16n8k16(d, a, 1, 2)", "mma_m16n8k16(d, b, 2, 3)"),
    "mma of 8 terms": ("mma_m16n8k8(d, 1, 2, 3)", "mma_m16n8k8(d, 3, 2, 1)"),
    "__syncthreads": ("__syncthreads()", "__syncthreads()"),
    "a named barrier": ("named_barrier_wait(1, 128)", "named_barrier_wait(1, 128)"),
    "wgmma_fence": ("wgmma_fence()", "wgmma_fence()"),
    "wgmma_commit": ("wgmma_commit()", "wgmma_commit()"),
    "wgmma_wait": ("wgmma_wait<0>()", "wgmma_wait<0>()"),
    "setmaxnreg": ("registers_decrease<128>()", "registers_decrease<128>()"),
    "wgmma": ("wgmma_m64n16k16<0, 0>(c, left, right, 1)", "wgmma_m64n16k16<0, 0>(c, left, right, 1)"),
}


def launch(name: str, mode: int, other: str | None = None) -> None:
    one, same = OF_A_WARP[name]
    text = TEXT.replace("ONE", one).replace("OTHER", same if other is None else other)
    run(text, np.zeros(256, np.float32), mode, block=128, shared=4096, widths=(16,), settings=Settings(1))


@pytest.mark.parametrize("name", OF_A_WARP)
def test_lanes_at_different_instructions(name: str) -> None:
    launch(name, 0)
    with pytest.raises(EmulatorError) as error:
        launch(name, 1)
    place = r"^(small|ptx|hopper|wgmma)\.(cu|h):\d+ \(.*"
    assert re.search(
        rf"{place}{name}: lane \d+ of the warp is at another one, at small\.cu:1[48] ", str(error.value), re.MULTILINE
    ), error.value


@pytest.mark.parametrize("name", OF_A_WARP)
def test_only_some_lanes(name: str) -> None:
    """The others never come."""
    with pytest.raises(EmulatorError, match=r"deadlock: all threads wait(.|\n)*waits for"):
        launch(name, 1, other="return")


@pytest.mark.parametrize("name", ["wgmma", "setmaxnreg"])
def test_warps_of_a_warpgroup_at_different_instructions(name: str) -> None:
    with pytest.raises(EmulatorError, match=r"wgmma: another warp of the warpgroup|setmaxnreg: warp . has executed 1,"):
        launch(name, 2)


@pytest.mark.parametrize("name", ["ldmatrix", "mma", "__syncthreads", "a named barrier", "wgmma_fence"])
def test_warps_may_differ(name: str) -> None:
    launch(name, 2)
