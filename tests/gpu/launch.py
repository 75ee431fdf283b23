"""One launch of any CUDA kernel, described so that it runs on a GPU (driver.py) and in the emulator alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flash_attention import _native

# Of a tensor map's elements: numpy has no bf16, whose bits are in an array of uint16.
ELEMENT_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass
class Array:
    """A pointer argument. role: "in" is only read, "out" is unwritten before, "inout" is both."""

    name: str
    values: np.ndarray  # C-contiguous; what the kernel wrote is there after the launch
    role: str = "in"


@dataclass
class TensorMap:
    """An argument `const __grid_constant__ tensor_map`: the rows of a two-dimensional array, zeros around them.

    `sizes` are the columns and rows that exist; the array may be wider (its row is the stride between rows).
    """

    array: Array
    dtype: str
    sizes: tuple[int, int]
    box: tuple[int, int]  # columns, rows
    swizzle: int = 128  # bytes: 0, 32, 64 or 128

    @property
    def row_bytes(self) -> int:
        return self.array.values.strides[0]


@dataclass
class Launch:
    """`source` is CUDA text, all of its includes expanded."""

    source: str
    entry: str
    grid: int
    block: int
    shared_bytes: int
    arguments: list[Array | TensorMap | int] = field(default_factory=list)
    target: str = "cuda:sm_90a"

    def arrays(self) -> list[Array]:
        """Each once, those of tensor maps too."""
        found: dict[int, Array] = {}
        for argument in self.arguments:
            array = argument.array if isinstance(argument, TensorMap) else argument
            if isinstance(array, Array):
                found[id(array)] = array
        return list(found.values())


def expand(*templates: str, **constants: int | str) -> str:
    """These templates one behind the other, as ptx.h, hopper.h and wgmma.h are at the head of a kernel."""
    known: dict[str, set[str]] = {
        "cuda/ptx.h": {"op", "dtype_16", "vector_reduce"},
        "cuda/hopper.h": set(),
        "cuda/wgmma.h": {"dtype_16", "wgmma_n"},
    }
    texts = []
    for name in templates:
        read = {key: value for key, value in constants.items() if name not in known or key in known[name]}
        texts.append(_native.expand(name, read))
    return "".join(texts)
