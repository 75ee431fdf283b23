"""Small kernels for the tests of the emulator itself."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from emulator.machine import Kernel, Memory, Settings, lonely
from emulator.tensor_map import TensorMap, encode
from flash_attention import _native

DEFAULT = Settings()


@cache
def ptx(dtype: str = "fp16") -> str:
    """templates/cuda/ptx.h, expanded: cut out of a kernel."""
    source, _ = _native.source(_native.problem("backward", dtype, 64, 64, False, "cuda:sm_80", deterministic=True))
    start = re.search(r'^#line \d+ "cuda/ptx\.h"$', source, re.MULTILINE)
    assert start
    end = re.compile(r'^#line \d+ "(?!cuda/ptx\.h)', re.MULTILINE).search(source, start.end())
    assert end
    return source[start.start() : end.start()]


@cache
def hopper(dtype: str = "fp16", widths: tuple[int, ...] = ()) -> str:
    """templates/cuda/ptx.h and hopper.h, and wgmma.h for each width."""
    texts = [
        _native.expand("cuda/ptx.h", {"dtype_16": dtype, "op": "backward", "vector_reduce": 1}),
        _native.expand("cuda/hopper.h", {}),
    ]
    texts += [_native.expand("cuda/wgmma.h", {"dtype_16": dtype, "wgmma_n": n}) for n in widths]
    return "\n".join(texts)


@dataclass(frozen=True)
class Mapped:
    """An array that a kernel gets as a tensor map: contiguous, its last dimension the map's first."""

    array: np.ndarray
    dtype: str
    box: tuple[int, ...]
    swizzle: int = 0

    def encode(self, address: int) -> TensorMap:
        sizes, strides = self.array.shape[::-1], self.array.strides[-2::-1]
        return encode(address, self.dtype, sizes, strides, self.box, self.swizzle)


def run(
    body: str,
    *arguments: np.ndarray | int | Mapped,
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
    dtype: str = "fp16",
    settings: Settings = DEFAULT,
    widths: tuple[int, ...] | None = None,
    cluster: int = 1,
) -> None:
    """Run `kernel` of this text behind ptx.h: one block of one warp unless more is asked for.

    Its parameters are ints, and pointers to arrays or tensor maps of them: in_... is only read, out_... is unwritten,
    inout_... is both. With `widths` it has hopper.h too, and wgmma.h for each of them.
    """
    instructions = ptx(dtype) if widths is None else hopper(dtype, widths)
    source = f'{instructions}\n#line 1 "small.cu"\n{body.strip()}\n'
    parameters = body[body.index("kernel(") :]
    names = re.findall(r"\b(\w+)\s*[,)]", parameters[: parameters.index("{")])
    memory: list[Memory] = []
    values: list[ctypes._SimpleCData | ctypes.Structure] = []
    arrays = [a.array if isinstance(a, Mapped) else a for a in arguments]
    for name, given, argument in zip(names, arguments, arrays, strict=True):
        if isinstance(argument, np.ndarray):
            cells = (argument.nbytes + 1) // 2
            state = np.full(cells, 0 if name.startswith("out_") else 1, np.uint8)
            copy = lonely(argument.nbytes)
            copy[:] = np.ascontiguousarray(argument).reshape(-1).view(np.uint8)
            memory.append(Memory(name, copy, not name.startswith("in_"), state))
            address = copy.ctypes.data
            values.append(given.encode(address) if isinstance(given, Mapped) else ctypes.c_void_p(address))
        else:
            values.append(ctypes.c_int(argument))
    Kernel(source).launch("kernel", grid, block, shared, values, memory, settings, cluster)
    for m, argument in zip(memory, (a for a in arrays if isinstance(a, np.ndarray)), strict=True):
        if m.writable:
            argument[...] = m.array.view(argument.dtype).reshape(argument.shape)
