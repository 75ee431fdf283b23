"""How measurements are shown: lines of a table, CSV files, a picture."""

from __future__ import annotations

import csv
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flash_attention.bench import OURS, OURS_AT_16_BITS, Result, geometric_mean
from flash_attention.bench_measure import PYTORCH, Smallest
from flash_attention.bench_startup import Startup
from flash_attention.bench_tuner import Comparison

UNITS = {"cpu": ("GFLOP/s", 1e9), "cuda": ("TFLOP/s", 1e12)}
COLORS = {
    OURS: "#d1495b",
    OURS_AT_16_BITS: "#edae49",
    PYTORCH: "#30638e",
    "flash": "#30638e",
    "cuDNN": "#6a994e",
    "efficient": "#9a8c98",
}
SMALLEST_HEADER = f"{'smallest call, microseconds':46}{OURS:>17}{PYTORCH:>11}{'ratio':>8}"


def header(device: str, peers: Sequence[str]) -> str:
    """Of line(): the speed of each, and how many times as fast as the best peer and as each."""
    speeds = "".join(f"{name:>{width(name)}}" for name in (OURS, *peers))
    ratios = "ratio" if len(peers) == 1 else f"{'best':>8}" + "".join(f"{'/' + name:>{width(name)}}" for name in peers)
    return f"{'op':9}{'dtype':6}{'d':>4}{'B':>6}{'H':>5}{'S':>10}  {'mask':7}{speeds} {UNITS[device][0]}{ratios:>8}"


def width(name: str) -> int:
    """Of a peer's columns."""
    return max(11, len(name) + 2)


def line(device: str, peers: Sequence[str], result: Result) -> str:
    cell, (unit, scale) = result.cell, UNITS[device]

    def speed(name: str) -> str:
        return f"{result.flops_per_second(name) / scale:.1f}" if name in result.seconds else "-"

    def ratio(name: str | None) -> str:
        return f"{result.ratio(name):.2f}" if name in result.seconds else "-"

    speeds = "".join(f"{speed(name):>{width(name)}}" for name in (OURS, *peers))
    each = "".join(f"{ratio(name):>{width(name)}}" for name in peers) if len(peers) > 1 else ""
    what = (
        f"{cell.op:9}{cell.dtype:6}{cell.head_dim:>4}{cell.batch:>6}{cell.heads:>5}{cell.size():>10}  {cell.mask():7}"
    )
    return f"{what}{speeds} {'':{len(unit)}}{ratio(result.best_peer()):>8}{each}"


