"""The cases of attention that the tests run: every config that the tuner may choose, and every feature of a call."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from emulator import pool
from emulator.attention import Case, emulate, problem
from emulator.data import DATA
from emulator.infinite import NUM_SLOTS
from emulator.machine import EmulatorError, Settings
from emulator.tensors import LAYOUTS
from flash_attention import _native

TARGETS = ("cuda:sm_80", "cuda:sm_90")  # of the portable family; the second adds four floats at a time
HOPPER = ("cuda:sm_90a",)


@dataclass(frozen=True)
class Kind:
    """Kernels that are swept together."""

    op: str
    dtype: str
    # Of portable ones: odd, so that nothing can be copied in pieces; usual ones; the largest. The larger, the fewer
    # configs fit.
    head_dims: tuple[int, ...]
    deterministic: bool = False
    precision: str = "full"
    targets: tuple[str, ...] = TARGETS  # in turn
    # With how many kernels a config runs: at one head dim after another of those that it is offered at, and with the
    # masks by turns.
    kernels: int = 1
    # Which mask the first config begins with; the second one begins with the other. A call's features take turns, too;
    # another dtype's begin with the other mask.
    causal_first: bool = False

    @property
    def name(self) -> str:
        family = "hopper" if self.targets == HOPPER else "portable"
        reduced = "-reduced" * (self.precision == "reduced")
        return f"{family}-{self.op}-{self.dtype}{'-deterministic' * self.deterministic}{reduced}"

    def case(self, head_dim: int, causal: bool, target: str) -> Case:
        """Where precision is reduced nobody wants statistics of rows."""
        without = ("lse",) if self.precision == "reduced" else ()
        options = {"precision": self.precision, "without": without, "target": target}
        return Case(self.op, self.dtype, head_dim, causal=causal, deterministic=self.deterministic, **options)


# bf16 and fp16 differ in conversions and in one instruction: the large head dims are swept with one of them, and each
# config with one mask for one and the other for the other. So is each feature of a call, fp32 beside them. Forward is
# always repeatable, and so is backward in fp32.
KINDS = (
    Kind("forward", "fp32", (33, 128, 256), kernels=2),
    Kind("forward", "fp16", (33, 64, 128, 256)),
    Kind("forward", "bf16", (33, 64), causal_first=True),
    Kind("backward", "fp32", (33, 128, 256), kernels=2),
    Kind("backward", "fp16", (33, 128, 256)),
    Kind("backward", "bf16", (33, 64), causal_first=True),
    Kind("backward", "fp16", (64,), deterministic=True),
    Kind("backward", "bf16", (33,), deterministic=True, causal_first=True),
    Kind("forward", "fp16", (64, 128, 192, 256), targets=HOPPER, kernels=2),
    Kind("forward", "bf16", (40, 128), targets=HOPPER, causal_first=True),
    Kind("forward", "fp32", (64, 128, 192, 256), targets=HOPPER, kernels=2),
    Kind("forward", "fp32", (64, 128, 192, 256), precision="reduced", targets=HOPPER, kernels=2, causal_first=True),
    Kind("backward", "fp16", (64, 128), targets=HOPPER),
    Kind("backward", "bf16", (40, 96), targets=HOPPER, causal_first=True),
    Kind("backward", "fp16", (64,), deterministic=True, targets=HOPPER, kernels=2),
    Kind("backward", "bf16", (128,), deterministic=True, targets=HOPPER, kernels=2, causal_first=True),
)
FEATURES_HEAD_DIM = 40
# Two of those that are swept at that head dim.
PERSISTENT = "block_m=128,block_n=64,num_stages=3,persistent=1"
PERSISTENT_BACKWARD = "block_m=64,block_n=128,num_stages=3,persistent=1"
# K and V of two of its heads fill the half of the cache that a group of heads may have: the last head is a group alone.
MANY_KEYS = Case(
    *("forward", "fp16", 256, 0, True),
    heads_q=3,
    seqlen_q=130,
    seqlen_k=8800,
    target="cuda:sm_90a",
    config="block_m=128,block_n=48,num_stages=2,persistent=0",
)
# What generator/family_cuda.c splits keys at, and blocks of threads that soon have parts.
LEAST_SPLIT_KEYS = 256
SPLITS = "block_m=32,block_n=32,num_warps=2,num_stages=1,split_blocks=64"
DIRECT = "block_m=32,block_n=32,num_warps=2,num_stages=1,direct=1"
TIMINGS = ("late", "random", "early")
# Backward of Hopper's head dims above 128: head dims (of V, if they differ), causal mask.
WIDE = ((256, 0, False), (192, 0, True), (192, 128, False), (256, 0, True), (160, 0, False))


def settings_of(seed: int) -> Settings:
    """Seeds differ in timing, in how many blocks run at once and in which order they begin, and in exp2_approx.

    Where that is not exact, 2^0 is not 1, and no rescale is ever left out.

    They begin in any order only where all run at once (here never more than 16): a block that waits for its turn
    trusts that those before it begin first.
    """
    shuffle = seed % 2 == 1
    resident = 16 if shuffle else (4, 8, 1)[seed % 3]
    return Settings(seed, TIMINGS[seed % 3], exp2_error=(2, 0)[seed % 2], resident=resident, shuffle=shuffle)


def configs_of(case: Case) -> list[str]:
    """What the tuner may choose from."""
    return _native.list_configs(problem(case.filled(), case.op))


def _at_borders(case: Case) -> Iterator[Case]:
    """Sequence lengths at the borders of the config's blocks, and beside them.

    Of a persistent kernel, the blocks of threads are fewer than the tiles (of queries, in backward of keys), where
    there are several.
    """
    sizes = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", case.config)}
    if "dq_block_n" in sizes:
        yield from _two_passes_at_borders(case, sizes)
        return
    m, n = sizes["block_m"], sizes["block_n"]
    if sizes.get("split_blocks"):
        yield from _splits_at_borders(case, sizes)
        return
    lengths: tuple[tuple[int, int], ...] = ((m + 1, 2 * n + 1), (2 * m - 1, n - 1), (m, n), (1, n + 3))
    if case.op == "backward" and (case.target in HOPPER or sizes["num_stages"] > 2):  # rings of queries go round
        lengths = ((2 * m * sizes["num_stages"] + 1, n - 1), *lengths)
    for place, (sq, sk) in enumerate(lengths if case.head_dim < 128 else lengths[:2]):
        one = replace(case, seqlen_q=sq, seqlen_k=sk, heads_q=1)
        if sizes.get("persistent"):  # the last with three tiles or more for two blocks
            one = replace(one, processors=1) if place < 3 else replace(one, heads_q=3, processors=2)
        yield one


def _splits_at_borders(case: Case, sizes: dict[str, int]) -> Iterator[Case]:
    """Keys in several parts, of as many blocks each or not; in one; causal: parts that queries see nothing of."""
    m, n, one = sizes["block_m"], sizes["block_n"], replace(case, heads_q=1)
    if case.causal:
        yield replace(one, seqlen_q=2 * LEAST_SPLIT_KEYS, seqlen_k=3 * LEAST_SPLIT_KEYS)
    else:
        yield replace(one, seqlen_q=m + 1, seqlen_k=3 * LEAST_SPLIT_KEYS + n + 1)
        yield replace(one, seqlen_q=1, seqlen_k=2 * LEAST_SPLIT_KEYS, heads_q=2)
    yield replace(one, seqlen_q=m, seqlen_k=n + 1)


def _two_passes_at_borders(case: Case, sizes: dict[str, int]) -> Iterator[Case]:
    """Rings of each pass go round; last blocks of each kind have one row; tiles of queries come in pairs or alone."""
    m, keys, dq_tile = sizes["block_m"], sizes["dq_block_n"], 128
    one = replace(case, heads_q=1, processors=1)
    yield replace(one, seqlen_q=m * sizes["num_stages"] + 1, seqlen_k=sizes["block_n"] - 1)
    yield replace(one, seqlen_q=m, seqlen_k=keys * (sizes["dq_stages"] + 1) + 1)
    yield replace(one, seqlen_q=2 * dq_tile + 1, seqlen_k=keys, heads_q=2, heads_kv=1, processors=2)


def every_config(kind: Kind) -> list[list[Case]]:
    """Each candidate at some of the head dims, a list of cases for each kernel."""
    offered: dict[str, list[int]] = defaultdict(list)  # the places of head dims that a config is offered at
    for place, d in enumerate(kind.head_dims):
        for config in configs_of(kind.case(d, False, kind.targets[place % len(kind.targets)])):
            offered[config].append(place)
    groups = []
    for index, (config, places) in enumerate(offered.items()):
        for turn in range(kind.kernels):
            place = places[(index // 2 + turn) % len(places)]
            d, target = kind.head_dims[place], kind.targets[place % len(kind.targets)]
            causal = (index + turn + kind.causal_first) % 2 == 1
            cases = _at_borders(replace(kind.case(d, causal, target), config=config))
            groups.append([replace(c, settings=settings_of(i + index)) for i, c in enumerate(cases)])
    return groups


def every_feature(kind: Kind) -> list[list[Case]]:
    """All that a call may ask for, with the best guess of a config; one list a kernel."""
    groups = []
    target = kind.targets[0]
    if kind.deterministic and target in HOPPER:
        return _features_of_two_passes(kind)
    for causal in (False, True):
        turns = slice(causal ^ kind.causal_first, None, 2)
        base = replace(kind.case(FEATURES_HEAD_DIM, causal, target), seqlen_q=70, heads_q=1)
        cases = [*_calls(base), *_numbers(base)][turns]
        groups.append([_with_seed(case, i) for i, case in enumerate(cases)])
        wide = ((96, 128), (128, 40), (64, 16)) if kind.op == "backward" and target in HOPPER else ()
        for d, dv in ((24, 40), (40, 33), (8, 8), (1, 1), (80, 16), *wide)[turns]:
            case = replace(base, head_dim=d, head_dim_v=dv, seqlen_k=66, heads_q=2, heads_kv=1)
            groups.append([replace(case, settings=settings_of(i)) for i in range(2)])
        if kind.op == "forward" and kind.dtype != "fp32" and target not in HOPPER:
            # Its largest scores are found in another way on the second target.
            case = replace(base, target=kind.targets[1], data="infinite", batch=NUM_SLOTS // 2 + 1)
            case = replace(case, heads_q=4, heads_kv=2, seqlen_q=20, seqlen_k=200)
            groups.append([replace(case, settings=settings_of(0))])
        if kind.op == "forward" and target not in HOPPER:
            groups.append(_features_of_splits(replace(base, config=SPLITS), turns))
            if kind.dtype == "fp32":  # reads K and V in a way of its own
                direct = replace(base, config=DIRECT, seqlen_q=37, seqlen_k=66)
                cases = [replace(direct, layout=layout, heads_q=2) for layout in LAYOUTS]
                cases += [replace(direct, data=data) for data in ("large", "uneven")]
                cases += [replace(direct, data="infinite", batch=NUM_SLOTS), replace(direct, heads_q=4, heads_kv=2)]
                groups.append([_with_seed(case, i) for i, case in enumerate(cases)])
        if kind.op == "backward" and kind.dtype == "fp32":
            # Hopper's forward sums scores in another order: a largest score that backward's exceed makes weights of it.
            case = replace(base, target=HOPPER[0], head_dim=160, seqlen_q=130, data="large", scale=1e4)
            groups.append([replace(case, settings=settings_of(0))])
        if kind.op == "forward" and target in HOPPER:
            case = replace(base, config=PERSISTENT, batch=2, heads_q=2, heads_kv=1, seqlen_q=300, processors=3)
            groups.append([replace(case, settings=settings_of(i)) for i in range(2)])
        if kind.op == "backward" and target in HOPPER:  # five tiles of keys a head, of which queries see three
            case = replace(base, config=PERSISTENT_BACKWARD, batch=2, heads_q=4, heads_kv=2, seqlen_q=300, processors=3)
            case = replace(case, seqlen_k=600)
            groups.append([replace(case, settings=settings_of(i)) for i in range(2)])
            # K and V have one stage.
            case = replace(case, head_dim=72 if causal == kind.causal_first else 128, head_dim_v=128, heads_q=2)
            groups.append([replace(case, settings=settings_of(i)) for i in range(2)])
        if kind.op == "forward" and target in HOPPER and causal and MANY_KEYS.dtype == kind.dtype:
            groups.append([replace(MANY_KEYS, seqlen_k=130), MANY_KEYS])  # the first is run twice
    return groups


def _features_of_splits(base: Case, turns: slice) -> list[Case]:
    """What goes through the workspace and the phase that adds the parts: numbers, rows, layouts, wanted or not."""
    many = replace(base, seqlen_q=2 * LEAST_SPLIT_KEYS, seqlen_k=2 * LEAST_SPLIT_KEYS + 40)
    cases = [replace(many, data=data) for data in ("large", "tiny", "positive", "nan", "zero")]
    cases += [replace(many, data="integers", scale=scale) for scale in (-0.3, 1e5)]
    cases += [replace(many, layout=layout, heads_q=2, heads_kv=1) for layout in ("columns", "odd", "bshd")]
    cases += [replace(many, without=("lse",)), replace(many, seqlen_q=many.seqlen_q + 29, seqlen_k=1000)]
    cases += [replace(many, data="infinite", batch=NUM_SLOTS)]  # a head of keys for each tensor and value
    return [_with_seed(case, i) for i, case in enumerate(cases[turns])]


def _features_of_two_passes(kind: Kind) -> list[list[Case]]:
    """What is not as in one pass, on which the other kinds look; a kind has one of the masks."""
    causal = bool(kind.causal_first)
    base = replace(kind.case(FEATURES_HEAD_DIM, causal, HOPPER[0]), seqlen_q=70, heads_q=1)
    sizes = ((1, 130), (130, 1), (63, 65), (129, 64), (17, 200), (200, 127))
    cases = [replace(base, seqlen_q=sq, seqlen_k=sk) for sq, sk in sizes]
    cases += [replace(base, without=without) for without in (("grad_query",), ("grad_key", "grad_value"))]
    if not causal:
        wide = replace(base, head_dim=72, head_dim_v=128, seqlen_q=140, seqlen_k=66)
        return [[_with_seed(case, i) for i, case in enumerate(cases)], [replace(wide, settings=settings_of(1))]]
    cases.append(replace(base, batch=2, heads_q=4, heads_kv=2, seqlen_q=33, seqlen_k=140, processors=3))
    cases.append(replace(base, layout="bshd", heads_q=3, heads_kv=1, scale=-0.1, data="large"))
    cases.append(replace(base, data="infinite", batch=NUM_SLOTS, seqlen_k=100))
    return [[_with_seed(case, i) for i, case in enumerate(cases)]]


def wide_backward() -> list[list[Case]]:
    """Steps of two warpgroups: none, one, an odd and an even number of them; groups of heads; many seeds."""
    groups = []
    for d, dv, causal in WIDE:
        base = Case("backward", "fp16", d, dv, causal, heads_q=1, target=HOPPER[0])
        for place, config in enumerate(configs_of(base)):
            base = replace(base, config=config)
            cases = [replace(base, seqlen_q=sq, seqlen_k=sk) for sq, sk in ((65, 64), (200, 70), (30, 130))]
            if place == 0:
                sizes = ((1, 1), (64, 65), (129, 63), (130, 30))
                cases += [replace(base, seqlen_q=sq, seqlen_k=sk) for sq, sk in sizes]
                cases += [replace(base, seqlen_q=300, seqlen_k=40, processors=2)] * 3
                unwanted = (("grad_query",), ("grad_key",), ("grad_key", "grad_value"))
                cases += [replace(base, seqlen_q=70, without=names) for names in unwanted]
                cases += [replace(base, batch=2, heads_q=6, heads_kv=2, seqlen_q=70, seqlen_k=50, processors=3)]
            groups.append([replace(case, settings=settings_of(i)) for i, case in enumerate(cases)])
    return groups


def _with_seed(case: Case, seed: int) -> Case:
    """Of many heads, more blocks than run at once: they begin in their order, see settings_of."""
    settings = settings_of(seed)
    return replace(case, settings=replace(settings, shuffle=settings.shuffle and case.batch <= 2))


def _calls(base: Case) -> Iterator[Case]:
    """Sizes, heads, layouts, and results that are not wanted."""
    for s in (1, 15, 16, 17, 64, 65, 130):
        yield replace(base, seqlen_q=s)
    for sq, sk in ((1, 130), (130, 1), (200, 17), (17, 200)):
        yield replace(base, seqlen_q=sq, seqlen_k=sk)
    yield replace(base, batch=2, heads_q=4, heads_kv=2, seqlen_q=33, seqlen_k=140)
    yield replace(base, batch=2, heads_q=3, heads_kv=1, seqlen_q=133, seqlen_k=70)
    for layout in LAYOUTS[1:]:
        yield replace(base, batch=2, heads_q=2, seqlen_q=37, seqlen_k=66, layout=layout)
    yield replace(base, heads_q=3, heads_kv=1, layout="columns", scale=-0.1, data="large")
    unwanted = ("lse",) if base.op == "forward" else ("grad_query", "grad_key", "grad_value")
    for name in unwanted:
        yield replace(base, seqlen_k=66, without=(name,))
    if base.op == "backward":
        yield replace(base, seqlen_k=66, without=unwanted[:2], layout="reversed")


def _numbers(base: Case) -> Iterator[Case]:
    """What is in the tensors, and scales."""
    for data in DATA:
        if data == "infinite":  # a head of keys for each tensor and value, and one more
            yield replace(base, data=data, batch=NUM_SLOTS, seqlen_k=100)
        elif data != "nan" or base.op == "forward":
            yield replace(base, data=data, seqlen_k=144)
    yield replace(base, data="integers", scale=1e5, seqlen_k=144)
    for scale in (0.0, 1e-30, -0.3):
        yield replace(base, scale=scale, seqlen_k=77)


def many_sizes(case: Case) -> Iterator[Case]:
    """Far more than the tests run, for whoever changes a template: around `case`, at five head dims."""
    for d, causal in itertools.product((8, 33, 64, 80, 128), (False, True)):
        base = replace(case, head_dim=d, causal=causal, heads_q=1)
        for s in (1, 15, 16, 17, 63, 64, 65, 130):
            yield replace(base, seqlen_q=s, seqlen_k=s)
        for sq, sk in ((1, 130), (130, 1), (17, 200), (200, 17), (65, 129)):
            yield replace(base, seqlen_q=sq, seqlen_k=sk)
        yield from _calls(replace(base, seqlen_q=66))
        yield replace(base, head_dim_v=40, seqlen_q=66, seqlen_k=66)
        yield from _numbers(replace(base, seqlen_q=80))


def is_repeatable(case: Case) -> bool:
    """Must every seed give the same bits?"""
    return case.op == "forward" or case.deterministic or case.dtype == "fp32"


def emulate_and_compare(case: Case, before: dict[Case, dict[str, Tensor]]) -> dict[str, Tensor]:
    """What must be repeatable has the bits that it had with other settings; `before` keeps them."""
    results = emulate(case)
    if not is_repeatable(case):
        return results
    arithmetic = Settings(exp2_error=case.settings.exp2_error, model=case.settings.model)
    earlier = before.setdefault(replace(case, settings=arithmetic), results)
    for name, tensor in results.items():
        if not torch.equal(tensor.nan_to_num(7.0), earlier[name].nan_to_num(7.0)):
            raise EmulatorError(f"{name} has other bits with another seed")
    return results


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    case: Case
    error: str  # "" where it is right
    seconds: float


def run_group(cases: Sequence[Case]) -> list[Outcome]:
    """Run cases of one kernel, the first again with another seed."""
    first = cases[0].settings
    again = replace(cases[0], settings=replace(settings_of(first.seed + 1), exp2_error=first.exp2_error))
    before: dict[Case, dict[str, Tensor]] = {}
    return [run_case(case, before) for case in (*cases, again)]


def run_case(case: Case, before: dict[Case, dict[str, Tensor]]) -> Outcome:
    start, error = time.perf_counter(), ""
    try:
        emulate_and_compare(case, before)
    except EmulatorError as found:
        error = str(found)
    return Outcome(case, error, time.perf_counter() - start)


def run(groups: Sequence[list[Case]]) -> Iterator[Outcome]:
    """All of them, in several processes."""
    for _, outcomes in pool.run(run_group, groups):
        yield from outcomes


def summary(outcomes: Iterable[Outcome]) -> str:
    """What was covered, a line for each op and dtype."""
    kinds: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for outcome in outcomes:
        kinds[outcome.case.op, outcome.case.dtype].append(outcome.case)
    lines = []
    for (op, dtype), cases in sorted(kinds.items()):
        kernels = {(c.head_dim, c.head_dim_v, c.causal, c.deterministic, c.target, c.config) for c in cases}
        configs = {c.config for c in cases if c.config}
        dims = ", ".join(map(str, sorted({c.head_dim for c in cases})))
        lengths = [c.seqlen_q for c in cases] + [c.seqlen_k or c.seqlen_q for c in cases]
        lines.append(
            f"{op} {dtype}: {len(cases)} runs of {len(kernels)} kernels, {len(configs)} configs, head dims {dims}, "
            f"S {min(lengths)} to {max(lengths)}, {len({c.layout for c in cases})} layouts"
        )
    return "\n".join(lines)


def describe(case: Case) -> str:
    """What is not as the defaults have it."""
    case = replace(case, scale=Case.scale) if math.isnan(case.scale) else case  # NaN is equal only to itself
    settings = {f"{f.name}={v}" for f in fields(Settings) if (v := getattr(case.settings, f.name)) != f.default}
    shown = [f for f in fields(Case) if f.name not in ("op", "dtype", "settings")]
    changed = {f.name: v for f in shown if (v := getattr(case, f.name)) is not f.default and v != f.default}
    words = [f"{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in changed.items()]
    return " ".join([case.op, case.dtype, *words, *sorted(settings)])
