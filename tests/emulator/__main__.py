"""python -m emulator: run attention kernels in the emulator (with python/ and tests/ on PYTHONPATH).

python -m emulator --dtype bf16 --head-dim 64 --causal --seqlen-q 130       one case, several seeds and timings
python -m emulator --sweep --op backward                                    many sizes
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from emulator.attention import Case, emulate, problem
from emulator.data import DATA, errors_beside_pytorch
from emulator.machine import MODELS, TIMINGS, EmulatorError, Settings
from emulator.tensors import LAYOUTS, TORCH
from flash_attention import _native


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m emulator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--op", choices=("forward", "backward"), default="forward")
    add("--dtype", choices=tuple(TORCH), default="fp16")
    add("--head-dim", type=int, default=64)
    add("--head-dim-v", type=int, default=0)
    add("--causal", action="store_true")
    add("--deterministic", action="store_true")
    add("--batch", type=int, default=1)
    add("--heads-q", type=int, default=2)
    add("--heads-kv", type=int, default=0)
    add("--seqlen-q", type=int, default=130)
    add("--seqlen-k", type=int, default=0)
    add("--scale", type=float, default=Case.scale)
    add("--layout", choices=LAYOUTS, default="contiguous")
    add("--target", default="cuda:sm_80")
    add("--config", default="", help="k=v,... as the command line of the package takes it; all: each of them")
    add("--without", type=_names, default=(), help="grad_query,grad_key,grad_value or lse: what is not wanted")
    add("--data", choices=tuple(DATA), default="normal")
    add("--seeds", type=int, default=3, help="how many; each with another timing")
    add("--timing", choices=tuple(TIMINGS), help="when cp.async's data arrive; default: all in turn")
    add("--model", choices=tuple(MODELS), default="hopper", help="how tensor cores add")
    add("--exp2-error", type=int, default=2, help="units in the last place by which exp2_approx may be off")
    add("--resident", type=int, default=4, help="blocks at once")
    add("--shuffle", action="store_true", help="blocks begin in random order")
    add("--drain", action="store_true", help="report copies that are under way when a thread ends")
    add("--accuracy", action="store_true", help="also print errors, in units of those of PyTorch's attention")
    add("--sweep", action="store_true", help="many sizes, layouts, heads; the options above are the first of each")
    add("--keep-going", action="store_true", help="do not stop at the first case that is wrong")
    return parser.parse_args(arguments)


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    names = (f.name for f in fields(Case) if f.name in vars(args))
    case = Case(**{name: getattr(args, name) for name in names})
    cases = _sweep(case) if args.sweep else [case]
    for case, seed in itertools.product(cases, range(args.seeds)):
        for config in _configs(case):
            timing = args.timing or ("late", "random", "early")[seed % 3]
            settings = Settings(seed, timing, args.model, args.exp2_error, args.resident, args.shuffle, args.drain)
            yield replace(case, config=config, settings=settings)


def _configs(case: Case) -> list[str]:
    if case.config != "all":
        return [case.config]
    return _native.list_configs(problem(case.filled(), case.op))


def _sweep(case: Case) -> Iterator[Case]:
    for d, causal in itertools.product((8, 33, 64, 80, 128), (False, True)):
        base = replace(case, head_dim=d, causal=causal)
        for s in (1, 15, 16, 17, 63, 64, 65, 130):
            yield replace(base, seqlen_q=s, seqlen_k=s, heads_q=1)
        for sq, sk in ((1, 130), (130, 1), (17, 200), (200, 17), (65, 129)):
            yield replace(base, seqlen_q=sq, seqlen_k=sk, heads_q=1)
        yield replace(base, batch=2, heads_q=4, heads_kv=2, seqlen_q=33, seqlen_k=70)
        for layout in LAYOUTS[1:]:
            yield replace(base, batch=2, heads_q=2, seqlen_q=37, seqlen_k=66, layout=layout)
        unwanted = ("lse",) if case.op == "forward" else ("grad_query", "grad_key", "grad_value")
        for name in unwanted:
            yield replace(base, seqlen_q=66, seqlen_k=70, heads_q=1, without=(name,))
        yield replace(base, head_dim_v=40, seqlen_q=66, seqlen_k=66, heads_q=1)
        for data in DATA:
            if data != "nan" or case.op == "forward":
                yield replace(base, data=data, seqlen_q=80, seqlen_k=144, heads_q=1)
        yield replace(base, data="integers", scale=1e5, seqlen_q=80, seqlen_k=144, heads_q=1)
        for scale in (0.0, 1e-30, -0.3):
            yield replace(base, scale=scale, seqlen_q=80, seqlen_k=77, heads_q=1)


def _compare(case: Case, results: dict[str, Tensor], before: dict[Case, dict[str, Tensor]]) -> None:
    """What must be repeatable has the same bits for every seed and timing."""
    if case.op == "backward" and not case.deterministic:
        return
    earlier = before.setdefault(replace(case, settings=Settings()), results)
    for name, tensor in results.items():
        if not torch.equal(tensor.nan_to_num(7.0), earlier[name].nan_to_num(7.0)):
            raise EmulatorError(f"{case}\n{name} has other bits with another seed")


def _describe(case: Case) -> str:
    """What is not as the defaults have it."""
    settings = {f"{f.name}={v}" for f in fields(Settings) if (v := getattr(case.settings, f.name)) != f.default}
    shown = [f for f in fields(Case) if f.name not in ("op", "dtype", "settings")]
    changed = {f.name: v for f in shown if (v := getattr(case, f.name)) is not f.default and v != f.default}
    words = [f"{name}={value}" for name, value in changed.items()]
    return " ".join([case.op, case.dtype, *words, *sorted(settings)])


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    failed = count = 0
    before: dict[Case, dict[str, Tensor]] = {}
    for case in _cases(args):
        start = time.perf_counter()
        count += 1
        try:
            results = emulate(case)
            _compare(case, results, before)
        except EmulatorError as error:
            failed += 1
            print(f"FAILED {case}\n{error}\n", flush=True)
            if not args.keep_going:
                return 1
        else:
            print(f"ok {time.perf_counter() - start:6.2f} s  {_describe(case)}", flush=True)
            if args.accuracy:
                ratios = errors_beside_pytorch(case.filled(), results)
                print("   ", "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    print(f"{count - failed} of {count} runs are right")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
