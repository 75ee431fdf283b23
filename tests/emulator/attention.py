"""Attention through the emulator: render, compile, run the phases, hold against float64."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emulator import tensors
from emulator.machine import EmulatorError, Kernel, Memory, Session, Settings, lonely
from emulator.tensors import FaTensor, Strided
from flash_attention import _native
from reference import reference


class FaShape(ctypes.Structure):
    """fa_shape."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k"))


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


# What query and key are multiplied by. "integers": rounded to integers, so that scores are exact; "nan": a key is NaN.
DATA = {"normal": 1.0, "large": 8.0, "tiny": 2.0**-20, "zero": 0.0, "integers": 3.0, "nan": 1.0}


@dataclass(frozen=True)
class Case:
    """One call of attention."""

    op: str = "forward"
    dtype: str = "fp16"
    head_dim: int = 64
    head_dim_v: int = 0  # 0: as head_dim
    causal: bool = False
    deterministic: bool = False
    batch: int = 1
    heads_q: int = 2
    heads_kv: int = 0  # 0: as heads_q
    seqlen_q: int = 128
    seqlen_k: int = 0  # 0: as seqlen_q
    scale: float = math.nan  # NaN: 1 / sqrt(head_dim)
    layout: str = "contiguous"
    target: str = "cuda:sm_80"
    config: str = ""
    without: tuple[str, ...] = ()  # gradients (or "lse") that are not wanted
    data: str = "normal"  # one of DATA
    data_seed: int = 1
    settings: Settings = field(default_factory=Settings)

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


def plan(case: Case, op: str) -> Plan:
    shape = FaShape(case.batch, case.heads_q, case.heads_kv, case.seqlen_q, case.seqlen_k)
    text = ctypes.c_void_p()
    arguments = [ctypes.byref(problem(case, op)), config(case, op), ctypes.byref(shape), ctypes.byref(text)]
    _native.call("fa_plan_text", *arguments)
    words = [line.split() for line in _native.take_text(text).splitlines()]
    numbers = {w[0]: int(w[1]) for w in words if w[0] != "phase"}
    phases = tuple((w[1], int(w[2]), int(w[3]), int(w[4])) for w in words if w[0] == "phase")
    return Plan(numbers["num_splits"], numbers["workspace_bytes"], phases)


def problem(case: Case, op: str) -> _native.Problem:
    result = _native.problem(op, case.dtype, case.head_dim, case.head_dim_v, case.causal, case.target)
    result.deterministic = case.deterministic
    return result


def config(case: Case, op: str) -> bytes:
    """The config is the op's under test; what it needs before runs with its best guess."""
    return case.config.encode() if op == case.op else b""


def source(case: Case, op: str) -> str:
    return _native.source(problem(case, op), config(case, op).decode())[0]


def run_op(case: Case, op: str, memory: dict[str, Strided], lse: Memory | None) -> list[str]:
    """Run the phases of one op; returns what it left unwritten."""
    p = plan(case, op)
    kernel = Kernel(source(case, op))
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
    for entry, block, shared, grid in p.phases:
        if grid:
            session.launch(kernel, entry, grid, block, shared, [params], case.settings)
    results = [n for n, s in memory.items() if s.memory[0].writable] + (["lse"] if lse and lse.writable else [])
    return [f"{name}: {session.unwritten(name)} bytes are not written" for name in results if session.unwritten(name)]


