"""What is measured and what comes out: cells of a grid, and the seconds that each peer needs for one.

Speeds count the operations that attention needs: 4·B·H·Sq·Sk·D forward, half of it when causal, 2.5 times as many
backward. `python -m flash_attention bench --help` lists what can be chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OURS = "flash_attention"
# fp32 where PyTorch may use TF32 (torch.set_float32_matmul_precision("high")): all are measured under that setting,
# and beside them this attention of the same tensors in bf16.
TF32, OURS_AT_16_BITS = "tf32", "ours, bf16"

# On a GPU a cell has as much work as a training step of a usual model: as many tokens, whatever the sequence length,
# and as many columns, whatever the head dim.
TOKENS, HIDDEN = 16384, 2048


@dataclass(frozen=True)
class Cell:
    """One thing that is measured."""

    op: str  # "forward" or "backward"
    dtype: str
    head_dim: int
    seqlen: int
    is_causal: bool
    batch: int
    heads: int
    seqlen_k: int  # where it is not seqlen, there is no mask

    def flops(self) -> float:
        pairs = self.seqlen * self.seqlen_k * (0.5 if self.is_causal else 1.0)
        forward = 4.0 * self.batch * self.heads * pairs * self.head_dim
        return forward if self.op == "forward" else 2.5 * forward

    def size(self) -> str:
        """Of the sequences: "512", or "1x32768"."""
        return f"{self.seqlen}" if self.seqlen == self.seqlen_k else f"{self.seqlen}x{self.seqlen_k}"

    def mask(self) -> str:
        return "causal" if self.is_causal else "full"


@dataclass(frozen=True)
class Result:
    """Median seconds of a call of each peer that takes the cell, and of our first call (which may tune and compile)."""

    cell: Cell
    seconds: dict[str, float]
    calls: int
    first_call: float

    def flops_per_second(self, peer: str = OURS) -> float:
        return self.cell.flops() / self.seconds[peer]

    def ratio(self, peer: str) -> float:
        """How many times as fast as this peer."""
        return self.seconds[peer] / self.seconds[OURS]

    def best_peer(self) -> str | None:
        """The fastest of the others; None where no other takes the cell."""
        others = (name for name in self.seconds if name not in (OURS, OURS_AT_16_BITS))
        return min(others, key=self.seconds.__getitem__, default=None)


def grid(
    device: str,
    ops: Sequence[str],
    dtypes: Sequence[str],
    head_dims: Sequence[int],
    seqlens: Sequence[int],
    masks: Sequence[str],
    batch: int | None = None,
    heads: int | None = None,
) -> list[Cell]:
    """All combinations, in the order in which they are shown.

    Without `batch` and `heads`: 1 and 8 on a CPU; TOKENS tokens and HIDDEN columns on a GPU.
    """
    cells = []
    for dtype, op, head_dim, mask, seqlen in itertools.product(dtypes, ops, head_dims, masks, seqlens):
        usual_batch, usual_heads = (1, 8) if device == "cpu" else (TOKENS // seqlen, HIDDEN // head_dim)
        size = (batch or max(1, usual_batch), heads or max(1, usual_heads))
        cells.append(Cell(op, dtype, head_dim, seqlen, mask == "causal", *size, seqlen))
    return cells


# Too little to fill a GPU with, and what is not square: (batch, heads, seqlen, seqlen_k). From one head to very many;
# decoding, one query or a few with many keys; cross attention, many queries with the keys of a text.
SKEWED = (
    *(
        (batch, heads, seqlen, seqlen)
        for seqlen in (128, 256, 512)
        for batch, heads in ((1, 1), (2, 8), (8, 16), (32, 32))
    ),
    *((batch, heads, 1, 32768) for batch, heads in ((1, 1), (1, 8), (1, 32), (8, 32))),
    (1, 32, 16, 8192),
    *((batch, heads, 32768, 77) for batch, heads in ((1, 1), (1, 8), (4, 16))),
)


def skewed(ops: Sequence[str], dtypes: Sequence[str], head_dims: Sequence[int]) -> list[Cell]:
    """SKEWED, without a mask, in the order in which they are shown."""
    return [
        Cell(op, dtype, head_dim, seqlen, False, batch, heads, seqlen_k)
        for dtype, op, head_dim in itertools.product(dtypes, ops, head_dims)
        for batch, heads, seqlen, seqlen_k in SKEWED
    ]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
