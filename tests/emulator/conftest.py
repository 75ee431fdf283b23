"""The emulator needs g++ 12 or newer, and a processor on which it can switch stacks."""

from __future__ import annotations

import platform
import subprocess

import pytest

from emulator import build


def _missing() -> str:
    """Why the emulator does not run here; "" if it does."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"it switches stacks on x86-64 and aarch64, not on {platform.machine()}"
    try:
        version = subprocess.run([build.CXX, "-dumpversion"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"it needs {build.CXX}, which is not there"
    return "" if int(version.split(".")[0]) >= 12 else f"it needs g++ 12 or newer; {build.CXX} is {version.strip()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _missing()
    for item in items:
        if reason and item.path.is_relative_to(build.NATIVE.parent):
            item.add_marker(pytest.mark.skip(reason=f"emulator: {reason}"))
