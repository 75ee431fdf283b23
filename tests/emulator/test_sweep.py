"""The CUDA kernels are right in the emulator: every config that the tuner may choose, every feature of a call.

What ran stands at the end of pytest's output. The cases are in sweep.py.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from emulator import command, data, infinite, sweep, tensors
from emulator.attention import Case
from emulator.data import DATA
from emulator.machine import Settings
from emulator.sweep import Kind
from emulator.tensors import LAYOUTS, TORCH
from flash_attention import cli

every_kind = pytest.mark.parametrize("kind", sweep.KINDS, ids=lambda kind: kind.name)


@every_kind
def test_sweep(kind: Kind, record_property: Callable[[str, object], None]) -> None:
    """Against float64, with every check of the emulator on, under several seeds and timings."""
    check_sweep(kind.name, [*sweep.every_config(kind), *sweep.every_feature(kind)], record_property)


def test_sweep_of_wide_backward(record_property: Callable[[str, object], None]) -> None:
    """dK and dV of Hopper's head dims above 128."""
    check_sweep("hopper-wide-backward", sweep.wide_backward(), record_property)


def check_sweep(name: str, groups: list[list[Case]], record_property: Callable[[str, object], None]) -> None:
    """Run them, record what was covered (tests/conftest.py prints it), and say what is wrong."""
    outcomes = list(sweep.run(groups))
    record_property("covered", f"{name}: {sweep.summary(outcomes)}")
    wrong = [outcome for outcome in outcomes if outcome.error]
    report = (f"{command.command_line(outcome.case)}\n{outcome.error}" for outcome in wrong[:3])
    assert not wrong, f"{len(wrong)} of {len(outcomes)} runs are wrong\n" + "\n\n".join(report)


@every_kind
def test_every_candidate_is_swept(kind: Kind) -> None:
    """What the family offers at one of these head dims, for either mask, is run there or at another one."""
    swept = defaultdict(set)
    for case, *_ in sweep.every_config(kind):
        swept[case.config].add(case.head_dim)
    for causal in (False, True):
        offered = defaultdict(set)
        for place, d in enumerate(kind.head_dims):
            for config in sweep.configs_of(kind.case(d, causal, kind.targets[place % len(kind.targets)])):
                offered[config].add(d)
        assert swept.keys() == offered.keys()
        for config, dims in offered.items():
            assert swept[config] <= dims
            assert len(swept[config]) == min(len(dims), kind.kernels)


