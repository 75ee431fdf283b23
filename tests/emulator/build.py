"""Rendered CUDA source -> a shared object that runs in the emulator."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import tempfile
import time
from pathlib import Path

NATIVE = Path(__file__).parent / "native"
CXX = os.environ.get("CXX", "g++")


def _has_fma() -> bool:
    """Does this processor multiply and add in one step, as a GPU does?"""
    return platform.machine() == "aarch64" or " fma " in Path("/proc/cpuinfo").read_text()


# Products and sums are contracted to fused multiply-adds, as NVRTC does without being asked.
FMA = ["-ffp-contract=fast", "-fexpensive-optimizations"] if _has_fma() else ["-ffp-contract=off"]
FMA += ["-mfma"] if _has_fma() and platform.machine() == "x86_64" else []
# -fsanitize=thread calls a function at every access, which hooks.cpp has; nothing of the sanitizers is linked.
# Local variables begin as a pattern, so that the use of one that was not set shows. addr2line mistakes the files of
# functions in DWARF 5.
KERNEL_FLAGS = [
    *("-std=c++17", "-O1", "-gdwarf-4", "-fPIC", "-fno-plt", "-fno-strict-aliasing", *FMA),
    *("-fsanitize=thread", "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"),
    *("-fsanitize=unreachable,float-cast-overflow", "-ftrivial-auto-var-init=pattern", "-Wall", "-Wno-unknown-pragmas"),
    *("-Wno-unused-function", "-Wno-unused-variable", "-Wno-unused-but-set-variable", "-Wno-psabi"),
]
RUNTIME_FLAGS = ["-std=c++17", "-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-shared"]

# A function whose body is inline assembly is left out: instructions.h has one of the same name, which means this.
INSTRUCTIONS = {
    "ldmatrix_x1": r"ldmatrix\.sync\.aligned\.m8n8\.x1\.shared\.b16",
    "ldmatrix_x2": r"ldmatrix\.sync\.aligned\.m8n8\.x2\.shared\.b16",
    "ldmatrix_x4": r"ldmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16",
    "ldmatrix_x2_trans": r"ldmatrix\.sync\.aligned\.m8n8\.x2\.trans\.shared\.b16",
    "ldmatrix_x4_trans": r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans\.shared\.b16",
    "mma_m16n8k16": r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(f16\.f16|bf16\.bf16)\.f32",
    "copy_async": r"cp\.async\.c[ag]\.shared\.global",
    "copy_commit": r"cp\.async\.commit_group",
    "copy_wait": r"cp\.async\.wait_group",
    "exp2_approx": r"ex2\.approx\.ftz\.f32",
    "pack": r"cvt\.rn\.(bf16x2|f16x2)\.f32",
    "to_float": r"cvt\.f32\.f16",
    "load_acquire": r"ld\.acquire\.gpu\.global\.s32",
    "store_release": r"st\.release\.gpu\.global\.s32",
    "reduce_add": r"red\.relaxed\.gpu\.global\.add\.f32",
    "reduce_add_4": r"red\.relaxed\.gpu\.global\.add\.v4\.f32",
    "barrier_init": r"mbarrier\.init\.shared::cta\.b64 ",
    "barrier_init_done": r"fence\.mbarrier_init\.release\.cluster",
    "barrier_arrive": r"mbarrier\.arrive\.shared::cta\.b64 _",
    "barrier_arrive_at": r"(?s)mapa\.shared::cluster\.u32 .*mbarrier\.arrive\.release\.cluster\.shared::cluster\.b64 _",
    "barrier_expect": r"mbarrier\.arrive\.expect_tx\.shared::cta\.b64 _",
    "barrier_try": r"mbarrier\.try_wait\.parity\.shared::cta\.b64 ",
    "tensor_prefetch": r"prefetch\.tensormap \[",
    "tensor_load": (r"cp\.async\.bulk\.tensor\.[2-5]d\.shared::cluster\.global\.tile\.mbarrier::complete_tx::bytes\""),
    "tensor_load_multicast": (
        r"cp\.async\.bulk\.tensor\.[2-5]d\.shared::cluster\.global\.tile\.mbarrier::complete_tx::bytes\.multicast::cluster\""
    ),
    "tensor_store": r"cp\.async\.bulk\.tensor\.[2-5]d\.global\.shared::cta\.bulk_group ",
    "tensor_reduce_add": r"cp\.reduce\.async\.bulk\.tensor\.[2-5]d\.global\.shared::cta\.add\.bulk_group",
    "bulk_load": r"cp\.async\.bulk\.shared::cluster\.global\.mbarrier::complete_tx::bytes ",
    "bulk_store": r"cp\.async\.bulk\.global\.shared::cta\.bulk_group ",
    "bulk_reduce_add": r"cp\.reduce\.async\.bulk\.global\.shared::cta\.bulk_group\.add\.f32 ",
    "bulk_commit": r"cp\.async\.bulk\.commit_group;",
    "bulk_wait": r"cp\.async\.bulk\.wait_group %0;",
    "bulk_wait_read": r"cp\.async\.bulk\.wait_group\.read %0;",
    "fence_async_shared": r"fence\.proxy\.async\.shared::cta;",
    "wgmma_fence": r"wgmma\.fence\.sync\.aligned;",
    "wgmma_commit": r"wgmma\.commit_group\.sync\.aligned;",
    "wgmma_wait": r"wgmma\.wait_group\.sync\.aligned %0;",
    "keep_registers": r'asm volatile\("" : "\+f"',
    "named_barrier_wait": r"bar\.sync %0, %1;",
    "named_barrier_arrive": r"bar\.arrive %0, %1;",
    "registers_increase": r"setmaxnreg\.inc\.sync\.aligned\.u32 %0;",
    "registers_decrease": r"setmaxnreg\.dec\.sync\.aligned\.u32 %0;",
    "stmatrix_x4": r"stmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16",
    "stmatrix_x4_trans": r"stmatrix\.sync\.aligned\.m8n8\.x4\.trans\.shared\.b16",
    "elect_one": r"elect\.sync _\|elected, 0xffffffff;",
    "cluster_rank": r"%%cluster_ctarank;",
    "cluster_arrive": r"barrier\.cluster\.arrive\.release;",
    "cluster_wait": r"barrier\.cluster\.wait\.acquire;",
    "map_shared": r"mapa\.shared::cluster\.u32 ",
    "store_shared_cluster_f32": r"st\.shared::cluster\.f32 ",
    "load_shared_cluster_f32": r"ld\.shared::cluster\.f32 ",
    **{
        f"wgmma_m64n{n}k16": rf"wgmma\.mma_async\.sync\.aligned\.m64n{n}k16\.f32\.(f16\.f16|bf16\.bf16) "
        for n in range(8, 257, 8)
    },
}
# The name of a function at the start of a definition, its template line included.
_DEFINITION = re.compile(
    r"^(?:template\s*<[^<>]*>\s*)?(?:static\s+)?(?:inline\s+)?__device__[^;{}()]*?\b(\w+)\s*\(", re.MULTILINE
)
_SKIPPED = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_DYNAMIC = re.compile(
    r"^(?P<indent>[ \t]*)extern\s+__shared__\s+(?P<align>__align__\((?P<bytes>[^()]*)\)\s+)?(?P<type>[\w ]*?\w)\s+"
    r"(?P<align2>__align__\((?P<bytes2>[^()]*)\)\s+)?(?P<name>\w+)\s*\[\s*\]\s*;",
    re.MULTILINE,
)
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


def _end_of_body(text: str, start: int) -> int:
    """Behind the brace that closes the first one at or behind `start`."""
    depth, position = 0, start
    while position < len(text):
        skipped = _SKIPPED.match(text, position)
        if skipped:
            position = skipped.end()
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
        if text[position - 1] == "}" and depth == 0:
            return position
    raise ValueError("a function of the kernel does not end")


def translate(source: str) -> str:
    """The text for a C++ compiler: cuda.h in front, no inline assembly, shared memory by the emulator, entries."""
    pieces, position, names, bf16 = [], 0, [], False
    for match in _DEFINITION.finditer(source):
        if match.start() < position:
            continue
        end = _end_of_body(source, match.end())
        body = source[match.start() : end]
        if not re.search(r"\basm\b", body):
            continue
        name = match.group(1)
        if name not in INSTRUCTIONS or not re.search(INSTRUCTIONS[name], body):
            raise NotImplementedError(
                f"the emulator has no model of {name}, or another instruction stands in it now: "
                "native/instructions.h and INSTRUCTIONS in build.py"
            )
        bf16 = bf16 or "bf16" in body
        names.append(name)
        pieces += [source[position : match.start()], "\n" * body.count("\n")]
        position = end
    text = "".join([*pieces, source[position:]])
    alignment = "16"

    def dynamic(match: re.Match[str]) -> str:
        nonlocal alignment
        alignment = match["bytes"] or match["bytes2"] or alignment
        if match["indent"]:
            pointer = f"{match['type']} *const {match['name']} = ({match['type']} *)emu_dynamic_shared();"
            return match["indent"] + pointer
        return f"#define {match['name']} (({match['type']} *)emu_dynamic_shared())"

    text = _DYNAMIC.sub(dynamic, text)
    kernels = {match["name"]: match["bounds"] or "0" for match in _KERNEL.finditer(text)}
    entries = "".join(f"EMU_ENTRY({name}, {bounds})\n" for name, bounds in kernels.items())
    names = list(dict.fromkeys(names))
    defines = "".join(f"#define EMU_HAS_{name}\n" for name in names)
    headers = ("cuda.h", "instructions.h", "hopper_instructions.h")
    includes = "".join(f'#include "{NATIVE}/{header}"\n' for header in headers)
    includes += '#line 1 "hopper_instructions.h"\n'  # no place of the kernel
    includes += "".join(f"EMU_WGMMA({n})\n" for name in names for n in re.findall(r"^wgmma_m64n(\d+)k16$", name))
    return (
        f"#define EMU_TYPE {int(bf16)}\n{defines}{includes}{text}\n"
        f'#line 1 "emulator entries"\nextern "C" int emu_shared_alignment() {{ return {alignment}; }}\n{entries}'
    )


def _cache() -> Path:
    path = Path(os.environ.get("EMULATOR_CACHE", Path(tempfile.gettempdir()) / f"emulator_cache_{os.getuid()}"))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _remove_old(directory: Path) -> None:
    """What nobody has used for a day."""
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            if path.is_file() and path.stat().st_mtime < time.time() - 86400:
                path.unlink()


def _compile(name: str, parts: list[bytes], commands: list[list[str]], files: dict[str, bytes]) -> Path:
    digest = hashlib.sha256(b"\0".join(parts + [" ".join(c).encode() for c in commands])).hexdigest()[:24]
    result = _cache() / f"{name}_{digest}.so"
    with contextlib.suppress(FileNotFoundError):
        os.utime(result)
        return result
    _remove_old(result.parent)
    with tempfile.TemporaryDirectory(dir=_cache()) as directory:
        for file, content in files.items():
            (Path(directory) / file).write_bytes(content)
        for command in commands:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[:8000]}")
        for file in files:
            os.replace(Path(directory) / file, result.with_suffix("." + file.rsplit(".", 1)[-1]))
        os.replace(Path(directory) / "out.so", result)
    return result


def _sources() -> list[bytes]:
    return [path.read_bytes() for path in sorted(NATIVE.iterdir())]


def runtime() -> Path:
    """The emulator itself."""
    files = [str(path) for path in sorted(NATIVE.glob("*.cpp"))]
    command = [CXX, *RUNTIME_FLAGS, "-Wl,-soname,emulator_runtime.so", *files, "-o", "out.so", "-ldl"]
    return _compile("runtime", _sources(), [command], {})


def kernel(source: str) -> Path:
    """A kernel; its symbols of the emulator are found when it is loaded."""
    text = translate(source).encode()
    commands = [
        [CXX, *KERNEL_FLAGS, "-c", "kernel.cpp", "-o", "kernel.o"],
        [CXX, "-shared", "kernel.o", "-o", "out.so"],
    ]
    return _compile(
        "kernel", [text, *(path.read_bytes() for path in sorted(NATIVE.glob("*.h")))], commands, {"kernel.cpp": text}
    )
