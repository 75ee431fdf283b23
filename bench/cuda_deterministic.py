"""What a fixed order of the parts of dQ costs in backward at 16 bits: time with and without, and their ratio."""

from __future__ import annotations

import itertools

import torch

from flash_attention import bench_cuda, flash_attention


def main() -> None:
    print("bf16 backward: ordered ms, atomics ms, ordered / atomics")
    for head_dim, is_causal, seqlen in itertools.product((64, 128, 256), (False, True), (512, 2048, 4096, 16384)):
        cell = bench_cuda.cell("backward", "bf16", head_dim, seqlen, is_causal)
        with torch.set_grad_enabled(True):
            call = bench_cuda._prepare(cell, flash_attention)
            times: dict[bool, list[float]] = {True: [], False: []}
            for _, ordered in itertools.product(range(7), (True, False)):
                torch.use_deterministic_algorithms(ordered)
                call()
                times[ordered].append(bench_cuda._time(call, 5))
        ordered, atomics = (sorted(times[key])[3] * 1e3 for key in (True, False))
        mask = "causal" if is_causal else "full"
        print(f"d {head_dim} {mask} S {seqlen}: {ordered:.3f} {atomics:.3f} {ordered / atomics:.3f}", flush=True)


if __name__ == "__main__":
    main()
