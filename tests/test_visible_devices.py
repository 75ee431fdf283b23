"""CUDA_VISIBLE_DEVICES decides which GPUs a process has, and what their numbers are. Skipped where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cuda")

CALLS = """
import json, torch
from flash_attention import _native, flash_attention
from reference import assert_close, reference, run

results = []
for number in range(torch.cuda.device_count()):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.randn(2, 3, 150, 64).to(f"cuda:{number}", dtype) for _ in range(4)]
        mine = run(flash_attention, *tensors, is_causal=True)
        assert all(result.device == tensors[0].device for result in mine)
        assert_close(mine, reference(*tensors, is_causal=True))
    results.append(str(torch.cuda.get_device_properties(number).uuid))
assert torch.cuda.device_count() == 0 or torch.cuda.current_device() == 0
tensors = [torch.randn(2, 3, 50, 32) for _ in range(4)]
assert_close(run(flash_attention, *tensors), reference(*tensors))  # on a CPU, whatever is hidden
print(json.dumps({"uuids": results, **_native.statistics()}))
"""
TESTS = Path(__file__).parent


def uuids() -> list[str]:
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def start(visible: str, *arguments: str, **environment: str) -> str:
    """Standard output of a Python that sees these GPUs."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": visible, **environment}
    line = [sys.executable, *arguments]
    done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(visible: str, **environment: str) -> dict:
    """What a process says that computes on every GPU it sees."""
    return json.loads(start(visible, "-c", CALLS, **environment).splitlines()[-1])


def test_one_by_uuid() -> None:
    """The last one is the process's first, by the name that says which one it is, wherever it is plugged in."""
    last = uuids()[-1]
    assert call(f"GPU-{last}")["uuids"] == [last]


def test_by_number() -> None:
    """Numbers count what the machine has."""
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        pytest.skip("CUDA_VISIBLE_DEVICES is set: numbers are not this process's")
    names = uuids()
    assert call(str(len(names) - 1))["uuids"] == [names[-1]]
    if len(names) > 1:
        assert call("1,0")["uuids"] == [names[1], names[0]]


def test_none() -> None:
    """A process without GPUs computes on its CPU, and is told why there is no other target."""
    assert call("")["uuids"] == []
    assert "CUDA_VISIBLE_DEVICES may hide it" in start("", "-m", "flash_attention", "info")


def test_kernels_of_another_process(tmp_path: Path) -> None:
    """What was tuned on a GPU serves on all of its kind, under whatever numbers a process has them."""
    names = uuids()
    kinds = [torch.cuda.get_device_properties(i).name for i in range(len(names))]
    alike = [name for name, kind in zip(names, kinds, strict=True) if kind == kinds[0]]
    cache = {"FLASH_ATTENTION_CACHE_DIR": str(tmp_path), "FLASH_ATTENTION_AUTOTUNE": "1"}
    assert call(f"GPU-{alike[0]}", **cache)["tunings"] > 0
    other = call(f"GPU-{alike[-1]}", **cache)
    assert (other["tunings"], other["compilations"]) == (0, 0)
