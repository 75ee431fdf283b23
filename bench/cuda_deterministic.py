"""What a fixed order of sums (torch.use_deterministic_algorithms) costs in backward at 16 bits.

    python bench/cuda_deterministic.py [--output FOLDER]

Above head dim 128 both are the same kernel on an H100 or H200.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path

import torch
import torch.utils.deterministic

from flash_attention import bench, bench_measure, bench_report, flash_attention

ROUNDS, CALLS = 7, 5


def measure(cell: bench.Cell) -> dict[bool, float]:
    """Seconds of a call, by whether the order is fixed; rounds of both by turns."""
    call = bench_measure.prepare(cell, bench_measure.make_inputs(cell, "cuda"), flash_attention)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _, ordered in itertools.product(range(ROUNDS), times):
        torch.use_deterministic_algorithms(ordered)
        call()
        times[ordered].append(bench_measure.time_on_gpu(call, CALLS))
    torch.use_deterministic_algorithms(False)
    return {ordered: statistics.median(found) for ordered, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the file (default: results)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    # PyTorch would also fill every new tensor, which is none of the kernels' time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    rows = []
    print("bf16 backward, ms: in a fixed order, as blocks end; speed of the first, as a part of the second's")
    for cell in bench.grid("cuda", ["backward"], ["bf16"], [64, 128], [512, 4096, 16384], ["full", "causal"]):
        seconds = measure(cell)
        found = {
            "ordered_ms": f"{1e3 * seconds[True]:.4g}",
            "unordered_ms": f"{1e3 * seconds[False]:.4g}",
            "ratio": f"{seconds[False] / seconds[True]:.3f}",
        }
        rows.append({"head_dim": cell.head_dim, "causal": int(cell.is_causal), "seqlen": cell.seqlen, **found})
        print(f"d {cell.head_dim:3} {cell.mask():6} S {cell.seqlen:5}: {'  '.join(found.values())}", flush=True)
    path = arguments.output / "deterministic_cuda.csv"
    bench_report.write(
        path, rows, bench_measure.machine("cuda"), bench_report.command_line("python", "bench/cuda_deterministic.py")
    )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
