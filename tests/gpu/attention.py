"""Attention's kernels on a GPU, launched phase by phase as the emulator runs them, for recordings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from emulator import attention, data
from emulator.attention import Case, FaParams
from emulator.machine import Settings
from emulator.tensors import TORCH, FaTensor
from gpu import driver

# Of the portable kernels, forward and backward: both types of products, one and several blocks of queries and keys, odd
# sizes, grouped heads, a head_dim_v of its own.
PORTABLE = {
    "bf16_causal": Case(dtype="bf16", head_dim=64, causal=True, heads_q=1, seqlen_q=150),
    "fp16_grouped": Case(dtype="fp16", head_dim=33, head_dim_v=24, heads_q=2, heads_kv=1, seqlen_q=40, seqlen_k=141),
    "fp32_causal": Case(dtype="fp32", head_dim=64, causal=True, heads_q=1, seqlen_q=67),
    "fp32_odd": Case(dtype="fp32", head_dim=19, heads_q=1, seqlen_q=37, seqlen_k=130),
}
# Of Hopper's, forward alone. Configs are named: a weight's rounding depends on the block of keys that it is in, so that
# a recording is of one config. More blocks of keys than stages, two and three consumers, one and two chunks of 64
# columns, tiles that are not full, several tiles for a persistent block.
HOPPER = {
    "hopper_bf16_causal": Case(dtype="bf16", head_dim=64, causal=True, heads_q=1, seqlen_q=200,
                               config="block_m=192,block_n=32,num_stages=2,persistent=0"),
    "hopper_fp16_grouped": Case(dtype="fp16", head_dim=40, head_dim_v=24, heads_q=2, heads_kv=1, seqlen_q=140,
                                seqlen_k=213, config="block_m=128,block_n=64,num_stages=2,persistent=1"),
    "hopper_bf16_wide": Case(dtype="bf16", head_dim=128, heads_q=1, seqlen_q=70, seqlen_k=333,
                             config="block_m=128,block_n=80,num_stages=2,persistent=1"),
}  # fmt: skip
CASES = {**PORTABLE, **{name: replace(case, target="cuda:sm_90a") for name, case in HOPPER.items()}}
DEFAULT = Settings()
# SLACK of softmax.h, which weights, and so all results, depend on: recorded with them.
SLACK = {"fp16": 8.0, "bf16": 8.0, "fp32": 0.0}
FORWARD = ("query", "key", "value")
GIVEN = (*FORWARD, "grad_output")
GRADIENTS = ("grad_query", "grad_key", "grad_value")

# Runs one op of a case with tensors on the CPU, those that it reads and those that it writes; `lse` is one of them.
# run_on_gpu, or the emulator's run_given.
Run = Callable[[Case, str, dict[str, Tensor], dict[str, Tensor]], None]


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


def run_on_gpu(case: Case, op: str, read: dict[str, Tensor], written: dict[str, Tensor]) -> None:
    plan, tensors = attention.plan(case, op), {n: t.cuda() for n, t in (read | written).items()}
    lse, structs = tensors.pop("lse"), {n: _struct(t) for n, t in tensors.items()}
    workspace = torch.full((max(plan.workspace_bytes, 1),), 255, dtype=torch.uint8, device="cuda")
    params = FaParams(
        **structs,
        lse=lse.data_ptr(),
        workspace=workspace.data_ptr(),
        softmax_scale=case.scale,
        num_splits=plan.num_splits,
        **{name: getattr(case, name) for name in ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k")},
    )
    maps = (driver.encode(*attention.map_fields(case, name, structs[name], *box)) for name, *box in plan.maps)
    arguments = [params, *maps]
    for entry, block, shared_bytes, grid in plan.phases:
        function = driver.function(attention.source(case, op), case.target, entry)
        driver.launch_pointers(function, grid, block, shared_bytes, arguments)
    for name, tensor in written.items():
        tensor.copy_(lse if name == "lse" else tensors[name])


def record(run: Run, name: str, target: str) -> dict[str, Tensor]:
    """Output and statistics of one case, and gradients where its backward is recorded. All are NaN before."""
    case, given = filled(name, "forward", target), inputs(name)
    lse = torch.full((case.batch * case.heads_q * case.seqlen_q * 2,), math.nan)
    results = {"output": torch.full_like(given["grad_output"], math.nan), "lse": lse}
    run(case, "forward", {n: given[n] for n in FORWARD}, results)
    if name in HOPPER:
        return results
    gradients = {n: torch.full_like(given[n.removeprefix("grad_")], math.nan) for n in GRADIENTS}
    run(filled(name, "backward", target), "backward", {**given, **results}, gradients)
    return {**results, **gradients}
