"""Puts measured numbers into README.md: tables and pictures, between its markers.

    make bench && make bench ARGS=--startup && python bench/update_readme.py [results]

Reads bench.csv, smallest.csv, startup.csv, bench.png and demo.png of the folder; what is not there leaves its part
as it is.
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def grid_table(rows: list[dict[str, str]]) -> str:
    """How many times as fast as PyTorch, a row for each dtype, op and head dim; our GFLOP/s in brackets."""
    columns = list(dict.fromkeys((row["causal"], row["seqlen"]) for row in rows))
    head = ["", *(f"S {seqlen}{', causal' if causal == '1' else ''}" for causal, seqlen in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(columns)]
    for group in dict.fromkeys((row["dtype"], row["op"], row["head_dim"]) for row in rows):
        found = {
            (row["causal"], row["seqlen"]): f"**{float(row['ratio']):.2f}×** ({float(row['gflops']):.0f})"
            for row in rows
            if (row["dtype"], row["op"], row["head_dim"]) == group
        }
        cells = [found.get(column, "") for column in columns]
        lines.append(f"| {group[0]} {group[1]}, d {group[2]} | " + " | ".join(cells) + " |")
    first = rows[0]
    caption = (
        f"Times as fast as `scaled_dot_product_attention` in the same process, and GFLOP/s of this attention in "
        f"brackets. Batch {first['batch']}, {first['heads']} heads; {first['machine']}."
    )
    return caption + "\n\n" + "\n".join(lines)


def smallest_table(rows: list[dict[str, str]]) -> str:
    lines = ["| smallest call (B 1, H 1, S 1, d 8) | this | PyTorch |", "|---|---:|---:|"]
    for row in rows:
        name = row["what"].removeprefix("smallest ")
        lines.append(f"| {name} | {float(row['flash_attention']):.1f} µs | {float(row['pytorch']):.1f} µs |")
    return "\n".join(lines)


def startup_table(rows: list[dict[str, str]]) -> str:
    times = {row["what"]: float(row["flash_attention"]) / 1000 for row in rows}
    lines = ["| fp32, B 1, H 8, S 512, d 64 | forward | forward + backward |", "|---|---:|---:|"]
    names = {
        "import_time": "`import flash_attention` after `import torch`",
        "cold": "first call on a machine: generates, compiles, tunes",
        "second_process": "first call of a later process",
        "warm": "any later call",
    }
    for what, text in names.items():
        forward, backward = times[f"forward {what}"], times[f"forward + backward {what}"]
        lines.append(f"| {text} | {forward:,.1f} ms | {backward:,.1f} ms |")
    return "\n".join(lines)


def put(text: str, name: str, content: str) -> str:
    """Replace what is between the markers <!-- name --> and <!-- /name -->."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text, count = pattern.subn(lambda match: f"{match[1]}{content}\n{match[2]}", text)
    if count != 1:
        sys.exit(f"README.md must have the markers <!-- {name} --> and <!-- /{name} --> once, in this order")
    return text


def take_picture(folder: Path, name: str, what: str) -> str:
    """Copy a picture into docs/images; the Markdown that shows it, "" where there is none."""
    if not (folder / name).exists():
        return ""
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / name, images / name)
    print(f"docs/images/{name}")
    return f"![{what}](docs/images/{name})"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "results")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    pictures = {"bench": take_picture(folder, "bench.png", "Speed over sequence length")}
    tables = {"bench": grid_table, "smallest": smallest_table, "startup": startup_table}
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        if path.exists():
            text = put(text, name, "\n\n".join(filter(None, (table(read(path)), pictures.get(name)))))
            print(f"README.md: {name} from {path}")
    demo = take_picture(folder, "demo.png", "Loss curves and training speed of the demo")
    if demo:
        text = put(text, "demo", demo)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
