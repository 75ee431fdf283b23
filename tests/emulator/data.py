"""What attention is called with in the emulator, and what a right result is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emulator import infinite, tensors
from reference import reference

if TYPE_CHECKING:
    from emulator.attention import Case

# What query and key are multiplied by. "integers": rounded to integers, so that scores are exact; "nan": a key is
# NaN; "positive": value is; "infinite": a few elements of all inputs are infinite or NaN (infinite.py); "uneven": each
# 48 rows have magnitudes of their own; "negative": all scores are.
DATA = {"normal": 1.0, "large": 8.0, "tiny": 2.0**-20, "zero": 0.0, "integers": 3.0, "nan": 1.0, "positive": 1.0}
DATA |= {"infinite": 1.0, "uneven": 1.0, "negative": 1.0}
UNEVEN = {"query": (1.0, 4.0), "key": (1.0, 0.25), "value": (16.0, 1.0, 0.125, 64.0)}


def shapes(case: Case) -> dict[str, tuple[int, int, int, int]]:
    """Of the inputs; output has that of grad_output, and the gradients those of the inputs."""
    b, hq, hk, sq, sk = case.batch, case.heads_q, case.heads_kv, case.seqlen_q, case.seqlen_k
    d, dv = case.head_dim, case.head_dim_v
    return {"query": (b, hq, sq, d), "key": (b, hk, sk, d), "value": (b, hk, sk, dv), "grad_output": (b, hq, sq, dv)}


def values(case: Case) -> dict[str, Tensor]:
    """The inputs, always the same for the same case."""
    generator = torch.Generator().manual_seed(case.data_seed)
    dtype = tensors.TORCH[case.dtype]
    result = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes(case).items()}
    if case.data == "infinite" and case.seqlen_k:
        infinite.sprinkle(case, result)
    if case.layout == "expanded":
        result = {name: tensors.expand(name, x) for name, x in result.items()}
    for name in ("query", "key"):
        result[name] = result[name] * DATA[case.data]
        if case.data == "integers":
            result[name] = result[name].round()
    if case.data == "uneven":
        for name, factors in UNEVEN.items():
            of_row = torch.tensor(factors).repeat_interleave(48)
            rows = torch.arange(result[name].shape[2]) % len(of_row)
            result[name] = (result[name].float() * of_row[rows, None]).to(result[name].dtype)
    if case.data == "negative":
        result["query"], result["key"] = result["query"].abs(), -result["key"].abs()
    if case.data == "positive":
        result["value"] = result["value"].abs()
    if case.data == "nan" and case.seqlen_k:
        result["key"][:, :, case.seqlen_k // 2, 0] = math.nan
    return result


def results(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output and gradients in float64; of "infinite" those that must not show it."""
    if case.data == "infinite":
        inputs = {name: infinite.cleaned(x) for name, x in inputs.items()}
    exact = reference(*inputs.values(), is_causal=case.causal, scale=case.scale)
    return dict(zip(("output", "grad_query", "grad_key", "grad_value"), exact, strict=True))


def errors_beside_pytorch(case: Case, actual: dict[str, Tensor]) -> dict[str, float]:
    """Root mean square errors of results, in units of those of PyTorch's own attention on this processor."""
    inputs = values(case)
    exact = results(case, inputs)
    leaves = [inputs[name].clone().requires_grad_() for name in ("query", "key", "value")]
    query, key, value = leaves
    grouped = case.heads_q != case.heads_kv
    output = scaled_dot_product_attention(
        query, key, value, is_causal=case.causal, scale=case.scale, enable_gqa=grouped
    )
    gradients = torch.autograd.grad(output, leaves, inputs["grad_output"])
    theirs = dict(zip(exact, (output.detach(), *gradients), strict=True))

    def error(result: Tensor, name: str) -> float:
        return (result.double() - exact[name]).square().mean().sqrt().item()

    return {name: error(tensor, name) / max(error(theirs[name], name), 1e-300) for name, tensor in actual.items()}


