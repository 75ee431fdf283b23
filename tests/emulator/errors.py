"""What is wrong with a kernel, whoever finds it."""

from __future__ import annotations


class EmulatorError(AssertionError):
    """What the emulator found wrong with a kernel."""
