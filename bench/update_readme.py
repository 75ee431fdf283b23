"""Puts measured numbers into README.md and docs/performance.md, between their markers.

    make bench && make bench ARGS=--smallest && make bench ARGS=--startup && python bench/update_readme.py [results]

A pair of markers, <!-- NAME --> and <!-- /NAME -->, takes what `TABLES` makes of a file of the folder: NAME is a key of
it and a device, such as bench_cuda, which comes from bench_cuda.csv. Pictures are copied to docs/images. What has no
file in the folder stays as it is.
"""

from __future__ import annotations

import csv
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/performance.md")
OURS = "flash_attention"
UNITS = {"cpu": ("GFLOP/s", 1), "cuda": ("TFLOP/s", 1000)}
# What a reader of the short table sees, where it has been measured.
SHORT_SEQLENS = ("1024", "4096", "16384")

Row = dict[str, str]
Key = tuple[str, ...]


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def made(rows: Sequence[Row]) -> str:
    """Where and how the rows were made."""
    return f"{rows[0]['machine']}. `{rows[0]['command']}`"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; the columns behind the first `left` hold numbers."""
    rule = "|" + "---|" * left + "---:|" * (len(head) - left)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])


def by_cell(rows: Sequence[Row]) -> dict[Key, dict[str, Row]]:
    """The rows of each cell (dtype, op, head_dim, causal, seqlen), by peer."""
    cells: dict[Key, dict[str, Row]] = {}
    for row in rows:
        key = (row["dtype"], row["op"], row["head_dim"], row["causal"], row["seqlen"])
        cells.setdefault(key, {})[row["peer"]] = row
    return cells


def names_of(rows: Sequence[Row]) -> list[str]:
    """The peers that took any of the cells."""
    return [name for name in dict.fromkeys(row["peer"] for row in rows) if name != OURS]


def best_ratio(peers: dict[str, Row]) -> str:
    """How many times as fast as the fastest of the others."""
    ratios = [float(row["ratio"]) for name, row in peers.items() if name != OURS]
    return f"**{min(ratios):.2f}×**" if ratios else ""


def speed(row: Row, device: str) -> str:
    value = float(row["gflops"]) / UNITS[device][1]
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def sort_masks(columns: Sequence[Key]) -> list[Key]:
    """(causal, seqlen), full ones first."""
    return sorted(dict.fromkeys(columns), key=lambda column: (column[0], int(column[1])))


def short_table(rows: list[Row], device: str) -> str:
    """A row for each dtype, op and head dim: times as fast as the best peer, and our speed."""
    cells = by_cell(rows)
    columns = sort_masks([key[3:] for key in cells])
    columns = [column for column in columns if column[1] in SHORT_SEQLENS] or columns
    head = ["", *(f"S {seqlen}{', causal' if causal == '1' else ''}" for causal, seqlen in columns)]
    lines = []
    for group in dict.fromkeys(key[:3] for key in cells):
        line = [f"{group[0]} {group[1]}, d {group[2]}"]
        for column in columns:
            peers = cells.get((*group, *column))
            line.append(f"{best_ratio(peers)} ({speed(peers[OURS], device)})" if peers else "")
        lines.append(line)
    averages = []
    for dtype, op in dict.fromkeys(key[:2] for key in cells):
        measured = [row for row in rows if (row["dtype"], row["op"]) == (dtype, op)]
        ratios = {name: [float(row["ratio"]) for row in measured if row["peer"] == name] for name in names_of(measured)}
        each = ", ".join(f"{name} {statistics.geometric_mean(values):.2f}×" for name, values in ratios.items())
        averages.append(f"{dtype} {op}: {each}")
    backends = ", ".join(names_of(rows))
    peer = "PyTorch's `scaled_dot_product_attention`" if device == "cpu" else f"the best of PyTorch's ({backends})"
    caption = f"Times as fast as {peer}, and {UNITS[device][0]} of this attention in brackets. {rows[0]['machine']}."
    average = f"Means over all {len(cells)} cells, against each: {'; '.join(averages)}."
    return f"{caption}\n\n{markdown(head, lines)}\n\n{average}"


def long_table(rows: list[Row], device: str) -> str:
    """A table for each dtype and op, with a row for each cell: every peer's speed, and how many times as fast as it."""
    cells = by_cell(rows)
    text = [f"{made(rows)}\n\n{UNITS[device][0]}; in brackets, how many times as fast as that peer this attention is."]
    for dtype, op in dict.fromkeys(key[:2] for key in cells):
        names = names_of([row for row in rows if (row["dtype"], row["op"]) == (dtype, op)])
        lines = []
        for key, peers in cells.items():
            if key[:2] != (dtype, op):
                continue
            line = [key[2], "causal" if key[3] == "1" else "full", key[4], speed(peers[OURS], device)]
            for name in names:
                taken = peers.get(name)
                line.append(f"{speed(taken, device)} ({float(taken['ratio']):.2f})" if taken else "–")
            lines.append([*line, best_ratio(peers)])
        head = ["d", "mask", "S", "this", *names, "to the best"]
        text.append(f"**{dtype} {op}**\n\n{markdown(head, lines, left=0)}")
    return "\n\n".join(text)


