"""Where the emulator does not run, its tests are skipped and say why."""

from __future__ import annotations

import pytest

from emulator import build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = build.missing()
    for item in items:
        if reason and item.path.is_relative_to(build.NATIVE.parent):
            item.add_marker(pytest.mark.skip(reason=f"emulator: {reason}"))
