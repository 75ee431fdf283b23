"""Small calls of the best guess of many problems, to be run under compute-sanitizer:

    compute-sanitizer --tool memcheck python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck python tests/gpu/sanitize.py --few     (slow; racecheck.py reads the report)

Borders of blocks, more blocks than stages, odd head dims, head dims of V's own, tensors that kernels copy in pieces or
by TMA and such that they read element by element, forward and backward. On Hopper these are kernels of all families:
it prints how many calls ran which, and fails unless those that were meant to run were compiled. With
FLASH_ATTENTION_CUDA_ARCH=sm_90 all are portable. --cache=FOLDER: an empty one that is kept.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

if __name__ == "__main__":  # before the library reads them
    os.environ["FLASH_ATTENTION_AUTOTUNE"] = "0"
    # An empty cache: what is in it afterwards was compiled for these calls.
    given = [argument.removeprefix("--cache=") for argument in sys.argv if argument.startswith("--cache=")]
    folder = None if given else tempfile.TemporaryDirectory(prefix="sanitize-")
    os.environ["FLASH_ATTENTION_CACHE_DIR"] = folder.name if folder else given[0]

import torch

from flash_attention import _native, flash_attention

OPS = ("forward", "backward")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HOPPER, PORTABLE = "cuda:sm_90a", "cuda:sm_90"
OF_HOPPER = {
    "hopper": [("forward", "fp32"), *((op, dtype) for op in OPS for dtype in ("fp16", "bf16"))],
    # Where sums have a fixed order, and above head dim 128, with other roles of its warpgroups.
    "two_pass": [("backward", "fp16"), ("backward", "bf16")],
    "two_pass_wide": [("backward", "fp16"), ("backward", "bf16")],
}
"""What Hopper's own families must be seen to compute."""


@dataclass(frozen=True)
class Case:
    dtype: str
    head_dim: int
    seqlen_q: int
    seqlen_k: int
    is_causal: bool = False
    deterministic: bool = False
    heads: tuple[int, int] = (2, 2)
    """Of queries and of keys."""
    dense: bool = True
    """Contiguous; else no vector load takes the values, and keys and the gradient are views."""
    head_dim_v: int = 0
    """0: head_dim."""

    @property
    def value_dim(self) -> int:
        return self.head_dim_v or self.head_dim

    def problems(self, target: str) -> Iterator[tuple[str, str]]:
        """What forward and backward look for on a device of this target, as the cache describes it, and the family of
        kernels that it has: "portable" or one of OF_HOPPER."""
        for op in OPS:
            lower, own = (self.problem(op, name) for name in (PORTABLE, target))
            # Few queries, and tensors that TMA cannot describe, are the portable kernels'.
            too_few = self.seqlen_q <= 64
            not_mapped = self.dtype != "fp32" and not self.dense and family(own) != "portable"
            deterministic = own.deterministic and self.dtype != "fp32"
            text = (
                f"{op} {self.dtype} head_dim={self.head_dim} head_dim_v={self.value_dim}"
                f"{' causal' * self.is_causal}{' deterministic' * deterministic} "
            )
            if target == HOPPER and (too_few or not_mapped):
                yield text + PORTABLE, family(lower)
            else:
                yield text + target, family(own)

    def problem(self, op: str, target: str) -> _native.Problem:
        deterministic = self.deterministic and op == "backward"
        return _native.problem(op, self.dtype, self.head_dim, self.value_dim, self.is_causal, target, deterministic)


def family(problem: _native.Problem) -> str:
    source = _native.source(problem)[0]
    if "Generated from templates/hopper/backward_two_pass.cu" in source:
        return "two_pass_wide" if max(problem.head_dim, problem.head_dim_v) > 128 else "two_pass"
    return "hopper" if "Generated from templates/hopper/" in source else "portable"


# Long enough for the rings of all kernels to go round: the best guesses work on up to 192 keys at a time and have room
# for 2, or on up to 128 queries and have room for 3.
LONG = (450, 450)

FEW = [
    # Tensors that can be mapped. On Hopper: its kernels, but backward in fp32.
    Case("fp32", 64, *LONG),
    Case("fp32", 128, *LONG, is_causal=True),
    Case("fp16", 64, *LONG, is_causal=True),
    Case("fp16", 128, *LONG),
    Case("bf16", 64, *LONG, heads=(4, 2)),
    Case("bf16", 128, *LONG, is_causal=True),
    # Backward there in two passes.
    Case("bf16", 64, *LONG, deterministic=True),
    Case("fp16", 128, *LONG, is_causal=True, deterministic=True, head_dim_v=64),
    Case("bf16", 192, *LONG, heads=(4, 2)),
    Case("fp16", 192, *LONG, is_causal=True, head_dim_v=128),
    # Everywhere the portable ones: copies of 16 bytes (few queries), of 8 (a head dim of 4 x 9), and none.
    Case("bf16", 64, 60, 300),
    Case("fp16", 36, 200, 300, is_causal=True),
    Case("fp32", 33, 130, 67, is_causal=True, heads=(4, 2), dense=False),
    Case("bf16", 64, 130, 67, heads=(4, 2), dense=False),
    Case("bf16", 33, 65, 129, deterministic=True, dense=False),
    # Few queries: keys in parts; in fp32 split where they are used, four elements at once or one.
    Case("bf16", 64, 3, 1100, heads=(4, 2)),
    Case("fp32", 64, 3, 1100, heads=(4, 2)),
    Case("fp32", 40, 20, 600, dense=False),
]

