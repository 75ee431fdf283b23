"""Errors against float64 on a GPU, beside those of PyTorch's own attention: ||error|| / ||exact||, and what is wrong.

    python bench/cuda_accuracy.py            every case
    python bench/cuda_accuracy.py --quick    small ones: is everything right at all?

A row is marked where our error is more than 1.1 times PyTorch's plus one rounding, or not finite; more than 2.5 times
in fp32 with a head dim below 4, where a plain fp32 product has next to no roundings and ours keeps 22 bits of each
operand. PyTorch's attention is its fastest kernel that takes the case: flash for fp16 and bf16, efficient for fp32,
unfused where neither does. Writes accuracy_cuda.csv.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flash_attention import bench_measure, bench_report, flash_attention
from flash_attention.bench import DTYPES

ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
NAMES = ("output", "grad_query", "grad_key", "grad_value")


@dataclass(frozen=True)
class Case:
    dtype: str
    kind: str  # normal, positive, outliers
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    head_dim_v: int
    is_causal: bool
    heads: tuple[int, int] = (2, 2)

    def __str__(self) -> str:
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        mask = "causal" if self.is_causal else "full"
        heads = "" if self.heads[0] == self.heads[1] else f" heads {self.heads[0]}/{self.heads[1]}"
        return f"{self.dtype} {self.kind} d {dims} S {self.seqlen_q}x{self.seqlen_k} {mask}{heads}"


def inputs(case: Case) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    shapes = [
        (1, case.heads[0], case.seqlen_q, case.head_dim),
        (1, case.heads[1], case.seqlen_k, case.head_dim),
        (1, case.heads[1], case.seqlen_k, case.head_dim_v),
        (1, case.heads[0], case.seqlen_q, case.head_dim_v),
    ]
    tensors = [torch.randn(shape, generator=generator, device="cuda") for shape in shapes]
    if case.kind == "positive":
        tensors[2] = tensors[2].abs()
    if case.kind == "outliers":
        for tensor in tensors[:3]:
            tensor[..., [1, tensor.shape[-1] // 3, tensor.shape[-1] // 2]] *= 100
    return [tensor.to(DTYPES[case.dtype]) for tensor in tensors]


def run(attention: Callable[..., Tensor], tensors: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:3]]
    output = attention(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, tensors[3])]


def exact(case: Case, tensors: list[Tensor], scale: float) -> list[Tensor]:
    """float64, a block of queries at a time."""
    query, key, value, grad = (tensor.double() for tensor in tensors)
    group = case.heads[0] // case.heads[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    output = torch.empty_like(grad)
    dq, dk, dv = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for begin in range(0, case.seqlen_q, 2048):
        rows = slice(begin, min(begin + 2048, case.seqlen_q))
        scores = query[:, :, rows] @ key.mT * scale
        if case.is_causal:
            hidden = torch.arange(case.seqlen_k, device="cuda") > torch.arange(begin, rows.stop, device="cuda")[:, None]
            scores.masked_fill_(hidden, -math.inf)
        weights = torch.softmax(scores, -1)
        output[:, :, rows] = weights @ value
        dv += weights.mT @ grad[:, :, rows]
        delta = (grad[:, :, rows] * output[:, :, rows]).sum(-1, keepdim=True)
        scores = weights * (grad[:, :, rows] @ value.mT - delta) * scale
        dq[:, :, rows] = scores @ key
        dk += scores.mT @ query[:, :, rows]
    return [output, dq, *(x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))]


def errors(results: list[Tensor], expected: list[Tensor]) -> list[float]:
    """||error|| / ||exact||; where the exact result is nothing but zeros, ||error|| per element."""
    return [
        ((a.double() - e).norm() / (e.norm() if e.any() else e.numel() ** 0.5)).item()
        for a, e in zip(results, expected, strict=True)
    ]


def peer_of(case: Case) -> SDPBackend:
    if case.dtype != "fp32" and case.head_dim == case.head_dim_v:
        return SDPBackend.FLASH_ATTENTION
    return SDPBackend.EFFICIENT_ATTENTION


def check(case: Case) -> list[dict[str, Any]]:
    """A row for the output and for each gradient."""
    tensors = inputs(case)
    scale = 1e-3 if case.kind == "outliers" else case.head_dim**-0.5
    options = {"is_causal": case.is_causal, "scale": scale, "enable_gqa": case.heads[0] != case.heads[1]}
    times = 2.5 if case.dtype == "fp32" and case.head_dim < 4 else 1.1
    expected = exact(case, tensors, scale)
    ours = errors(run(flash_attention, tensors, **options), expected)
    with sdpa_kernel([peer_of(case), SDPBackend.MATH]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its reasons why a backend does not take the case
        theirs = errors(run(scaled_dot_product_attention, tensors, **options), expected)
    return [
        {
            "dtype": case.dtype,
            "data": case.kind,
            "head_dim": case.head_dim,
            "head_dim_v": case.head_dim_v,
            "seqlen_q": case.seqlen_q,
            "seqlen_k": case.seqlen_k,
            "causal": int(case.is_causal),
            "heads": case.heads[0],
            "heads_kv": case.heads[1],
            "tensor": name,
            "error": f"{a:.3e}",
            "pytorch_error": f"{b:.3e}",
            "good": int(a <= times * b + ROUNDING[case.dtype]),
        }
        for name, a, b in zip(NAMES, ours, theirs, strict=True)
    ]


def cases(quick: bool) -> list[Case]:
    found = []
    for dtype in DTYPES:
        for head_dim, is_causal in itertools.product((64, 128) if quick else (64, 128, 256), (False, True)):
            found.append(Case(dtype, "normal", 512, 512, head_dim, head_dim, is_causal))
        for head_dim, head_dim_v in (
            (1, 1),
            (2, 2),
            (3, 3),
            (5, 5),
            (7, 7),
            (8, 8),
            (13, 13),
            (17, 17),
            (25, 25),
            (33, 20),
            (80, 80),
            (96, 96),
            (160, 160),
            (192, 128),
            (256, 256),
        ):
            found.append(Case(dtype, "normal", 193, 321, head_dim, head_dim_v, head_dim % 3 == 0))
        for length in (1, 15, 17, 63, 64, 65, 127, 129):
            found.append(Case(dtype, "normal", length, 130 - length, 64, 64, length % 4 == 1))
        found.append(Case(dtype, "normal", 200, 300, 64, 64, True, (6, 2)))
        if quick:
            continue
        for kind, head_dim in itertools.product(("normal", "positive", "outliers"), (64, 128)):
            found.append(Case(dtype, kind, 4096, 4096, head_dim, head_dim, True))
            found.append(Case(dtype, kind, 16384, 16384, head_dim, head_dim, False, (1, 1)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases only")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the file (default: results)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "accuracy_cuda.csv"
    machine, command = bench_measure.machine("cuda"), bench_report.command_line("python", "bench/cuda_accuracy.py")
    print(f"{machine}; ours/PyTorch's: {', '.join(NAMES)}")
    chosen, rows = cases(arguments.quick), []
    wrong = 0
    for case in chosen:
        try:
            found = check(case)
        except (RuntimeError, NotImplementedError) as error:
            wrong += 1
            print(f"{case!s:48} {type(error).__name__}: {str(error)[:300]}", flush=True)
            if "CUDA error" in str(error) or "illegal" in str(error):
                break
            continue
        rows += found
        wrong += not all(row["good"] for row in found)
        numbers = (f"{row['error']}/{row['pytorch_error']}{'' if row['good'] else ' <--'}" for row in found)
        print(f"{case!s:48} {'  '.join(numbers)}", flush=True)
    if rows:
        bench_report.write(path, rows, machine, command)
    print(f"{len(chosen) - wrong} passed, {wrong} failed; written: {path}")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
