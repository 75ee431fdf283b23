"""Between which values a result of the attention kernels must lie, wherever they run: the portable ones, and Hopper's
forward, which does the same in the same order (wgmma sums k in steps of 16 as mma does, into one accumulator that is
rescaled between blocks of keys; each scores' accumulator begins at 0).

Every rounding of the kernels' algorithm is followed in float64 with a bound of its own; none is tuned. What differs
between a GPU and the emulator is in them: 2^x (2 units in the last place, PTX ISA: ex2.approx), whether a product and a
sum are contracted, the order of sums. The terms:

    T           what a step of mma loses of the sum of all magnitudes: its terms, 16 products and the sum so far, are
                each cut at 2^-25 of the largest, and their sum at 2^-23 (Hopper); two steps of 8, at 2^-24 (Ampere)
    products    16-bit operands are exact, and each 16 of the inner dimension are a step. fp32 operands are two fp16:
                2^-22 of each is lost, and 2^-22 of the product where low * low is left out. The steps of low * high and
                high * low come first, with sums that are 2^-11 of the others; and each accumulator takes a piece of the
                inner dimension, whose sums are added in fp32
    weights     2^argument: ln 2 times the argument's error, which is that of the score and of the row's largest score
                times the factor, and a rounding for each operation; 2^-22 for 2^x. The exponent of the kernel's unit of
                weights (WEIGHT_EXPONENT of softmax.h) is added to the argument before it is rounded
    16 bits     a weight x with the error e is rounded to something between round(x - e) and round(x + e). That is one
                number for most x: only those beside the middle of two neighbours may fall either way. So a weight is
                formed here as the kernel forms it, from the largest score of the blocks of keys so far, or from one
                that is less, as long as no weight is above 2^slack (must_move of softmax.h)
    output      a rescale for each block of keys, with an error as a weight's: its exponents add up to how far the
                largest score has grown; the row's sum; a division
    gradients   from the output and the statistics that are given: bits, with no error
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emulator.attention import Case, config, problem
from emulator.tensors import TORCH
from flash_attention import _native

EXP2 = 2.0**-22 + 2.0**-24  # relative: the GPU's, and the emulator's, which rounds to nearest
ULP = 2.0**-24  # a rounding in fp32, relative
SPLIT = 2.0**-22  # an fp32 number as two fp16, relative
SPLIT_ABSOLUTE = 2.0**-38  # the same, of the largest of its tile
WEIGHT_EXPONENT = {"fp16": 0, "bf16": -28, "fp32": 14}
STEP = {"hopper": 17 * 2.0**-25 + 2.0**-23, "ampere": 2 * (9 * 2.0**-24 + 2.0**-23)}


@dataclass
class Value:
    """Numbers and how far a kernel's may be from them."""

    x: Tensor
    error: Tensor

    def transposed(self) -> Value:
        return Value(self.x.mT, self.error.mT)

    def __mul__(self, factor: float) -> Value:
        return Value(self.x * factor, self.error * abs(factor) + ULP * (self.x * factor).abs())


def exact(x: Tensor) -> Value:
    return Value(x.double(), torch.zeros_like(x, dtype=torch.float64))


class Arithmetic:
    """Products and roundings of one dtype on tensor cores of one model."""

    def __init__(self, dtype: str, model: str) -> None:
        self.dtype, self.step = dtype, STEP[model]

    def round(self, v: Value) -> Value:
        """What a tensor core takes of a sum: 16 bits, or two parts of them."""
        if self.dtype == "fp32":
            return Value(v.x, v.error + SPLIT * v.x.abs() + SPLIT_ABSOLUTE * v.x.abs().amax())
        low, middle, high = (to_16(x, self.dtype) for x in (v.x - v.error, v.x, v.x + v.error))
        return Value(middle, torch.maximum(high - middle, middle - low))

    def operand(self, x: Tensor) -> Value:
        return self.round(exact(x)) if self.dtype == "fp32" else exact(x)

    def product(self, a: Value, b: Value, piece: int, pieces: int = 1) -> Value:
        """a @ b. In fp32 an accumulator takes `piece` of the inner dimension, and at 16 bits all of it; it is added to
        others, or rescaled, at most `pieces` times."""
        inner = a.x.shape[-1]
        magnitude = a.x.abs() @ b.x.abs()
        lost = math.ceil(inner / 16) * self.step + pieces * ULP
        if self.dtype == "fp32":
            steps = math.ceil(min(piece, inner) / 16) * (1 + 2.0**-9)
            lost = steps * self.step + (math.ceil(inner / piece) + pieces) * ULP + SPLIT
        error = a.error @ b.x.abs() + a.x.abs() @ b.error + a.error @ b.error
        return Value(a.x @ b.x, error + lost * magnitude)

    def result(self, v: Value) -> tuple[Tensor, Tensor]:
        """The interval of results in the caller's tensor."""
        low, high = v.x - v.error, v.x + v.error
        if self.dtype == "fp32":
            return low - ULP * low.abs(), high + ULP * high.abs()
        return to_16(low, self.dtype), to_16(high, self.dtype)


