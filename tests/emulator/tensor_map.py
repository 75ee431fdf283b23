"""Tensor maps for the emulator: what cuTensorMapEncodeTiled makes of a tensor, with the driver's rules."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

MAGIC = 0x54534E54
TYPES = {"fp16": (0, 2), "bf16": (1, 2), "fp32": (2, 4)}  # number in tensor_core.h, bytes
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # bytes: number in tensor_map.h


class TensorMap(ctypes.Structure):
    """The 128 bytes that a kernel takes as `const __grid_constant__ tensor_map`; native/tensor_map.h has the layout."""

    _fields_ = (("words", ctypes.c_uint64 * 16),)


def _check(address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int], bytes_: int) -> None:
    rank = len(sizes)
    if not 1 <= rank <= 5 or len(strides) != rank - 1 or len(box) != rank:
        raise ValueError(f"{rank} sizes, {len(strides)} strides, a box of {len(box)}; 1 to 5, one less, and as many")
    if address % 16:
        raise ValueError("the tensor's address must be a multiple of 16")
    if not all(1 <= size <= 2**32 for size in sizes):
        raise ValueError(f"sizes {tuple(sizes)}; each must be 1 to 2^32")
    if not all(0 <= stride < 2**40 and stride % 16 == 0 for stride in strides):
        raise ValueError(f"strides {tuple(strides)} in bytes; each must be a multiple of 16 below 2^40")
    if not all(1 <= size <= 256 for size in box):
        raise ValueError(f"box {tuple(box)}; each size must be 1 to 256")
    if box[0] * bytes_ % 16:
        raise ValueError(f"the box has {box[0] * bytes_} bytes along the first dimension; it must be a multiple of 16")


def encode(
    address: int, dtype: str, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int], swizzle: int = 0
) -> TensorMap:
    """A map of a tensor at `address` (rank 1 to 5).

    sizes and box count elements, the dimension whose elements are neighbours first; strides are the bytes between
    elements along the others. swizzle: 0, 32, 64 or 128 bytes. Raises ValueError for what the driver does not take.
    """
    number, bytes_ = TYPES[dtype]
    _check(address, sizes, strides, box, bytes_)
    if swizzle not in SWIZZLES:
        raise ValueError(f"swizzle is {swizzle}; it must be 0, 32, 64 or 128 bytes")
    if swizzle and box[0] * bytes_ > swizzle:
        raise ValueError(f"the box has {box[0] * bytes_} bytes along the first dimension, the swizzle only {swizzle}")
    if math.prod(box) * bytes_ > 232448:
        raise ValueError(f"the box has {math.prod(box) * bytes_} bytes, more than shared memory has")
    rank = len(sizes)
    words = [MAGIC | rank << 32 | number << 40 | SWIZZLES[swizzle] << 48, address]
    words += [*sizes, *[1] * (5 - rank)]
    words += [*strides, *[0] * (5 - rank)]
    full = [*box, *[1] * (5 - rank)]
    words += [sum(size << 16 * i for i, size in enumerate(full[:4])), full[4], 0, 0]
    words.append(sum(words) % 2**64)
    # A kernel may take it from an address that is a multiple of 64.
    storage = ctypes.create_string_buffer(192)
    result = TensorMap.from_buffer(storage, -ctypes.addressof(storage) % 64)
    result.words[:] = words
    return result
