"""Measurements of this attention against PyTorch's scaled_dot_product_attention, in one process, in turn.

Every number is a median over calls that alternate between the two, so that both see the same machine. Speeds
count the operations that attention needs: 4·B·H·Sq·Sk·D forward, half of it when causal, 2.5 times as many
backward. `python -m flash_attention bench --help` lists what can be chosen.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from flash_attention import flash_attention

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PEERS: dict[str, Callable[..., torch.Tensor]] = {
    "flash_attention": flash_attention,
    "PyTorch": scaled_dot_product_attention,
}


@dataclass(frozen=True)
class Cell:
    """One thing that is measured."""

    op: str  # "forward" or "backward"
    dtype: str
    head_dim: int
    seqlen: int
    is_causal: bool
    batch: int
    heads: int

    def flops(self) -> float:
        forward = 4.0 * self.batch * self.heads * self.seqlen**2 * self.head_dim * (0.5 if self.is_causal else 1.0)
        return forward if self.op == "forward" else 2.5 * forward


@dataclass(frozen=True)
class Result:
    """Median seconds of one call of each, and of our first call (which may tune and compile)."""

    cell: Cell
    seconds: dict[str, float]
    calls: int
    first_call: float

    def gflops(self, peer: str) -> float:
        return self.cell.flops() / self.seconds[peer] / 1e9

    def ratio(self) -> float:
        """How many times as fast as PyTorch."""
        return self.seconds["PyTorch"] / self.seconds["flash_attention"]


def grid(
    ops: Sequence[str],
    dtypes: Sequence[str],
    head_dims: Sequence[int],
    seqlens: Sequence[int],
    masks: Sequence[str],
    batch: int,
    heads: int,
) -> list[Cell]:
    """All combinations, in the order in which they are shown."""
    return [
        Cell(op, dtype, head_dim, seqlen, mask == "causal", batch, heads)
        for dtype, op, head_dim, mask, seqlen in itertools.product(dtypes, ops, head_dims, masks, seqlens)
    ]


def prepare(cell: Cell, attention: Callable[..., torch.Tensor]) -> Callable[[], object]:
    """A function that makes the call that is timed."""
    generator = torch.Generator().manual_seed(0)
    shape = (cell.batch, cell.heads, cell.seqlen, cell.head_dim)
    query, key, value, grad_output = (torch.randn(shape, generator=generator).to(DTYPES[cell.dtype]) for _ in range(4))
    if cell.op == "forward":
        return lambda: attention(query, key, value, is_causal=cell.is_causal)
    inputs = tuple(tensor.requires_grad_() for tensor in (query, key, value))
    output = attention(*inputs, is_causal=cell.is_causal)
    return lambda: torch.autograd.grad(output, inputs, grad_output, retain_graph=True)


def alternate(
    calls: dict[str, Callable[[], object]], seconds: float, least: int = 5, inner: int = 1
) -> dict[str, list[float]]:
    """Time the calls in turn until each had about `seconds`; `inner` calls make one measurement."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(times[names[0]]) < least:
        for name in names:
            call = calls[name]
            started = time.perf_counter()
            for _ in range(inner):
                call()
            times[name].append((time.perf_counter() - started) / inner)
        names.reverse()  # neither always runs on the caches that the other left
    return times


def measure(cell: Cell, seconds: float) -> Result:
    """Time one cell; both are called once before."""
    with torch.set_grad_enabled(cell.op == "backward"):
        started = time.perf_counter()
        calls = {"flash_attention": prepare(cell, flash_attention)}
        calls["flash_attention"]()
        first_call = time.perf_counter() - started
        calls["PyTorch"] = prepare(cell, scaled_dot_product_attention)
        calls["PyTorch"]()
        times = alternate(calls, seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Result(cell, medians, len(times["PyTorch"]), first_call)


def smallest_calls(seconds: float = 2.0) -> list[tuple[str, dict[str, float]]]:
    """What a call costs when there is nothing to compute: median microseconds for B 1, H 1, S 1, d 8, fp32."""
    query, key, value = (torch.randn(1, 1, 1, 8) for _ in range(3))
    inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    grad_output = torch.ones(1, 1, 1, 8)

    def forward(attention: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: attention(query, key, value)

    def forward_with_grad(attention: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: attention(*inputs)

    def forward_backward(attention: Callable[..., torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            attention(*inputs).backward(grad_output)
            for tensor in inputs:
                tensor.grad = None

        return run

    rows = []
    kinds = {"forward": forward, "forward, gradients wanted": forward_with_grad, "forward + backward": forward_backward}
    for name, make in kinds.items():
        calls = {peer: make(attention) for peer, attention in PEERS.items()}
        for call in calls.values():
            call()
        times = alternate(calls, seconds, inner=100)
        rows.append((name, {peer: 1e6 * statistics.median(values) for peer, values in times.items()}))
    return rows


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
