"""On a GPU: PyTorch's streams, graphs, devices and switches are obeyed. Skipped where there is none."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from flash_attention import _native, flash_attention
from reference import assert_close, reference, run, sdpa

DTYPE = torch.float16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("cuda")


def make(head_dim: int, seqlen: int = 100, device: str = "cuda", requires_grad: bool = False) -> list[torch.Tensor]:
    return [
        torch.randn(2, 3, seqlen, head_dim, dtype=DTYPE, device=device, requires_grad=requires_grad) for _ in range(3)
    ]


def make_four(dtype: torch.dtype, seqlen: int = 700, device: str = "cuda") -> list[torch.Tensor]:
    """query, key, value, grad_output: more blocks than the GPU has room for at once, several of keys a row."""
    return [torch.randn(4, 16, seqlen, 64, device=device).to(dtype) for _ in range(4)]


def assert_equal(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], what: str = "") -> None:
    """Every bit."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, e), f"{what} result {i}"


@contextlib.contextmanager
def busy_gpu() -> Iterator[None]:
    """Another stream's work takes multiprocessors away: blocks run in another order, and wait for each other longer."""
    stream = torch.cuda.Stream()
    other = torch.randn(1024, 1024, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(50):
            other = torch.tanh(other @ other)
    yield
    torch.cuda.synchronize()


@pytest.fixture
def tuned() -> Iterator[None]:
    """First calls time candidates, as they do where a user has set nothing."""
    _native.set_autotune("1")
    yield
    _native.set_autotune(os.environ["FLASH_ATTENTION_AUTOTUNE"])


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_replay_equals_eager(deterministic: None, dtype: torch.dtype) -> None:
    """Forward and backward in a graph: new inputs, equal bits, and the workspace is the graph's for ever."""
    tensors = make_four(dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(flash_attention, *tensors, is_causal=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(flash_attention, *tensors, is_causal=True)
    before = _native.statistics()["launches"]
    for i in range(3):
        for tensor in tensors:
            tensor.normal_()
        spoiler = [torch.full((2**22,), float("nan"), device="cuda") for _ in range(8)]
        graph.replay()
        assert _native.statistics()["launches"] == before, "a replay launches nothing by itself"
        expected = run(flash_attention, *tensors, is_causal=True)
        assert_equal(results, expected, f"replay {i}")
        before = _native.statistics()["launches"]
        del spoiler


@pytest.mark.filterwarnings("ignore")
def test_reduce_overhead() -> None:
    """torch.compile's own graphs, forward and backward: captured, and right for later inputs."""
    pytest.importorskip("triton")
    from torch._dynamo.utils import counters

    def layer(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return flash_attention(query * 2, key, value.transpose(1, 2).contiguous().transpose(1, 2), is_causal=True) + 1

    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    grad_output = make(64)[0]
    launches = []
    for _ in range(5):
        qkv = make(64)
        before = _native.statistics()["launches"]
        torch.compiler.cudagraph_mark_step_begin()
        results = [tensor.clone() for tensor in run(compiled, *qkv, grad_output)]
        launches.append(_native.statistics()["launches"] - before)
        for actual, expected in zip(results, run(layer, *qkv, grad_output), strict=True):
            close(actual, expected)
    assert not counters["inductor"]["cudagraph_skips"]
    assert launches[-1] == 0, f"launches of each step: {launches}; the last must be a replay"
    torch.compiler.reset()


def test_nothing_is_made_ready_in_a_capture() -> None:
    qkv = make(76)
    before = _native.statistics()
    with (
        pytest.raises(RuntimeError, match=r"make one call with tensors like these .* before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        flash_attention(*qkv)
    after = _native.statistics()
    assert after["compilations"] == before["compilations"]
    assert after["kernels_loaded"] == before["kernels_loaded"]
    close(flash_attention(*qkv), sdpa(*qkv))  # and no harm is done


def test_shapes_with_a_record_in_a_capture(tuned: None) -> None:
    """Each bucket gets its own kernel, so the bits of a call outside, if this process has loaded it for another one."""
    shapes = ((16, 16, 512, 64), (1, 16, 8192, 64), (2, 3, 100, 64))
    tensors = [[torch.randn(shape, device="cuda") for _ in range(3)] for shape in shapes]
    expected, configs = [], set()
    for qkv in tensors:
        expected.append(flash_attention(*qkv))
        configs.add(_native.last_config())
    if len(configs) == 1:
        pytest.skip("all these shapes have the same kernel here")
    _native.set_autotune("1")  # every call looks for its kernel again
    for qkv, wanted in zip(tensors, expected, strict=True):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = flash_attention(*qkv)
        graph.replay()
        assert torch.equal(output, wanted), f"{tuple(wanted.shape)}"


def test_other_shapes_in_a_capture() -> None:
    """A kernel of the same problem is taken whatever shapes it was tuned for; that of few queries, on Hopper another
    target's, for few only."""
    flash_attention(*make(84, seqlen=100))
    qkv = make(84, seqlen=2000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = flash_attention(*qkv)
    graph.replay()
    close(output, sdpa(*qkv))


@pytest.mark.parametrize(("mode", "head_dim"), [("thread_local", 92), ("global", 68)])
def test_first_call_while_another_thread_captures(mode: str, head_dim: int) -> None:
    """Neither disturbs the other. In the mode "global", PyTorch's default, CUDA lets no thread load a module unless it
    asks for that."""
    qkv, others = make(64), make(head_dim)
    flash_attention(*qkv)
    stream, results, errors = torch.cuda.Stream(), [], []
    with torch.cuda.stream(stream):
        # Holds 2 MB of that stream's, which the output has room in: PyTorch may not ask for memory in the capture.
        anchor = torch.zeros(1, device="cuda")

    def first_call() -> None:
        try:
            with torch.cuda.stream(stream):
                results.append(flash_attention(*others))
        except Exception as error:
            errors.append(error)

    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    loaded = _native.statistics()["kernels_loaded"]
    with torch.cuda.graph(graph, capture_error_mode=mode):
        output = flash_attention(*qkv)
        thread = threading.Thread(target=first_call)
        thread.start()
        thread.join()
    assert not errors
    assert _native.statistics()["kernels_loaded"] > loaded, "it was no first call"
    graph.replay()
    torch.cuda.synchronize()
    close(output, sdpa(*qkv))
    close(results[0], sdpa(*others))
    del anchor


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


def test_context_of_another_device(deterministic: None) -> None:
    """`with torch.cuda.device(1)`: tensors say where to compute, the context stays what it was."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    tensors = make_four(DTYPE, device="cuda:0")
    expected = run(flash_attention, *tensors)
    there = [tensor.to("cuda:1") for tensor in tensors]
    with torch.cuda.device(1):
        results = run(flash_attention, *tensors)
        assert torch.cuda.current_device() == 1
        others = run(flash_attention, *there)
        assert torch.cuda.current_device() == 1
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            on_a_stream = run(flash_attention, *there)
        torch.cuda.synchronize()
    assert_equal(results, expected)
    assert_equal(on_a_stream, others)
    assert all(tensor.device == torch.device("cuda:1") for tensor in others)
    assert_close(others, reference(*there))


def test_graph_on_another_device(deterministic: None) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    with torch.cuda.device(1):
        tensors = make_four(DTYPE, device="cuda:1")
        expected = run(flash_attention, *tensors)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run(flash_attention, *tensors)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run(flash_attention, *tensors)
        graph.replay()
        torch.cuda.synchronize()
    assert_equal(results, expected)


def test_backward_in_a_thread_that_never_used_cuda() -> None:
    qkv = make(64, requires_grad=True)
    output = flash_attention(*qkv)
    thread = threading.Thread(target=lambda: output.sum().backward())
    thread.start()
    thread.join()
    assert all(tensor.grad is not None for tensor in qkv)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_deterministic_algorithms(deterministic: None, dtype: torch.dtype, is_causal: bool) -> None:
    """Equal bits of everything, on a GPU that is idle and on one that is not."""
    tensors = make_four(dtype)
    expected = run(flash_attention, *tensors, is_causal=is_causal)
    for i in range(6):
        with busy_gpu() if i % 2 else contextlib.nullcontext():
            assert_equal(run(flash_attention, *tensors, is_causal=is_causal), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_by_default(dtype: torch.dtype) -> None:
    """Forward always; backward in fp32. That of 16 bits is right, whatever the order of its sums."""
    tensors = make_four(dtype)
    first = run(flash_attention, *tensors, is_causal=True)
    exact = reference(*tensors, is_causal=True)
    for i in range(6):
        with busy_gpu() if i % 2 else contextlib.nullcontext():
            results = run(flash_attention, *tensors, is_causal=True)
        assert_equal(results[:1], first[:1])
        assert_equal(results[2:], first[2:])
        if dtype == torch.float32:
            assert_equal(results, first)
        assert_close(results, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_on_another_stream(deterministic: None, dtype: torch.dtype) -> None:
    tensors = make_four(dtype)
    expected = run(flash_attention, *tensors, is_causal=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = run(flash_attention, *tensors, is_causal=True)
    torch.cuda.synchronize()
    assert_equal(results, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_streams_at_once(deterministic: None, dtype: torch.dtype) -> None:
    """Calls that overlap share no workspace."""
    first, second = make_four(dtype), make_four(dtype, seqlen=500)
    expected = [run(flash_attention, *tensors) for tensors in (first, second)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results = []
    for _ in range(4):
        for stream, tensors in zip(streams, (first, second), strict=True):
            with torch.cuda.stream(stream):
                results.append(run(flash_attention, *tensors))
    torch.cuda.synchronize()
    for i, result in enumerate(results):
        assert_equal(result, expected[i % 2], f"call {i}")


def test_backward_runs_on_the_stream_of_forward(deterministic: None) -> None:
    """Autograd's thread has a current stream of its own: on another one backward would read too early."""
    *inputs, grad_output = make_four(DTYPE)
    expected = run(flash_attention, *(2 * tensor for tensor in inputs), grad_output)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        doubled = [(2 * tensor).requires_grad_() for tensor in inputs]
        output = flash_attention(*doubled)
    gradients = torch.autograd.grad(output, doubled, grad_output)
    torch.cuda.synchronize()
    assert_equal((output.detach(), *gradients), expected)


def test_no_memory_for_a_workspace() -> None:
    """fp32 splits keys and values into parts: without room for them it is PyTorch's exception, and no harm is done."""
    query = torch.randn(1, 1, 70, 64, device="cuda").expand(1, 512, 70, 64)
    key = torch.randn(1, 1, 4096, 64, device="cuda").expand(1, 512, 4096, 64)  # split, 2^29 bytes or more
    expected = flash_attention(query, key, key)
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 2**26
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            flash_attention(query, key, key)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_equal([flash_attention(query, key, key)], [expected])


def test_no_keys() -> None:
    query = torch.randn(1, 2, 5, 64, dtype=DTYPE, device="cuda").transpose(1, 2)
    key = torch.randn(1, 5, 0, 64, dtype=DTYPE, device="cuda")
    assert not flash_attention(query, key, key).any()


@pytest.mark.parametrize("scale", [0.125, -0.125])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_families_have_the_same_row_maxima(dtype: torch.dtype, size: float, scale: float) -> None:
    """Backward computes scores anew with mma.sync and subtracts the maximum that forward found, perhaps with wgmma: at
    large magnitudes one unit in the last place more or less would be a wrong weight. Strides choose the family."""
    query, key, value = (torch.randn(2, 3, 300, 64, device="cuda").to(dtype) for _ in range(3))
    query, key = query * size, key * size
    odd = torch.empty(2, 3, 300, 65, dtype=dtype, device="cuda")[..., 1:].copy_(query)
    maxima = [
        torch.ops.flash_attention.forward_lse(q, key, value, scale, False, False)[1][..., 0] for q in (query, odd)
    ]
    assert torch.equal(*maxima)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_of_large_scores(dtype: torch.dtype) -> None:
    """Weights of 0 and 1: dV is a sum of rows of grad_output, and nothing larger."""
    query, key, value, grad = (torch.randn(1, 2, 300, 64, device="cuda").to(dtype) for _ in range(4))
    inputs = [(query * 1e4).requires_grad_(), (key * 1e4).requires_grad_(), value.requires_grad_()]
    (actual,) = torch.autograd.grad(flash_attention(*inputs), inputs[2], grad)
    weights = torch.softmax(inputs[0].detach().double() @ inputs[1].detach().double().transpose(-1, -2) / 8, -1)
    expected = weights.transpose(-1, -2) @ grad.double()
    assert (actual - expected).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * expected.norm()
