"""What a fixed order of the parts of dQ costs in backward at 16 bits: time with and without, and their ratio."""

from __future__ import annotations

import itertools
import statistics

import torch

from flash_attention import bench, bench_measure, flash_attention


def main() -> None:
    print("bf16 backward: ordered ms, atomics ms, ordered / atomics")
    masks, seqlens = ["full", "causal"], [512, 2048, 4096, 16384]
    for cell in bench.grid("cuda", ["backward"], ["bf16"], [64, 128, 256], seqlens, masks):
        call = bench_measure.prepare(cell, bench_measure.make_inputs(cell, "cuda"), flash_attention)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _, ordered in itertools.product(range(7), (True, False)):
            torch.use_deterministic_algorithms(ordered)
            call()
            times[ordered].append(bench_measure.time_on_gpu(call, 5))
        ordered_ms, atomics_ms = (1e3 * statistics.median(times[key]) for key in (True, False))
        print(
            f"d {cell.head_dim} {cell.mask()} S {cell.seqlen}: {ordered_ms:.3f} {atomics_ms:.3f} "
            f"{ordered_ms / atomics_ms:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
