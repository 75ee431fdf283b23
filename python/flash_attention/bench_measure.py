"""Times this attention and PyTorch's in one process, in turn, so that all see the same machine.

On a CPU the peer is scaled_dot_product_attention and the clock is the process's. On a GPU the peers are the backends
of scaled_dot_product_attention, each by itself, and times are those of device events. All numbers are medians.
"""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flash_attention import _native, flash_attention
from flash_attention.bench import DTYPES, OURS, OURS_AT_16_BITS, TF32, Cell, Result

Attention = Callable[..., torch.Tensor]
Call = Callable[[], object]

PYTORCH = "PyTorch"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# The calls with next to nothing to compute: (dtype, seqlen, head dim), with batch 1 and one head.
SMALLEST = {
    "cpu": (("fp32", 1, 8),),
    "cuda": (("fp16", 1, 64), ("fp16", 16, 64), ("fp32", 1, 64), ("fp32", 16, 64)),
}


@dataclass(frozen=True)
class Smallest:
    """Median microseconds of the calling thread for one call of each."""

    what: str
    dtype: str
    seqlen: int
    head_dim: int
    microseconds: dict[str, float]


def default_device() -> str:
    """cuda where there is a GPU that is supported, else cpu."""
    if torch.cuda.is_available():
        try:
            _native.device_target("cuda")
        except NotImplementedError:
            return "cpu"
        return "cuda"
    return "cpu"


def info(name: str) -> str:
    """One line of `python -m flash_attention info`, without its name."""
    lines = (line.partition(": ") for line in _native.info().splitlines())
    return next((value for key, _, value in lines if key == name), "")


def machine(device: str) -> str:
    """Processor or GPU, target, versions: what a number is worth nothing without."""
    target = _native.device_target(device)
    if device == "cuda":
        nvrtc = info("cuda compiler").partition(",")[0]
        return f"{torch.cuda.get_device_name()}, {target}, PyTorch {torch.__version__}, {nvrtc}"
    name = info("cpu") or platform.machine()
    return f"{name}, {target}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def peers(device: str) -> dict[str, Attention]:
    """PyTorch's attention, in each way in which it can be had on this device; without the unfused one."""
    if device == "cpu":
        return {PYTORCH: scaled_dot_product_attention}
    return {name: only(backend) for name, backend in BACKENDS.items()}


def only(backend: SDPBackend) -> Attention:
    """scaled_dot_product_attention by this backend; RuntimeError where it does not take the call."""

    def attention(*arguments: torch.Tensor, **options: object) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*arguments, **options)  # type: ignore[arg-type]

    return attention


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def make_inputs(cell: Cell, device: str) -> tuple[torch.Tensor, ...]:
    """query, key and value, which want gradients where those are measured, and grad_output."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.float32 if cell.dtype == TF32 else DTYPES[cell.dtype]
    tensors = [
        torch.randn((cell.batch, cell.heads, seqlen, cell.head_dim), generator=generator, device=device).to(dtype)
        for seqlen in (cell.seqlen, cell.seqlen_k, cell.seqlen_k, cell.seqlen)
    ]
    return (*(tensor.requires_grad_(cell.op == "backward") for tensor in tensors[:3]), tensors[3])


def prepare(cell: Cell, inputs: tuple[torch.Tensor, ...], attention: Attention) -> Call:
    """The call that is timed; it has been made once."""
    if cell.op == "forward":

        def call() -> object:
            return attention(*inputs[:3], is_causal=cell.is_causal)
    else:
        output = attention(*inputs[:3], is_causal=cell.is_causal)

        def call() -> object:
            return torch.autograd.grad(output, inputs[:3], inputs[3], retain_graph=True)

    call()
    synchronize(inputs[0].device.type)
    return call


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision, for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure(cell: Cell, device: str, seconds: float) -> Result:
    """Time one cell, each peer for about `seconds`."""
    with matmul_precision("high" if cell.dtype == TF32 else torch.get_float32_matmul_precision()):
        return measure_under_setting(cell, device, seconds)


def measure_under_setting(cell: Cell, device: str, seconds: float) -> Result:
    """measure(), with the precision of products as it is set."""
    inputs = make_inputs(cell, device)
    synchronize(device)
    started = time.perf_counter()
    calls = {OURS: prepare(cell, inputs, flash_attention)}
    first_call = time.perf_counter() - started
    if cell.dtype == TF32:
        halves = tuple(x.detach().bfloat16().requires_grad_(x.requires_grad) for x in inputs)
        calls[OURS_AT_16_BITS] = prepare(cell, halves, flash_attention)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's reasons why a backend does not take the cell
        for name, attention in peers(device).items():
            try:
                calls[name] = prepare(cell, inputs, attention)
            except RuntimeError:
                continue
    times = alternate_on_gpu(calls, seconds) if device == "cuda" else alternate(calls, seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Result(cell, medians, len(times[OURS]), first_call)


def alternate(
    calls: dict[str, Call], seconds: float, least: int = 5, inner: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of the calling thread for a call of each, in turn until each had about `seconds`.

    `inner` calls make one measurement. A GPU is waited for before and after each, outside of the timing.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(times[names[0]]) < least:
        for name in names:
            call = calls[name]
            synchronize(device)
            started = time.perf_counter()
            for _ in range(inner):
                call()
            times[name].append((time.perf_counter() - started) / inner)
        names.reverse()  # neither always runs on the caches that the other left
    synchronize(device)
    return times


def alternate_on_gpu(calls: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    """Seconds of the GPU for a call of each, in turn, 5 to 50 times; as many calls in a row as take 2 ms."""
    probes = {name: time_on_gpu(call, 2) for name, call in calls.items()}
    inner = {name: max(1, int(0.002 / probe)) for name, probe in probes.items()}
    rounds = int(seconds / max(probes[name] * inner[name] for name in calls))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(min(max(5, rounds), 50)):
        for name in names:
            times[name].append(time_on_gpu(calls[name], inner[name]))
        names.reverse()
    return times


def time_on_gpu(call: Call, inner: int) -> float:
    """Seconds of one call, of `inner` in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(inner):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / inner


def smallest_calls(device: str, seconds: float) -> Iterator[Smallest]:
    """What calls cost the calling thread when there is nothing to compute; `seconds` for each number."""
    for size in SMALLEST[device]:
        yield from smallest_calls_of(device, seconds, *size)


def smallest_calls_of(device: str, seconds: float, dtype: str, seqlen: int, head_dim: int) -> Iterator[Smallest]:
    query, key, value, grad_output = (
        torch.randn(1, 1, seqlen, head_dim, device=device, dtype=DTYPES[dtype]) for _ in range(4)
    )
    inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]

    def forward(attention: Attention) -> Call:
        return lambda: attention(query, key, value)

    def forward_with_grad(attention: Attention) -> Call:
        return lambda: attention(*inputs)

    def forward_backward(attention: Attention) -> Call:
        def run() -> None:
            attention(*inputs).backward(grad_output)
            for tensor in inputs:
                tensor.grad = None

        return run

    kinds = {"forward": forward, "forward, gradients wanted": forward_with_grad, "forward + backward": forward_backward}
    for what, make in kinds.items():
        calls = {OURS: make(flash_attention), PYTORCH: make(scaled_dot_product_attention)}
        for call in calls.values():
            for _ in range(10):
                call()
        # A hundred calls fit into the queue of a GPU: none waits for another to end.
        times = alternate(calls, seconds, inner=100, device=device)
        medians = {peer: 1e6 * statistics.median(values) for peer, values in times.items()}
        yield Smallest(what, dtype, seqlen, head_dim, medians)
