"""A fault on purpose: one line of a rendered kernel, changed, and a call that must show it.

What the emulator and its cases do not see in a changed kernel, they would not see in a new one either. A mutation
names its text exactly: where a template no longer has it, that is an error, so that the list does not rot.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Change = Callable[[str, str], str]  # (name of the kernel, source) -> source


class OutOfDateError(ValueError):
    """The template has no such text any more."""


class Trial(Protocol):
    """A call that is right with the kernel as it is; it can be pickled and compared."""

    def run(self, change: Change) -> None:
        """Raises EmulatorError with what is wrong."""

    def describe(self) -> str:
        """One line for the table."""


@dataclass(frozen=True)
class Mutation:
    """One line of a rendered kernel, changed, and the call that must show it."""

    kernel: str  # as `Change` is given it
    name: str
    trial: Trial
    old: str
    new: str
    within: str = ""  # the function in which `old` is; "": anywhere
    times: int = 1  # how often `old` is there
    only: int = 0  # which of them is changed, counted from 1; 0: each

    def apply(self, source: str) -> str:
        """The changed source."""
        start, end = _function(source, self.within) if self.within else (0, len(source))
        parts = source[start:end].split(self.old)
        if len(parts) != self.times + 1:
            where = f" in {self.within}" if self.within else ""
            found = f"{len(parts) - 1} times{where}, not {self.times}"
            raise OutOfDateError(f"mutation {self.name!r} is out of date: {self.old!r} stands {found}")
        changed = parts[0]
        for number, part in enumerate(parts[1:], 1):
            changed += (self.new if self.only in (0, number) else self.old) + part
        return source[:start] + changed + source[end:]


def _function(source: str, name: str) -> tuple[int, int]:
    """Where the body of a function is. Only its end is a brace that begins a line."""
    bodies = list(re.finditer(rf"\b{re.escape(name)}\([^;{{}}]*\)\n(?:#line.*\n|\n)*\{{\n", source))
    if len(bodies) != 1:
        raise OutOfDateError(f"a kernel has {len(bodies)} functions {name}; mutations want one")
    return bodies[0].end(), source.index("\n}", bodies[0].end())
