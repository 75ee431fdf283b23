"""Protects: the demo and the training example run, on the default text and on a user's, and the loss curves agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flash_attention import _native

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = dict(os.environ, PYTHONPATH=str(Path(_native.__file__).resolve().parent.parent))
    line = [sys.executable, str(ROOT / "examples" / script), *arguments]
    return subprocess.run(line, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_demo_compares_the_two_and_draws(device: torch.device, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--device", device.type, "--dtype", dtype, "--output", str(tmp_path))
    done = run("demo.py", "--steps", "4", "--sample", "20", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    for needed in ("flash_attention", "scaled_dot_product_attention", "tokens/s", "largest difference", dtype):
        assert needed in done.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_training_example_learns_a_given_text(device: torch.device, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 4000)
    done = run("example_training.py", "--text", str(text), "--steps", "20", "--device", device.type)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("step ")]
    assert losses[-1] < losses[0] - 0.3


def test_too_short_a_text_is_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("too short")
    done = run("demo.py", "--text", str(text))
    assert done.returncode == 1
    assert done.stderr.strip().startswith("the text has 9 characters")
