"""The rendered CUDA kernels are right, and free of races, in the emulator; and mistakes in them would be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from emulator import attention, build
from emulator.attention import Case, emulate
from emulator.machine import EmulatorError, Settings

SETTINGS = Settings(timing="late", exp2_error=2)

CASES = [
    Case(dtype="fp16", head_dim=64, seqlen_q=130, heads_q=1, causal=True),
    Case(dtype="bf16", head_dim=33, seqlen_q=65, seqlen_k=200, layout="odd", heads_q=2, heads_kv=1),
    Case(dtype="fp32", head_dim=40, seqlen_q=70, seqlen_k=66, batch=2, layout="bshd"),
    Case(dtype="fp16", head_dim=80, head_dim_v=24, seqlen_q=17, seqlen_k=129, layout="padded", without=("lse",)),
    Case(dtype="fp16", head_dim=40, seqlen_q=50, layout="columns", scale=-0.1, data="large"),
    Case("backward", "fp16", 64, seqlen_q=130, heads_q=1, causal=True),
    Case("backward", "bf16", 33, seqlen_q=65, seqlen_k=140, layout="odd", heads_q=2, heads_kv=1),
    Case("backward", "fp32", 40, seqlen_q=70, seqlen_k=66, batch=2, layout="bshd", causal=True),
    Case("backward", "fp16", 24, 40, seqlen_q=90, layout="reversed", without=("grad_query",), target="cuda:sm_90"),
    Case("backward", "fp16", 64, seqlen_q=200, seqlen_k=150, causal=True, deterministic=True, target="cuda:sm_90",
         heads_q=2, heads_kv=1),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.dtype}-{case.head_dim}")
def test_rendered_kernels(case: Case) -> None:
    for seed, timing in enumerate(("late", "random")):
        emulate(replace(case, settings=Settings(seed, timing, exp2_error=2)))


def test_ordered_sums_do_not_depend_on_order() -> None:
    """Deterministic backward, and forward: the same bits however blocks and warps are scheduled."""
    case = Case("backward", "fp16", 32, seqlen_q=150, heads_q=2, heads_kv=1, causal=True, deterministic=True)
    runs = [emulate(replace(case, settings=Settings(seed, resident=1 + 3 * seed))) for seed in range(3)]
    for run in runs[1:]:
        for name, tensor in run.items():
            assert tensor.equal(runs[0][name]), name


SMALL = "block_m={},block_n=32,num_warps=4,num_stages=2"
FORWARD = Case(head_dim=40, seqlen_q=130, heads_q=1, causal=True, config=SMALL.format(64))
BACKWARD = Case("backward", head_dim=40, seqlen_q=100, causal=True, deterministic=True, config=SMALL.format(32))
MEETINGS = r"__syncthreads\(\);|__syncwarp\(\);|copy_wait<[^>]*>\(\);|copy_commit\(\);"
# Functions that these cases do not call: queries are negated where the scale is negative.
UNUSED = ("negate_queries",)


def mutations(source: str) -> Iterator[tuple[str, str]]:
    """The kernel without one of the places where threads or copies are waited for."""
    for match in re.finditer(MEETINGS, source):
        before = source[: match.start()]
        function = re.findall(r"\b(\w+)\(", before[before.rindex("\n{") - 300 : before.rindex("\n{")])
        if not set(function) & set(UNUSED):
            place = re.findall(r'^#line (\d+) "(.*)"$', before, re.MULTILINE)[-1]
            yield f"{match[0]} at {match.start()}, behind {place[1]}:{place[0]}", f"{before};{source[match.end() :]}"


@pytest.mark.parametrize("case", [FORWARD, BACKWARD], ids=lambda case: case.op)
def test_missing_meetings_are_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one barrier, wait or commit the emulator complains, though most runs would not show it."""
    right = attention.source
    changed = dict(mutations(right(case.filled(), case.op)))
    assert len(changed) >= 8
    with ThreadPoolExecutor() as pool:
        list(pool.map(build.kernel, changed.values()))
    missed = []
    for what, text in changed.items():
        monkeypatch.setattr(attention, "source", lambda c, op, t=text: t if op == case.op else right(c, op))
        try:
            emulate(replace(case, settings=SETTINGS))
        except EmulatorError:
            continue
        missed.append(what)
    assert not missed
