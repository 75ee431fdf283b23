"""Tensors of attention for the emulator: any strides, every byte known, and what a right result is."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emulator.machine import Memory, lonely

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST = {"fp32": 2.0**-126, "fp16": 2.0**-24, "bf16": 2.0**-126}
LAYOUTS = (
    *("contiguous", "bshd", "odd", "odd_batch", "odd_head", "odd_row", "offset", "columns", "reversed"),
    *("even", "padded", "huge", "far_rows", "expanded"),
)


class FaTensor(ctypes.Structure):
    """struct fa_tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride_batch", ctypes.c_longlong),
        ("stride_head", ctypes.c_longlong),
        ("stride_row", ctypes.c_longlong),
        ("stride_col", ctypes.c_longlong),
    )


@dataclass
class Strided:
    """A (batch, heads, seqlen, head_dim) view of memory in which everything else is NaN and not to be touched."""

    tensor: Tensor
    memory: list[Memory]

    def struct(self) -> FaTensor:
        return FaTensor(self.tensor.data_ptr(), *self.tensor.stride())


def strides(shape: tuple[int, int, int, int], layout: str) -> tuple[tuple[int, ...], int]:
    """Strides in elements, and where the tensor begins."""
    _, h, s, d = shape
    if layout == "contiguous":
        return (h * s * d, s * d, d, 1), 0
    if layout == "bshd":
        return (s * h * d, d, h * d, 1), 0
    if layout == "odd":  # nothing is aligned to more than an element
        return (h * (s * (d + 3) + 1) + 5, s * (d + 3) + 1, d + 3, 1), 0
    if layout == "odd_batch":  # all but one stride are aligned
        return (h * s * d + 1, s * d, d, 1), 0
    if layout == "odd_head":
        return ((h * (s * d + 1) + 7) // 8 * 8, s * d + 1, d, 1), 0
    if layout == "odd_row":
        return (h * s * (d + 1) * 8, s * (d + 1) * 8, d + 1, 1), 0
    if layout == "offset":  # aligned strides, unaligned base
        return (h * s * (d + 8), s * (d + 8), d + 8, 1), 1
    if layout == "columns":  # neighbours in a row are apart
        return (h * s * d * 2, s * d * 2, d * 2, 2), 0
    if layout == "reversed":  # rows along the fastest dimension
        return (h * d * s, d * s, 1, s), 0
    if layout == "even":  # two elements are aligned, eight are not
        width = d + d % 2 + 2
        return (h * s * width, s * width, width, 1), 0
    if layout == "padded":  # aligned to 16 bytes, with gaps
        width = (d + 7) // 8 * 8 + 8
        return (h * s * width, s * width, width, 1), 0
    if layout == "expanded":  # one head for all
        return (s * d, 0, d, 1), 0
    if layout == "huge":  # more than 2^31 elements between the rows of a head, and between heads
        step = 2**32 // max(s - 1, 1) // 8 * 8 + 8
        return (h * s * step, s * step, step, 1), 0
    if layout == "far_rows":  # 8 rows reach past 2^31 elements, whatever their number
        return (h * s * 2**28, s * 2**28, 2**28, 1), 0
    raise ValueError(f"layout is {layout!r}; it must be one of {LAYOUTS}")


def expand(name: str, values: Tensor) -> Tensor:
    """What an expanded tensor can hold: one head, and of grad_output one number, as sum().backward() makes it."""
    return values[:1, :1, :1, :1].expand_as(values) if name == "grad_output" else values[:, :1].expand_as(values)


def make(
    name: str, shape: tuple[int, int, int, int], dtype: str, layout: str, values: Tensor | None, writable: bool = False
) -> Strided:
    """A tensor with these values (None: not written yet)."""
    if layout == "expanded":
        if values is None or writable:
            layout = "contiguous"
        else:
            values = expand(name, values)
    stride, offset = strides(shape, layout)
    if layout == "expanded" and name == "grad_output":
        stride = (0, 0, 0, 0)
    if layout in ("huge", "far_rows"):
        return _make_huge(name, shape, dtype, stride, values, writable)
    used = all(shape)
    count = offset + (sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if used else 0)
    size = 4 if dtype == "fp32" else 2
    data = lonely(max(count, 1) * size)
    flat = torch.from_numpy(data).view(TORCH[dtype])
    view = flat.as_strided(shape, stride, offset)
    state = torch.full((max(count, 1),), 2, dtype=torch.uint8)
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in stride)
    state.as_strided(shape, stride, offset)[once].fill_(0 if values is None else 1)
    if values is not None:
        view[once].copy_(values[once])
    cells = state.repeat_interleave(size // 2).numpy()
    return Strided(view, [Memory(name, data, writable, cells)])


def _make_huge(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: str,
    stride: tuple[int, ...],
    values: Tensor | None,
    writable: bool,
) -> Strided:
    """Address space without memory behind it, but where the rows are: each row is a memory of its own."""
    size = 4 if dtype == "fp32" else 2
    space = mmap.mmap(-1, (shape[0] * stride[0]) * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    data = np.frombuffer(space, np.uint8)  # 0x4000 is MAP_NORESERVE
    view = torch.from_numpy(data).view(TORCH[dtype]).as_strided(shape, stride)
    if values is not None:
        view.copy_(values)
    memory = []
    for index in itertools.product(*map(range, shape[:3])):
        start = sum(i * step for i, step in zip(index, stride, strict=False)) * size
        state = np.full(shape[3] * size // 2, 0 if values is None else 1, np.uint8)
        memory.append(Memory(name, data[start : start + shape[3] * size], writable, state))
    return Strided(view, memory)


def describe_wrong(name: str, actual: Tensor, expected: Tensor, wrong: Tensor) -> str:
    """Where the wrong elements are, and the first few."""
    places = wrong.nonzero()
    lines = [f"{name}: {len(places)} of {wrong.numel()} elements are wrong"]
    for axis, what in enumerate(("batch", "head", "row", "column")):
        lines.append(f"    {what}: {_ranges(sorted(set(places[:, axis].tolist())))} of {wrong.shape[axis]}")
    for place in places[:4].tolist():
        a, e = actual[tuple(place)].item(), expected[tuple(place)].item()
        lines.append(f"    {name}{place} is {a:.8g}, must be {e:.8g}")
    return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    parts: list[str] = []
    start = previous = None
    for n in [*numbers, None]:
        if previous is not None and n != previous + 1:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = n
        elif start is None:
            start = n
        previous = n
    return ", ".join(parts[:12]) + (", ..." if len(parts) > 12 else "")
