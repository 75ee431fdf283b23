"""Small calls of every kernel family member, to be run under compute-sanitizer:

    compute-sanitizer --tool memcheck python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck python tests/gpu/sanitize.py --few     (it is slow)

Borders of blocks, odd head dims and strides that forbid vector loads, forward and backward.
"""

from __future__ import annotations

import itertools
import os
import sys

os.environ.setdefault("FLASH_ATTENTION_AUTOTUNE", "0")

import torch

from flash_attention import flash_attention


def main() -> None:
    count = 0
    head_dims = (33, 64) if "--few" in sys.argv else (8, 33, 64, 128, 256)
    dtypes = (torch.float32, torch.bfloat16) if "--few" in sys.argv else (torch.float32, torch.float16, torch.bfloat16)
    for dtype, head_dim, is_causal in itertools.product(dtypes, head_dims, (False, True)):
        for seqlen_q, seqlen_k, deterministic in ((130, 67, False), (65, 129, True)):
            torch.use_deterministic_algorithms(deterministic)
            query = torch.randn(1, 4, seqlen_q, head_dim, dtype=dtype, device="cuda", requires_grad=True)
            # Keys in a transposed view, values with a stride that no vector load takes.
            key = torch.randn(1, seqlen_k, 2, head_dim, dtype=dtype, device="cuda").transpose(1, 2).requires_grad_()
            value = torch.randn(1, 2, seqlen_k, head_dim + 1, dtype=dtype, device="cuda")[..., 1:].requires_grad_()
            output = flash_attention(query, key, value, is_causal=is_causal, enable_gqa=True)
            gradients = torch.autograd.grad(output.sum(), (query, key, value))
            assert all(tensor.isfinite().all() for tensor in (output, *gradients))
            count += 1
    torch.cuda.synchronize()
    print(f"{count} calls, forward and backward")


if __name__ == "__main__":
    main()
