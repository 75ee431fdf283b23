"""Protects: installing needs a C compiler and nothing else, and gives one small wheel for every Python version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
LEAVE_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "results", "*.egg-info", "*.so", "__pycache__", ".*_cache"
)

pytestmark = pytest.mark.skipif(
    int(setuptools.__version__.split(".")[0]) < 77, reason="without build isolation, setuptools 77 is needed"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the sources."""
    path = tmp_path_factory.mktemp("sources") / "flash_attention"
    shutil.copytree(ROOT, path, symlinks=True, ignore=LEAVE_OUT)
    return path


def pip(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pip without an index, without build isolation, with the variables that other projects ask for set."""
    variables = dict(os.environ, PIP_NO_INDEX="1", CUDA_HOME="/nowhere", CXX="no-such-compiler", **environment)
    variables.pop("PYTHONPATH", None)
    line = [sys.executable, "-m", "pip", *arguments, "--no-build-isolation", "--no-deps"]
    return subprocess.run(line, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run = pip("wheel", str(tree), "-w", str(folder))
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_is_small_and_for_every_python(wheel: Path) -> None:
    assert "-py3-none-linux_" in wheel.name
    assert wheel.stat().st_size < 1_000_000


def test_wheel_holds_library_templates_and_licences(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "flash_attention/_flash_attention.so" in names
    assert "flash_attention/py.typed" in names
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "templates").rglob("*") if path.is_file()}
    assert templates
    assert {f"flash_attention/{name}" for name in templates} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any("xxhash" in name.lower() for name in names)


def test_library_needs_nothing_of_python_or_pytorch(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    library = tmp_path / "flash_attention" / "_flash_attention.so"
    lines = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout.splitlines()
    needed = [line.split()[0] for line in lines]  # without the addresses, in which "c10" may stand by chance
    assert any("libc" in library for library in needed), needed
    for name in ("python", "torch", "c10", "cuda", "nvrtc", "stdc++", "gomp"):
        assert not any(name in library for library in needed), needed


CALL = """
import sys
import torch, flash_attention
assert flash_attention.__file__.startswith(sys.argv[1]), flash_attention.__file__
query = torch.randn(1, 2, 33, 16, requires_grad=True)
output = flash_attention.flash_attention(query, query, query)
output.sum().backward()
expected = torch.nn.functional.scaled_dot_product_attention(query, query, query)
torch.testing.assert_close(output, expected)
"""


def call_in(site: Path, cache: Path) -> None:
    variables = dict(
        os.environ, PYTHONPATH=str(site), FLASH_ATTENTION_CACHE_DIR=str(cache), PYTHONDONTWRITEBYTECODE="1"
    )
    run = subprocess.run(
        [sys.executable, "-c", CALL, str(site)],
        env=variables,
        cwd=cache.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_runs_from_read_only_site_packages(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for path in (site, *site.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((path, path.stat().st_mtime_ns) for path in site.rglob("*"))
    try:
        call_in(site, tmp_path / "cache")
        assert sorted((path, path.stat().st_mtime_ns) for path in site.rglob("*")) == before  # root can write anywhere
    finally:
        for path in (site, *site.rglob("*")):
            path.chmod(0o755)


def test_editable_install_offline(tree: Path, tmp_path: Path) -> None:
    run = pip("install", "-e", str(tree), "--prefix", str(tmp_path / "prefix"))
    assert run.returncode == 0, run.stdout + run.stderr
    (link,) = (tmp_path / "prefix").rglob("__editable__*.pth")
    site = Path(link.read_text().strip())
    assert site == tree / "python"
    call_in(site, tmp_path / "cache")


def test_cc_is_honoured(tree: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "my compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\nexec cc "$@"\n')
    compiler.chmod(0o755)
    run = pip("wheel", str(tree), "-w", str(tmp_path), CC=f"'{compiler}' -DEXTRA=1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "-DEXTRA=1" in (tmp_path / "calls").read_text()


ELSEWHERE = """
import platform, sys
_, system, machine = sys.argv
platform.system, platform.machine = lambda: system, lambda: machine
sys.argv[1:] = ["--version"]
exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__name__": "__main__", "__file__": "setup.py"})
"""


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "riscv64")])
def test_installing_elsewhere_stops_with_one_sentence(system: str, machine: str) -> None:
    line = [sys.executable, "-c", ELSEWHERE, system, machine]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.strip() == (
        f"flash_attention runs on 64-bit Linux on x86-64 and aarch64 only; this is 64-bit {system} on {machine}."
    )


def test_installing_without_compiler_says_what_is_missing(tree: Path, tmp_path: Path) -> None:
    run = pip("wheel", str(tree), "-w", str(tmp_path), CC="", PATH=str(Path(sys.executable).parent))
    assert run.returncode != 0
    assert "needs a C compiler and found none: install gcc" in run.stdout + run.stderr
