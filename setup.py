"""Builds the package: one shared library, from C alone, with the system's C compiler.

Neither Python.h nor PyTorch nor CUDA is needed: the library reaches PyTorch through its stable C ABI, which it
looks up when it is loaded. One wheel therefore serves every Python version (py3-none-<platform>).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCE_DIRS = ("generator", "cache", "runtime", "python")
FLAGS = ["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-fexceptions", "-Wall", "-Wextra", "-I."]
LINK_FLAGS = ["-shared", "-Wl,--as-needed", "-ldl", "-lpthread", "-lm"]


def check_platform() -> None:
    """Stop with one sentence where the library cannot run."""
    bits = 8 * struct.calcsize("P")
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64") or bits != 64:
        here = f"{bits}-bit {platform.system()} on {platform.machine()}"
        sys.exit(f"flash_attention runs on 64-bit Linux on x86-64 and aarch64 only; this is {here}.")
    if int(setuptools.__version__.split(".")[0]) < 77:
        sys.exit(
            f"Building flash_attention needs setuptools 77 or newer; this is {setuptools.__version__} "
            "(python -m pip install --upgrade setuptools)."
        )


def compiler() -> list[str]:
    """$CC with its arguments, else the first of cc, gcc and clang that is there."""
    if os.environ.get("CC", "").strip():
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    sys.exit("Building flash_attention needs a C compiler and found none: install gcc (or clang), or set CC.")


def source_digest() -> str:
    """What the generated text depends on besides the templates: part of the key of every tuning record."""
    digest = hashlib.sha256()
    files = [*ROOT.glob("generator/*.c"), *ROOT.glob("generator/*.h"), *ROOT.glob("templates/common/*")]
    for path in sorted(files, key=lambda path: path.relative_to(ROOT).as_posix()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class BuildLibrary(build_ext):
    """Compile all of an extension's sources at once into flash_attention/_flash_attention.so."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).absolute()
        output.parent.mkdir(parents=True, exist_ok=True)
        defines = [f'-DFA_VERSION="{self.distribution.get_version()}"', f'-DFA_SOURCE_DIGEST="{source_digest()}"']
        command = [*compiler(), *FLAGS, *defines, *ext.sources]
        command += ["-o", str(output), *LINK_FLAGS]
        print(shlex.join(command), flush=True)
        try:
            subprocess.run(command, cwd=ROOT, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"Compiling flash_attention with {command[0]!r} failed: {error}")


def wheel_command() -> type:
    """bdist_wheel that tags the wheel py3-none-<platform>."""
    from setuptools.command.bdist_wheel import bdist_wheel

    class Wheel(bdist_wheel):
        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]

    return Wheel


check_platform()
sources = sorted(str(path.relative_to(ROOT)) for folder in SOURCE_DIRS for path in ROOT.glob(f"{folder}/*.c"))
setup(
    ext_modules=[Extension("flash_attention._flash_attention", sources)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": wheel_command()},
)
