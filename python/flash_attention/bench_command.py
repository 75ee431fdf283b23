"""`python -m flash_attention bench`: choose what to measure, show it as it comes, write the files."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import torch

from flash_attention import bench, bench_measure, bench_report, bench_tuner
from flash_attention.bench_startup import measure_startup

OPS, MASKS = ["forward", "backward"], ["full", "causal"]
DTYPES = {"cpu": ["fp32", "bf16", "fp16"], "cuda": ["fp32", "bf16"]}
HEAD_DIMS = {"cpu": [64, 128], "cuda": [64, 128, 256]}
SEQLENS = {"cpu": [512, 1024, 2048, 4096], "cuda": [512, 1024, 2048, 4096, 8192, 16384]}
QUICK_HEAD_DIMS = {"cpu": [64], "cuda": [64, 128]}
QUICK_SEQLENS = {"cpu": [512, 2048], "cuda": [1024, 8192]}
SECONDS = {"cpu": 1.0, "cuda": 0.05}
QUICK_SECONDS = {"cpu": 0.2, "cuda": 0.02}
SMALLEST_SECONDS = {"cpu": 2.0, "cuda": 0.5}
QUICK_SMALLEST_SECONDS = {"cpu": 0.4, "cuda": 0.1}


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


def choose_cells(arguments: argparse.Namespace, device: str) -> list[bench.Cell]:
    return bench.grid(
        device,
        arguments.ops or OPS,
        arguments.dtypes or DTYPES[device],
        arguments.head_dims or (QUICK_HEAD_DIMS if arguments.quick else HEAD_DIMS)[device],
        arguments.seqlens or (QUICK_SEQLENS if arguments.quick else SEQLENS)[device],
        arguments.masks or MASKS,
        arguments.batch,
        arguments.heads,
    )


def run_grid(arguments: argparse.Namespace, device: str, folder: Path, machine: str, command: str) -> None:
    cells = choose_cells(arguments, device)
    path = folder / f"bench_{device}.csv"
    results = run_cells(arguments, device, cells, path, machine, command)
    picture = path.with_suffix(".png")
    try:
        bench_report.draw(picture, results, device, machine)
    except ImportError:
        print("No picture: it needs matplotlib (pip install 'flash_attention[plot]').")
    else:
        print(f"Picture: {picture}")


def run_skewed(arguments: argparse.Namespace, device: str, folder: Path, machine: str, command: str) -> None:
    dtypes = arguments.dtypes or DTYPES[device]
    cells = bench.skewed(arguments.ops or OPS, dtypes, arguments.head_dims or [128])
    run_cells(arguments, device, cells, folder / f"skewed_{device}.csv", machine, command)


def run_cells(
    arguments: argparse.Namespace, device: str, cells: list[bench.Cell], path: Path, machine: str, command: str
) -> list[bench.Result]:
    """Measure one cell after another; what there is so far is shown and written."""
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)[device]
    peers = list(bench_measure.peers(device))
    if any(cell.dtype == bench.TF32 for cell in cells):
        peers.append(bench.OURS_AT_16_BITS)
    print(bench_report.header(device, peers), flush=True)
    status, results = Status(len(cells)), []
    for cell in cells:
        status.show(f"{cell.op} {cell.dtype}, d {cell.head_dim}, S {cell.size()}")
        results.append(bench_measure.measure(cell, device, seconds))
        status.clear()
        print(bench_report.line(device, peers, results[-1]), flush=True)
        bench_report.write(path, bench_report.result_rows(results), machine, command)  # what is there is kept
    print("\n" + "\n".join(bench_report.summary(results, peers)) + f"\n\nWritten: {path}")
    return results


def run_smallest(arguments: argparse.Namespace, device: str, folder: Path, machine: str, command: str) -> None:
    seconds = arguments.seconds or (QUICK_SMALLEST_SECONDS if arguments.quick else SMALLEST_SECONDS)[device]
    rows = []
    path = folder / f"smallest_{device}.csv"
    print(bench_report.SMALLEST_HEADER, flush=True)
    for row in bench_measure.smallest_calls(device, seconds):
        rows.append(row)
        print(bench_report.smallest_line(row), flush=True)
        bench_report.write(path, bench_report.smallest_rows(rows), machine, command)  # what is there is kept
    print(f"Written: {path}")


def run_startup(arguments: argparse.Namespace, device: str, folder: Path, machine: str, command: str) -> None:
    rows = measure_startup(device, 2 if device == "cuda" else 3 if arguments.quick else 7)
    print("\n".join(bench_report.startup_lines(rows)))
    path = folder / f"startup_{device}.csv"
    bench_report.write(path, bench_report.startup_rows(rows), machine, command)
    print(f"Written: {path}")


def run_tuner(arguments: argparse.Namespace, device: str, folder: Path, machine: str, command: str) -> None:
    path = folder / f"tuner_{device}.csv"
    rows: list[bench_tuner.Comparison] = []
    print(bench_report.TUNER_HEADER, flush=True)
    for row in bench_tuner.measure(device, arguments.limit, 3 if arguments.quick else None):
        rows.append(row)
        print(bench_report.tuner_line(row), flush=True)
        bench_report.write(path, bench_report.tuner_rows(rows), machine, command)  # what is there is kept
    if rows:
        print(f"\n{bench_tuner.summary(rows)}\n\nWritten: {path}")


def run(arguments: argparse.Namespace) -> None:
    with bench_tuner.scratch_cache() if arguments.tuner else contextlib.nullcontext():
        run_in_cache(arguments)


def run_in_cache(arguments: argparse.Namespace) -> None:
    device = arguments.device or bench_measure.default_device()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    machine = bench_measure.machine(device)
    print(machine)
    command = bench_report.command_line("python", "-m", "flash_attention")
    measures = {"startup": run_startup, "smallest": run_smallest, "tuner": run_tuner, "skewed": run_skewed}
    measure = next((measures[name] for name in measures if getattr(arguments, name)), run_grid)
    measure(arguments, device, folder, machine, command)
