"""Memory, launches and findings of the emulator, for any kernel."""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from emulator import build
from emulator.errors import EmulatorError

TIMINGS = {"early": 0, "late": 1, "random": 2}
MODELS = {"hopper": 0, "ampere": 1, "double": 2}
MARGIN = 16384  # bytes
MOST_SHARED = 227 * 1024  # of a block, on the GPUs that have most
MOST_IN_BLOCK = 1024  # threads
MOST_BLOCKS = 16  # of a cluster
MOST_THREADS = 16384  # at once: each has a stack, and a process only so many of them with guards (vm.max_map_count)
TRAPPED = 2  # what emu_launch returns
TYPES = {"fp16": 0, "bf16": 1}


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("timing", ctypes.c_int),
        ("model", ctypes.c_int),
        ("exp2_error", ctypes.c_int),
        ("resident", ctypes.c_int),
        ("shuffle", ctypes.c_int),
        ("drain", ctypes.c_int),
        ("shared_alignment", ctypes.c_int),
        ("registers", ctypes.c_int),
        ("cluster", ctypes.c_uint * 3),
    )


class _Variable(ctypes.Structure):
    """A line of the table that variables.py makes."""

    _fields_ = (("address", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("name", ctypes.c_char_p))


@cache
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build.runtime()), mode=ctypes.RTLD_GLOBAL)
    lib.emu_findings.restype = ctypes.c_char_p
    lib.emu_unwritten.restype = ctypes.c_size_t
    lib.emu_add_memory.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p]
    lib.emu_launch.argtypes = [ctypes.c_void_p] * 4
    lib.emu_to_float.restype = ctypes.c_float
    lib.emu_to_float.argtypes = [ctypes.c_uint16, ctypes.c_int]
    lib.emu_from_float.restype = ctypes.c_uint16
    lib.emu_from_float.argtypes = [ctypes.c_float, ctypes.c_int]
    lib.emu_multiply.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int] * 2
    return lib


@dataclass(frozen=True)
class Settings:
    """How a kernel is run. The same settings give the same run."""

    seed: int = 0
    timing: str = "random"  # when asynchronous operations are carried out: TIMINGS
    model: str = "hopper"  # how tensor cores add: MODELS
    exp2_error: int = 0  # units in the last place by which 2^x may be off
    resident: int = 4  # blocks at once
    shuffle: bool = False  # blocks begin in random order
    drain: bool = False  # copies that are under way when a thread ends are a finding


def lonely(count: int) -> np.ndarray:
    """`count` bytes, all NaN and aligned as cudaMalloc aligns, far enough from all others that a miss hits nothing."""
    raw = np.full(count + 2 * MARGIN + 256, 0xFF, np.uint8)
    start = MARGIN - (raw.ctypes.data + MARGIN) % -256
    return raw[start : start + count]


@dataclass
class Memory:
    """An array that a kernel may touch. state: for each two bytes 0 unwritten, 1 written, 2 not the kernel's."""

    name: str
    array: np.ndarray
    writable: bool = False
    state: np.ndarray | None = None
    _state: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        cells = (self.array.nbytes + 1) // 2
        default = np.full(cells, 0 if self.writable else 1, np.uint8)
        self._state = np.ascontiguousarray(default if self.state is None else self.state, np.uint8)
        if self._state.size != cells:
            raise ValueError(f"{self.name}: {self._state.size} states for {cells} cells")


# Of the emulator, not of a kernel; kernel.cpp has what stands in front of the first template.
UNSEEN_FILES = ("cuda.h:", "instructions.h:", "hopper_instructions.h:", "emulator entries:", "kernel.cpp:")


@lru_cache(maxsize=4096)
def _source_line(module: str, offset: str) -> str:
    command = ["addr2line", "-e", module, "-f", "-i", "-C", "-s", offset]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    frames = []
    for function, place in zip(lines[::2], lines[1::2], strict=False):
        where = re.sub(r" \(discriminator \d+\)", "", place)
        if not where.startswith(UNSEEN_FILES):
            frames.append(f"{where} ({function.split('(')[0].removeprefix('void ')})")
    return " < ".join(frames) or offset


