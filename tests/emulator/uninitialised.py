"""Local variables that are used before they are set: g++ says so, and it is a finding.

It sees single variables and arrays of which all elements are known at compile time, no element of an array that is set
in a loop.
"""

from __future__ import annotations

import re

from emulator.errors import EmulatorError

FLAGS = ("-Werror=uninitialized", "-Werror=maybe-uninitialized")

_FUNCTION = re.compile(r"^[^\n]*: In (?:static )?(?:member )?function '([^\n]*?)'", re.MULTILINE)
_FOUND = re.compile(
    r"^(?P<place>[^\n:]+:\d+):\d+: error: '(?P<variable>[^\n]*?)' (?P<how>is|may be) used uninitialized", re.MULTILINE
)


def raise_if_found(messages: str) -> None:
    """`messages`: what the compiler says of a kernel."""
    texts = []
    for match in _FOUND.finditer(messages):
        functions = _FUNCTION.findall(messages, 0, match.start())
        name = re.search(r"(\w+)(?:<.*>)?\(", functions[-1]) if functions else None
        how = "is" if match["how"] == "is" else "may be"
        where = f"{match['place']} ({name[1] if name else 'kernel'})"
        texts.append(f"{where}: the local variable {match['variable']} {how} used before it is set")
    if texts:
        raise EmulatorError("\n".join(dict.fromkeys(texts)))
