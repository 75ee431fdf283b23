"""fp32 where TF32 is allowed, on a Hopper GPU: errors beside TF32's, and how much of bf16's speed is left.

    python bench/cuda_one_product.py

takes a minute with an empty cache. Errors are ‖error‖ / ‖exact‖ against float64: ours; TF32's as tests/tf32.py reckons
it, which cuts nothing off sums; and those of PyTorch's unfused attention, whose products TF32 computes. The status is 1
where ours is less accurate than tests/tf32.py allows, or slower than 0.9 of bf16 at S 16384 and 0.8 at S 8192; 77 where
there is no such kernel.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import tf32
from flash_attention import _native, bench, bench_measure, flash_attention

SKIPPED = 77
LEAST = {16384: 0.9, 8192: 0.8}
SHAPES = ((1, 2, 4096, 64, True), (1, 2, 4096, 128, False), (1, 2, 2048, 256, True))


def show_errors() -> bool:
    """Are all no larger than TF32's?"""
    unfused, right = bench_measure.only(SDPBackend.MATH), True
    print(f"{'values':10}{'d':>4}{'S':>6}  {'mask':7}{'ours':>10}{'TF32':>10}{'PyTorch':>10}")
    for (batch, heads, seqlen, head_dim, is_causal), kind in itertools.product(SHAPES, tf32.KINDS):
        q, k, v = tf32.inputs(kind, (batch, heads, seqlen, head_dim), device="cuda")
        scale = tf32.scale_of(kind, head_dim)
        exact = tf32.attention(q, k, v, is_causal, scale, bits=52)
        ours = flash_attention(q, k, v, is_causal=is_causal, scale=scale)
        results = (ours, tf32.attention(q, k, v, is_causal, scale), unfused(q, k, v, is_causal=is_causal, scale=scale))
        errors = "".join(f"{tf32.errors(x, exact)[0]:10.2e}" for x in results)
        wrong = tf32.complaint(ours, q, k, v, is_causal, scale)
        print(f"{kind:10}{head_dim:>4}{seqlen:>6}  {'causal' if is_causal else 'full':7}{errors}  {wrong}", flush=True)
        right = right and not wrong
    return right


def show_speeds() -> bool:
    """Are all fast enough?"""
    fast = True
    print(f"\nTFLOP/s\n{'d':>4}{'S':>7}  {'mask':7}{'ours':>8}{'bf16':>8}{'of bf16':>9}")
    for cell in bench.grid("cuda", ["forward"], [bench.TF32], [64, 128, 256], sorted(LEAST), ["full", "causal"]):
        result = bench_measure.measure(cell, "cuda", 0.05)
        left = result.ratio(bench.OURS_AT_16_BITS)
        enough = left >= LEAST[cell.seqlen]
        both = (bench.OURS, bench.OURS_AT_16_BITS)
        speeds = "".join(f"{result.flops_per_second(name) / 1e12:8.0f}" for name in both)
        print(
            f"{cell.head_dim:>4}{cell.seqlen:>7}  {cell.mask():7}{speeds}{left:9.3f}{'' if enough else '  slow'}",
            flush=True,
        )
        fast = fast and enough
    return fast


def main() -> int:
    if not torch.cuda.is_available() or _native.device_target("cuda") != "cuda:sm_90a":
        print("fp32 takes one product for three on an H100 or H200 alone, and there is none here")
        return SKIPPED
    print(bench_measure.machine("cuda"))
    torch.set_float32_matmul_precision("high")
    right = show_errors()
    return 0 if show_speeds() and right else 1


if __name__ == "__main__":
    sys.exit(main())
