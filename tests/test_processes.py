"""What one process has tuned and compiled, no other does again; and the bits are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = """
import hashlib, json, torch
from flash_attention import _native, flash_attention

digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16):
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 150, 32).to(dtype).requires_grad_() for _ in range(3)]
    output = flash_attention(*inputs, is_causal=True)
    for result in (output, *torch.autograd.grad(output.float().square().sum(), inputs)):
        digest.update(result.detach().float().numpy().tobytes())
print(json.dumps({**_native.statistics(), "digest": digest.hexdigest()}))
"""


def call(cache: Path, **environment: str) -> dict:
    """Statistics and digest of a new process."""
    env = {**os.environ, "FLASH_ATTENTION_CACHE_DIR": str(cache), "FLASH_ATTENTION_AUTOTUNE": "1", **environment}
    done = subprocess.run([sys.executable, "-c", CALLS], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_second_process_neither_tunes_nor_compiles(tmp_path):
    """A warm cache is enough: four problems, nothing compiled, nothing tuned, equal bits."""
    first = call(tmp_path / "cache")
    assert first["tunings"] == 4
    assert first["compilations"] >= 4
    second = call(tmp_path / "cache", PATH="/nonexistent", CC="/nonexistent/cc")
    assert second["tunings"] == 0
    assert second["compilations"] == 0
    assert second["kernels_loaded"] == 4
    assert second["digest"] == first["digest"]


@pytest.mark.parametrize("threads", ["1", "3"])
def test_bits_do_not_depend_on_the_process(tmp_path, threads):
    """The same cache gives the same bits in a process with another number of threads."""
    cache = tmp_path / "cache"
    first = call(cache, FLASH_ATTENTION_AUTOTUNE="0", OMP_NUM_THREADS="2")
    again = call(cache, FLASH_ATTENTION_AUTOTUNE="0", OMP_NUM_THREADS=threads)
    assert again["digest"] == first["digest"]


def test_import_is_light():
    """`import flash_attention` adds little to `import torch`: it compiles, tunes and opens nothing."""
    code = (
        "import sys, time, torch; before = set(sys.modules); t = time.perf_counter(); import flash_attention; "
        "print(time.perf_counter() - t); "
        "print(' '.join(sorted(m for m in set(sys.modules) - before if not m.startswith('flash_attention'))))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    # 50 ms is the promise; a busy test machine gets three times that.
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.15
    heavy = {"numpy", "matplotlib", "pandas", "rich", "sympy", "torch._dynamo", "torch._inductor"}
    assert not heavy & set(runs[0].stdout.split()[1:])


def test_no_compiler_is_a_clear_error(tmp_path):
    """Without a compiler and with a cold cache, the message says what to install."""
    code = "import torch, flash_attention as fa; x = torch.ones(1, 1, 4, 8); fa.flash_attention(x, x, x)"
    env = {**os.environ, "FLASH_ATTENTION_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/nonexistent", "CC": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError")
    assert "compiler" in last
    assert "install" in done.stderr
