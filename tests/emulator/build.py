"""Rendered CUDA source -> a shared object that runs in the emulator."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from emulator import uninitialised, variables, wrappers
from emulator.errors import EmulatorError

NATIVE = Path(__file__).parent / "native"
CXX = os.environ.get("CXX", "g++")


def _has(flag: str) -> bool:
    return f" {flag} " in Path("/proc/cpuinfo").read_text()


def _has_fma() -> bool:
    """Does this processor multiply and add in one step, as a GPU does?"""
    return platform.machine() == "aarch64" or _has("fma")


# Products and sums are contracted to fused multiply-adds, as NVRTC does without being asked.
FMA = ["-ffp-contract=fast", "-fexpensive-optimizations"] if _has_fma() else ["-ffp-contract=off"]
FMA += ["-mfma"] if _has_fma() and platform.machine() == "x86_64" else []
# -fsanitize=thread calls a function at every access, which hooks.cpp has; nothing of the sanitizers is linked. What is
# undefined is a trap first, and the launch is run again with calls of functions that say what it was: they take a
# third of the time to compile, and kernels that are right never come there.
# Local variables begin as a pattern, so that the use of one that was not set shows where g++ does not see it
# (uninitialised.py). addr2line mistakes the files of
# functions in DWARF 5. Where variables are is not kept: that takes a third of the time to compile. Shared variables are
# addressed one by one, as variables.py parts them; and a call stays one call, as an .aligned instruction is one place.
KERNEL_FLAGS = [
    *("-std=c++17", "-O1", "-gdwarf-4", "-fno-var-tracking", "-fPIC", "-fno-plt", "-fno-strict-aliasing", *FMA),
    *(
        "-fsanitize=thread",
        "--param=tsan-distinguish-volatile=1",
        "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    ),
    *("-fsanitize=unreachable,float-cast-overflow", "-ftrivial-auto-var-init=pattern", "-Wall", "-Wno-unknown-pragmas"),
    *("-fno-section-anchors", "-fno-gnu-unique", "-fno-thread-jumps", "-Wno-unused-function", "-Wno-unused-variable"),
    *("-Wno-unused-but-set-variable", "-Wno-psabi", *uninitialised.FLAGS),
]
TRAPS = "-fsanitize-undefined-trap-on-error"
# Vectors for the sums of tensor_core.cpp, which would else take a third of the time that a sweep runs.
VECTORS = ["-ftree-vectorize", *(["-mavx2"] if _has("avx2") and platform.machine() == "x86_64" else [])]
RUNTIME_FLAGS = ["-std=c++17", "-O2", *VECTORS, "-g", "-fPIC", "-Wall", "-Wextra", "-shared"]

_DYNAMIC = re.compile(
    r"\bextern\s+__shared__\s+(?P<align>__align__\((?P<bytes>[^()]*)\)\s+)?(?P<type>[\w ]*?\w)\s+"
    r"(?P<align2>__align__\((?P<bytes2>[^()]*)\)\s+)?(?P<name>\w+)\s*\[\s*\]\s*;"
)
_DYNAMIC_LEFT = re.compile(r"\bextern\s[^;{}]*\b__shared__|\b__shared__\s+extern\b")
_ALIGN = r"(?:__align__\([^()]*\)\s+)*"
_TYPE = r"\w(?:[\w:\s]|<[^;{}]*>)*?(?:\s*\*)*"  # behind it is a name
_STATIC = re.compile(rf"\b__shared__(?=\s+{_ALIGN}(?P<type>{_TYPE})\s*\b{_ALIGN}\w+\s*[\[,;=])")
_STATIC_LEFT = re.compile(r"\b__shared__(?! __attribute__)")
_ASSEMBLY = re.compile(r"\b(?:asm|__asm|__asm__)\b")
_NO_CODE = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_BETWEEN = r"(?:\s|#line[^\n]*\n)*"
_NESTED = r"[^()]*"  # with parentheses inside of each other, up to four
for _ in range(4):
    _NESTED = rf"(?:[^()]|\({_NESTED}\))*"
_KERNEL = re.compile(
    rf"__global__\s+void\b{_BETWEEN}(?:__launch_bounds__\s*\((?P<bounds>{_NESTED})\){_BETWEEN})?(?P<name>(?!__)\w+)\s*\("
)


def missing() -> str:
    """Why the emulator does not run here; "" if it does."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"it switches stacks on x86-64 and aarch64, not on {platform.machine()}"
    try:
        version = subprocess.run([CXX, "-dumpversion"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"it needs {CXX}, which is not there"
    return "" if int(version.split(".")[0]) >= 12 else f"it needs g++ 12 or newer; {CXX} is {version.strip()}"


def translate(source: str) -> str:
    """The text for a C++ compiler: cuda.h in front, no inline assembly, shared memory by the emulator, entries."""
    pieces, position, names, types = [], 0, [], {}
    for name, start, end in wrappers.definitions(source):
        body = source[start:end]
        is_assembly = _ASSEMBLY.search(body)
        if not is_assembly and not wrappers.is_known(name):
            continue
        if dtype := wrappers.check(name, body):
            types[dtype] = name
        if is_assembly:
            names.append(name)
            pieces += [source[position:start], "\n" * body.count("\n")]
            position = end
    if len(types) > 1:
        raise NotImplementedError(f"{types['fp16']} is that of fp16 and {types['bf16']} that of bf16, in one kernel")
    text = "".join([*pieces, source[position:]])
    alignment = "16"

    def dynamic(match: re.Match[str]) -> str:
        nonlocal alignment
        alignment = match["bytes"] or match["bytes2"] or alignment
        if match.start() > 0 and text[match.start() - 1] != "\n":  # in a function
            return f"{match['type']} *const {match['name']} = ({match['type']} *)emu_dynamic_shared();"
        return f"#define {match['name']} (({match['type']} *)emu_dynamic_shared())"

    text = _DYNAMIC.sub(dynamic, text)
    _refuse(_DYNAMIC_LEFT, text, "a declaration of dynamic shared memory that is not `extern __shared__ TYPE NAME[];`")
    # No more than it asks for: g++ would align an array as it likes.
    text = _STATIC.sub(lambda match: f"__shared__ __attribute__((aligned(alignof({match['type']}))))", text)
    _refuse(_STATIC_LEFT, text, "a declaration of shared memory that is not `__shared__ TYPE NAME...;`")
    _refuse(_ASSEMBLY, text, "inline assembly outside of a __device__ function of its own, of which there is a model")
    kernels = {match["name"]: match["bounds"] or "0" for match in _KERNEL.finditer(text)}
    entries = "".join(f"EMU_ENTRY({name}, {bounds})\n" for name, bounds in kernels.items())
    names = list(dict.fromkeys(names))
    defines = "".join(f"#define EMU_HAS_{name}\n" for name in names)
    headers = ("cuda.h", "instructions.h", "hopper_instructions.h")
    includes = "".join(f'#include "{NATIVE}/{header}"\n' for header in headers)
    includes += '#line 1 "hopper_instructions.h"\n'  # no place of the kernel
    includes += "".join(f"EMU_WGMMA({n})\n" for name in names for n in re.findall(r"^wgmma_m64n(\d+)k16$", name))
    return (
        f"#define EMU_TYPE {int('bf16' in types)}\n{defines}{includes}{text}\n"
        f'#line 1 "emulator entries"\nextern "C" int emu_shared_alignment() {{ return {alignment}; }}\n{entries}'
    )


def _refuse(pattern: re.Pattern[str], text: str, what: str) -> None:
    """Unless it stands in a comment or in a string."""
    code = _NO_CODE.sub(lambda match: "\n" * match[0].count("\n"), text)
    if match := pattern.search(code):
        line = code[code.rfind("\n", 0, match.start()) + 1 :].split("\n", 1)[0].strip()
        raise NotImplementedError(f"the emulator does not know {what}: {line}")


def _cache() -> Path:
    path = Path(os.environ.get("EMULATOR_CACHE", Path(tempfile.gettempdir()) / f"emulator_cache_{os.getuid()}"))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmulatorError(
            f"EMULATOR_CACHE is {path}; it must be a folder, or one that can be made: {error}"
        ) from error
    return path


def _remove_old(directory: Path) -> None:
    """What nobody has used for a day."""
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            if path.is_file() and path.stat().st_mtime < time.time() - 86400:
                path.unlink()


# A command, or what is done to the files in the directory.
Step = list[str] | Callable[[Path], None]


def _compile(name: str, parts: list[bytes], steps: list[Step], files: dict[str, bytes]) -> Path:
    commands = [" ".join(step).encode() for step in steps if isinstance(step, list)]
    digest = hashlib.sha256(b"\0".join(parts + commands)).hexdigest()[:24]
    result = _cache() / f"{name}_{digest}.so"
    with contextlib.suppress(FileNotFoundError):
        os.utime(result)
        return result
    _remove_old(result.parent)
    with open(result.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be about to have it
        if not result.exists():
            _run_steps(result, steps, files)
    return result


def _run_steps(result: Path, steps: list[Step], files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=result.parent) as directory:
        for file, content in files.items():
            (Path(directory) / file).write_bytes(content)
        for step in steps:
            if not isinstance(step, list):
                step(Path(directory))
                continue
            environment = {**os.environ, "LC_ALL": "C"}
            done = subprocess.run(step, cwd=directory, env=environment, capture_output=True, text=True, check=False)
            uninitialised.raise_if_found(done.stderr)
            if done.returncode:
                raise RuntimeError(f"{' '.join(step)} failed:\n{done.stderr[:8000]}")
        for file in files:
            os.replace(Path(directory) / file, result.with_suffix("." + file.rsplit(".", 1)[-1]))
        os.replace(Path(directory) / "out.so", result)


def _sources() -> list[bytes]:
    return [path.read_bytes() for path in sorted(NATIVE.iterdir())]


def runtime() -> Path:
    """The emulator itself."""
    files = [str(path) for path in sorted(NATIVE.glob("*.cpp"))]
    command = [CXX, *RUNTIME_FLAGS, "-Wl,-soname,emulator_runtime.so", *files, "-o", "out.so", "-ldl"]
    return _compile("runtime", _sources(), [command], {})


@functools.lru_cache(maxsize=4)  # calls of one kernel come after one another
def kernel(source: str, described: bool = False) -> Path:
    """A kernel; its symbols of the emulator are found when it is loaded. `described`: it says what is undefined."""
    text = translate(source).encode()
    steps: list[Step] = [
        [CXX, *KERNEL_FLAGS, *([] if described else [TRAPS]), "-S", "kernel.cpp", "-o", "kernel.s"],
        variables.part_file,
        [CXX, "-shared", "kernel.s", "-o", "out.so"],
    ]
    parts = [*sorted(NATIVE.glob("*.h")), Path(variables.__file__)]
    return _compile("kernel", [text, *(path.read_bytes() for path in parts)], steps, {"kernel.cpp": text})