def smallest_table(rows: list[Row], device: str) -> str:
    lines = [
        [
            f"{row['dtype']}, S {row['seqlen']}, d {row['head_dim']}: {row['what']}",
            f"{float(row['microseconds']):.1f} µs",
            f"{float(row['pytorch_microseconds']):.1f} µs",
        ]
        for row in rows
    ]
    return f"{made(rows)}\n\n{markdown(['smallest calls (B 1, H 1)', 'this', 'PyTorch'], lines)}"


STARTUP = {
    "import_ms": "`import flash_attention` after `import torch`",
    "cold_ms": "first call on a machine: generates, compiles, tunes",
    "cold_untuned_ms": "the same with `FLASH_ATTENTION_AUTOTUNE=0`",
    "second_process_ms": "first call of a later process",
    "warm_ms": "any later call",
}


def milliseconds(time: float) -> str:
    return f"{time:,.0f} ms" if time >= 100 else f"{time:.3g} ms"


def startup_table(rows: list[Row], device: str) -> str:
    """A column for each op and shape."""
    head = [
        f"{row['op']}, {row['dtype']}, B {row['batch']}, H {row['heads']}, S {row['seqlen']}, d {row['head_dim']}"
        for row in rows
    ]
    lines = [[text, *(milliseconds(float(row[name])) for row in rows)] for name, text in STARTUP.items()]
    return f"{made(rows)}\n\n{markdown(['', *head], lines)}"


def accuracy_table(rows: list[Row], device: str) -> str:
    """fp32: a row for each case, ours and PyTorch's error of the output and of each gradient."""
    cases: dict[Key, dict[str, Row]] = {}
    columns = ("data", "head_dim", "head_dim_v", "seqlen_q", "seqlen_k", "causal", "heads", "heads_kv")
    for row in rows:
        if row["dtype"] == "fp32":
            cases.setdefault(tuple(row[name] for name in columns), {})[row["tensor"]] = row
    names = list(dict.fromkeys(row["tensor"] for row in rows))
    lines = []
    for (data, dim, dim_v, length_q, length_k, causal, heads, heads_kv), tensors in cases.items():
        dims = dim if dim == dim_v else f"{dim}/{dim_v}"
        lengths = length_q if length_q == length_k else f"{length_q}×{length_k}"
        gqa = "" if heads == heads_kv else f", {heads}/{heads_kv} heads"
        errors = [
            f"{float(tensors[name]['error']):.1e} / {float(tensors[name]['pytorch_error']):.1e}" for name in names
        ]
        lines.append([data, dims, lengths, ("causal" if causal == "1" else "full") + gqa, *errors])
    return f"{made(rows)}\n\n{markdown(['data', 'd', 'S', 'mask', *names], lines, left=4)}"


def tuner_table(rows: list[Row], device: str) -> str:
    """A row for each problem: its speed, and how near that is to what an exhaustive search finds."""
    unit, scale = UNITS[device]
    lines = []
    for row in rows:
        heads = row["heads"] if row["heads"] == row["heads_kv"] else f"{row['heads']}/{row['heads_kv']}"
        seqlen = row["seqlen"] if row["seqlen"] == row["seqlen_k"] else f"{row['seqlen']}×{row['seqlen_k']}"
        mask = ", causal" if row["is_causal"] == "True" else ""
        what = f"{row['op']}, {row['dtype']}, B {row['batch']}, H {heads}, S {seqlen}, d {row['head_dim']}{mask}"
        config = (
            f"`{row['config']}`" if row["config"] == row["max_config"] else f"`{row['config']}` / `{row['max_config']}`"
        )
        searches = (f"{float(row[name]):.1f} s" for name in ("search_seconds", "max_search_seconds"))
        lines.append([what, config, f"{float(row['gflops']) / scale:.3g}", f"**{float(row['ratio']):.3f}**", *searches])
    ratios = [float(row["ratio"]) for row in rows]
    near = sum(ratio >= 0.97 for ratio in ratios)
    text = (
        f"{near} of {len(rows)} within 3 %; {statistics.geometric_mean(ratios):.3f} of the exhaustive search's speed "
        f"on average, at least {min(ratios):.3f}."
    )
    head = ["problem", "config / that of `max`", unit, "of `max`'s speed", "first call", "then with `max`"]
    return f"{made(rows)}\n\n{text}\n\n{markdown(head, lines, left=2)}"


