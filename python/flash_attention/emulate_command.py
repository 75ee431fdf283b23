"""`python -m flash_attention emulate`: finds the emulator, which is part of the source but not of the package."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path

# What the options may be. The emulator has the same lists; a test holds them together.
LAYOUTS = (
    *("contiguous", "bshd", "odd", "odd_batch", "odd_head", "odd_row", "offset", "columns", "reversed"),
    *("even", "padded", "huge", "far_rows", "expanded"),
)
DATA = ("normal", "large", "tiny", "zero", "integers", "nan", "positive", "infinite", "uneven", "negative")
TIMINGS = ("late", "random", "early")
MODELS = ("hopper", "ampere", "double")
MOST_EXP2_ERROR = 1 << 20  # of the 23 bits of a float
UNWANTED = ("lse", "grad_query", "grad_key", "grad_value")

DESCRIPTION = """\
Runs a CUDA kernel on the CPU, from the text that NVRTC would compile, and looks for what is wrong with it: results
against float64, races, copies that nobody waits for, memory that nobody has written, accesses out of bounds,
deadlocks. No GPU is needed, but g++ 12 or newer and a checkout of the source, which has the emulator (tests/emulator/).
Without options: forward, fp16, head dim 64, on cuda:sm_80.

Each case runs under several seeds. A seed decides which warp runs next and, with the timing `random`, when copies
arrive. The same options give the same run, so that a finding can be had again.

docs/testing.md shows how to debug a kernel with it, docs/emulator.md says what it finds and how."""

EPILOG = """\
examples:
  python -m flash_attention emulate --dtype bf16 --head-dim 64 --causal --seqlen-q 130
  python -m flash_attention emulate --op backward --deterministic --causal --seqlen-q 200 --heads-q 4 --heads-kv 2
  python -m flash_attention emulate --dtype fp32 --config all          # every config that the tuner may choose
  python -m flash_attention emulate --dtype bf16 --target cuda:sm_90a  # the kernels of Hopper
  python -m flash_attention emulate --op backward --sweep --keep-going # many sizes, layouts and heads: minutes
  python -m flash_attention emulate --mutations                        # break kernels on purpose; say what finds each
  python -m flash_attention emulate --mutations mask                   # those that have `mask` in their name"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All that is not about the problem and its config."""
    parser.set_defaults(op="forward", dtype="fp16", head_dim=64, target="cuda:sm_80")
    add = parser.add_argument_group("the call").add_argument
    add("--batch", type=int, default=1, metavar="N")
    add("--heads-q", type=int, default=2, metavar="N", help="default: %(default)s")
    add("--heads-kv", type=int, default=0, metavar="N", help="default, and 0: --heads-q")
    add("--seqlen-q", type=int, default=130, metavar="N", help="default: %(default)s")
    add("--seqlen-k", type=int, default=0, metavar="N", help="default, and 0: --seqlen-q")
    add("--scale", type=float, metavar="X", help="default: 1 / sqrt(head dim)")
    add("--layout", choices=LAYOUTS, default="contiguous", metavar="NAME", help=f"strides: {', '.join(LAYOUTS)}")
    add("--without", action="append", default=[], choices=UNWANTED, metavar="NAME",
        help=f"what is not wanted, may be repeated: {', '.join(UNWANTED)}")  # fmt: skip
    add("--data", choices=DATA, default="normal", metavar="NAME", help=f"what is in the tensors: {', '.join(DATA)}")
    add = parser.add_argument_group("the machine").add_argument
    add("--seed", type=int, default=0, metavar="N", help="the first (default: 0)")
    add("--seeds", type=int, default=3, metavar="N", help="how many (default: %(default)s)")
    add("--timing", choices=TIMINGS, help="when the data of copies arrive (default: late, random and early in turn)")
    add("--model", choices=MODELS, default="hopper", help="how tensor cores add (default: %(default)s)")
    add("--exp2-error", type=int, default=2, metavar="N",
        help="units in the last place by which exp2_approx is off (default: %(default)s)")  # fmt: skip
    add("--resident", type=int, default=4, metavar="N", help="blocks that run at once (default: %(default)s)")
    add("--processors", type=int, default=2, metavar="N",
        help="blocks of a persistent kernel, one for each processor (default: %(default)s)")  # fmt: skip
    add("--shuffle", action="store_true", help="blocks begin in random order")
    add("--drain", action="store_true", help="copies that are under way when a thread ends are a finding")
    add = parser.add_argument_group("what to run, and to print").add_argument
    add("--sweep", action="store_true", help="many sizes, layouts and heads instead of the ones above")
    add("--mutations", nargs="?", const="", metavar="WORD",
        help="break the kernels one line at a time instead, and print which check finds each mutation; status 1 if one "
        "survives. WORD: only those with it in their name or their kernel's")  # fmt: skip
    add("--keep-going", action="store_true", help="do not stop at the first case that is wrong")
    add("--accuracy", action="store_true", help="also print errors, in units of those of PyTorch's attention")


def run(arguments: argparse.Namespace) -> str:
    """Returns what is wrong in one sentence, "" if nothing is."""
    tests = Path(__file__).resolve().parents[2] / "tests"
    if not (tests / "emulator" / "command.py").exists():
        raise RuntimeError(
            "emulate needs the source of flash_attention: run it in a checkout (pip install -e, or python/ on "
            "PYTHONPATH), with g++ 12 or newer; the installed package has no emulator"
        )
    if str(tests) not in sys.path:
        sys.path.insert(0, str(tests))  # worker processes get it from here
    if not arguments.target.startswith("cuda:"):
        raise ValueError(f"target is {arguments.target!r}; the emulator runs kernels of cuda:sm_80 and newer")
    _check(arguments)
    found: str = importlib.import_module("emulator.command").run(arguments)
    return found


def _check(arguments: argparse.Namespace) -> None:
    """Sizes that no call can have."""
    for name in ("batch", "heads_q", "seqlen_q", "seeds", "resident", "processors"):
        if (value := getattr(arguments, name)) < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 <= arguments.exp2_error <= MOST_EXP2_ERROR:
        raise ValueError(f"exp2_error is {arguments.exp2_error}; it must be 0 to {MOST_EXP2_ERROR}")
    if arguments.scale is not None and math.isnan(arguments.scale):
        raise ValueError("scale is nan; it must be a number, or be left out for 1 / sqrt(head dim)")
    gradients = [name for name in arguments.without if name.startswith("grad_")]
    if gradients and arguments.op == "forward":
        raise ValueError(f"without is {gradients[0]}; only backward (--op backward) has gradients")
    for name, other in (("heads_kv", "heads_q"), ("seqlen_k", "seqlen_q")):
        if (value := getattr(arguments, name)) < 0:
            raise ValueError(f"{name} is {value}; it must be at least 1, or 0 for that of {other}")
    if arguments.heads_kv and arguments.heads_q % arguments.heads_kv:
        raise ValueError(
            f"heads_q is {arguments.heads_q}; it must be a multiple of heads_kv, which is {arguments.heads_kv}"
        )
