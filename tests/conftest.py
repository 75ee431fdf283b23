"""What every test shares: a cache of its own for the session, and the devices that there are."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Before the library is loaded: it reads the environment once.
_cache = tempfile.mkdtemp(prefix="flash_attention_tests_")
os.environ["FLASH_ATTENTION_CACHE_DIR"] = _cache
# Tests of results take the best guess of each kernel; test_processes.py tests the tuner.
os.environ.setdefault("FLASH_ATTENTION_AUTOTUNE", "0")
_owner = os.getpid()


@atexit.register
def _remove_cache() -> None:
    if os.getpid() == _owner:  # not in a forked worker
        shutil.rmtree(_cache, ignore_errors=True)


import pytest  # noqa: E402
import torch  # noqa: E402

from flash_attention import _native  # noqa: E402


def _devices() -> list[str]:
    """Each kind of device that attention runs on here."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        try:
            _native.device_target("cuda")
            devices.append("cuda")
        except NotImplementedError:
            pass
    return devices


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """A test that takes it runs on each of _devices()."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
