"""The demo: one small language model trained twice, with this attention and with PyTorch's own.

    make demo            or: python examples/demo.py [--text book.txt] [--device cpu] [--dtype bf16]

Both models start from the same seed and see the same batches, a step each in turn, so that they share whatever
else the machine is doing. Shown: progress, loss and speed of both, a sample of what was learned, and a picture of
the two loss curves and speeds. It fails if the two loss curves do not agree. The model is in example_training.py;
on a GPU it is larger than on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from example_training import (
    DTYPES,
    SIZES,
    CharTransformer,
    Trainer,
    add_arguments,
    causal_flash_attention,
    load_text,
    pick_device,
    sample,
)

OURS, TORCH = "flash_attention", "scaled_dot_product_attention"

# Two exact implementations round differently, and training amplifies a rounding difference from step to step: the
# curves are equal to EARLY over the first steps, and to LATE (in nats, of about 2) to the end.
EARLY_STEPS, EARLY, LATE = 20, {"fp32": 2e-3, "bf16": 5e-2}, 0.1


class TorchAttention(nn.Module):
    """PyTorch's attention in the place of FlashAttention."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class Run:
    """One of the two trainings: its losses and the seconds of each step."""

    def __init__(self, trainer: Trainer, tokens: int) -> None:
        self.trainer, self.tokens = trainer, tokens
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        started = time.perf_counter()
        self.losses.append(self.trainer.step(batch))  # the loss is read back, so the step is over
        self.seconds.append(time.perf_counter() - started)

    def tokens_per_second(self) -> float:
        return self.tokens / statistics.median(self.seconds[3:] or self.seconds)

    def __str__(self) -> str:
        recent = self.losses[-10:]
        return f"loss {sum(recent) / len(recent):.3f}, {self.tokens_per_second():,.0f} tokens/s"


class Progress:
    """A progress bar with rich where it is installed, else a line now and then."""

    def __init__(self, steps: int) -> None:
        self.steps, self.shown = steps, 0.0
        self.bar: Any = None
        try:
            from rich import progress
        except ImportError:
            return
        if sys.stdout.isatty():
            columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()]
            self.bar = progress.Progress(*columns, progress.TimeRemainingColumn())
            self.task = self.bar.add_task("training", total=steps)
            self.bar.start()

    def show(self, step: int, runs: dict[str, Run]) -> None:
        if self.bar:
            lines = "\n".join(f"{name:>28}: {run}" for name, run in runs.items())
            self.bar.update(self.task, completed=step, description=lines)
        elif step == self.steps or time.monotonic() > self.shown + 5:
            self.shown = time.monotonic()
            print(
                f"step {step}/{self.steps}  " + "   ".join(f"{name}: {run}" for name, run in runs.items()), flush=True
            )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def disagreement(ours: list[float], theirs: list[float], allowed: float) -> str | None:
    """None where the loss curves agree, else what is wrong with them."""
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    early = max(differences[:EARLY_STEPS])
    window = 20
    smooth = [abs(sum(ours[i : i + window]) - sum(theirs[i : i + window])) / window for i in range(len(ours) - window)]
    late = max(smooth, default=early)
    print(f"\nLoss curves: largest difference {early:.1e} over the first {EARLY_STEPS} steps (allowed {allowed:.0e}), ")
    print(f"{late:.1e} in a mean of {window} steps later (allowed {LATE:g}).")
    if not early <= allowed or not late <= LATE:  # written so that NaN fails
        return "the loss curves do not agree"
    return None


def draw(runs: dict[str, Run], where: str, path: Path) -> bool:
    """Loss curves and speeds as a PNG; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curves, speeds) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 1), layout="constrained")
    styles = ({"color": "#d1495b", "linewidth": 1.2}, {"color": "#30638e", "linewidth": 3.5, "alpha": 0.4})
    for (name, run), style in zip(runs.items(), styles, strict=True):
        curves.plot(range(1, len(run.losses) + 1), run.losses, label=name, **style)
    curves.set(xlabel="step", ylabel="training loss (nats per character)", title="Same seed, same batches: same curve")
    curves.legend()
    bars = speeds.bar(["flash_\nattention", "PyTorch"], [run.tokens_per_second() for run in runs.values()])
    for bar, style in zip(bars, styles, strict=True):
        bar.set_color(str(style["color"]))
    speeds.bar_label(bars, fmt="{:,.0f}")
    speeds.set(ylabel="tokens per second, whole training step", title="Speed")
    figure.supxlabel(where, fontsize=8, color="0.4")
    speeds.margins(y=0.12)
    for axes in (curves, speeds):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, default=2.8, help="stop training after this (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=400, help="characters to write at the end (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of demo.png (default: results)")
    arguments = parser.parse_args()

    device = arguments.device or pick_device()
    size, dtype = SIZES[device.type], DTYPES[arguments.dtype]
    steps = arguments.steps or size.steps
    text = load_text(arguments.text, size)
    runs: dict[str, Run] = {}
    for name in (OURS, TORCH):
        torch.manual_seed(0)
        attention = causal_flash_attention if name == OURS else lambda head_dim: TorchAttention()
        model = CharTransformer(len(text.alphabet), size, attention)
        runs[name] = Run(Trainer(model, device, steps, size.learning_rate, dtype), size.batch * size.context)
    parameters = sum(p.numel() for p in runs[TORCH].trainer.model.parameters())
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    where = f"{where}, {arguments.dtype}, batch {size.batch}, {size.context} characters of context"
    print(f"Training a transformer of {parameters:,} parameters on {len(text.training):,} characters, once with each")
    print(f"attention: {where}.\n")

    progress = Progress(steps)
    stream = text.batches(text.training, seed=0)
    end = time.monotonic() + 60 * arguments.minutes
    try:
        for step in range(1, steps + 1):
            batch = next(stream)
            for name in (OURS, TORCH) if step % 2 else (TORCH, OURS):
                runs[name].step(batch)
            progress.show(step, runs)
            if time.monotonic() > end:
                print(f"Stopped after {step} steps: {arguments.minutes:g} minutes are over.")
                break
    finally:
        progress.close()

    ours, theirs = runs[OURS], runs[TORCH]
    print(f"\n{'':30}{'training loss':>14}{'validation':>12}{'tokens/s':>10}{'first step':>12}")
    for name, run in runs.items():
        losses = f"{sum(run.losses[-20:]) / len(run.losses[-20:]):>14.3f}{run.trainer.validate(text):>12.3f}"
        print(f"{name:30}{losses}{run.tokens_per_second():>10,.0f}{run.seconds[0]:>10.2f} s")
    print(f"A training step is {ours.tokens_per_second() / theirs.tokens_per_second():.2f} times as fast.")
    trouble = disagreement(ours.losses, theirs.losses, EARLY[arguments.dtype])

    print("\nWhat it writes now:\n" + "-" * 80)
    print(sample(ours.trainer.model, text, device, arguments.sample))
    print("-" * 80)
    arguments.output.mkdir(parents=True, exist_ok=True)
    picture = arguments.output / "demo.png"
    if draw(runs, where, picture):
        print(f"Loss curves and speeds: {picture}")
    else:
        print("No picture: it needs matplotlib (pip install matplotlib).")
    if trouble:
        sys.exit(f"FAILED: {trouble}")


if __name__ == "__main__":
    main()
