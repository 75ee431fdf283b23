"""How good the tuner's choice is: beside that of an exhaustive search, on shapes of all kinds.

For each shape the tuner chooses as it does by default, and as with FLASH_ATTENTION_AUTOTUNE=max, in a cache directory
of its own: kernels that one search compiled the other finds there, records it does not. Then the two kernels are timed
in turn, in this process, through the same operators and on the same tensors.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flash_attention import _native, bench_measure, flash_attention
from flash_attention.bench import DTYPES, geometric_mean

USUAL, EXHAUSTIVE = "1", "max"
ROUNDS = {"cuda": 15, "cpu": 7}
# Calls in a row that make one measurement take about as long.
MEASUREMENT = {"cuda": 0.004, "cpu": 0.02}


@dataclass(frozen=True)
class Shape:
    """Tensors, whose forward and backward are tuned."""

    dtype: str
    batch: int
    heads: int
    heads_kv: int
    seqlen: int
    seqlen_k: int
    head_dim: int
    is_causal: bool

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.heads_kv else f"{self.heads}/{self.heads_kv}"
        seqlen = f"{self.seqlen}" if self.seqlen == self.seqlen_k else f"{self.seqlen}x{self.seqlen_k}"
        mask = ", causal" if self.is_causal else ""
        return f"{self.dtype}, B {self.batch}, H {heads}, S {seqlen}, d {self.head_dim}{mask}"

    def flops(self, op: str) -> float:
        pairs = self.seqlen * self.seqlen_k * (0.5 if self.is_causal else 1.0)
        return 4.0 * self.batch * self.heads * pairs * self.head_dim * (1.0 if op == "forward" else 2.5)


# Training and inference of language and image models: short and long, few heads and many, all dtypes, head dims 40 to
# 256, grouped heads, one query, cross attention. Those that matter most come first.
SHAPES = {
    "cuda": (
        Shape("bf16", 32, 16, 16, 512, 512, 128, True),
        Shape("bf16", 32, 32, 32, 512, 512, 64, True),
        Shape("bf16", 1, 16, 16, 16384, 16384, 128, True),
        Shape("bf16", 4, 32, 32, 4096, 4096, 64, False),
        Shape("fp16", 1, 8, 8, 16384, 16384, 256, True),
        Shape("fp32", 4, 16, 16, 4096, 4096, 128, True),
        Shape("bf16", 4, 32, 8, 2048, 2048, 128, True),
        Shape("fp16", 2, 8, 8, 4096, 4096, 40, False),
        Shape("fp32", 2, 8, 8, 512, 512, 64, False),
        Shape("fp16", 8, 12, 12, 1024, 1024, 96, False),
        Shape("bf16", 8, 32, 8, 1, 32768, 128, False),
        Shape("fp16", 1, 8, 8, 32768, 77, 64, False),
        Shape("bf16", 16, 16, 16, 128, 128, 80, False),
        Shape("fp32", 16, 8, 8, 1024, 1024, 256, True),
        Shape("bf16", 2, 16, 16, 8192, 8192, 128, False),
    ),
    "cpu": (
        Shape("fp32", 1, 8, 8, 512, 512, 64, True),
        Shape("bf16", 1, 8, 2, 1024, 1024, 128, False),
        Shape("fp16", 2, 8, 8, 64, 256, 40, False),
    ),
}


@dataclass(frozen=True)
class Choice:
    """What one search chose, how long that took (and what it had to compile), and the seconds of a call."""

    config: str
    search: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    shape: Shape
    op: str
    usual: Choice
    exhaustive: Choice

    def ratio(self) -> float:
        """Speed of the usual choice, as a part of the other's."""
        return self.exhaustive.seconds / self.usual.seconds


