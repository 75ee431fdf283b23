"""Launches on a real GPU: the driver by ctypes, memory and context by PyTorch, NVRTC as the package calls it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flash_attention import _native
from gpu.launch import ELEMENT_BYTES, Array, Launch, TensorMap

# Numbers of cuda.h.
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...
ELEMENT_TYPES = {"fp16": 6, "fp32": 7, "bf16": 9}  # CU_TENSOR_MAP_DATA_TYPE_...
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # CU_TENSOR_MAP_SWIZZLE_...


def missing(target: str = "cuda:sm_90a") -> str:
    """Why kernels for this target do not run here; "" if they do."""
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    major, minor = torch.cuda.get_device_capability()
    exact, wanted = target.endswith("a"), int(target.removeprefix("cuda:sm_").rstrip("a"))
    have = 10 * major + minor
    if have < wanted or (exact and have != wanted):
        return f"the GPU is sm_{have}, not {target.removeprefix('cuda:')}"
    return ""


@functools.cache
def driver() -> ctypes.CDLL:
    torch.cuda.init()
    torch.empty(1, device="cuda")  # makes the primary context current
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver; raise what its CUresult stands for."""
    check(getattr(driver(), name)(*arguments), name)


def check(result: int, name: str) -> None:
    if result:
        text = ctypes.c_char_p()
        driver().cuGetErrorName(result, ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or str(result).encode()).decode()}")


def device_and_driver() -> str:
    version = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    name, major, minor = torch.cuda.get_device_name(), *torch.cuda.get_device_capability()
    return f"{name}, sm_{major}{minor}, CUDA driver API {version.value // 1000}.{version.value % 1000 // 10}"


@functools.cache
def _encoder() -> Any:
    """cuTensorMapEncodeTiled, found as programs are told to that also run with older drivers."""
    function, status = ctypes.c_void_p(), ctypes.c_int()
    find = driver().cuGetProcAddress_v2
    find.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p]
    check(find(b"cuTensorMapEncodeTiled", ctypes.byref(function), 12000, 0, ctypes.byref(status)), "cuGetProcAddress")
    if not function.value:
        raise RuntimeError("the driver has no cuTensorMapEncodeTiled")
    pointer, number = ctypes.c_void_p, ctypes.c_int
    types = [pointer, number, ctypes.c_uint, pointer, pointer, pointer, pointer, pointer, *[number] * 4]
    return ctypes.CFUNCTYPE(ctypes.c_int, *types)(function.value)


class _Words(ctypes.Structure):
    """CUtensorMap; 64 bytes of it are there to align the rest."""

    _fields_ = (("words", ctypes.c_uint64 * 24),)


def encode(
    address: int, dtype: str, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int], swizzle: int
) -> ctypes.Array:
    """The 128 bytes of a tensor map, aligned to 64; arguments are those of the emulator's encode (tensor_map.py)."""
    space, rank = _Words(), len(sizes)
    start = ctypes.addressof(space)
    words = (ctypes.c_uint64 * 16).from_buffer(space, -start % 64)
    result = _encoder()(
        *(ctypes.addressof(words), ELEMENT_TYPES[dtype], rank, address),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * max(rank - 1, 1))(*strides),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        *(0, SWIZZLES[swizzle], 2, 0),  # not interleaved; promoted to 128 bytes in L2; filled with zeros
    )
    check(result, "cuTensorMapEncodeTiled")
    return words


def _encode(tensor_map: TensorMap, address: int) -> ctypes.Array:
    if tensor_map.array.values.itemsize != ELEMENT_BYTES[tensor_map.dtype]:
        raise ValueError(f"{tensor_map.array.name} is not made of {tensor_map.dtype}")
    rows = [tensor_map.row_bytes]
    return encode(address, tensor_map.dtype, tensor_map.sizes, rows, tensor_map.box, tensor_map.swizzle)


def here(target: str) -> str:
    """What to compile for: a target with a suffix is one device's alone, any other stands for all newer ones."""
    major, minor = torch.cuda.get_device_capability()
    return target if target.endswith("a") else f"cuda:sm_{major}{minor}"


@functools.cache
def function(source: str, target: str, entry: str) -> ctypes.c_void_p:
    """Compiled and loaded, for the life of the process."""
    driver()
    image = _native.compile_source(here(target), source).image
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuModuleLoadData", ctypes.byref(module), image)
    call("cuModuleGetFunction", ctypes.byref(function), module, entry.encode())
    return function


def _upload(array: Array) -> torch.Tensor:
    """The array's bytes on the GPU; what the kernel has to write is NaN before."""
    if not array.values.flags.c_contiguous:
        raise ValueError(f"{array.name} is not contiguous")
    data = torch.from_numpy(array.values.reshape(-1).view(np.uint8).copy())
    return torch.full_like(data, 255, device="cuda") if array.role == "out" else data.cuda()


def launch_pointers(function: ctypes.c_void_p, grid: int, block: int, shared_bytes: int, arguments: list[Any]) -> None:
    """cuLaunchKernel on the current stream, waited for; arguments are ctypes objects."""
    call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    call("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, shared_bytes, stream, pointers, None)
    torch.cuda.synchronize()


def run(launch: Launch) -> None:
    """Run it; arrays that are not only read hold what the kernel wrote."""
    kernel = function(launch.source, launch.target, launch.entry)
    memory = {id(array): _upload(array) for array in launch.arrays()}
    arguments: list[Any] = []
    for argument in launch.arguments:
        if isinstance(argument, TensorMap):
            arguments.append(_encode(argument, memory[id(argument.array)].data_ptr()))
        elif isinstance(argument, Array):
            arguments.append(ctypes.c_void_p(memory[id(argument)].data_ptr()))
        else:
            arguments.append(ctypes.c_int(argument))
    launch_pointers(kernel, launch.grid, launch.block, launch.shared_bytes, arguments)
    for array in launch.arrays():
        if array.role != "in":
            written = memory[id(array)].cpu().numpy().view(array.values.dtype)
            array.values[...] = written.reshape(array.values.shape)
