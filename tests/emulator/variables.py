"""Static shared variables, in the assembly of a kernel: room between them, and a table of them.

A compiler puts them one behind the other, where an access that misses one hits the next. With some bytes of nobody's in
between, the emulator sees it; the table (native/variables.cpp) says where each is, and its name. Those of function
templates and of inline functions g++ puts elsewhere, whatever their declaration says: they are put to the others.

Each is put at an address that is as badly aligned as its declaration allows, so that an access that needs more than was
asked for is seen whatever lies in front of it.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

MOST_ALIGNED = 1024  # bytes: no instruction needs more, and room is scarce
ROOM = 256  # bytes; the farther, the more of those that miss are seen. Descriptors of wgmma have 18 bits of an address.

_SECTION = re.compile(
    r'^\t\.(?:push)?section\temu_shared,"aw"[^\n]*\n(?:(?!\t\.(?:section|popsection|text|data|bss)\b)[^\n]*\n)*',
    re.MULTILINE,
)
_VARIABLE = re.compile(
    r"^(?:\t\.(?P<directive>align|p2align|balign)[ \t](?P<align>\d+)[^\n]*\n)?"
    r"\t\.type\t(?P<name>[\w.$]+), [@%]object\n\t\.size\t(?P=name), (?P<bytes>\d+)\n(?P=name):\n(?:\t\.zero\t\d+\n)+",
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


def _badly_aligned(match: re.Match[str]) -> str:
    """The directives that put a variable behind a multiple of twice what it asks for."""
    number, directive = int(match["align"] or 1), match["directive"] or "balign"
    is_power = directive == "p2align" or (directive == "align" and platform.machine() == "aarch64")
    align = 1 << number if is_power else number
    return f"\t.balign\t{2 * align}\n\t.zero\t{align}\n" if align < MOST_ALIGNED else f"\t.balign\t{align}\n"


def part(assembly: str) -> str:
    """The same with room in front of the first variable and behind each, and the table."""
    found: list[tuple[str, str]] = []

    def behind(match: re.Match[str]) -> str:
        found.append((match["name"], match["bytes"]))
        variable = match[0][match[0].index("\t.type") :]
        return f"{_badly_aligned(match)}{variable}\t.zero\t{ROOM}\n"

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
