"""The table of speeds on a GPU: this against every backend of scaled_dot_product_attention.

python bench/cuda_table.py --output results [--dtypes fp32 bf16] [--head-dims 64 128 256] [--seqlens 512 16384]
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import torch

from flash_attention.bench_cuda import BACKENDS, OURS, CudaResult, cell, measure


def show(result: CudaResult) -> str:
    c = result.cell
    best = result.best_peer()
    speeds = "  ".join(f"{n} {result.tflops(n):.0f}" for n in (OURS, *BACKENDS) if n in result.seconds)
    ratios = "  ".join(f"/{n} {result.ratio(n):.2f}" for n in BACKENDS if n in result.seconds)
    mask = "causal" if c.is_causal else "full"
    what = f"{c.dtype} {c.op} d {c.head_dim} {mask} S {c.seqlen}"
    return f"{what:40} {speeds}   {ratios}   best {best}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results")
    parser.add_argument("--ops", nargs="+", default=["forward", "backward"])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--seqlens", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--masks", nargs="+", default=["full", "causal"])
    parser.add_argument("--seconds", type=float, default=0.05, help="for each peer of a cell")
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; TFLOP/s, and times as fast as", flush=True)
    with (folder / "cuda.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dtype", "op", "head_dim", "causal", "seqlen", "peer", "seconds", "tflops", "ratio"])
        for dtype, op, head_dim, mask, seqlen in itertools.product(
            arguments.dtypes, arguments.ops, arguments.head_dims, arguments.masks, arguments.seqlens
        ):
            result = measure(cell(op, dtype, head_dim, seqlen, mask == "causal"), arguments.seconds)
            print(show(result), flush=True)
            for name, seconds in result.seconds.items():
                row = [dtype, op, head_dim, int(mask == "causal"), seqlen, name, f"{seconds:.4e}"]
                writer.writerow([*row, f"{result.tflops(name):.2f}", f"{result.ratio(name):.3f}"])
            file.flush()


if __name__ == "__main__":
    main()