MORE = [
    # Few tiles of queries: with a causal mask some parts of the keys are of none.
    Case("fp16", 64, 1100, 1100, is_causal=True, heads=(1, 1), dense=False),
    # More tiles than a GPU has room for: a persistent block goes from one to the next.
    Case("fp16", 64, 450, 330, is_causal=True, heads=(100, 50)),
    Case("bf16", 64, 130, 330, heads=(50, 50)),
]
MORE += [
    Case(dtype, head_dim, seqlen_q, seqlen_k, (i + j) % 2 == 0, seqlen_q == 65, (4, 2), dense)
    for i, dtype in enumerate(DTYPES)
    for j, head_dim in enumerate((8, 256, 128))
    for seqlen_q, seqlen_k, dense in ((130, 67, False), (65, 129, False), (200, 330, True))
    if dense or not (head_dim == 128 and seqlen_q == 65)
]


def run(case: Case, device: str) -> None:
    """Forward and backward; what they give must be finite."""
    (heads_q, heads_kv), dim = case.heads, case.head_dim
    options: dict[str, Any] = {"dtype": DTYPES[case.dtype], "device": device}
    query = torch.randn(1, heads_q, case.seqlen_q, dim, **options, requires_grad=True)
    if case.dense:
        key = torch.randn(1, heads_kv, case.seqlen_k, dim, **options)
        value = torch.randn(1, heads_kv, case.seqlen_k, case.value_dim, **options)
        grad_output = torch.randn(1, heads_q, case.seqlen_q, case.value_dim, **options)
    else:
        key = torch.randn(1, case.seqlen_k, heads_kv, dim, **options).transpose(1, 2)
        value = torch.randn(1, heads_kv, case.seqlen_k, case.value_dim + 1, **options)[..., 1:]
        grad_output = torch.ones(1, **options).expand(1, heads_q, case.seqlen_q, case.value_dim)
    inputs = (query, key.requires_grad_(), value.requires_grad_())
    torch.use_deterministic_algorithms(case.deterministic)
    output = flash_attention(*inputs, is_causal=case.is_causal, enable_gqa=heads_q != heads_kv)
    gradients = torch.autograd.grad(output, inputs, grad_output)
    torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in (output, *gradients)), case


def run_reduced(device: str) -> None:
    """Forward in fp32 where TF32 is allowed: one product, on Hopper."""
    torch.backends.cuda.matmul.allow_tf32 = True
    for head_dim, is_causal in ((64, False), (128, True)):
        query, key, value = torch.randn(3, 1, 2, 450, head_dim, device=device)
        assert flash_attention(query, key, value, is_causal=is_causal).isfinite().all()
    torch.backends.cuda.matmul.allow_tf32 = False


def families(case: Case, target: str) -> dict[str, str]:
    """The family of kernels that each op of it is computed with, which must be in the cache."""
    compiled = [entry.text for entry in _native.cache_entries() if entry.kind == "kernel"]
    problems = dict(zip(OPS, case.problems(target), strict=True))
    for text, _ in problems.values():
        assert any(entry.startswith(f"problem={text};") for entry in compiled), f"no kernel was made for {text}"
    return {op: name for op, (_, name) in problems.items()}


def main() -> None:
    target = _native.device_target("cuda")
    cases = FEW if "--few" in sys.argv else FEW + MORE
    calls: Counter[tuple[str, str, str]] = Counter()
    for case in cases:
        run(case, "cuda")
        calls.update((op, case.dtype, family) for op, family in families(case, target).items())
    run_reduced("cuda")
    torch.cuda.synchronize()
    if target == HOPPER:
        assert sum(" reduced " in entry.text for entry in _native.cache_entries() if entry.kind == "kernel") == 2
        missing = [(*kind, name) for name, kinds in OF_HOPPER.items() for kind in kinds if not calls[(*kind, name)]]
        assert not missing, f"no kernels of Hopper for {missing}"
    print(f"{len(cases)} calls, forward and backward, on {target}")
    for (op, dtype, family), count in sorted(calls.items()):
        print(f"{op:8} {dtype} {family:13} {count}")


if __name__ == "__main__":
    main()
