"""How measurements are shown: lines of a table, a CSV file, a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from flash_attention.bench import Result, geometric_mean
from flash_attention.bench_startup import Startup

HEADER = (
    f"{'op':9}{'dtype':6}{'d':>4}{'S':>7}  {'mask':7}{'flash_attention':>17}{'PyTorch':>11}{'ratio':>8}   (GFLOP/s)"
)


def line(result: Result) -> str:
    cell = result.cell
    return (
        f"{cell.op:9}{cell.dtype:6}{cell.head_dim:>4}{cell.seqlen:>7}  {'causal' if cell.is_causal else 'full':7}"
        f"{result.gflops('flash_attention'):>17.1f}{result.gflops('PyTorch'):>11.1f}{result.ratio():>8.2f}"
    )


def summary(results: Sequence[Result]) -> list[str]:
    """Smallest and mean ratio of each dtype and op."""
    lines = []
    for dtype, op in dict.fromkeys((result.cell.dtype, result.cell.op) for result in results):
        group = [result for result in results if (result.cell.dtype, result.cell.op) == (dtype, op)]
        ratios = [result.ratio() for result in group]
        worst = min(group, key=Result.ratio).cell
        where = f"S {worst.seqlen}, d {worst.head_dim}, {'causal' if worst.is_causal else 'full'}"
        lines.append(f"{dtype} {op:9} {geometric_mean(ratios):.2f}x on average, at least {min(ratios):.2f}x ({where})")
    return lines


def smallest_lines(rows: Sequence[tuple[str, dict[str, float]]]) -> list[str]:
    lines = [f"{'smallest call, microseconds':30}{'flash_attention':>17}{'PyTorch':>11}{'ratio':>8}"]
    for name, times in rows:
        ours, theirs = times["flash_attention"], times["PyTorch"]
        lines.append(f"{name:30}{ours:>17.1f}{theirs:>11.1f}{theirs / ours:>8.2f}")
    return lines


def startup_lines(rows: Sequence[Startup]) -> list[str]:
    lines = [f"{'milliseconds':20}{'import':>9}{'cold first call':>17}{'second process':>16}{'warm call':>11}"]
    for row in rows:
        lines.append(
            f"{row.op:20}{1e3 * row.import_time:>9.1f}{1e3 * row.cold:>17.0f}"
            f"{1e3 * row.second_process:>16.2f}{1e3 * row.warm:>11.2f}"
        )
    return lines


def write_results(path: Path, results: Sequence[Result], machine: str) -> None:
    """One row a cell; seconds are medians."""
    rows = []
    for result in results:
        cell = result.cell
        rows.append(
            {
                "op": cell.op,
                "dtype": cell.dtype,
                "head_dim": cell.head_dim,
                "seqlen": cell.seqlen,
                "causal": int(cell.is_causal),
                "batch": cell.batch,
                "heads": cell.heads,
                "seconds": f"{result.seconds['flash_attention']:.6g}",
                "pytorch_seconds": f"{result.seconds['PyTorch']:.6g}",
                "gflops": f"{result.gflops('flash_attention'):.1f}",
                "pytorch_gflops": f"{result.gflops('PyTorch'):.1f}",
                "ratio": f"{result.ratio():.3f}",
                "calls": result.calls,
                "first_call_seconds": f"{result.first_call:.4g}",
                "machine": machine,
            }
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_times(path: Path, smallest: Sequence[tuple[str, dict[str, float]]], startup: Sequence[Startup]) -> None:
    """Latencies in microseconds, one a row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "flash_attention", "pytorch"])
        for name, times in smallest:
            writer.writerow([f"smallest {name}", f"{times['flash_attention']:.2f}", f"{times['PyTorch']:.2f}"])
        for row in startup:
            for what in ("import_time", "cold", "second_process", "warm"):
                writer.writerow([f"{row.op} {what}", f"{1e6 * getattr(row, what):.0f}", ""])


def draw(path: Path, results: Sequence[Result], machine: str) -> None:
    """Speed over sequence length, a panel for each dtype (rows) and each op and head dim (columns)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(dict.fromkeys(result.cell.dtype for result in results))
    columns = list(dict.fromkeys((result.cell.op, result.cell.head_dim) for result in results))
    size = (3.2 * len(columns) + 0.6, 2.6 * len(rows) + 0.9)
    figure, axes = pyplot.subplots(len(rows), len(columns), figsize=size, squeeze=False, layout="constrained")
    for i, dtype in enumerate(rows):
        for j, (op, head_dim) in enumerate(columns):
            panel = axes[i][j]
            for is_causal in (False, True):
                cells = [
                    result
                    for result in results
                    if (result.cell.dtype, result.cell.op, result.cell.head_dim, result.cell.is_causal)
                    == (dtype, op, head_dim, is_causal)
                ]
                seqlens = [result.cell.seqlen for result in cells]
                for peer, color in (("flash_attention", "#d1495b"), ("PyTorch", "#30638e")):
                    label = f"{peer}, {'causal' if is_causal else 'full'}"
                    speeds = [result.gflops(peer) for result in cells]
                    panel.plot(seqlens, speeds, "o--" if is_causal else "o-", color=color, markersize=3, label=label)
            panel.set_title(f"{dtype}, {op}, head dim {head_dim}", fontsize=9)
            panel.set_xscale("log", base=2)
            ticks = sorted({result.cell.seqlen for result in results})
            panel.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
            panel.tick_params(axis="y", labelsize=8)
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
            if j == 0:
                panel.set_ylabel("GFLOP/s", fontsize=9)
            if i == len(rows) - 1:
                panel.set_xlabel("sequence length", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    figure.supxlabel(machine, fontsize=8, color="0.4")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