def summary(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    """Smallest and mean ratio of each dtype and op, to the best peer and to each."""
    lines = []
    for dtype, op in dict.fromkeys((result.cell.dtype, result.cell.op) for result in results):
        group = [result for result in results if (result.cell.dtype, result.cell.op) == (dtype, op)]
        compared = [(result.ratio(best), result.cell) for result in group if (best := result.best_peer())]
        if not compared:
            continue
        ratios = [ratio for ratio, _ in compared]
        worst = compared[ratios.index(min(ratios))][1]
        where = f"B {worst.batch}, H {worst.heads}, S {worst.size()}, d {worst.head_dim}, {worst.mask()}"
        text = f"{dtype} {op:9} {geometric_mean(ratios):.2f}x on average, at least {min(ratios):.2f}x ({where})"
        if len(peers) > 1:
            for name in peers:
                shared = [result.ratio(name) for result in group if name in result.seconds]
                text += f"; {geometric_mean(shared):.2f}x {name}" if shared else ""
        lines.append(text)
    return lines


def smallest_line(row: Smallest) -> str:
    ours, theirs = row.microseconds[OURS], row.microseconds[PYTORCH]
    what = f"{row.dtype}, S {row.seqlen}, d {row.head_dim}: {row.what}"
    return f"{what:46}{ours:>17.1f}{theirs:>11.1f}{theirs / ours:>8.2f}"


def startup_lines(rows: Sequence[Startup]) -> list[str]:
    names = ("import", "cold", "cold, tuner off", "second process", "warm")
    lines = [f"{'milliseconds':52}" + "".join(f"{name:>17}" for name in names)]
    for row in rows:
        what = f"{row.op}, {row.dtype}, B {row.batch}, H {row.heads}, S {row.seqlen}, d {row.head_dim}"
        times = (row.import_time, row.cold, row.cold_untuned, row.second_process, row.warm)
        lines.append(f"{what:52}" + "".join(f"{1e3 * seconds:>17.2f}" for seconds in times))
    return lines


def result_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each peer of each cell; the ratio is this peer's time over ours."""
    return [
        {
            "op": result.cell.op,
            "dtype": result.cell.dtype,
            "head_dim": result.cell.head_dim,
            "seqlen": result.cell.seqlen,
            "seqlen_k": result.cell.seqlen_k,
            "causal": int(result.cell.is_causal),
            "batch": result.cell.batch,
            "heads": result.cell.heads,
            "peer": name,
            "seconds": f"{seconds:.6g}",
            "gflops": f"{result.flops_per_second(name) / 1e9:.1f}",
            "ratio": f"{result.ratio(name):.3f}",
            "calls": result.calls,
            "first_call_seconds": f"{result.first_call:.4g}" if name == OURS else "",
        }
        for result in results
        for name, seconds in result.seconds.items()
    ]


def smallest_rows(rows: Sequence[Smallest]) -> list[dict[str, Any]]:
    return [
        {
            "what": row.what,
            "dtype": row.dtype,
            "seqlen": row.seqlen,
            "head_dim": row.head_dim,
            "microseconds": f"{row.microseconds[OURS]:.2f}",
            "pytorch_microseconds": f"{row.microseconds[PYTORCH]:.2f}",
        }
        for row in rows
    ]


def startup_rows(rows: Sequence[Startup]) -> list[dict[str, Any]]:
    return [
        {
            "op": row.op,
            "dtype": row.dtype,
            "batch": row.batch,
            "heads": row.heads,
            "seqlen": row.seqlen,
            "head_dim": row.head_dim,
            "import_ms": f"{1e3 * row.import_time:.2f}",
            "cold_ms": f"{1e3 * row.cold:.2f}",
            "cold_untuned_ms": f"{1e3 * row.cold_untuned:.2f}",
            "second_process_ms": f"{1e3 * row.second_process:.3f}",
            "warm_ms": f"{1e3 * row.warm:.3f}",
        }
        for row in rows
    ]


TUNER_HEADER = f"{'op':9} {'tensors':46}{'TFLOP/s':>9}{'max':>8}{'ratio':>7}{'s':>7}{'max':>7}  config, and that of max"


def tuner_line(row: Comparison) -> str:
    """Speeds of both choices, their ratio, the seconds of both searches, and the configs."""
    usual, exhaustive = row.usual, row.exhaustive
    speeds = [row.shape.flops(row.op) / choice.seconds / 1e12 for choice in (usual, exhaustive)]
    configs = usual.config if usual.config == exhaustive.config else f"{usual.config} | {exhaustive.config}"
    text = f"{row.op:9} {row.shape!s:46}{speeds[0]:>9.3g}{speeds[1]:>8.3g}{row.ratio():>7.3f}"
    return f"{text}{usual.search:>7.2f}{exhaustive.search:>7.2f}  {configs}"


def tuner_rows(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "op": row.op,
            **dataclasses.asdict(row.shape),
            "config": row.usual.config,
            "max_config": row.exhaustive.config,
            "seconds": f"{row.usual.seconds:.6g}",
            "max_seconds": f"{row.exhaustive.seconds:.6g}",
            "gflops": f"{row.shape.flops(row.op) / row.usual.seconds / 1e9:.1f}",
            "ratio": f"{row.ratio():.4f}",
            "search_seconds": f"{row.usual.search:.3f}",
            "max_search_seconds": f"{row.exhaustive.search:.3f}",
        }
        for row in rows
    ]


def command_line(*program: str) -> str:
    """How this program was called, but for where its files go."""
    arguments = sys.argv[1:]
    if "--output" in arguments:
        at = arguments.index("--output")
        del arguments[at : at + 2]
    return shlex.join([*program, *arguments])


def write(path: Path, rows: Sequence[dict[str, Any]], machine: str, command: str) -> None:
    """A CSV file whose rows say where and how they were made."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine", "command"])
        writer.writeheader()
        writer.writerows({**row, "machine": machine, "command": command} for row in rows)


def draw(path: Path, results: Sequence[Result], device: str, machine: str) -> None:
    """Speed over sequence length: panels for each dtype and op, and for each mask and head dim."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys((result.cell.dtype, result.cell.op) for result in results))
    sizes = list(dict.fromkeys((result.cell.mask(), result.cell.head_dim) for result in results))
    sizes.sort(key=lambda size: size[0] == "causal")
    tall = len(kinds) > len(sizes)
    rows, columns = (len(sizes), len(kinds)) if tall else (len(kinds), len(sizes))
    unit, scale = UNITS[device]
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(2.5 * columns + 0.6, 2.1 * rows + 0.9), squeeze=False, layout="constrained"
    )
    ticks = sorted({result.cell.seqlen for result in results})
    handles: dict[str, Any] = {}
    for i, kind in enumerate(kinds):
        for j, size in enumerate(sizes):
            panel = axes[j][i] if tall else axes[i][j]
            cells = [
                result
                for result in results
                if (result.cell.dtype, result.cell.op) == kind and (result.cell.mask(), result.cell.head_dim) == size
            ]
            for peer, color in COLORS.items():
                taken = [result for result in cells if peer in result.seconds]
                if taken:
                    seqlens = [result.cell.seqlen for result in taken]
                    speeds = [result.flops_per_second(peer) / scale for result in taken]
                    (handles[peer],) = panel.plot(seqlens, speeds, "o-", color=color, markersize=3)
            panel.set_title(f"{' '.join(kind)}, {size[0]}, d {size[1]}", fontsize=8)
            panel.set_xscale("log", base=2)
            panel.set_xticks(ticks, [f"{tick // 1024}k" if tick % 1024 == 0 else str(tick) for tick in ticks])
            panel.tick_params(labelsize=7)
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel(unit, fontsize=8)
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False)
    figure.supxlabel(f"sequence length. {machine}", fontsize=8, color="0.4")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