def emulate(case: Case) -> dict[str, Tensor]:
    """Run one call and check it: raises EmulatorError with what is wrong, returns the results."""
    case = case.filled()
    torch.manual_seed(case.data_seed)
    b, hq, hk, sq, sk = case.batch, case.heads_q, case.heads_kv, case.seqlen_q, case.seqlen_k
    d, dv, dtype = case.head_dim, case.head_dim_v, tensors.TORCH[case.dtype]
    shapes = {"query": (b, hq, sq, d), "key": (b, hk, sk, d), "value": (b, hk, sk, dv), "grad_output": (b, hq, sq, dv)}
    values = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    if case.layout == "expanded":
        values = {name: tensors.expand(name, x) for name, x in values.items()}
    for name in ("query", "key"):
        values[name] = values[name] * DATA[case.data]
        if case.data == "integers":
            values[name] = values[name].round()
    if case.data == "nan" and sk:
        values["key"][:, :, sk // 2, 0] = math.nan
    expected = dict(
        zip(
            ("output", "grad_query", "grad_key", "grad_value"),
            reference(*values.values(), is_causal=case.causal, scale=case.scale),
            strict=True,
        )
    )
    inputs = {n: tensors.make(n, shapes[n], case.dtype, case.layout, values[n]) for n in ("query", "key", "value")}
    output = tensors.make("output", (b, hq, sq, dv), case.dtype, case.layout, None, True)
    lse = None if case.op == "forward" and "lse" in case.without else Memory("lse", lonely(b * hq * sq * 8), True)
    problems = run_op(case, "forward", {**inputs, "output": output}, lse)
    results = {"output": output.tensor}
    if case.op == "backward":
        if lse is None:
            raise ValueError("backward needs lse")
        given = {
            **inputs,
            "output": tensors.make("output", (b, hq, sq, dv), case.dtype, case.layout, output.tensor),
            "grad_output": tensors.make(
                "grad_output", shapes["grad_output"], case.dtype, case.layout, values["grad_output"]
            ),
        }
        wanted = {
            f"grad_{n}": tensors.make(f"grad_{n}", shapes[n], case.dtype, case.layout, None, True)
            for n in ("query", "key", "value")
            if f"grad_{n}" not in case.without
        }
        problems += run_op(case, "backward", {**given, **wanted}, Memory("lse", lse.array))
        results.update({name: s.tensor for name, s in wanted.items()})
    magnitudes = _magnitudes(case, values) if sk else expected
    for name, actual in results.items():
        problems += _check(case, name, actual, expected[name], magnitudes[name])
    if problems:
        raise EmulatorError("\n".join([str(case), *problems]))
    return {name: t.clone() for name, t in results.items()}


def _magnitudes(case: Case, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output and gradients with every term counted positive: what errors are in proportion to."""
    q, k, v, do = (x.double().nan_to_num() for x in values.values())
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * case.scale
    if case.causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    p = torch.softmax(scores, -1)
    # The error of a weight grows with the sizes of the products in its score, and small ones underflow in fp16.
    exact = case.data == "integers" and abs(case.scale) > 1e3  # and weights are 1 or 0
    per_score = 0.0 if exact else 2.0**-24 / tensors.ROUNDING[case.dtype]
    floor = 2.0**-100 if case.dtype == "bf16" else 2.0**-13
    p = p * (1 + per_score * (q.abs() @ k.abs().mT * abs(case.scale))) + (p > 0) * floor
    ds = p * (do.abs() @ v.abs().mT + (do.abs() * (p @ v.abs())).sum(-1, keepdim=True)) * abs(case.scale)
    dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (ds.mT @ q.abs(), p.mT @ do.abs()))
    return {"output": p @ v.abs(), "grad_query": ds @ k.abs(), "grad_key": dk, "grad_value": dv}


def _check(case: Case, name: str, actual: Tensor, expected: Tensor, magnitude: Tensor) -> list[str]:
    """Coarser than the tests of accuracy on a device: this finds wrong elements, not lost bits."""
    units = 2 if case.dtype != "fp32" else 2 * (1 + case.settings.exp2_error)
    bound = tensors.ROUNDING[case.dtype] * (expected.abs() + units * magnitude) + tensors.SMALLEST[case.dtype]
    same = (actual == expected.to(actual.dtype)) | (actual.isnan() & expected.isnan())
    wrong = ~((actual.double() - expected).abs() <= bound) & ~same
    return [tensors.describe_wrong(name, actual, expected, wrong)] if wrong.any() else []
