"""Launches as tests/gpu/launch.py describes them, in the emulator."""

from __future__ import annotations

import ctypes

import numpy as np

from emulator import tensor_map
from emulator.machine import Kernel, Memory, Settings, lonely
from gpu.launch import Array, Launch, TensorMap

DEFAULT = Settings()
STATES = {"in": 1, "out": 0, "inout": 1}  # of memory: written or not


def _memory(array: Array) -> Memory:
    copy = lonely(array.values.nbytes)
    if array.role != "out":
        copy[:] = np.ascontiguousarray(array.values).reshape(-1).view(np.uint8)
    state = np.full((array.values.nbytes + 1) // 2, STATES[array.role], np.uint8)
    return Memory(array.name, copy, array.role != "in", state)


def _encode(tensor: TensorMap, address: int) -> tensor_map.TensorMap:
    return tensor_map.encode(address, tensor.dtype, tensor.sizes, [tensor.row_bytes], tensor.box, tensor.swizzle)


def run(launch: Launch, settings: Settings = DEFAULT) -> None:
    """Run it; arrays that are not only read hold what the kernel wrote. Raises EmulatorError with what was found."""
    memory = {id(array): _memory(array) for array in launch.arrays()}
    arguments: list[ctypes._SimpleCData | ctypes.Structure] = []
    for argument in launch.arguments:
        if isinstance(argument, TensorMap):
            arguments.append(_encode(argument, memory[id(argument.array)].array.ctypes.data))
        elif isinstance(argument, Array):
            arguments.append(ctypes.c_void_p(memory[id(argument)].array.ctypes.data))
        else:
            arguments.append(ctypes.c_int(argument))
    kernel = Kernel(launch.source)
    size = launch.shared_bytes
    kernel.launch(launch.entry, launch.grid, launch.block, size, arguments, list(memory.values()), settings)
    for array in launch.arrays():
        if array.role != "in":
            array.values[...] = memory[id(array)].array.view(array.values.dtype).reshape(array.values.shape)
