"""Protects: shapes share what was tuned for their size class, so that a program with ever new shapes tunes a few times;
and the tuner leaves alone what is not its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flash_attention import _native, bench_tuner

STREAM = """
import json, random, sys, torch
from flash_attention import _native, flash_attention

device, most_batch, most_seqlen, heads, head_dim, dtype = sys.argv[1:]
draw, longest = random.Random(0), int(most_batch) * int(most_seqlen)
memory = torch.randn(longest * int(heads) * int(head_dim), device=device).to(getattr(torch, dtype))
before, shapes = memory.clone(), set()
for _ in range(1000):
    batch, seqlen = draw.randint(1, int(most_batch)), draw.randint(1, int(most_seqlen))
    shapes.add((batch, seqlen))
    shape = (batch, int(heads), seqlen, int(head_dim))
    tensor = memory[: batch * int(heads) * seqlen * int(head_dim)].view(shape)
    flash_attention(tensor, tensor, tensor, is_causal=True)
print(json.dumps({**_native.statistics(), "shapes": len(shapes), "unchanged": torch.equal(memory, before)}))
"""


def stream(cache: Path, *arguments: object) -> dict:
    """Statistics of a process that computes attention for 1,000 random batches and lengths of one model."""
    env = {**os.environ, "FLASH_ATTENTION_CACHE_DIR": str(cache), "FLASH_ATTENTION_AUTOTUNE": "1"}
    line = [sys.executable, "-c", STREAM, *map(str, arguments)]
    run = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_thousand_shapes_are_tuned_a_few_times(device: torch.device, tmp_path: Path) -> None:
    """On a CPU with short sequences, so that it does not take long; tests/c/test_cuda_dispatch.c has more of them."""
    size = (4, 300, 2, 16, "float32") if device.type == "cpu" else (16, 8192, 8, 64, "bfloat16")
    first = stream(tmp_path, device.type, *size)
    assert first["shapes"] > 600
    assert first["launches"] == 1000
    assert first["unchanged"]
    # CPU: lengths up to 16, 64, 256 and 1024, and heads up to 4 and above. GPU: see `bucket` of runtime/target_cuda.c.
    assert 2 <= first["tunings"] <= (8 if device.type == "cpu" else 16)
    again = stream(tmp_path, device.type, *size)
    assert again["launches"] == 1000
    assert again["tunings"] == again["compilations"] == 0


def test_searches_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `bench --tuner` relies on: each value of set_autotune finds records of its own kind, and no other."""
    code = """
import json, torch
from flash_attention import _native, bench_tuner, flash_attention
tensor = torch.randn(1, 1, 8, 8)
call = lambda: flash_attention(tensor, tensor, tensor)
tunings, configs = [], []
for autotune in ("0", "1", "0", "1", "0"):
    config, _ = bench_tuner.search(call, autotune, "cpu")
    configs.append(config)
    tunings.append(_native.statistics()["tunings"])
compilations = _native.statistics()["compilations"]
bench_tuner.search(call, "1", "cpu")
print(json.dumps([tunings, configs, _native.statistics()["compilations"] - compilations]))
"""
    env = {**os.environ, "FLASH_ATTENTION_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    tunings, configs, compilations = json.loads(run.stdout)
    assert tunings == [0, 1, 1, 1, 1]
    assert configs[0] == configs[2] == configs[4] != ""
    assert configs[1] == configs[3] != ""
    assert compilations == 0
    with pytest.raises(ValueError, match="autotune is 'all'; it must be 0, 1, max or pinned"):
        _native.set_autotune("all")


def test_comparison_of_two_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of a call alternate with the search; the ratio is the usual choice's speed over the other's."""
    chosen: list[str] = []
    seconds = {"1": 1.25e-3, "max": 1e-3}

    def search(call: object, autotune: str, device: str) -> tuple[str, float]:
        chosen.append(autotune)
        return f"block_m={64 if autotune == '1' else 128}", 2.0

    monkeypatch.setattr(bench_tuner, "search", search)
    monkeypatch.setattr(bench_tuner, "time_calls", lambda call, calls, device: seconds[chosen[-1]])
    row = bench_tuner.compare(bench_tuner.SHAPES["cpu"][0], "backward", lambda: None, "cpu", 4)
    assert row.ratio() == pytest.approx(0.8)
    assert (row.usual.config, row.exhaustive.config) == ("block_m=64", "block_m=128")
    assert chosen == ["1", "max", "1", "max", "max", "1", "1", "max", "max", "1"]
    assert "1 problems: 0 times the same config; within 3 % of the exhaustive search's 0 times; 0.800" in (
        bench_tuner.summary([row])
    )


def test_shapes_that_are_compared() -> None:
    """At least 20 problems, of both passes, all dtypes, head dims from 40 to 256, cross attention and grouped heads."""
    shapes = bench_tuner.SHAPES["cuda"]
    assert 2 * len(set(shapes)) >= 20
    assert {shape.dtype for shape in shapes} == {"fp32", "fp16", "bf16"}
    assert min(shape.head_dim for shape in shapes) == 40
    assert max(shape.head_dim for shape in shapes) == 256
    lengths = {(shape.seqlen, shape.seqlen_k) for shape in shapes}
    assert {(1, 32768), (32768, 77), (128, 128), (16384, 16384)} <= lengths
    assert {shape.is_causal for shape in shapes} == {False, True}
    assert any(shape.heads != shape.heads_kv for shape in shapes)