def to_16(x: Tensor, dtype: str) -> Tensor:
    return x.float().to(TORCH[dtype]).double()


def weight_error(argument: Tensor, score_error: Tensor, factor: float, largest: Tensor, exponent: int = 0) -> Tensor:
    """Relative, of 2^(argument + exponent) with argument = (score - largest) * factor."""
    roundings = 3 * ULP * argument.abs() + 2 * ULP * (largest * factor).abs() + 2 * ULP * abs(exponent)
    return torch.expm1(math.log(2) * (score_error * factor + roundings)) + EXP2


def _scores(case: Case, arithmetic: Arithmetic, given: dict[str, Tensor]) -> tuple[Value, Tensor]:
    """Scores (not yet scaled), and which keys are hidden."""
    group = case.heads_q // case.heads_kv
    key = arithmetic.operand(given["key"].repeat_interleave(group, 1))
    scores = arithmetic.product(arithmetic.operand(given["query"]), key.transposed(), 16)
    hidden = torch.zeros(scores.x.shape[-2:], dtype=torch.bool)
    return scores, torch.ones_like(hidden).triu(1) if case.causal else hidden


@dataclass
class Weights:
    """Of forward, as it walks over blocks of keys from the last to the first."""

    arithmetic: Arithmetic
    block_n: int
    blocks: int
    factor: float
    largest: Value  # score of each row
    weight: Tensor  # relative to the largest score of the blocks so far
    relative: Tensor  # error
    rescale: Tensor  # from there to the largest of the row
    rescaling: Tensor  # relative error
    total: Value  # of each row, relative to its largest score


def follow(of_block: Tensor, slack: float) -> Tensor:
    """What exponents count from in each block of keys, from the last block to the first; slack in units of scores."""
    blocks = list(of_block.flip(-1).unbind(-1))
    origins = blocks[:1]
    for largest in blocks[1:]:
        origins.append(torch.where(largest > origins[-1] + slack, largest, origins[-1]))
    return torch.stack(origins[::-1], -1)


def _weights(case: Case, given: dict[str, Tensor], model: str, slack: float) -> Weights:
    arithmetic, factor = Arithmetic(case.dtype, model), case.scale / math.log(2)
    scores, hidden = _scores(case, arithmetic, given)
    _, used = _native.source(problem(case, "forward"), config(case, "forward").decode())
    block_n = int(dict(item.split("=") for item in used.split(","))["block_n"])
    blocks = math.ceil(case.seqlen_k / block_n)

    def largest_so_far(x: Tensor) -> Tensor:
        """Of each key's row, in its block of keys and those behind it; -inf where the row sees none of them."""
        seen, beyond = x.masked_fill(hidden, -math.inf), (0, blocks * block_n - case.seqlen_k)
        padded = torch.nn.functional.pad(seen, beyond, value=-math.inf)
        of_block = padded.unflatten(-1, (blocks, block_n)).amax(-1)
        return follow(of_block, slack / factor).repeat_interleave(block_n, -1)[..., : case.seqlen_k]

    low, largest, high = (largest_so_far(x) for x in (scores.x - scores.error, scores.x, scores.x + scores.error))
    largest_seen = largest.masked_fill(largest.isinf(), 0)  # there are blocks of which a row sees nothing
    of_largest = torch.maximum(high - largest, largest - low).masked_fill(largest.isinf(), 0)
    argument = (scores.x - largest_seen).masked_fill(hidden, 0) * factor
    relative = weight_error(argument, scores.error + of_largest, factor, largest_seen, WEIGHT_EXPONENT[case.dtype])
    weight = torch.exp2(argument).masked_fill(hidden, 0)

    growth = (largest[..., :1] - largest_seen) * factor  # the first block is the last to be added
    rescale = torch.exp2(-growth).masked_fill(largest.isinf(), 0)
    # Of each: 2^x and a product; of its exponent, at most four roundings in proportion to it (in fp32).
    rescaling = blocks * (EXP2 + ULP) + 4 * ULP * math.log(2) * growth.masked_fill(largest.isinf(), 0)
    total = (weight * rescale).sum(-1, keepdim=True)
    total_error = (weight * rescale * (relative + rescaling)).sum(-1, keepdim=True)
    total_error = total_error + total * (case.seqlen_k + blocks + 8) * ULP
    return Weights(
        *(arithmetic, block_n, blocks, factor, Value(largest[..., 0], of_largest[..., 0])),
        *(weight, relative, rescale, rescaling, Value(total, total_error)),
    )


