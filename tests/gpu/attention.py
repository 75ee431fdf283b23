"""The portable attention kernels on a GPU, launched phase by phase as the emulator runs them, for recordings."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from emulator import attention, data
from emulator.attention import Case, FaParams
from emulator.machine import Settings
from emulator.tensors import TORCH, FaTensor
from gpu import driver

# Both types of products, one and several blocks of queries and keys, odd sizes, grouped heads, a head_dim_v of its own.
CASES = {
    "bf16_causal": Case(dtype="bf16", head_dim=64, causal=True, heads_q=1, seqlen_q=150),
    "fp16_grouped": Case(dtype="fp16", head_dim=33, head_dim_v=24, heads_q=2, heads_kv=1, seqlen_q=40, seqlen_k=141),
    "fp32_causal": Case(dtype="fp32", head_dim=64, causal=True, heads_q=1, seqlen_q=67),
    "fp32_odd": Case(dtype="fp32", head_dim=19, heads_q=1, seqlen_q=37, seqlen_k=130),
}
DEFAULT = Settings()
GIVEN = ("query", "key", "value", "grad_output")
GRADIENTS = ("grad_query", "grad_key", "grad_value")


def filled(name: str, op: str, target: str, settings: Settings = DEFAULT) -> Case:
    """deterministic: in a fixed order, backward's sums differ by nothing but what the bound counts."""
    return replace(CASES[name], op=op, target=target, deterministic=True, settings=settings).filled()


def inputs(name: str) -> dict[str, Tensor]:
    """Values near a normal distribution, from a hash of their index: the same wherever they are computed."""
    case = CASES[name].filled()
    result = {}
    for i, (what, shape) in enumerate((n, data.shapes(case)[n]) for n in GIVEN):
        x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64((i + 1) << 32)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15)):
            x = (x ^ x >> np.uint64(shift)) * np.uint64(factor)
        parts = sum((x >> np.uint64(16 * part) & np.uint64(0xFFFF)).astype(np.float64) for part in range(4))
        values = (parts - 131070.0) / 37836.0
        result[what] = torch.from_numpy(values.reshape(shape)).float().to(TORCH[case.dtype])
    return result


def _struct(tensor: Tensor) -> FaTensor:
    return FaTensor(tensor.data_ptr(), *tensor.stride())


def _run(case: Case, op: str, tensors: dict[str, Tensor], lse: Tensor) -> None:
    plan = attention.plan(case, op)
    workspace = torch.full((max(plan.workspace_bytes, 1),), 255, dtype=torch.uint8, device="cuda")
    params = FaParams(
        **{name: _struct(tensor) for name, tensor in tensors.items()},
        lse=lse.data_ptr(),
        workspace=workspace.data_ptr(),
        softmax_scale=case.scale,
        num_splits=plan.num_splits,
        **{name: getattr(case, name) for name in ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k")},
    )
    for entry, block, shared_bytes, grid in plan.phases:
        function = driver.function(attention.source(case, op), case.target, entry)
        driver.launch_pointers(function, grid, block, shared_bytes, [params])


def on_gpu(name: str, target: str) -> dict[str, Tensor]:
    """Output, statistics and gradients of one case, on the CPU."""
    case, given = filled(name, "backward", target), {n: t.cuda() for n, t in inputs(name).items()}
    results = {n: torch.full_like(given[n.replace("grad_", "")], math.nan) for n in GRADIENTS}
    output = torch.full_like(given["grad_output"], math.nan)
    lse = torch.zeros(case.batch * case.heads_q * case.seqlen_q * 2, dtype=torch.float32, device="cuda")
    forward = {n: given[n] for n in ("query", "key", "value")}
    _run(filled(name, "forward", target), "forward", {**forward, "output": output}, lse)
    _run(case, "backward", {**given, "output": output, **results}, lse)
    return {n: t.cpu() for n, t in {"output": output, "lse": lse, **results}.items()}
