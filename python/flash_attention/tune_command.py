"""`python -m flash_attention tune`: make the calls of a program ahead of time, so that it finds a warm cache.

Each problem is called as a user's program would call it: through flash_attention() and autograd, with tensors of these
shapes on the device. What is found, compiled and kept is therefore what such a call looks for later.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from flash_attention import _native, bench_measure
from flash_attention.arguments import numbers, several
from flash_attention.checks import MAX_HEAD_DIM
from flash_attention.functional import flash_attention

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NEEDED = ("dtype", "head_dim", "heads", "seqlen")

DESCRIPTION = """\
Finds the best kernels for problems of these shapes now, so that later calls with such shapes, in any process that uses
this cache, compile and tune nothing. Where an option has several values, separated by commas, all combinations are
tuned. Problems that the cache knows, or that share a size class with one that was tuned before, take no time.

Tensors are contiguous. Memory and time are those of one such call, and a few seconds for each problem that is new.
FLASH_ATTENTION_AUTOTUNE counts as in any call: max searches all configs; pinned tunes nothing and fails where something
is missing."""

EPILOG = """\
a file of shapes:
  Each line has the options of a problem as on the command line; an option that it lacks is taken from there. Lines
  that are empty, and what follows a #, are skipped:

    --dtype bf16 --head-dim 128 --heads 16 --seqlen 512,2048,8192 --causal   # training
    --dtype bf16 --head-dim 128 --heads 16 --heads-kv 4 --seqlen 1 --seqlen-k 4096 --op forward