def output(case: Case, given: dict[str, Tensor], model: str, slack: float) -> tuple[Tensor, Tensor]:
    """Of forward: the interval of each element."""
    w = _weights(case, given, model, slack)
    value = w.arithmetic.operand(given["value"].repeat_interleave(case.heads_q // case.heads_kv, 1))
    rounded = w.arithmetic.round(Value(w.weight, w.weight * w.relative))
    left = Value(rounded.x * w.rescale, rounded.error * w.rescale + rounded.x * w.rescale * w.rescaling)
    x, total = w.arithmetic.product(left, value, w.block_n, w.blocks), w.total
    error = (x.error + x.x.abs() * total.error / total.x) / (total.x - total.error) + 3 * ULP * (x.x / total.x).abs()
    return w.arithmetic.result(Value(x.x / total.x, error))


def statistics(case: Case, given: dict[str, Tensor], model: str, slack: float) -> tuple[Tensor, Tensor]:
    """Of forward: the interval of the largest score and of the sum of weights of each row.

    The sum is relative to the largest score that the kernel found, which is not exact either.
    """
    w = _weights(case, given, model, slack)
    total, error = w.total.x[..., 0], w.total.error[..., 0]
    error = error + (total + error) * (EXP2 + 2 * ULP)  # of the weights of all keys, the largest score's is in theirs
    largest_error = w.largest.error + ULP * w.largest.x.abs()
    low, high = (torch.stack((w.largest.x + sign * largest_error, total + sign * error), -1) for sign in (-1, 1))
    return low, high


def gradients(
    case: Case, given: dict[str, Tensor], output: Tensor, lse: Tensor, model: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of backward with this output and these statistics (largest score and sum of each row of queries)."""
    arithmetic, factor = Arithmetic(case.dtype, model), case.scale / math.log(2)
    group, queries = case.heads_q // case.heads_kv, arithmetic.operand(given["query"])
    key = arithmetic.operand(given["key"].repeat_interleave(group, 1))
    value = arithmetic.operand(given["value"].repeat_interleave(group, 1))
    grad_output = arithmetic.operand(given["grad_output"])
    scores, hidden = _scores(case, arithmetic, given)
    largest, total = lse.double().view(case.batch, case.heads_q, case.seqlen_q, 2).unbind(-1)
    largest, total = largest[..., None], total[..., None]

    argument = (scores.x - largest) * factor
    weight = (torch.exp2(argument) / total).masked_fill(hidden, 0)
    relative = weight_error(argument, scores.error, factor, torch.zeros_like(largest)) + 2 * ULP
    terms = given["grad_output"].double() * output.double()
    delta, delta_error = terms.sum(-1, keepdim=True), case.head_dim_v * ULP * terms.abs().sum(-1, keepdim=True)
    d_weight = arithmetic.product(grad_output, value.transposed(), 16)
    difference = d_weight.x - delta
    difference_error = d_weight.error + delta_error + 2 * ULP * (d_weight.x.abs() + delta.abs())
    d_score = weight * difference
    d_error = weight * (relative * (difference.abs() + difference_error) + difference_error) + ULP * d_score.abs()

    p, ds = arithmetic.round(Value(weight, weight * relative)), arithmetic.round(Value(d_score, d_error))
    tile, blocks = 128, math.ceil(max(case.seqlen_k, case.seqlen_q * group) / 16)  # none is larger, none is smaller

    def of_group(v: Value) -> Value:
        """(batch, heads_kv, keys, the queries of all heads of the group), and rows of queries alike."""
        return Value(*(x.unflatten(1, (-1, group)).flatten(2, 3) for x in (v.x, v.error)))

    d_query = arithmetic.product(ds, key, tile, blocks) * case.scale
    d_key = arithmetic.product(of_group(ds).transposed(), of_group(queries), tile, blocks) * case.scale
    d_value = arithmetic.product(of_group(p).transposed(), of_group(grad_output), tile, blocks)
    named = {"grad_query": d_query, "grad_key": d_key, "grad_value": d_value}
    return {name: arithmetic.result(v) for name, v in named.items()}
