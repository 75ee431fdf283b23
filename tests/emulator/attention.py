"""Attention through the emulator: render, compile, run the phases, hold against float64."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emulator import data, tensors
from emulator.machine import EmulatorError, Kernel, Memory, Session, Settings, lonely
from emulator.tensor_map import encode
from emulator.tensors import FaTensor, Strided
from flash_attention import _native


class FaShape(ctypes.Structure):
    """fa_shape."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k"))


# What an op's source is changed to before it is compiled: (op, source) -> source.
Change = Callable[[str, str], str]

TENSORS = ("query", "key", "value", "output", "grad_output", "grad_query", "grad_key", "grad_value")


class FaParams(ctypes.Structure):
    """struct fa_params."""

    _fields_ = (
        *((name, FaTensor) for name in TENSORS),
        ("lse", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        *((name, ctypes.c_longlong) for name in ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k")),
        ("softmax_scale", ctypes.c_double),
        ("num_splits", ctypes.c_longlong),
    )


@dataclass(frozen=True)
class Case:
    """One call of attention."""

    op: str = "forward"
    dtype: str = "fp16"
    head_dim: int = 64
    head_dim_v: int = 0  # 0: as head_dim
    causal: bool = False
    deterministic: bool = False
    precision: str = "full"  # of fp32: full, reduced
    batch: int = 1
    heads_q: int = 2
    heads_kv: int = 0  # 0: as heads_q
    seqlen_q: int = 128
    seqlen_k: int = 0  # 0: as seqlen_q
    scale: float = math.nan  # NaN: 1 / sqrt(head_dim)
    layout: str = "contiguous"
    target: str = "cuda:sm_80"
    config: str = ""
    processors: int = 2  # blocks of threads of a persistent kernel
    without: tuple[str, ...] = ()  # gradients (or "lse") that are not wanted
    data: str = "normal"  # one of data.DATA
    data_seed: int = 1
    settings: Settings = field(default_factory=Settings)

    def used_precision(self) -> str:
        """As the runtime has it: lower is that of forward alone, where nobody wants statistics of rows."""
        return self.precision if self.op == "forward" and "lse" in self.without else "full"

    def filled(self) -> Case:
        return replace(
            self,
            head_dim_v=self.head_dim_v or self.head_dim,
            heads_kv=self.heads_kv or self.heads_q,
            seqlen_k=self.seqlen_k or self.seqlen_q,
            scale=1 / math.sqrt(self.head_dim) if math.isnan(self.scale) else self.scale,
        )


@dataclass(frozen=True)
class Plan:
    """What fa_plan_text says."""

    num_splits: int
    workspace_bytes: int
    phases: tuple[tuple[str, int, int, int], ...]  # entry, block size, shared bytes, grid
    maps: tuple[tuple[str, int, int], ...] = ()  # tensor, columns, rows of a box: what is read by TMA


def plan(case: Case, op: str) -> Plan:
    shape = FaShape(case.batch, case.heads_q, case.heads_kv, case.seqlen_q, case.seqlen_k)
    text = ctypes.c_void_p()
    arguments = [ctypes.byref(problem(case, op)), config(case, op), ctypes.byref(shape), ctypes.byref(text)]
    _native.call("fa_plan_text", *arguments)
    words = [line.split() for line in _native.take_text(text).splitlines()]
    numbers = {w[0]: int(w[1]) for w in words if w[0] not in ("phase", "map")}
    phases = tuple(
        (w[1], int(w[2]), int(w[3]), min(int(w[4]), case.processors) if w[5] == "1" else int(w[4]))
        for w in words
        if w[0] == "phase"
    )
    maps = tuple((w[1], int(w[2]), int(w[3])) for w in words if w[0] == "map")
    return Plan(numbers["num_splits"], numbers["workspace_bytes"], phases, maps)


def problem(case: Case, op: str) -> _native.Problem:
    dims = case.head_dim, case.head_dim_v
    return _native.problem(op, case.dtype, *dims, case.causal, case.target, case.deterministic, case.used_precision())


def config(case: Case, op: str) -> bytes:
    """The config is the op's under test; what it needs before runs with its best guess."""
    return case.config.encode() if op == case.op else b""


def source(case: Case, op: str) -> str:
    return _native.source(problem(case, op), config(case, op).decode())[0]


def unchanged(op: str, text: str) -> str:
    return text


def _is_mapped(tensor: FaTensor, sizes: tuple[int, ...]) -> bool:
    """Can a tensor map describe it? As runtime/cuda_maps.c has it."""
    strides = (tensor.stride_batch, tensor.stride_head, tensor.stride_row)
    fits = all(n <= 1 or (0 < 2 * s < 2**40 and s % 8 == 0) for n, s in zip(sizes[:3], strides, strict=True))
    return tensor.data % 16 == 0 and tensor.stride_col == 1 and fits


def fitted(case: Case, inputs: dict[str, Strided], shapes: dict[str, tuple[int, ...]]) -> Case:
    """The case for the target whose kernels take such tensors, as the runtime chooses it."""
    if not plan(case, "forward").maps:
        return case
    mapped = all(_is_mapped(tensor.struct(), shapes[name]) for name, tensor in inputs.items())
    return case if mapped else replace(case, target=case.target.rstrip("a"))


# What a tensor map is made of: address, dtype, sizes, strides in bytes, box, swizzle.
MapFields = tuple[int, str, tuple[int, ...], list[int], tuple[int, ...], int]


def map_fields(case: Case, name: str, tensor: FaTensor, cols: int, rows: int) -> MapFields:
    """What the runtime encodes for a launch (runtime/cuda_maps.c): boxes of 64 columns, swizzled."""
    seqlen, heads = (
        (case.seqlen_q, case.heads_q) if name in ("query", "grad_output") else (case.seqlen_k, case.heads_kv)
    )
    sizes = (cols, seqlen, heads, case.batch)
    strides = (tensor.stride_row, tensor.stride_head, tensor.stride_batch)
    in_bytes = [16 if size <= 1 else 2 * stride for size, stride in zip(sizes[1:], strides, strict=True)]
    return tensor.data, case.dtype, sizes, in_bytes, (64, rows, 1, 1), 128


def run_op(case: Case, op: str, memory: dict[str, Strided], lse: Memory | None, change: Change) -> list[str]:
    """Run the phases of one op; returns what it left unwritten."""
    p = plan(case, op)
    kernel = Kernel(change(op, source(case, op)))
    workspace = Memory("workspace", lonely(p.workspace_bytes), True)
    session = Session([m for s in memory.values() for m in s.memory] + [m for m in (lse, workspace) if m])
    params = FaParams(
        **{name: s.struct() for name, s in memory.items()},
        lse=lse.array.ctypes.data if lse else None,
        workspace=workspace.array.ctypes.data if p.workspace_bytes else None,
        softmax_scale=case.scale,
        num_splits=p.num_splits,
        **{name: getattr(case, name) for name in ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k")},
    )
    maps = (encode(*map_fields(case, name, memory[name].struct(), *box)) for name, *box in p.maps)
    arguments = [params, *maps]
    for entry, block, shared, grid in p.phases:
        if grid:
            session.launch(kernel, entry, grid, block, shared, arguments, case.settings)
    results = [n for n, s in memory.items() if s.memory[0].writable] + (["lse"] if lse and lse.writable else [])
    return [f"{name}: {session.unwritten(name)} bytes are not written" for name in results if session.unwritten(name)]


def run_given(case: Case, op: str, read: dict[str, Tensor], written: dict[str, Tensor]) -> None:
    """Run one op on contiguous tensors; those in `written` have its results. `lse` (flat, fp32) is among them.

    Raises EmulatorError with what was found.
    """
    memory: dict[str, Strided] = {}
    for name, tensor in (*read.items(), *written.items()):
        if name != "lse":
            new = name in written
            values = None if new else tensor
            memory[name] = tensors.make(name, tuple(tensor.shape), case.dtype, "contiguous", values, new)
    given = read.get("lse", written.get("lse"))
    lse = None if given is None else Memory("lse", lonely(given.nbytes), "lse" in written)
    if lse and "lse" in read:
        lse.array[:] = read["lse"].contiguous().view(torch.uint8).numpy()
    if problems := run_op(case, op, memory, lse, unchanged):
        raise EmulatorError("\n".join(problems))
    for name, tensor in written.items():
        found = torch.from_numpy(lse.array).view(torch.float32) if lse and name == "lse" else memory[name].tensor
        tensor.copy_(found)


def emulate(case: Case, change: Change = unchanged) -> dict[str, Tensor]:
    """Run one call and check it: raises EmulatorError with what is wrong, returns the results."""
    case = case.filled()
    shapes, values = data.shapes(case), data.values(case)
    expected = data.results(case, values)
    inputs = {n: tensors.make(n, shapes[n], case.dtype, case.layout, values[n]) for n in ("query", "key", "value")}
    output = tensors.make("output", shapes["grad_output"], case.dtype, case.layout, None, True)
    lse = None
    if case.op == "backward" or "lse" not in case.without:
        lse = Memory("lse", lonely(case.batch * case.heads_q * case.seqlen_q * 8), True)
    of_forward = fitted(case, inputs, shapes)
    problems = run_op(of_forward, "forward", {**inputs, "output": output}, lse, change)
    results = {"output": output.tensor}
    if lse and case.seqlen_k:
        statistics = torch.from_numpy(lse.array).view(torch.float32).view(case.batch, case.heads_q, case.seqlen_q, 2)
        problems += data.check_statistics(case, values, statistics)
    if case.op == "backward" and lse:
        given = dict(inputs)
        for name, tensor in (("output", output.tensor), ("grad_output", values["grad_output"])):
            given[name] = tensors.make(name, shapes["grad_output"], case.dtype, case.layout, tensor)
        wanted = {
            f"grad_{n}": tensors.make(f"grad_{n}", shapes[n], case.dtype, case.layout, None, True)
            for n in ("query", "key", "value")
            if f"grad_{n}" not in case.without
        }
        mapped = {name: x for name, x in given.items() if name != "output"}
        of_backward = fitted(case, mapped, shapes)
        problems += run_op(of_backward, "backward", {**given, **wanted}, Memory("lse", lse.array), change)
        results.update({name: s.tensor for name, s in wanted.items()})
    problems += data.check(case, values, results, expected)
    if problems:
        raise EmulatorError("\n".join(problems))
    return {name: t.clone() for name, t in results.items()}
