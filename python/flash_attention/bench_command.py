"""`python -m flash_attention bench`: choose what to measure, show it as it comes, write the files."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import torch

from flash_attention import _native, bench, bench_report
from flash_attention.bench_startup import measure_startup

FULL = {"ops": ["forward", "backward"], "dtypes": ["fp32", "bf16", "fp16"], "masks": ["full", "causal"]}
FULL_NUMBERS = {"head_dims": [64, 128], "seqlens": [512, 1024, 2048, 4096]}
QUICK_NUMBERS = {"head_dims": [64], "seqlens": [512, 2048]}


def machine() -> str:
    """Processor, instruction set, threads, versions: what a number is worth nothing without."""
    name = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    target = _native.device_target("cpu")
    return f"{name}, {target}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


class Status:
    """What is being measured, on a terminal's last line."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.shown = sys.stderr.isatty()

    def show(self, what: str) -> None:
        if self.shown:
            print(f"\r\033[K[{self.done}/{self.total}] {what}", end="", file=sys.stderr, flush=True)
        self.done += 1

    def clear(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def run_grid(arguments: argparse.Namespace, folder: Path, name: str) -> None:
    numbers = QUICK_NUMBERS if arguments.quick else FULL_NUMBERS
    seconds = arguments.seconds or (0.2 if arguments.quick else 1.0)
    cells = bench.grid(
        arguments.ops or FULL["ops"],
        arguments.dtypes or FULL["dtypes"],
        arguments.head_dims or numbers["head_dims"],
        arguments.seqlens or numbers["seqlens"],
        arguments.masks or FULL["masks"],
        arguments.batch,
        arguments.heads,
    )
    print(f"batch {arguments.batch}, heads {arguments.heads}\n{bench_report.HEADER}", flush=True)
    status = Status(len(cells) + 1)
    results = []
    for cell in cells:
        status.show(f"{cell.op} {cell.dtype}, d {cell.head_dim}, S {cell.seqlen}")
        results.append(bench.measure(cell, seconds))
        status.clear()
        print(bench_report.line(results[-1]), flush=True)
    print("\n" + "\n".join(bench_report.summary(results)) + "\n", flush=True)
    status.show("smallest calls")
    smallest = bench.smallest_calls(2 * seconds)
    status.clear()
    print("\n".join(bench_report.smallest_lines(smallest)) + "\n")

    bench_report.write_results(folder / "bench.csv", results, name)
    bench_report.write_times(folder / "smallest.csv", smallest, [])
    print(f"Written: {folder / 'bench.csv'}, {folder / 'smallest.csv'}")
    try:
        bench_report.draw(folder / "bench.png", results, name)
    except ImportError:
        print("No picture: it needs matplotlib (pip install 'flash_attention[plot]').")
    else:
        print(f"Picture: {folder / 'bench.png'}")


def run(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    name = machine()
    print(name)
    if arguments.startup:
        startup = measure_startup(3 if arguments.quick else 7)
        print("\n".join(bench_report.startup_lines(startup)))
        bench_report.write_times(folder / "startup.csv", [], startup)
        print(f"Written: {folder / 'startup.csv'}")
    else:
        run_grid(arguments, folder, name)
