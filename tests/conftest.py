"""What every test shares: a cache of its own for the session, and the devices that there are."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator

# Before the library is loaded: it reads the environment once. Workers of pytest-xdist share the cache of the process
# that started them: a kernel is compiled once for all.
_is_worker = "PYTEST_XDIST_WORKER" in os.environ and "FLASH_ATTENTION_CACHE_DIR" in os.environ
if not _is_worker:
    os.environ["FLASH_ATTENTION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flash_attention_tests_")
_cache = os.environ["FLASH_ATTENTION_CACHE_DIR"]
# Tests of results take the best guess of each kernel; test_processes.py tests the tuner.
os.environ.setdefault("FLASH_ATTENTION_AUTOTUNE", "0")
# Threads of PyTorch that wait for each other give the processor away: other tests run at the same time, and what spins
# beside them takes several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch.use_deterministic_algorithms refuses cuBLAS, with which references are computed, without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_owner = os.getpid()


@atexit.register
def _remove_cache() -> None:
    if os.getpid() == _owner and not _is_worker:  # nor in a forked process
        shutil.rmtree(_cache, ignore_errors=True)


import pytest  # noqa: E402
import torch  # noqa: E402

from flash_attention import _native  # noqa: E402


def _why_no_cuda() -> str:
    """Why attention does not run on a GPU here, "" where it does."""
    if not torch.cuda.is_available():
        return "there is no GPU here"
    try:
        _native.device_target("cuda")
    except NotImplementedError as reason:
        return str(reason)
    return ""


_no_cuda = _why_no_cuda()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have recorded as covered: workers of pytest-xdist cannot print."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    for report in reports:
        for name, text in report.user_properties if report.when == "call" else ():
            if name == "covered":
                terminalreporter.write_line(str(text))


# First: -m selects by what it adds.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs on a GPU is marked `gpu`, whatever it is called."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        device = item.callspec.params.get("device") if hasattr(item, "callspec") else None
        if device == "cuda" or "cuda" in item.fixturenames:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(params=["cpu"] if _no_cuda else ["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """A test that takes it runs on each kind of device that attention runs on here."""
    return torch.device(request.param)


@pytest.fixture
def cuda() -> torch.device:
    """For what only a GPU does, or does in reasonable time: skipped where there is none."""
    if _no_cuda:
        pytest.skip(_no_cuda)
    return torch.device("cuda")


@pytest.fixture
def much_memory(cuda: torch.device) -> Iterator[float]:
    """GiB that are free on the GPU. One test at a time has it, among all workers, and none of it is kept."""
    with open(os.path.join(_cache, "much-memory"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.empty_cache()
        yield torch.cuda.mem_get_info()[0] / 2**30
        torch.cuda.empty_cache()


@pytest.fixture
def deterministic() -> Iterator[None]:
    """The test runs under torch.use_deterministic_algorithms(True)."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