@pytest.mark.parametrize("op", ["forward", "backward"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_kernel_family_op_and_dtype_is_swept(op: str, deterministic: bool) -> None:
    """Whatever is added to the generator; a target's family is known by the names of its configs."""
    for dtype, target in itertools.product(TORCH, (*sweep.TARGETS, *sweep.HOPPER)):
        if deterministic and (op == "forward" or dtype == "fp32"):
            continue
        (config, *_) = sweep.configs_of(Case(op, dtype, 64, deterministic=deterministic, target=target))
        kinds = [
            kind for kind in sweep.KINDS if (kind.op, kind.dtype, kind.deterministic) == (op, dtype, deterministic)
        ]
        families = {_names(case.config) for kind in kinds for (case, *_) in sweep.every_config(kind)}
        assert _names(config) in families


def _names(config: str) -> tuple[str, ...]:
    return tuple(item.partition("=")[0] for item in config.split(","))


def _dtypes_together(kind: Kind) -> tuple:
    """What is the same for fp16 and bf16."""
    return kind.op, kind.dtype == "fp32", kind.precision, kind.deterministic, kind.targets


def test_every_config_is_swept_causal_and_full() -> None:
    """By one dtype, or by two that share the kernels but for the type's own instructions."""
    swept = defaultdict(set)
    for kind in sweep.KINDS:
        for case, *_ in sweep.every_config(kind):
            swept[_dtypes_together(kind), case.config].add(case.causal)
    assert not [config for config, masks in swept.items() if masks != {False, True}]


PERSISTENT = [kind for kind in sweep.KINDS if kind.targets == sweep.HOPPER and not kind.deterministic]


@pytest.mark.parametrize("kind", PERSISTENT, ids=lambda k: k.name)
def test_blocks_of_persistent_kernels_take_several_tiles(kind: Kind) -> None:
    """Rings and their parities go on from tile to tile: each config shows it, and a call of many tiles."""
    cases = [case for group in sweep.every_config(kind) for case in group if "persistent=1" in case.config]
    persistent = {(case.head_dim, case.causal, case.config) for case in cases}
    assert persistent
    assert persistent == {(c.head_dim, c.causal, c.config) for c in cases if _tiles(c) > c.processors}
    features = [case for group in sweep.every_feature(kind) for case in group if "persistent=1" in case.config]
    assert {case.causal for case in features if _tiles(case) >= 4 * case.processors} == {False, True}


def _tiles(case: Case) -> int:
    """Of queries, in backward of keys."""
    case = case.filled()
    forward = case.op == "forward"
    heads, rows = (case.heads_q, case.seqlen_q) if forward else (case.heads_kv, case.seqlen_k)
    size = case.config.partition("block_m=" if forward else "block_n=")[2].partition(",")[0]
    return case.batch * heads * -(-rows // int(size))


# Backward in two passes has what differs from one pass alone.
WITH_ALL_FEATURES = [kind for kind in sweep.KINDS if not (kind.deterministic and kind.targets == sweep.HOPPER)]


@pytest.mark.parametrize("kind", WITH_ALL_FEATURES, ids=lambda kind: kind.name)
def test_every_feature_is_swept(kind: Kind) -> None:
    """What a call may ask for is in the list for each op and dtype."""
    cases = [case.filled() for group in sweep.every_feature(kind) for case in group]
    assert {case.layout for case in cases} == set(LAYOUTS)
    assert {case.data for case in cases} >= set(DATA) - {"nan"}
    unwanted = {"lse"} if kind.op == "forward" else {"grad_query", "grad_key", "grad_value"}
    assert {name for case in cases for name in case.without} == unwanted

    assert any(case.heads_q != case.heads_kv and case.batch > 1 for case in cases)
    assert any(case.head_dim != case.head_dim_v for case in cases)
    assert any(case.head_dim % 2 == 1 for case in cases)
    assert any(case.seqlen_q > case.seqlen_k and case.causal for case in cases)
    assert any(case.seqlen_q < case.seqlen_k and case.causal for case in cases)
    assert any(case.scale < 0 for case in cases)
    assert {case.settings.timing for case in cases} == set(sweep.TIMINGS)
    assert {case.settings.shuffle for case in cases} == {False, True}


def test_every_feature_is_swept_causal_and_full() -> None:
    """By one dtype or another of the family and op."""
    swept = defaultdict(set)
    for kind in (kind for kind in WITH_ALL_FEATURES if kind.precision == "full"):
        for case in (case for group in sweep.every_feature(kind) for case in group):
            scale = None if math.isnan(case.scale) else case.scale  # NaN is equal only to itself
            feature = replace(case, dtype="", causal=False, settings=Settings(), scale=0.0)
            swept[kind.targets, feature, scale].add(case.causal)
    once = {feature.config for (_, feature, _), masks in swept.items() if masks != {False, True}}
    assert once == {sweep.MANY_KEYS.config}  # what it shows, only causal kernels do


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(70, 100), (100, 70), (1, 1)])
def test_infinite_data_asks_for_what_is_promised(causal: bool, sizes: tuple[int, int]) -> None:
    """What does not attend to an infinity or NaN, and is finite in PyTorch's math backend, must be right."""
    options = {"batch": infinite.NUM_SLOTS, "heads_q": 2, "seqlen_q": sizes[0], "seqlen_k": sizes[1]}
    case = Case("backward", head_dim=8, causal=causal, data="infinite", **options).filled()
    inputs = data.values(case)
    must, kept = infinite.must_show(case, inputs), infinite.reference_keeps_finite(case, inputs)
    leaves = [inputs[name].double().requires_grad_() for name in ("query", "key", "value")]
    with sdpa_kernel(SDPBackend.MATH):
        output = scaled_dot_product_attention(*leaves, is_causal=causal)
        gradients = torch.autograd.grad(output, leaves, inputs["grad_output"].double())
    for (name, wanted), result in zip(must.items(), (output, *gradients), strict=True):
        assert (kept[name] | wanted)[result.isfinite()].all(), name
        assert wanted.any(), name
        assert (kept[name] & ~wanted).any(), name


def test_infinite_data_in_wrong_places_is_found() -> None:
    """A number where there must be none, none where there must be one, a wrong one beside them."""
    case = Case(head_dim=8, causal=True, batch=infinite.NUM_SLOTS, seqlen_q=20, data="infinite").filled()
    inputs = data.values(case)
    expected = data.results(case, inputs)
    output = expected["output"].masked_fill(infinite.must_show(case, inputs)["output"], math.nan).half()
    assert not data.check(case, inputs, {"output": output}, expected)
    for place, wrong in ((output.isnan(), 0.5), (output.isfinite(), math.nan), (output.isfinite(), 9.0)):
        changed = output.clone()
        changed[tuple(place.nonzero()[0])] = wrong
        (text,) = data.check(case, inputs, {"output": changed}, expected)
        assert "1 of" in text


@pytest.mark.parametrize(("layout", "place"), [("odd_batch", 0), ("odd_head", 1), ("odd_row", 2)])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_layout_has_one_stride_that_is_odd(layout: str, place: int, heads: int) -> None:
    """So that a kernel that does not look at this one is found out; rows are aligned where head dims are."""
    strides, begin = tensors.strides((2, heads, 37, 40), layout)
    assert [axis for axis, stride in enumerate(strides[:3]) if stride % 8] == [place]
    assert strides[place] % 2 == 1
    assert (strides[3], begin) == (1, 0)


def test_a_wrong_kernel_fails_the_sweep() -> None:
    """A case that cannot be right is reported, and the others go on."""
    group = [Case(head_dim=16, seqlen_q=20, scale=float("inf")), Case(head_dim=16, seqlen_q=20)]
    outcomes = sweep.run_group(group)
    assert [bool(outcome.error) for outcome in outcomes] == [True, False, True]


@every_kind
def test_the_command_that_is_printed_runs_the_same_case(kind: Kind) -> None:
    """What fails in a sweep can be had again alone."""
    for case in (case for group in (*sweep.every_feature(kind), *sweep.every_config(kind)) for case in group):
        words = shlex.split(command.command_line(case))
        assert words[:4] == ["python", "-m", "flash_attention", "emulate"]
        (again,) = command.cases(cli.build_parser().parse_args(words[3:]))
        assert again.filled() == case.filled()
