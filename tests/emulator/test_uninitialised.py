"""A local variable that is used before it is set is said, with its line and its name."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emulator.machine import EmulatorError
from emulator.mutations import check_of
from emulator.small import run

TEXT = """
static __device__ __forceinline__ float sum_of(const float *x, int n) {
  float sum = 0;
  for (int i = 0; i < n; i++)
    sum += x[i];
  return sum;
}
extern "C" __global__ void kernel(const float *in_x, float *out_y, int n) {
  float scale = 1, parts[2];
  if (n > 3)
    scale = in_x[0];
  parts[0] = scale;
  parts[1] = sum_of(in_x, n);
  out_y[0] = parts[0] * parts[1];
}"""
UNSET = {
    "never": ("parts[0] = scale;", "", r"small\.cu:13 \(kernel\): the local variable parts is used before"),
    "on one way": ("scale = 1,", "scale,", r"small\.cu:13 \(kernel\): the local variable scale may be used before"),
    "before a loop": ("sum = 0;", "sum;", r"small\.cu:\d+ \(\w+\): the local variable sum may be used before"),
}


def launch(text: str) -> None:
    run(text, np.ones(8, np.float32), np.zeros(1, np.float32), 4, block=1)


@pytest.mark.parametrize("name", UNSET)
def test_use_before_it_is_set(name: str) -> None:
    old, new, finding = UNSET[name]
    assert old in TEXT
    launch(TEXT)
    with pytest.raises(EmulatorError) as error:
        launch(TEXT.replace(old, new))
    assert re.search(rf"^{finding} it is set$", str(error.value), re.MULTILINE), error.value
    assert check_of(str(error.value)) == "not written"


def test_an_element_of_an_array_is_a_number_that_shows() -> None:
    """Where an index is not known before, g++ says nothing; the element is a large number, always the same."""
    out = np.zeros(1, np.float32)
    text = TEXT.replace("parts[1] = sum_of(in_x, n);", "parts[n - 4] = 2;")
    run(text, np.ones(8, np.float32), out, 4, block=1)
    assert abs(out[0]) > 1e30
