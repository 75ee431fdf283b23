"""Operands of a tensor core's product that show how it adds: which bits it keeps, when it rounds, what is special.

a is (M, 16), b is (N, 16), both as bits of a 16-bit type; c is (M, N) in fp32. c + a bᵀ is what is asked for.
"""

from __future__ import annotations

import numpy as np
import torch

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}
K = 16
# Exponents of the normal numbers that products are made of, so that no product overflows fp32.
EXPONENTS = {"fp16": (-14, 15), "bf16": (-40, 40)}
SMALLEST = {"fp16": 2.0**-24, "bf16": 2.0**-133}  # the last place of subnormal numbers


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 to the nearest of a 16-bit type, as bits."""
    rounded = torch.from_numpy(np.ascontiguousarray(values, np.float64)).float().to(KINDS[dtype])
    return rounded.view(torch.int16).numpy().view(np.uint16)


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers, as float64."""
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.int16)).view(KINDS[dtype]).double().numpy()


Operands = tuple[np.ndarray, np.ndarray, np.ndarray]


def normal(rng: np.random.Generator, m: int, n: int, dtype: str) -> Operands:
    """What a product usually sees."""
    return rng.standard_normal((m, K)), rng.standard_normal((n, K)), 4 * rng.standard_normal((m, n))


def wide(rng: np.random.Generator, m: int, n: int, dtype: str) -> Operands:
    """Terms of all magnitudes: most lie partly below the bits that are kept of the largest. In every second row the
    range is not quite so wide."""

    def spread(low: int, high: int, *shape: int) -> np.ndarray:
        return np.ldexp(rng.uniform(1, 2, shape) * rng.choice([-1, 1], shape), rng.integers(low, high, shape))

    low, high = EXPONENTS[dtype]
    rows = np.arange(m)[:, None]
    a = np.where(rows % 2 == 0, spread(low, high // 2, m, K), spread(-12, 8, m, K))
    return a, spread(-12, 8, n, K), spread(low, high // 2, m, n)


def cancelling(rng: np.random.Generator, m: int, n: int, dtype: str) -> Operands:
    """Large terms that cancel exactly: what the small ones have lost by then stays lost. Some cancel across the halves
    of k, some with the accumulator."""
    a, b = rng.standard_normal((m, K)), np.ldexp(rng.choice([-1.0, 1.0], (n, K)), rng.integers(-3, 3, (n, K)))
    large = np.ldexp(1.0, rng.integers(4, 14, m)) * rng.choice([1.0, 1.5, 1.25], m)
    first, second = rng.integers(0, 8, m), rng.integers(8, 16, m)
    second = np.where(np.arange(m) % 3 == 0, (first + 1) % 8, second)
    b[:, :] = b[:, :1]  # so that what cancels does so for each column
    a[np.arange(m), first], a[np.arange(m), second] = large, -large
    c = rng.standard_normal((m, n))
    alone = np.arange(m) % 4 == 3
    a[alone, second[alone]] = 0
    c[alone] = -large[alone, None] * b[None, :, 0]
    return a, b, c


def subnormal(rng: np.random.Generator, m: int, n: int, dtype: str) -> Operands:
    """Operands, accumulators and results below the normal range."""
    a = rng.integers(-(2**6), 2**6, (m, K)) * SMALLEST[dtype]
    scale = np.ldexp(1.0, rng.integers(-12, 3, (n, K)) - (0 if dtype == "fp16" else 4))
    b = rng.uniform(-2, 2, (n, K)) * scale
    c = rng.integers(-(2**20), 2**20, (m, n)) * (2.0**-149 if dtype == "bf16" else 2.0**-45)
    c[::5] = 0
    if dtype == "fp16":
        c[1::5] = 1e-40  # an accumulator that is subnormal beside products that are not
    return a, b, c


def large_accumulator(rng: np.random.Generator, m: int, n: int, dtype: str) -> Operands:
    """Products at and below the last place of the accumulator: what is cut, what is rounded, and in which order."""
    exponent = rng.integers(-30, -18, (m, 1)) // 2
    a = np.ldexp(rng.choice([1.0, 1.5, -1.0, 1.75], (m, K)), exponent)
    b = np.ldexp(rng.choice([1.0, 1.0, -1.0, 1.25], (n, K)), rng.integers(-13, -9, (n, 1)))
    c = rng.choice([1.0, -1.0, 2.0 - 2.0**-23, 1.0 + 2.0**-23, 1.5], (m, n))
    return a, b, c


def special(rng: np.random.Generator, m: int, n: int, dtype: str) -> Operands:
    """Infinities, NaN, zeros of both signs, sums that overflow."""
    a = rng.choice([0.0, -0.0, 1.0, -1.0, 2.0], (m, K))
    b = rng.choice([0.0, -0.0, 1.0, -2.0], (n, K))
    c = rng.choice([0.0, -0.0, 1.0, 3.4e38, -3.4e38], (m, n))
    a[1::8, 3], a[2::8, 5], a[3::8, 7] = np.inf, -np.inf, np.nan
    a[4::8] = -0.0
    a[5::8, :] = 65504.0 if dtype == "fp16" else 2.0**120
    b[1::4, 3], b[2::4, 1] = 0, np.inf
    b[3::4, :] = 32768.0 if dtype == "fp16" else 2.0**7
    c[6::8, ::2], c[7::8, 1::3] = np.inf, np.nan
    return a, b, c


def integers(rng: np.random.Generator, m: int, n: int, dtype: str) -> Operands:
    """Sums that are exact in any order: where an element lies is all that matters."""
    return tuple(rng.integers(-8, 9, shape).astype(np.float64) for shape in ((m, K), (n, K), (m, n)))  # type: ignore


CLASSES = {
    "normal": normal,
    "wide": wide,
    "cancelling": cancelling,
    "subnormal": subnormal,
    "large_accumulator": large_accumulator,
    "special": special,
    "integers": integers,
}


def make(name: str, seed: int, m: int, n: int, dtype: str) -> Operands:
    """a and b as bits, c as fp32."""
    a, b, c = CLASSES[name](np.random.default_rng([seed, len(name), m, n]), m, n, dtype)
    with np.errstate(over="ignore"):
        return to_bits(a, dtype), to_bits(b, dtype), np.ascontiguousarray(c, np.float32)
