"""Without any one of its barriers and waits a kernel is found wrong; sums in a fixed order are the same in any run.

That the kernels are right is in test_sweep.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from emulator import attention, build
from emulator.attention import Case, emulate
from emulator.machine import EmulatorError, Settings
from reference import assert_accurate, reference, run, sdpa

SETTINGS = Settings(timing="late", exp2_error=2)
SPLIT = "block_m=64,block_n=64,num_warps=4,num_stages=1,split_blocks=512"


def test_ordered_sums_do_not_depend_on_order() -> None:
    """Deterministic backward, and forward: the same bits however blocks and warps are scheduled."""
    case = Case("backward", "fp16", 32, seqlen_q=150, heads_q=2, heads_kv=1, causal=True, deterministic=True)
    runs = [emulate(replace(case, settings=Settings(seed, resident=1 + 3 * seed))) for seed in range(3)]
    for other in runs[1:]:
        for name, tensor in other.items():
            assert tensor.equal(runs[0][name]), name


# Of value and of grad_output. The output alone holds smaller ones.
TINY = [(1e-20, 1.0, True), (1.0, 1e-20, True), (1e-30, 1.0, False)]


@pytest.mark.parametrize(("of_value", "of_grad", "backward"), TINY)
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a"])
def test_tiny_fp32_is_no_less_exact(target: str, of_value: float, of_grad: float, backward: bool) -> None:
    """Parts of fp16 hold them, scaled, and the product of what undoes two scales is a float."""
    torch.manual_seed(0)
    query, key, value, grad_output = (torch.randn(1, 1, 40, 32) for _ in range(4))
    given = {"query": query, "key": key, "value": value * of_value}
    tensors = [*given.values(), grad_output * of_grad]
    case = Case("forward", "fp32", 32, heads_q=1, seqlen_q=40, target=target).filled()
    output, lse = torch.zeros(1, 1, 40, 32), torch.zeros(80)
    attention.run_given(case, "forward", given, {"output": output, "lse": lse})
    results = [output]
    if backward:
        gradients = {f"grad_{name}": torch.zeros(1, 1, 40, 32) for name in given}
        given |= {"output": output, "grad_output": tensors[-1], "lse": lse}
        attention.run_given(replace(case, op="backward"), "backward", given, gradients)
        results += gradients.values()
    peer = run(sdpa, *tensors)
    assert_accurate((*results, *peer[len(results) :]), reference(*tensors), peer)


def with_scores(scores: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, all the same, and keys whose products are these integers below 2^21, exactly."""
    digits = [scores // 2**18 * 128, scores % 2**18 // 2048, scores % 2048 // 256, scores % 256]
    query, key = torch.zeros(1, 1, 70, 64), torch.zeros(1, 1, len(scores), 64)
    query[..., :4], key[..., :4] = torch.tensor([2048.0, 2048.0, 256.0, 1.0]), torch.stack(digits, -1)
    return [query.to(dtype), key.to(dtype)]


# Times log2(e) it is 2 more than 2^21.
LARGE = 1453636
KEY = torch.arange(1500)  # the last of them come first
SCORES = {  # in units of a scaled score, beside LARGE
    "becomes": lambda: -3 + 7 * (KEY == 0),
    "was": lambda: 3 - 6 * (KEY < 4),
    "is": lambda: -20 - KEY // 750,
}
WAYS = [("cuda:sm_80", ""), ("cuda:sm_80", SPLIT), ("cuda:sm_90a", "")]


@pytest.mark.parametrize("scale", [1.0, 2.0**-11])
@pytest.mark.parametrize("large", SCORES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("target", "config"), WAYS)
def test_weights_where_scores_are_large(target: str, config: str, dtype: str, large: str, scale: float) -> None:
    """The largest score, scaled and times log2(e), passes 2^10, where it begins to be subtracted first, or 2^21, where
    its rounding is 2^-4. All weights of a row still go together: over blocks and parts of keys, and with backward.

    Where the score was subtracted first from 2^21 on only, they were up to 8 % off in bf16, 2 % in fp16.
    """
    torch.manual_seed(0)
    exact_dtype = {"bf16": torch.bfloat16, "fp16": torch.half}[dtype]
    scores = LARGE + (SCORES[large]() / scale).long()
    query, key = with_scores(scores, exact_dtype)
    if large == "was":
        query = -query
    value, grad_output = (torch.randn(1, 1, rows, 64).abs().to(exact_dtype) for rows in (len(KEY), 70))
    given = {"query": query, "key": key, "value": value}
    case = Case("forward", dtype, 64, heads_q=1, seqlen_q=70, seqlen_k=1500, scale=scale, target=target, config=config)
    output, lse = torch.zeros(1, 1, 70, 64, dtype=exact_dtype), torch.zeros(140)
    attention.run_given(case.filled(), "forward", given, {"output": output, "lse": lse})
    grad_value = torch.zeros(1, 1, 1500, 64, dtype=exact_dtype)
    given |= {"output": output, "grad_output": grad_output, "lse": lse}
    backward = replace(case, op="backward", config="").filled()
    attention.run_given(backward, "backward", given, {"grad_value": grad_value})
    exact = reference(query, key, value, grad_output, scale=scale)
    for result, right in ((output, exact[0]), (grad_value, exact[3])):
        assert (result.double() - right).norm() < 2 * torch.finfo(exact_dtype).eps * right.norm() / 4


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_threads_split_as_a_first_phase_does(causal: bool) -> None:
    """To the bit: keys that no query sees have no say in the scale of those beside them, however large they are."""
    torch.manual_seed(0)
    given = {name: torch.randn(1, 1, rows, 40) for name, rows in (("query", 70), ("key", 90), ("value", 90))}
    for name in ("key", "value"):
        given[name][..., 70:, :] *= 1e20 if causal else 2
    case = Case("forward", "fp32", 40, causal=causal, heads_q=1, seqlen_q=70, seqlen_k=90).filled()
    outputs = []
    for direct in (0, 1):
        config = f"block_m=32,block_n=32,num_warps=2,num_stages=1,direct={direct}"
        outputs.append(torch.zeros(1, 1, 70, 40))
        attention.run_given(replace(case, config=config), "forward", given, {"output": outputs[-1]})
    assert outputs[0].equal(outputs[1])


@pytest.mark.parametrize("head_dim", [72, 104])  # an odd number of tiles of 8 columns
@pytest.mark.parametrize("block_m", [48, 80])
def test_tiles_of_queries_that_32_does_not_divide(block_m: int, head_dim: int) -> None:
    """Where ldmatrix reads 32 rows at once it reads none behind the tile."""
    config = f"block_m={block_m},block_n=16,num_warps=1,num_stages=1,warp_keys=16"
    case = Case("backward", head_dim=head_dim, heads_q=1, seqlen_q=100, seqlen_k=20, target="cuda:sm_90", config=config)
    emulate(replace(case, settings=SETTINGS))


SMALL = "block_m={},block_n=32,num_warps=4,num_stages=2"
FORWARD = Case(head_dim=40, seqlen_q=130, heads_q=1, causal=True, config=SMALL.format(64))
BACKWARD = Case("backward", head_dim=40, seqlen_q=100, causal=True, deterministic=True, config=SMALL.format(32))
ONE_BARRIER = replace(BACKWARD, seqlen_q=130, config=SMALL.format(32).replace("num_stages=2", "num_stages=3"))
# But for those __syncwarp that only keep ptxas from moving loads.
MEETINGS = r"__syncthreads\(\);|__syncwarp\(\);(?! /\* keeps the loads)|copy_wait<[^>]*>\(\);|copy_commit\(\);"
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


@pytest.mark.parametrize("case", [FORWARD, BACKWARD, ONE_BARRIER], ids=["forward", "backward", "one barrier"])
def test_missing_meetings_are_found(case: Case) -> None:
    """Without any one barrier, wait or commit the emulator complains, though most runs would not show it."""
    changed = dict(mutations(attention.source(case.filled(), case.op)))
    assert len(changed) >= 8
    with ThreadPoolExecutor() as pool:
        list(pool.map(build.kernel, changed.values()))
    missed = []
    for what, text in changed.items():
        try:
            emulate(replace(case, settings=SETTINGS), lambda op, right, wrong=text: wrong if op == case.op else right)
        except EmulatorError:
            continue
        missed.append(what)
    assert not missed
