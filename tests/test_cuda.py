"""On a GPU: PyTorch's streams, graphs, devices and switches are obeyed. Skipped where there is none."""

from __future__ import annotations

import threading

import pytest
import torch

from flash_attention import _native, flash_attention
from reference import sdpa

DTYPE = torch.float16


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    try:
        _native.device_target("cuda")
    except NotImplementedError as reason:
        pytest.skip(str(reason))


def make(head_dim: int, seqlen: int = 100, device: str = "cuda", requires_grad: bool = False) -> list[torch.Tensor]:
    return [
        torch.randn(2, 3, seqlen, head_dim, dtype=DTYPE, device=device, requires_grad=requires_grad) for _ in range(3)
    ]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_runs_on_the_current_stream() -> None:
    """Inputs that a side stream is still writing: on any other stream the call would read them too early."""
    qkv, stream = make(64), torch.cuda.Stream()
    flash_attention(*qkv)  # ready
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        doubled = [2 * tensor for tensor in qkv]
        output = flash_attention(*doubled)
    torch.cuda.synchronize()
    close(output, sdpa(*(2 * tensor for tensor in qkv)))


def test_first_call_on_a_side_stream() -> None:
    """The tuner's memory and copies are in the order of that stream."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        qkv = make(72)
        output = flash_attention(*qkv)
    torch.cuda.synchronize()
    close(output, sdpa(*qkv))


def test_graph_forward() -> None:
    qkv = make(64)
    flash_attention(*qkv, is_causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = flash_attention(*qkv, is_causal=True)
    for tensor in qkv:
        tensor.normal_()
    graph.replay()
    close(output, sdpa(*qkv, is_causal=True))


def test_graph_forward_and_backward() -> None:
    qkv = make(64, requires_grad=True)
    grad_output = torch.randn(qkv[0].shape, dtype=DTYPE, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(flash_attention(*qkv), qkv, grad_output)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = step()
    with torch.no_grad():
        for tensor in qkv:
            tensor.normal_()
    graph.replay()
    expected = torch.autograd.grad(sdpa(*qkv), qkv, grad_output)
    for actual, wanted in zip(gradients, expected, strict=True):
        close(actual, wanted)


def test_nothing_is_made_ready_in_a_capture() -> None:
    qkv = make(76)
    before = _native.statistics()
    with (
        pytest.raises(RuntimeError, match="make one call with these shapes before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        flash_attention(*qkv)
    after = _native.statistics()
    assert after["compilations"] == before["compilations"]
    assert after["kernels_loaded"] == before["kernels_loaded"]
    close(flash_attention(*qkv), sdpa(*qkv))  # and no harm is done


def test_other_shapes_in_a_capture() -> None:
    """A kernel of the same problem is taken whatever shapes it was tuned for."""
    flash_attention(*make(84, seqlen=60))
    qkv = make(84, seqlen=2000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = flash_attention(*qkv)
    graph.replay()
    close(output, sdpa(*qkv))


def test_first_call_while_another_thread_captures() -> None:
    qkv, others = make(64), make(92)
    flash_attention(*qkv)
    results: list[torch.Tensor] = []

    def first_call() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            results.append(flash_attention(*others))

    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = flash_attention(*qkv)
        thread = threading.Thread(target=first_call)
        thread.start()
        thread.join()
    graph.replay()
    torch.cuda.synchronize()
    close(output, sdpa(*qkv))
    close(results[0], sdpa(*others))


def test_other_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    qkv = make(64, device="cuda:1", requires_grad=True)
    output = flash_attention(*qkv)
    output.sum().backward()
    assert output.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    close(output, sdpa(*qkv))
    here = make(64)
    close(flash_attention(*here), sdpa(*here))


def test_backward_in_a_thread_that_never_used_cuda() -> None:
    qkv = make(64, requires_grad=True)
    output = flash_attention(*qkv)
    thread = threading.Thread(target=lambda: output.sum().backward())
    thread.start()
    thread.join()
    assert all(tensor.grad is not None for tensor in qkv)


def test_deterministic_algorithms() -> None:
    qkv = make(64, seqlen=1000, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(flash_attention(*qkv).square().sum(), qkv) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        for actual, expected in zip(run, runs[0], strict=True):
            assert torch.equal(actual, expected)


def test_no_keys() -> None:
    query = torch.randn(1, 2, 5, 64, dtype=DTYPE, device="cuda").transpose(1, 2)
    key = torch.randn(1, 5, 0, 64, dtype=DTYPE, device="cuda")
    assert not flash_attention(query, key, key).any()