@contextlib.contextmanager
def scratch_cache() -> Iterator[None]:
    """A cache directory for what this process tunes, which must not have used the library before."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLASH_ATTENTION_CACHE_DIR"] = folder
        yield
        if _native.cache_path() != folder:
            raise RuntimeError(f"the cache in use is {_native.cache_path()}, not the one that was made for this")


def make_inputs(shape: Shape, device: str) -> tuple[torch.Tensor, ...]:
    """query, key, value, which want gradients, and grad_output."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(heads: int, seqlen: int) -> torch.Tensor:
        size = (shape.batch, heads, seqlen, shape.head_dim)
        return torch.randn(size, generator=generator, device=device).to(DTYPES[shape.dtype])

    query, key, value = (
        normal(shape.heads, shape.seqlen),
        normal(shape.heads_kv, shape.seqlen_k),
        normal(shape.heads_kv, shape.seqlen_k),
    )
    for tensor in (query, key, value):
        tensor.requires_grad_()
    return query, key, value, normal(shape.heads, shape.seqlen)


def prepare(shape: Shape, device: str) -> dict[str, Callable[[], Any]]:
    """The calls, by op. That of backward makes forward's once, when it is first wanted."""
    inputs = make_inputs(shape, device)
    made: list[torch.Tensor] = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return flash_attention(query, key, value, is_causal=shape.is_causal, enable_gqa=True)

    def backward() -> Any:
        if not made:
            made.append(attend(*inputs[:3]))
        return torch.autograd.grad(made[0], inputs[:3], inputs[3], retain_graph=True)

    query, key, value = (tensor.detach() for tensor in inputs[:3])
    return {"forward": lambda: attend(query, key, value), "backward": backward}


def search(call: Callable[[], Any], autotune: str, device: str) -> tuple[str, float]:
    """Choose as with this value of FLASH_ATTENTION_AUTOTUNE: the config, and seconds of the first call."""
    _native.set_autotune(autotune)
    bench_measure.synchronize(device)
    started = time.perf_counter()
    call()
    bench_measure.synchronize(device)
    return _native.last_config(), time.perf_counter() - started


def time_calls(call: Callable[[], Any], calls: int, device: str) -> float:
    """Seconds of one call, of several in a row."""
    if device == "cuda":
        return bench_measure.time_on_gpu(call, calls)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def compare(shape: Shape, op: str, call: Callable[[], Any], device: str, rounds: int) -> Comparison:
    """Search both ways, then time what was found in turn."""
    found = {autotune: search(call, autotune, device) for autotune in (USUAL, EXHAUSTIVE)}
    times: dict[str, list[float]] = {autotune: [] for autotune in found}
    calls = max(1, int(MEASUREMENT[device] / time_calls(call, 2, device)))
    order = list(found)
    for _ in range(rounds):
        for autotune in order:
            search(call, autotune, device)  # nothing is searched: it is known by now
            times[autotune].append(time_calls(call, calls, device))
        order.reverse()
    if found[USUAL][0] == found[EXHAUSTIVE][0]:  # one kernel: all times are its own
        times[USUAL] = times[EXHAUSTIVE] = times[USUAL] + times[EXHAUSTIVE]
    choices = [Choice(*found[autotune], statistics.median(times[autotune])) for autotune in (USUAL, EXHAUSTIVE)]
    return Comparison(shape, op, *choices)


def measure(device: str, limit: float, rounds: int | None = None) -> Iterator[Comparison]:
    """Compare on each shape, forward and backward, until `limit` seconds have passed."""
    started = time.monotonic()
    for shape in SHAPES[device]:
        for op, call in prepare(shape, device).items():
            if time.monotonic() - started > limit:
                return
            yield compare(shape, op, call, device, rounds or ROUNDS[device])


def summary(results: list[Comparison]) -> str:
    ratios = [result.ratio() for result in results]
    same = sum(result.usual.config == result.exhaustive.config for result in results)
    near = sum(ratio >= 0.97 for ratio in ratios)
    worst = results[ratios.index(min(ratios))]
    return (
        f"{len(results)} problems: {same} times the same config; within 3 % of the exhaustive search's {near} times; "
        f"{geometric_mean(ratios):.3f} of its speed on average, at least {min(ratios):.3f} ({worst.op}, {worst.shape})"
    )
