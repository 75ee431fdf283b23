"""What `python -m flash_attention emulate` does; its options are in python/flash_attention/emulate_command.py."""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import time
from collections.abc import Iterator
from dataclasses import fields, replace

from torch import Tensor

from emulator import build, mutations, sweep
from emulator.attention import Case, problem
from emulator.data import errors_beside_pytorch
from emulator.machine import EmulatorError, Settings
from flash_attention import _native

MOST_SCALE = 3.4028234663852886e38  # of a call: finite in float32


def run(args: argparse.Namespace) -> str:
    """Returns what is wrong in one sentence, "" if nothing is."""
    if missing := build.missing():
        raise RuntimeError(f"the emulator does not run here: {missing}")
    return run_mutations(args.mutations) if args.mutations is not None else run_cases(args)


def run_mutations(word: str) -> str:
    chosen = [m for m in mutations.all_mutations() if word in m.name or word in m.kernel]
    if not chosen:
        raise ValueError(f"no mutation has {word!r} in its name")
    return "" if mutations.print_table(chosen) else "mutations survived, or kernels are wrong without any"


def run_cases(args: argparse.Namespace) -> str:
    failed = count = 0
    before: dict[Case, dict[str, Tensor]] = {}
    for case in cases(args):
        count += 1
        start = time.perf_counter()
        try:
            results = sweep.emulate_and_compare(case, before)
        except EmulatorError as error:
            failed += 1
            print(f"FAILED {command_line(case)}\n{error}\n", flush=True)
            if abs(case.scale) > MOST_SCALE:
                print(f"a scale of {case.scale} is none that a call can have: this says nothing of the kernel\n")
            if not args.keep_going:
                break
        else:
            print(f"ok {time.perf_counter() - start:6.2f} s  {sweep.describe(case)}", flush=True)
            if args.accuracy:
                ratios = errors_beside_pytorch(case.filled(), results)
                print("   ", "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    if failed:
        return f"{failed} of {count} runs are wrong"
    print(f"{count} runs are right")
    return ""


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """What the options ask for."""
    given = {f.name: getattr(args, f.name) for f in fields(Case) if getattr(args, f.name, None) is not None}
    case = Case(**{**given, "without": tuple(args.without)})
    for one, seed in itertools.product(
        sweep.many_sizes(case) if args.sweep else [case], range(args.seed, args.seed + args.seeds)
    ):
        timing = args.timing or sweep.TIMINGS[seed % 3]
        settings = Settings(seed, timing, args.model, args.exp2_error, args.resident, args.shuffle, args.drain)
        for config in _configs(one):
            yield replace(one, config=config, settings=settings)


def _configs(case: Case) -> list[str]:
    if case.config != "all":
        return [case.config]
    return _native.list_configs(problem(case.filled(), case.op))


def command_line(case: Case) -> str:
    """What runs this case alone."""
    words = ["python", "-m", "flash_attention", "emulate", "--op", case.op, "--seqlen-q", str(case.seqlen_q)]
    values = {f.name: (getattr(case, f.name), f.default) for f in fields(Case)}
    values |= {f.name: (getattr(case.settings, f.name), f.default) for f in fields(Settings)}
    always = {"seed", "timing", "exp2_error"}
    for name, (value, default) in values.items():
        if name in ("op", "seqlen_q", "settings", "data_seed") or (value == default and name not in always):
            continue
        if isinstance(value, float) and math.isnan(value):
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            words += [word for item in value for word in (option, item)]
        else:
            words += [option] if isinstance(value, bool) else [f"{option}={value}"]
    return shlex.join([*words, "--seeds=1"])
