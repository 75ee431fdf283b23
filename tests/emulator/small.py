"""Small kernels for the tests of the emulator itself."""

from __future__ import annotations

import ctypes
import re
from functools import cache

import numpy as np

from emulator.machine import Kernel, Memory, Settings, lonely
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


def run(
    body: str,
    *arguments: np.ndarray | int,
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
    dtype: str = "fp16",
    settings: Settings = DEFAULT,
) -> None:
    """Run `kernel` of this text behind ptx.h: one block of one warp unless more is asked for.

    Its parameters are ints and pointers to arrays: in_... is only read, out_... is unwritten, inout_... is both.
    """
    source = f'{ptx(dtype)}\n#line 1 "small.cu"\n{body.strip()}\n'
    parameters = body[body.index("kernel(") :]
    names = re.findall(r"\b(\w+)\s*[,)]", parameters[: parameters.index("{")])
    memory: list[Memory] = []
    values: list[ctypes._SimpleCData] = []
    for name, argument in zip(names, arguments, strict=True):
        if isinstance(argument, np.ndarray):
            cells = (argument.nbytes + 1) // 2
            state = np.full(cells, 0 if name.startswith("out_") else 1, np.uint8)
            copy = lonely(argument.nbytes)
            copy[:] = np.ascontiguousarray(argument).reshape(-1).view(np.uint8)
            memory.append(Memory(name, copy, not name.startswith("in_"), state))
            values.append(ctypes.c_void_p(copy.ctypes.data))
        else:
            values.append(ctypes.c_int(argument))
    Kernel(source).launch("kernel", grid, block, shared, values, memory, settings)
    for m, argument in zip(memory, (a for a in arguments if isinstance(a, np.ndarray)), strict=True):
        if m.writable:
            argument[...] = m.array.view(argument.dtype).reshape(argument.shape)
