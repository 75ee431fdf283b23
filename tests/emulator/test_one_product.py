"""Protects: forward in fp32 by one product is no less accurate than TF32, whatever the magnitudes.

Elements much smaller than the largest of their tile are below fp16's normal numbers, and kept less exactly than TF32
keeps them. What they add to a product is smaller by as much: 2^-39 of the largest is lost, where TF32 loses 2^-12 of
the largest itself. "channels", "rows" and "elements" show it.

The kernel runs in the emulator, whose tensor cores cut sums off as Hopper's do; tests/test_hopper.py has the same for a
GPU, with longer sequences.
"""

from __future__ import annotations

import pytest
import torch

import tf32
from emulator.attention import Case, run_given
from emulator.machine import Settings

CASE = Case(
    "forward",
    "fp32",
    precision="reduced",
    without=("lse",),
    target="cuda:sm_90a",
    config="block_m=128,block_n=64,num_stages=2",
    settings=Settings(exp2_error=2),
)


def output_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float) -> torch.Tensor:
    batch, heads, seqlen, head_dim = q.shape
    sizes = {"batch": batch, "heads_q": heads, "seqlen_q": seqlen, "seqlen_k": k.shape[2], "head_dim": head_dim}
    case = Case(**{**vars(CASE), **sizes, "causal": is_causal, "scale": scale}).filled()
    output = torch.empty_like(v)
    run_given(case, "forward", {"query": q, "key": k, "value": v}, {"output": output})
    return output


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", tf32.KINDS)
def test_no_less_accurate_than_tf32(kind: str, is_causal: bool) -> None:
    q, k, v = tf32.inputs(kind, (1, 1, 320, 64))
    scale = tf32.scale_of(kind, 64)
    assert not (text := tf32.complaint(output_of(q, k, v, is_causal, scale), q, k, v, is_causal, scale)), text


def test_scores_that_are_far_apart() -> None:
    """Scores of 1e6, whose rounding is worth hundreds: weights are 1 and 0, the largest score's is right."""
    q, k, v = tf32.inputs("normal", (1, 1, 128, 64), seed=2)
    q, k = q.mul(2).round(), k.mul(2).round()  # exact in 11 bits: the same key wins
    scale = 1e5
    assert not (text := tf32.complaint(output_of(q, k, v, False, scale), q, k, v, False, scale)), text


def test_the_yardstick() -> None:
    """TF32's emulation rounds to nearest with 11 bits; a bit less is told from it, and so are three products."""
    x = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -(1 + 2.0**-12), 1e-38, 3e38])
    y = tf32.rounded(x)
    assert y[:5].tolist() == [1, 1 + 2.0**-10, 1, 1 + 2.0**-9, -1]
    assert ((y - x).abs() <= 2.0**-12 * x.abs().double() * 2).all()
    q, k, v = tf32.inputs("normal", (1, 1, 64, 64))
    scale = tf32.scale_of("normal", 64)
    assert tf32.complaint(tf32.attention(q, k, v, False, scale, bits=10), q, k, v, False, scale)
    assert not tf32.complaint(tf32.attention(q, k, v, False, scale, bits=22), q, k, v, False, scale)
