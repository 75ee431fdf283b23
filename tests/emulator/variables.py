"""Static shared variables, in the assembly of a kernel: room between them, and a table of them.

A compiler puts them one behind the other, where an access that misses one hits the next. With some bytes of nobody's in
between, the emulator sees it; the table (native/variables.cpp) says where each is, and its name. Those of function
templates g++ gives no section, whatever their declaration says: they are put to the others.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOM = 256  # bytes; the farther, the more of those that miss are seen. Descriptors of wgmma have 18 bits of an address.

_SECTION = re.compile(
    r'^\t\.(?:push)?section\temu_shared,"aw"[^\n]*\n(?:(?!\t\.(?:section|popsection|text|data|bss)\b)[^\n]*\n)*',
    re.MULTILINE,
)
_VARIABLE = re.compile(
    r"^\t\.type\t(?P<name>[\w.$]+), [@%]object\n\t\.size\t(?P=name), (?P<bytes>\d+)\n(?P=name):\n(?:\t\.zero\t\d+\n)+",
    re.MULTILINE,
)
_OF_TEMPLATE = re.compile(
    r"^\t\.local\t(?P<name>_ZZ[\w.$]+)\n\t\.comm\t(?P=name),(?P<bytes>\d+),(?P<align>\d+)\n", re.MULTILINE
)
_PLACED = r"""	.pushsection	emu_shared,"aw"
	.balign	\g<align>
	.type	\g<name>, %object
	.size	\g<name>, \g<bytes>
\g<name>:
	.zero	\g<bytes>
	.popsection
"""


def part(assembly: str) -> str:
    """The same with room in front of the first variable and behind each, and the table."""
    found: list[tuple[str, str]] = []

    def behind(match: re.Match[str]) -> str:
        found.append((match["name"], match["bytes"]))
        return f"{match[0]}\t.zero\t{ROOM}\n"

    def section(match: re.Match[str]) -> str:
        begin = "" if found else f"\t.zero\t{ROOM}\n"
        head, rest = match[0].split("\n", 1)
        return f"{head}\n{begin}{_VARIABLE.sub(behind, rest)}"

    assembly = _SECTION.sub(section, _OF_TEMPLATE.sub(_PLACED, assembly))
    if not found:
        return assembly
    # struct Variable of native/variables.cpp
    names = "".join(f'.Lemu_name{i}:\n\t.string\t"{name}"\n' for i, (name, _) in enumerate(found))
    entries = "".join(
        f"\t.quad\t{name}\n\t.quad\t{size}\n\t.quad\t.Lemu_name{i}\n" for i, (name, size) in enumerate(found)
    )
    return f'{assembly}\t.section\t.rodata\n{names}\t.section\temu_variables,"aw"\n\t.balign 8\n{entries}'


def part_file(directory: Path) -> None:
    path = directory / "kernel.s"
    path.write_text(part(path.read_text()))
