"""Threads and processes: many callers at once, any number of threads, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from flash_attention import flash_attention
from reference import run


@pytest.fixture
def threads():
    """Set the number of threads; put back what was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 700, 32), (2, 3, 129, 32), (1, 2, 1, 32)])
def test_bits_do_not_depend_on_the_number_of_threads(threads, shape, dtype):
    """torch.set_num_threads between calls changes the time, never the result."""
    tensors = [torch.randn(shape).to(dtype) for _ in range(4)]
    threads(1)
    expected = run(flash_attention, *tensors, is_causal=True)
    for count in (2, 3, 8, 1):
        threads(count)
        for a, b in zip(run(flash_attention, *tensors, is_causal=True), expected, strict=True):
            assert torch.equal(a, b), f"{count} threads"


COLD = """
import sys, threading, torch
from flash_attention import _native, flash_attention

torch.manual_seed(0)
tensors = [torch.randn(2, 2, 65, 24).to(sys.argv[1]) for _ in range(3)]
start, results, errors = threading.Barrier(8), {}, []

def call(i):
    try:
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        start.wait()
        output = flash_attention(*inputs, is_causal=True)
        results[i] = (output.detach(), *torch.autograd.grad(output.sum(), inputs))
    except BaseException as error:
        errors.append(error)

callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
[caller.start() for caller in callers]
[caller.join() for caller in callers]
assert not errors, errors
assert len(results) == 8
for result in results.values():
    assert all(torch.equal(a, b) for a, b in zip(result, results[0]))
expected = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)
assert torch.allclose(results[0][0], expected, atol=1e-5)
print(_native.statistics()["tunings"], _native.statistics()["compilations"])
"""


@pytest.mark.parametrize("autotune", ["0", "1"])
def test_eight_threads_on_a_cold_cache(device, autotune):
    """All get the right result, the same bits, and each kernel is compiled once, not eight times."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "FLASH_ATTENTION_CACHE_DIR": cache, "FLASH_ATTENTION_AUTOTUNE": autotune}
        line = [sys.executable, "-c", COLD, device.type]
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    tunings, compilations = map(int, done.stdout.split())
    if autotune == "0":
        assert compilations == 2  # forward and backward
    else:
        assert tunings == 2


def test_threads_with_different_problems(device):
    """Calls of other head dims at once do not disturb each other."""
    errors: list[BaseException] = []

    def call(dim: int) -> None:
        try:
            generator = torch.Generator().manual_seed(dim)
            tensors = [torch.randn(1, 2, 40, dim, generator=generator).to(device) for _ in range(3)]
            expected = torch.nn.functional.scaled_dot_product_attention(*tensors)
            for _ in range(20):
                torch.testing.assert_close(flash_attention(*tensors), expected, rtol=1e-4, atol=1e-5)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call, args=(dim,)) for dim in (8, 12, 16, 20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not errors


class Attended(Dataset):
    """Items that are computed with attention in the worker."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.full((1, 2, 300, 16), float(index)) + torch.arange(16)
        assert torch.equal(flash_attention(x, x, x, is_causal=True), flash_attention(x, x, x, is_causal=True))
        new = torch.randn(1, 1, 7, 21 + index % 2)  # kernels that the parent has not used
        flash_attention(new, new, new)
        return flash_attention(x, x, x)[0, :, :2]


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_data_loader_workers_forked_after_use(threads):
    """A fork inherits the loaded kernels and no threads: calls of old and of new problems return."""
    threads(2)
    data = Attended()
    expected = [data[i] for i in range(len(data))]
    loader = DataLoader(data, num_workers=2, multiprocessing_context="fork", timeout=120)
    for actual, wanted in zip(loader, expected, strict=True):
        assert torch.equal(actual[0], wanted)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_fork_after_autograd_threads():
    """os.fork in the middle of training: the child computes forward, the parent goes on."""
    x = torch.randn(1, 2, 64, 16, requires_grad=True)
    flash_attention(x, x, x).sum().backward()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        with torch.no_grad():
            os._exit(0 if flash_attention(x, x, x).isfinite().all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    flash_attention(x, x, x).sum().backward()
