"""What TF32 makes of attention: operands of both products rounded to 11 significant bits, all else exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TF32_BITS = 11


def rounded(x: Tensor, bits: int = TF32_BITS) -> Tensor:
    """To the nearest number of so many significant bits; exponents are unlimited."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2.0**bits).round(), exponent - bits)


def attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, bits: int = TF32_BITS
) -> Tensor:
    """In float64 but for the operands; 52 bits: exact."""
    scores = rounded(query, bits) @ rounded(key, bits).mT * scale
    if is_causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1), -math.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return rounded(weights, bits) @ rounded(value, bits) / weights.sum(-1, keepdim=True)


def inputs(kind: str, shape: tuple[int, ...], seed: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value in fp32, of one of KINDS."""
    generator = torch.Generator(device).manual_seed(seed)
    q, k, v = (torch.randn(shape, generator=generator, device=device) for _ in range(3))
    if kind == "channels":  # a few are a hundred times as large
        for x in (q, k, v):
            x[..., :: shape[-1] // 4] *= 100
        q *= 0.01
    elif kind == "rows":  # some are a hundred times as large
        v[..., ::5, :] *= 100
        k[..., 1::7, :] *= 0.01
    elif kind == "elements":  # magnitudes from 1 down to 1e-6 in each row
        for x in (q, k, v):
            x *= torch.rand(shape, generator=generator, device=device).mul(-6).exp2().pow(math.log2(10))
    elif kind == "positive":  # sums that do not cancel
        v.abs_()
    elif kind != "normal":  # a factor
        q *= float(kind)
        k *= float(kind)
        v *= float(kind)
    return q, k, v


# Uniform factors: the smallest and the largest are far beyond fp16.
KINDS = ("normal", "positive", "channels", "rows", "elements", "1e-12", "1e-3", "1e4")


def scale_of(kind: str, head_dim: int) -> float:
    """So that scores are of the usual size, whatever the factor."""
    factor = float(kind) if kind[0].isdigit() else 1.0
    return head_dim**-0.5 / factor**2


def errors(actual: Tensor, exact: Tensor) -> list[float]:
    """Relative to the exact result: in all, and in each eighth of the columns."""
    columns = (slice(None), *(slice(i, None, 8) for i in range(8)))
    return [((actual.double() - exact)[..., c].norm() / exact[..., c].norm()).item() for c in columns]


def complaint(actual: Tensor, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> str:
    """ "" where errors are at most 1.05 times those of TF32, but for what tensor cores cut off the sums over the keys.

    That is less than 2^-23 of a sum, the last bit of a float, for each 16 keys (TF32's own do it for each 8), and shows
    where terms have one sign and roundings of thousands of them cancel.
    """
    exact, peer = (attention(q, k, v, is_causal, scale, bits) for bits in (52, TF32_BITS))
    cut = k.shape[-2] / 16 * 2.0**-23
    for part, (error, limit) in enumerate(zip(errors(actual, exact), errors(peer, exact), strict=True)):
        if not error <= 1.05 * limit + cut:
            where = f"columns {part - 1} mod 8" if part else "all"
            return f"{where}: error {error:.3e}, TF32's is {limit:.3e}"
    return ""
