"""Measurements on a GPU against every backend of scaled_dot_product_attention that takes the case.

16384 tokens and a hidden size of 2048: batch = 16384 / S, heads = 2048 / d. Times are medians of device events;
the peers of a cell are timed in turn, in one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flash_attention import flash_attention
from flash_attention.bench import DTYPES, Cell

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
OURS = "flash_attention"
TOKENS, HIDDEN = 16384, 2048


@dataclass(frozen=True)
class CudaResult:
    """Median seconds of a call of each peer that takes the cell."""

    cell: Cell
    seconds: dict[str, float]

    def tflops(self, peer: str) -> float:
        return self.cell.flops() / self.seconds[peer] / 1e12

    def ratio(self, peer: str) -> float:
        return self.seconds[peer] / self.seconds[OURS]

    def best_peer(self) -> str | None:
        peers = [name for name in self.seconds if name != OURS]
        return min(peers, key=lambda name: self.seconds[name]) if peers else None


def cell(op: str, dtype: str, head_dim: int, seqlen: int, is_causal: bool) -> Cell:
    return Cell(op, dtype, head_dim, seqlen, is_causal, max(TOKENS // seqlen, 1), max(HIDDEN // head_dim, 1))


def _prepare(cell: Cell, attention: Callable[..., torch.Tensor]) -> Callable[[], object]:
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (cell.batch, cell.heads, cell.seqlen, cell.head_dim)
    query, key, value, grad_output = (
        torch.randn(shape, generator=generator, device="cuda").to(DTYPES[cell.dtype]) for _ in range(4)
    )
    if cell.op == "forward":
        return lambda: attention(query, key, value, is_causal=cell.is_causal)
    inputs = tuple(tensor.requires_grad_() for tensor in (query, key, value))
    output = attention(*inputs, is_causal=cell.is_causal)
    return lambda: torch.autograd.grad(output, inputs, grad_output, retain_graph=True)


def _with_backend(backend: SDPBackend) -> Callable[..., torch.Tensor]:
    def attention(*arguments: torch.Tensor, **options: object) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*arguments, **options)  # type: ignore[arg-type]

    return attention


def _time(call: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, of `repeats` in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats


def measure(cell: Cell, seconds: float = 0.1) -> CudaResult:
    """Time one cell: each peer has about `seconds`, at least five measurements."""
    calls: dict[str, Callable[[], object]] = {}
    with torch.set_grad_enabled(cell.op == "backward"):
        for name, attention in {OURS: flash_attention, **{n: _with_backend(b) for n, b in BACKENDS.items()}}.items():
            try:
                call = _prepare(cell, attention)
                call()
                torch.cuda.synchronize()
            except RuntimeError:
                if name == OURS:
                    raise
                continue  # this backend does not take it
            calls[name] = call
        repeats = {name: max(1, int(0.002 / _time(call, 2))) for name, call in calls.items()}
        rounds = max(5, int(seconds / max(_time(call, repeats[name]) * repeats[name] for name, call in calls.items())))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(min(rounds, 50)):
            for name, call in calls.items():
                times[name].append(_time(call, repeats[name]))
    return CudaResult(cell, {name: statistics.median(values) for name, values in times.items()})
