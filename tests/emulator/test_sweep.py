"""The portable CUDA kernels are right in the emulator: every config that the tuner may choose, every feature of a call.

What ran is printed. The cases are in sweep.py.
"""

from __future__ import annotations

import shlex

import pytest

from emulator import command, sweep
from emulator.attention import Case
from emulator.data import DATA
from emulator.tensors import LAYOUTS, TORCH
from flash_attention import cli

KINDS = [(op, dtype, det) for op, det in sweep.OPS for dtype in TORCH if not (det and dtype == "fp32")]
NAMES = [f"{op}-{dtype}{'-deterministic' * det}" for op, dtype, det in KINDS]


@pytest.mark.parametrize(("op", "dtype", "deterministic"), KINDS, ids=NAMES)
def test_sweep(op: str, dtype: str, deterministic: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Against float64, with every check of the emulator on, under several seeds and timings."""
    kinds = (sweep.every_config, sweep.every_feature)
    outcomes = list(sweep.run([group for kind in kinds for group in kind(op, dtype, deterministic)]))
    with capsys.disabled():
        print(f"\n  {sweep.summary(outcomes)}", end=" ")
    wrong = [outcome for outcome in outcomes if outcome.error]
    report = (f"{command.command_line(outcome.case)}\n{outcome.error}" for outcome in wrong[:3])
    assert not wrong, f"{len(wrong)} of {len(outcomes)} runs are wrong\n" + "\n\n".join(report)


@pytest.mark.parametrize(("op", "dtype", "deterministic"), KINDS, ids=NAMES)
def test_every_candidate_is_swept(op: str, dtype: str, deterministic: bool) -> None:
    """A config that the family offers at one of these head dims is run there."""
    cases = [case for group in sweep.every_config(op, dtype, deterministic) for case in group]
    for d in sweep.head_dims_of(dtype, deterministic):
        swept = {case.config: case.target for case in cases if case.head_dim == d}
        for target in set(swept.values()):
            assert set(swept) == set(sweep.configs_of(op, dtype, d, deterministic, target))
        assert swept


@pytest.mark.parametrize(("op", "deterministic"), sweep.OPS)
def test_every_candidate_is_swept_causal_and_full(op: str, deterministic: bool) -> None:
    """Of those that are offered at all head dims; of deterministic backward with either dtype."""
    for dtypes in [("fp16", "bf16")] if deterministic else [(dtype,) for dtype in TORCH]:
        groups = [group for dtype in dtypes for group in sweep.every_config(op, dtype, deterministic)]
        cases = [case for group in groups for case in group]
        dims = {case.head_dim for case in cases}
        everywhere = set.intersection(*({c.config for c in cases if c.head_dim == d} for d in dims))
        assert everywhere
        for config in everywhere:
            assert {case.causal for case in cases if case.config == config} == {False, True}


@pytest.mark.parametrize(("op", "dtype", "deterministic"), KINDS, ids=NAMES)
def test_every_feature_is_swept(op: str, dtype: str, deterministic: bool) -> None:
    """What a call may ask for is in the list for each op and dtype."""
    cases = [case.filled() for group in sweep.every_feature(op, dtype, deterministic) for case in group]
    assert {case.layout for case in cases} == set(LAYOUTS)
    assert {case.data for case in cases} >= set(DATA) - {"nan"}
    unwanted = {"lse"} if op == "forward" else {"grad_query", "grad_key", "grad_value"}
    assert {name for case in cases for name in case.without} == unwanted

    assert any(case.heads_q != case.heads_kv and case.batch > 1 for case in cases)
    assert any(case.head_dim != case.head_dim_v for case in cases)
    assert any(case.head_dim % 2 == 1 for case in cases)
    assert any(case.seqlen_q > case.seqlen_k and case.causal for case in cases)
    assert any(case.seqlen_q < case.seqlen_k and case.causal for case in cases)
    assert any(case.scale < 0 for case in cases)
    assert {case.settings.timing for case in cases} == set(sweep.TIMINGS)
    assert {case.settings.shuffle for case in cases} == {False, True}


def test_a_wrong_kernel_fails_the_sweep() -> None:
    """A case that cannot be right is reported, and the others go on."""
    group = [Case(head_dim=16, seqlen_q=20, scale=float("inf")), Case(head_dim=16, seqlen_q=20)]
    outcomes = sweep.run_group(group)
    assert [bool(outcome.error) for outcome in outcomes] == [True, False, True]


@pytest.mark.parametrize(("op", "dtype", "deterministic"), KINDS, ids=NAMES)
def test_the_command_that_is_printed_runs_the_same_case(op: str, dtype: str, deterministic: bool) -> None:
    """What fails in a sweep can be had again alone."""
    groups = sweep.every_feature(op, dtype, deterministic) + sweep.every_config(op, dtype, deterministic)
    for case in (case for group in groups for case in group):
        words = shlex.split(command.command_line(case))
        assert words[:4] == ["python", "-m", "flash_attention", "emulate"]
        (again,) = command.cases(cli.build_parser().parse_args(words[3:]))
        assert again.filled() == case.filled()