examples:
  python -m flash_attention tune --dtype bf16 --head-dim 128 --batch 4 --heads 16 --seqlen 512,2048,8192 --causal
  python -m flash_attention tune --shapes shapes.txt --device cuda
  echo "--head-dim 64 --seqlen 1024" | python -m flash_attention tune --shapes - --dtype fp32 --heads 8"""


@dataclass(frozen=True)
class Problem:
    """One call: what is computed, and its shapes."""

    op: str
    dtype: str
    head_dim: int
    head_dim_v: int
    batch: int
    heads: int
    heads_kv: int
    seqlen: int
    seqlen_k: int
    is_causal: bool
    deterministic: bool
    precision: str = "full"

    def __str__(self) -> str:
        """Its options on the command line, without those that have their default."""
        text = f"--op {self.op} --dtype {self.dtype} --head-dim {self.head_dim}"
        text += f" --batch {self.batch} --heads {self.heads} --seqlen {self.seqlen}"
        for name, usual in (("head_dim_v", self.head_dim), ("heads_kv", self.heads), ("seqlen_k", self.seqlen)):
            if (value := getattr(self, name)) != usual:
                text += f" --{name.replace('_', '-')} {value}"
        text += " --causal" * self.is_causal + " --deterministic" * self.deterministic
        return text + " --precision reduced" * (self.precision == "reduced")


class LineParser(argparse.ArgumentParser):
    """The options of a problem in a line of a file."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        add_problem_arguments(self)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def add_problem_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """What a problem is, with several values each. None stands for what was not given."""
    add = parser.add_argument
    add("--op", type=several("forward", "backward"), metavar="LIST", help="default: forward,backward")
    add("--dtype", type=several(*DTYPES), metavar="LIST", help="fp32, fp16, bf16")
    add("--head-dim", type=numbers, metavar="LIST", help="of query and key, 1 to 256")
    add("--head-dim-v", type=numbers, metavar="LIST", help="of value and output (default: --head-dim)")
    add("--batch", type=numbers, metavar="LIST", help="default: 1")
    add("--heads", type=numbers, metavar="LIST", help="of query")
    add("--heads-kv", type=numbers, metavar="LIST", help="of key and value (default: --heads)")
    add("--seqlen", type=numbers, metavar="LIST", help="of query")
    add("--seqlen-k", type=numbers, metavar="LIST", help="of key and value (default: --seqlen)")
    add("--causal", action="store_true", help="is_causal=True")
    add("--deterministic", action="store_true", help="as under torch.use_deterministic_algorithms(True)")
    add(
        "--precision",
        choices=("full", "reduced"),
        default="full",
        help="reduced: as under torch.set_float32_matmul_precision('high'), for forward in fp32 without gradients",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_problem_arguments(parser.add_argument_group("problems"))
    parser.add_argument("--shapes", metavar="FILE", help="a file of problems, one a line; -: standard input")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU that is supported"
    )


def combinations(arguments: argparse.Namespace) -> list[Problem]:
    """All combinations of the values that were given.

    Raises:
        ValueError: one is missing, or two do not fit together.
    """
    for name in NEEDED:
        if getattr(arguments, name) is None:
            needed = ", ".join(f"--{name.replace('_', '-')}" for name in NEEDED)
            raise ValueError(f"--{name.replace('_', '-')} is missing: a problem has {needed}")
    problems = []
    for op, dtype, head_dim, head_dim_v, batch, heads, heads_kv, seqlen, seqlen_k in itertools.product(
        arguments.op or ["forward", "backward"],
        arguments.dtype,
        arguments.head_dim,
        arguments.head_dim_v or [0],
        arguments.batch or [1],
        arguments.heads,
        arguments.heads_kv or [0],
        arguments.seqlen,
        arguments.seqlen_k or [0],
    ):
        shape = (head_dim, head_dim_v or head_dim, batch, heads, heads_kv or heads, seqlen, seqlen_k or seqlen)
        problem = Problem(op, dtype, *shape, arguments.causal, arguments.deterministic, arguments.precision)
        for name in ("head_dim", "head_dim_v"):
            if (value := getattr(problem, name)) > MAX_HEAD_DIM:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be 1 to {MAX_HEAD_DIM}")
        if problem.heads % problem.heads_kv:
            raise ValueError(f"--heads is {heads}; it must be a multiple of --heads-kv, which is {heads_kv}")
        problems.append(problem)
    return problems


def read_shapes(name: str, arguments: argparse.Namespace) -> list[Problem]:
    """The problems of a file, or of standard input.

    Raises:
        ValueError: a line is wrong; it says which.
    """
    text = sys.stdin.read() if name == "-" else Path(name).read_text()
    problems, parser = [], LineParser()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            if words:
                problems += combinations(parser.parse_args(words, argparse.Namespace(**vars(arguments))))
        except ValueError as error:
            raise ValueError(f"line {number} of {'standard input' if name == '-' else name}: {error}") from None
    if not problems:
        raise ValueError(f"--shapes is {name!r}, which has no problems; each line must have the options of one")
    return problems


def tune(problem: Problem, device: str) -> bool:
    """Make the call. Returns whether anything was new.

    Raises:
        RuntimeError: it was computed, but what was found could not be kept; or what the call raises.
    """
    before = _native.statistics()
    torch.use_deterministic_algorithms(problem.deterministic)
    torch.set_float32_matmul_precision("high" if problem.precision == "reduced" else "highest")

    def zeros(heads: int, seqlen: int, head_dim: int) -> torch.Tensor:
        shape = (problem.batch, heads, seqlen, head_dim)
        return torch.zeros(shape, dtype=DTYPES[problem.dtype], device=device, requires_grad=problem.op == "backward")

    output = flash_attention(
        zeros(problem.heads, problem.seqlen, problem.head_dim),
        zeros(problem.heads_kv, problem.seqlen_k, problem.head_dim),
        zeros(problem.heads_kv, problem.seqlen_k, problem.head_dim_v),
        is_causal=problem.is_causal,
        enable_gqa=True,
    )
    if problem.op == "backward":
        output.backward(torch.zeros_like(output))
    if device == "cuda":
        torch.cuda.synchronize()
    new = {name: count - before[name] for name, count in _native.statistics().items()}
    if new["unrecorded"]:
        raise RuntimeError(
            "the best guess was taken and not kept: there was no memory for a trial, or the cache "
            f"{_native.cache_path()} cannot be written (FLASH_ATTENTION_VERBOSE=1 says which)"
        )
    return new["tunings"] + new["compilations"] > 0


class Progress:
    """A progress bar with rich where it is installed and this is a terminal, else a line for each problem."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.bar: Any = None
        try:
            from rich import progress
        except ImportError:
            return
        if sys.stdout.isatty():
            columns = [progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn()]
            self.bar = progress.Progress(*columns, progress.TextColumn("{task.description}"))
            self.task = self.bar.add_task("", total=total)
            self.bar.start()

    def begin(self, problem: Problem) -> None:
        if self.bar:
            what = f"{problem.op} {problem.dtype}, d {problem.head_dim}, S {problem.seqlen}"
            self.bar.update(self.task, description=what)

    def end(self, problem: Problem, outcome: str, seconds: float) -> None:
        self.done += 1
        if self.bar:
            self.bar.update(self.task, completed=self.done)
        else:
            print(f"[{self.done}/{self.total}] {problem}: {outcome}, {seconds:.2f} s", flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def check_device(device: str) -> None:
    """Raise where attention does not run on it, or where what is found could not be kept."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device is 'cuda', and PyTorch finds no GPU here; it must be cpu on this machine")
    _native.device_target(device)
    usable = bench_measure.info("cache usable")
    if usable != "yes" and os.environ.get("FLASH_ATTENTION_AUTOTUNE") != "pinned":
        raise RuntimeError(f"there is no cache to tune for: {usable.removeprefix('no; ')}")


def run(arguments: argparse.Namespace) -> str:
    """Tune, and print what came of it. Returns what went wrong in one sentence, "" if nothing did."""
    device = arguments.device or bench_measure.default_device()
    given = read_shapes(arguments.shapes, arguments) if arguments.shapes else combinations(arguments)
    check_device(device)
    if device == "cpu":  # where it is the same kernel
        given = [replace(problem, deterministic=False, precision="full") for problem in given]
    problems = list(dict.fromkeys(given))
    tuned, failures, begun = 0, [], time.monotonic()
    progress = Progress(len(problems))
    try:
        for problem in problems:
            progress.begin(problem)
            started = time.monotonic()
            try:
                new = tune(problem, device)
            except Exception as error:  # whatever it is: the others are tuned
                failures.append((problem, str(error) or type(error).__name__))  # not the error: it holds tensors
                outcome = "failed"
            else:
                tuned += new
                outcome = "tuned" if new else "already known"
            progress.end(problem, outcome, time.monotonic() - started)
    finally:
        progress.close()
    for problem, reason in failures:
        print(f"failed: {problem}: {reason}")
    known = len(problems) - tuned - len(failures)
    untimed = " (FLASH_ATTENTION_AUTOTUNE=0: best guesses)" if os.environ.get("FLASH_ATTENTION_AUTOTUNE") == "0" else ""
    print(
        f"{tuned} problems tuned{untimed}, {known} already known, {len(failures)} failed "
        f"in {time.monotonic() - begun:.1f} s"
    )
    print(f"cache: {_native.cache_path()}")
    return f"{len(failures)} of {len(problems)} problems failed" if failures else ""