def check(case: Case, inputs: dict[str, Tensor], actual: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What is wrong with the results, a text for each."""
    magnitudes = _magnitudes(case, inputs) if case.seqlen_k else expected
    masks = None
    if case.data == "infinite" and case.seqlen_k:
        masks = infinite.must_show(case, inputs), infinite.reference_keeps_finite(case, inputs)
    found = []
    for name, tensor in actual.items():
        wrong, right = _wrong(case, tensor, expected[name], magnitudes[name]), expected[name]
        if masks:
            must, kept = masks[0][name], masks[1][name]
            wrong, right = torch.where(tensor.isfinite(), wrong | must, kept & ~must), right.masked_fill(must, math.nan)
        if wrong.any():
            found.append(tensors.describe_wrong(name, tensor, right, wrong))
    return found


def check_statistics(case: Case, inputs: dict[str, Tensor], lse: Tensor) -> list[str]:
    """Of what forward's exponents count from and the sum of weights of each row; a text if some are wrong.

    At 16 bits on a GPU exponents may count from a score that is less than the largest by SLACK (softmax.h).

    Where a score is infinite or NaN the two must not make a finite number: that is how backward knows of it.

    A score is a sum of exact products. A tensor core cuts each of up to 17 terms off at 2^-23 of the largest, twice
    for every 16 columns. A sum of weights has a rounding for each key, those of its exponents, and exp2_approx's.
    """
    q, k = (inputs[name].double() for name in ("query", "key"))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores, magnitude = q @ k.mT * case.scale, q.abs() @ k.abs().mT * abs(case.scale)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) & torch.tensor(case.causal)
    spoiled = (~scores.isfinite() & ~hidden).any(-1)
    scores, magnitude = scores.masked_fill_(hidden, -math.inf), magnitude.masked_fill_(hidden, 0)
    bound = -(-case.head_dim // 16) * 2 * 17 * 2.0**-23 * magnitude.amax(-1) + 2.0**-100
    slack = 8 * math.log(2) if case.dtype != "fp32" else 0.0
    largest = lse[..., 0].double() * abs(case.scale)
    total = largest + lse[..., 1].double().log()
    exponents = 2.0**-21 * scores.amax(-1).abs() + (case.seqlen_k + 16) * 2.0**-23
    found = []
    for name, actual, expected, error in (
        ("largest score", largest, scores.amax(-1), bound),
        ("log of the sum of exponentials", total, scores.logsumexp(-1), bound + exponents),
    ):
        wrong = ~((actual - expected).abs() <= error) & ~spoiled
        if actual is largest:
            wrong &= ~((actual < expected) & (actual >= expected - slack - error))
        if actual is total:
            wrong, expected = wrong | (spoiled & total.isfinite()), expected.masked_fill(spoiled, math.nan)
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            text = f"{name}{list(place)} is {actual[place]:.8g}, must be {expected[place]:.8g}"
            found.append(f"lse: {int(wrong.sum())} of {wrong.numel()} rows are wrong\n    {text}")
    return found


def _magnitudes(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output and gradients with every term counted positive: what errors are in proportion to."""
    q, k, v, do = (infinite.cleaned(x.double()) for x in inputs.values())
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * case.scale
    if case.causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    p = torch.softmax(scores, -1)
    # The error of a weight grows with the sizes of the products in its score, and small ones underflow in fp16.
    exact = case.data == "integers" and abs(case.scale) > 1e3  # and weights are 1 or 0
    per_score = 0.0 if exact else 2.0**-24 / tensors.ROUNDING[case.dtype]
    floor = 2.0**-100 if case.dtype == "bf16" else 2.0**-13
    p = p * (1 + per_score * (q.abs() @ k.abs().mT * abs(case.scale))) + (p > 0) * floor
    ds = p * (do.abs() @ v.abs().mT + (do.abs() * (p @ v.abs())).sum(-1, keepdim=True)) * abs(case.scale)
    dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (ds.mT @ q.abs(), p.mT @ do.abs()))
    return {"output": p @ v.abs(), "grad_query": ds @ k.abs(), "grad_key": dk, "grad_value": dv}


def _wrong(case: Case, actual: Tensor, expected: Tensor, magnitude: Tensor) -> Tensor:
    """Coarser than the tests of accuracy on a device: this finds wrong elements, not lost bits."""
    products = "fp16" if case.used_precision() == "reduced" else case.dtype
    units = 2 if products != "fp32" else 16  # tensor cores cut sums off
    bound = tensors.ROUNDING[products] * (expected.abs() + units * magnitude) + tensors.SMALLEST[case.dtype]
    same = (actual == expected.to(actual.dtype)) | (actual.isnan() & expected.isnan())
    return ~((actual.double() - expected).abs() <= bound) & ~same