class Kernel:
    """A compiled kernel. `source` is CUDA as the generator renders it."""

    def __init__(self, source: str, described: bool = False) -> None:
        library()
        self.source = source
        self.path: Path = build.kernel(source, described)
        self.module = ctypes.CDLL(str(self.path))
        self.static_range = (ctypes.c_void_p * 4)()  # where static shared variables lie, and the table of them
        self.module.emu_static_range(self.static_range)

    def static_variables(self) -> Sequence[_Variable]:
        begin, end = self.static_range[2] or 0, self.static_range[3] or 0
        return (_Variable * ((end - begin) // ctypes.sizeof(_Variable))).from_address(begin) if begin else ()

    def launch(
        self,
        entry: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        shared_bytes: int,
        arguments: Sequence[ctypes._SimpleCData | ctypes.Structure],
        memory: Sequence[Memory],
        settings: Settings = Settings(),
        cluster: int | Sequence[int] = 1,
    ) -> None:
        """Run one launch; raises EmulatorError with what was found. Memory written before counts as written."""
        Session(memory).launch(self, entry, grid, block, shared_bytes, arguments, settings, cluster)

    def registers(self, entry: str, threads: int) -> int:
        """What a thread has at the launch where setmaxnreg is used, from the kernel's __launch_bounds__; else 0."""
        bounds = getattr(self.module, f"emu_bounds_{entry}")
        most, blocks = bounds(0), max(bounds(1), 1)
        if not most:
            return 0
        if threads > most:
            raise EmulatorError(f"{entry}: {threads} threads, more than its __launch_bounds__({most})")
        return min(65536 // (most * blocks) // 8 * 8, 255)


class Session:
    """Memory that several launches use one after another."""

    def __init__(self, memory: Sequence[Memory]) -> None:
        self.memory = list(memory)
        lib = library()
        lib.emu_remove_memory()
        for m in self.memory:
            data = m.array.ctypes.data
            lib.emu_add_memory(m.name.encode(), data, m.array.nbytes, m.writable, m._state.tobytes())

    def unwritten(self, name: str) -> int:
        """How many bytes of a memory no launch has written."""
        return library().emu_unwritten(name.encode())

    def launch(
        self,
        kernel: Kernel,
        entry: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        shared_bytes: int,
        arguments: Sequence[ctypes._SimpleCData | ctypes.Structure],
        settings: Settings,
        cluster: int | Sequence[int] = 1,
    ) -> None:
        lib, threads = library(), math.prod(_three(block))
        if threads > MOST_IN_BLOCK:
            raise EmulatorError(f"{entry}: {threads} threads, more than a block can have: {MOST_IN_BLOCK}")
        parts = zip(_three(grid), _three(cluster), strict=True)
        if math.prod(_three(cluster)) > MOST_BLOCKS or any(g % c for g, c in parts):
            raise ValueError(f"{entry}: a grid of {grid} does not consist of clusters of {cluster}")
        blocks = max(min(settings.resident, math.prod(_three(grid))), math.prod(_three(cluster)))
        if blocks * threads > MOST_THREADS:
            raise ValueError(
                f"{entry}: {blocks} blocks of {block} threads at once; {MOST_THREADS} threads are possible"
            )
        launch = _Launch(
            (ctypes.c_uint * 3)(*_three(grid)),
            (ctypes.c_uint * 3)(*_three(block)),
            shared_bytes,
            settings.seed,
            TIMINGS[settings.timing],
            MODELS[settings.model],
            settings.exp2_error,
            blocks,
            settings.shuffle,
            settings.drain,
            kernel.module.emu_shared_alignment(),
            kernel.registers(entry, threads),
            (ctypes.c_uint * 3)(*_three(cluster)),
        )
        shared = shared_bytes + sum(variable.bytes for variable in kernel.static_variables())
        if shared > MOST_SHARED:
            raise EmulatorError(f"{entry}: {shared} bytes of shared memory; a block can have {MOST_SHARED}")
        before = [m.array.copy() if m.writable else None for m in self.memory]
        lib.emu_save()
        if self._run(kernel, entry, arguments, launch) == TRAPPED:
            for m, array in zip(self.memory, before, strict=True):
                if array is not None:
                    m.array[:] = array
            lib.emu_restore()
            self._run(Kernel(kernel.source, described=True), entry, arguments, launch)
        found = lib.emu_findings().decode(errors="replace")
        if found:
            text = re.sub(r"@\{(\S+) (0x[0-9a-f]+)\}", lambda m: _source_line(m[1], m[2]), found)
            raise EmulatorError(f"{entry} (seed {settings.seed}, timing {settings.timing}):\n{text}")

    def _run(
        self,
        kernel: Kernel,
        entry: str,
        arguments: Sequence[ctypes._SimpleCData | ctypes.Structure],
        launch: _Launch,
    ) -> int:
        lib = library()
        pointers = (ctypes.c_void_p * max(len(arguments), 1))(*(ctypes.addressof(a) for a in arguments))
        lib.emu_reset_findings()
        function = ctypes.cast(getattr(kernel.module, f"emu_entry_{entry}"), ctypes.c_void_p)
        return lib.emu_launch(function, pointers, ctypes.byref(launch), kernel.static_range)


def _three(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    full = (*((sizes,) if isinstance(sizes, int) else tuple(sizes)), 1, 1)
    return full[0], full[1], full[2]
