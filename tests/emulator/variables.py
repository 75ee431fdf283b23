"""Static shared variables, in the assembly of a kernel: room between them, and a table of them.

A compiler puts them one behind the other, where an access that misses one hits the next. With some bytes of nobody's in
between, the emulator sees it; the table (native/variables.cpp) says where each is, and its name. Those of function
templates and of inline functions g++ puts elsewhere, whatever their declaration says: they are put to the others.
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
# As g++ writes those of function templates, and of functions that are inline and not static.
_ELSEWHERE = re.compile(
    r"^\t\.local\t(?P<name>_ZZ[\w.$]+)\n\t\.comm\t(?P=name),(?P<bytes>\d+),(?P<align>\d+)\n"
    r"|^\t\.weak\t(?P<name2>_ZZ[\w.$]+)\n\t\.section\t(?:\.bss\.(?P=name2)|emu_shared),[^\n]*,comdat\n"
    r"(?P<align2>\t\.(?:p2|b)?align[^\n]*\n)?\t\.type\t(?P=name2), [@%]\w+\n\t\.size\t(?P=name2), (?P<bytes2>\d+)\n"
    r"(?P=name2):\n(?:\t\.zero\t\d+\n)+",
    re.MULTILINE,
)


def _placed(match: re.Match[str]) -> str:
    name, size = match["name"] or match["name2"], match["bytes"] or match["bytes2"]
    align = f"\t.balign\t{match['align']}\n" if match["name"] else match["align2"] or ""
    variable = f"{align}\t.type\t{name}, %object\n\t.size\t{name}, {size}\n{name}:\n\t.zero\t{size}\n"
    return f'\t.pushsection\temu_shared,"aw"\n{variable}\t.popsection\n'


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

    assembly = _SECTION.sub(section, _ELSEWHERE.sub(_placed, assembly))
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