def deterministic_table(rows: list[Row], device: str) -> str:
    """A row for each head dim and mask: the speed of a fixed order as a part of that without."""
    cells = {(row["head_dim"], row["causal"], row["seqlen"]): row for row in rows}
    seqlens = list(dict.fromkeys(row["seqlen"] for row in rows))
    lines = [
        [f"d {dim}{', causal' if causal == '1' else ''}", *(cells[dim, causal, seqlen]["ratio"] for seqlen in seqlens)]
        for dim, causal in dict.fromkeys(key[:2] for key in cells)
    ]
    return f"{made(rows)}\n\n{markdown(['', *(f'S {seqlen}' for seqlen in seqlens)], lines)}"


def skewed_table(rows: list[Row], device: str) -> str:
    """A row for each shape: how many times as fast as flash, where that takes it, and as the best peer."""
    ratios: dict[Key, dict[str, float]] = {}
    for row in rows:
        key = (row["dtype"], row["op"], row["batch"], row["heads"], row["seqlen"], row["seqlen_k"])
        if row["peer"] != OURS:
            ratios.setdefault(key, {})[row["peer"]] = float(row["ratio"])
    kinds = list(dict.fromkeys(key[:2] for key in ratios))
    lines = []
    for shape in dict.fromkeys(key[2:] for key in ratios):
        batch, heads, seqlen, seqlen_k = shape
        line = [f"B {batch}, H {heads}, S {seqlen if seqlen == seqlen_k else f'{seqlen}×{seqlen_k}'}"]
        for kind in kinds:
            of = ratios.get((*kind, *shape), {})
            flash = f"{of['flash']:.2f} / " if "flash" in of else ""
            line.append(f"{flash}**{min(of.values()):.2f}×**" if of else "")
        lines.append(line)
    return f"{made(rows)}\n\n{markdown(['', *(f'{dtype} {op}' for dtype, op in kinds)], lines)}"


# By the name of a marker, without its device: the file that it comes from, and what is made of it.
TABLES: dict[str, tuple[str, Callable[[list[Row], str], str]]] = {
    "bench": ("bench", short_table),
    "cells": ("bench", long_table),
    "smallest": ("smallest", smallest_table),
    "startup": ("startup", startup_table),
    "accuracy": ("accuracy", accuracy_table),
    "tuner": ("tuner", tuner_table),
    "deterministic": ("deterministic", deterministic_table),
    "skewed": ("skewed", skewed_table),
    "skewed_portable": ("skewed_portable", skewed_table),
}
PICTURES = {"picture_cuda": "bench_cuda.png", "picture_cpu": "bench_cpu.png", "demo": "demo.png"}
CAPTIONS = {"demo": "Loss curves and training speed of the demo"}


def content(name: str, folder: Path, document: Path) -> str | None:
    """What belongs between the markers of this name; None where the folder has nothing for it."""
    if name in PICTURES:
        picture = folder / PICTURES[name]
        if not picture.exists():
            return None
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, images / picture.name)
        where = (images / picture.name).relative_to(document.parent).as_posix()
        return f"![{CAPTIONS.get(name, 'Speed over sequence length')}]({where})"
    kind, _, device = name.rpartition("_")
    if kind not in TABLES or device not in UNITS:
        sys.exit(f"{document}: <!-- {name} --> is none of the markers that bench/update_readme.py knows")
    file, table = TABLES[kind]
    path = folder / f"{file}_{device}.csv"
    return table(read(path), device) if path.exists() else None


def update(document: Path, folder: Path) -> list[str]:
    """Fill in a document's markers; the names of those that were."""
    text, filled = document.read_text(encoding="utf-8"), []

    def replace(match: re.Match[str]) -> str:
        new = content(match[1], folder, document)
        if new is None:
            return match[0]
        filled.append(match[1])
        return f"<!-- {match[1]} -->\n{new}\n<!-- /{match[1]} -->"

    text = re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", replace, text, flags=re.DOTALL)
    document.write_text(text, encoding="utf-8")
    return filled


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "results")
    for name in DOCUMENTS:
        filled = update(ROOT / name, folder)
        print(f"{name}: {', '.join(filled) if filled else f'nothing for it in {folder}'}")


if __name__ == "__main__":
    main()
