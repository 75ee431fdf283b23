"""sanitize.py's few calls under compute-sanitizer's racecheck, and what its reports are about:

    python tests/gpu/racecheck.py

Status 1 where a call fails, or where a report is of any other kind than this one, which is no race: a bulk copy
(UBLKCP) writes the statistics of the next rows where lanes have read (LDS) those of rows before.

A warp gives such a tile back by `__syncwarp()` and one lane's arrival at an mbarrier, in backward with roles by way of
a second warpgroup. racecheck knows of the arriving lane only; of a named barrier instead of `__syncwarp()` it does not
know either. Let every lane that reads arrive at the barrier that the copy waits for, or let each warp bring its
statistics itself (by cp.async, or as plain loads), and there are no reports (H200, CUDA 13.0). But backward then takes
3 to 8 % longer at head dim 64, up to 5 % at 128. The emulator follows such chains, and fails where a link is missing:
mutations of both kernels take each one out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ACCESS = re.compile(r"(Read|Write) access at (\w+)\+0x([0-9a-f]+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)")

Code = dict[int, str]
"""The instruction at each address of a kernel, without its operands."""


@dataclass(frozen=True)
class Access:
    kind: str  # Read, Write
    kernel: str
    address: int


@dataclass(frozen=True)
class Race:
    first: Access
    others: tuple[Access, ...]

    def is_of_statistics(self, kernels: list[dict[str, Code]]) -> bool:
        """Is there a compiled module in which it is a bulk copy and loads?"""
        accesses = (self.first, *self.others)
        kinds = [(access.kind, "UBLKCP" if access.kind == "Write" else "LDS") for access in accesses]
        if [kind for kind, _ in kinds] != ["Write"] + ["Read"] * len(self.others):
            return False
        return any(
            all(
                module.get(access.kernel, {}).get(access.address) == name
                for access, (_, name) in zip(accesses, kinds, strict=True)
            )
            for module in kernels
        )


def races(report: str) -> Iterator[Race]:
    """What racecheck printed: an access, and those that it is a hazard to."""
    for text in report.split("Race reported between ")[1:]:
        first, *others = [Access(kind, kernel, int(at, 16)) for kind, kernel, at in ACCESS.findall(text)]
        yield Race(first, tuple(others))


def disassembled(text: str) -> dict[str, Code]:
    """The kernels of what nvdisasm printed of a module."""
    sections = re.split(r"\.section\s+\.text\.(\w+)", text)
    return {
        name: {int(address, 16): opcode for address, opcode in INSTRUCTION.findall(body)}
        for name, body in zip(sections[1::2], sections[2::2], strict=True)
    }


def compiled_kernels(cache: Path, nvdisasm: str) -> Iterator[dict[str, Code]]:
    for entry in cache.rglob("*"):
        content = entry.read_bytes() if entry.is_file() else b""
        if b"\x7fELF" in content:
            with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
                cubin.write(content[content.index(b"\x7fELF") :])
                cubin.flush()
                yield disassembled(subprocess.run([nvdisasm, cubin.name], capture_output=True, text=True).stdout)


def find(tool: str) -> str:
    path = shutil.which(tool, path=os.environ.get("PATH", "") + os.pathsep + "/usr/local/cuda/bin")
    if not path:
        sys.exit(f"{tool} is neither in the PATH nor in /usr/local/cuda/bin; it comes with the CUDA toolkit")
    return path


def main() -> int:
    sanitizer, nvdisasm = find("compute-sanitizer"), find("nvdisasm")
    # How many mbarriers a block has it finds out by itself only of what nvcc compiled.
    command = [sanitizer, "--tool", "racecheck", "--num-cuda-barriers", "64", "--racecheck-indirect-barrier-dependency"]
    with tempfile.TemporaryDirectory(prefix="racecheck-") as cache:
        calls = [sys.executable, str(Path(__file__).with_name("sanitize.py")), "--few", f"--cache={cache}"]
        run = subprocess.run([*command, *calls], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = list(races(run.stdout))
        kernels = list(compiled_kernels(Path(cache), nvdisasm)) if found else []
    known = [race for race in found if race.is_of_statistics(kernels)]
    print(run.stdout if run.returncode or len(known) < len(found) else run.stdout[run.stdout.rindex("=========") :])
    print(f"{len(found)} reports of races; {len(known)} are of row statistics given back by one lane, which are none")
    return int(run.returncode != 0 or "RACECHECK SUMMARY" not in run.stdout or len(known) < len(found))


if __name__ == "__main__":
    sys.exit(main())
