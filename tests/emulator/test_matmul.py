"""Protects: the pattern of a Hopper kernel (templates/cuda/matmul.cu) has no race, no deadlock and right results, at
whatever moment TMA and wgmma do their work and whichever warp runs next.

What a GPU makes of the same launches is in tests/test_hopper.py.
"""

from __future__ import annotations

import itertools

import pytest

from emulator import launches
from emulator.machine import TIMINGS, Settings
from gpu.matmul import Call, Matmul

# Tiles that are cut in every direction, more steps than stages, more tiles than blocks.
SMALL = Matmul(130, 72, 200, block_n=64, blocks=1)


def run(problem: Matmul, **settings: object) -> None:
    call = Call(problem)
    launches.run(call.launch, Settings(**settings))  # type: ignore[arg-type]
    assert not call.check(), problem


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("result", ["store", "add", "add_fragments"])
def test_matmul_at_any_time(result: str, timing: str) -> None:
    problem = Matmul(130, 72, 200, block_n=64, blocks=1, result=result)
    for seed in range(3):
        run(problem, seed=seed, timing=timing)


@pytest.mark.parametrize("majors", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_matmul_of_all_layouts(dtype: str, majors: tuple[bool, bool]) -> None:
    run(Matmul(100, 136, 72, dtype, 128, 2, *majors), seed=5)


def test_matmul_with_parts_of_k_in_blocks_of_their_own() -> None:
    for result in ("add", "add_fragments"):
        run(Matmul(64, 40, 330, "fp16", 64, result=result, splits=3, data="normal"), seed=7, shuffle=True)


def test_matmul_of_more_blocks_than_run_at_once() -> None:
    """Threads of later blocks take the stacks of those that have ended, and nothing else of them."""
    for resident in (1, 2):
        run(Matmul(384, 130, 64, block_n=64, result="add"), resident=resident, timing="late")
