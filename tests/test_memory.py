"""What a call on a GPU takes beside its inputs and outputs grows with the sequence length, not with its square."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from emulator.attention import Case, plan

# Floats for each column of each query, where keys are as many: parts of Q, K and V; of dO, too, and sums of dQ; sums of
# dQ. A head dim counts as the next multiple of 64. Statistics of rows and padding are in the rest.
FLOATS = {("forward", "fp32"): 3.1, ("backward", "fp32"): 5.3, ("forward", "bf16"): 0, ("backward", "bf16"): 1.3}


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a"])
@pytest.mark.parametrize(("op", "dtype"), FLOATS)
def test_workspace_grows_with_the_sequence(op: str, dtype: str, target: str) -> None:
    for head_dim, causal, deterministic in itertools.product([16, 64, 128, 256], [False, True], [False, True]):
        case = Case(op, dtype, head_dim, batch=2, heads_q=4, heads_kv=4, causal=causal, deterministic=deterministic)
        case = replace(case, target=target)
        of_row = [
            plan(replace(case, seqlen_q=seqlen, seqlen_k=seqlen).filled(), op).workspace_bytes / (2 * 4 * seqlen)
            for seqlen in (4096, 16384)
        ]
        assert of_row[1] <= of_row[0] * 1.01, case
        assert of_row[1] <= 4 * FLOATS[op, dtype] * -(-head_dim // 64) * 64, case
