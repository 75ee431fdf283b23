"""From the shapes that scaled_dot_product_attention takes to those of the operators, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from flash_attention import checks


def fold(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], tuple[int, ...] | None]:
    """Make the three tensors (batch, heads, seqlen, head_dim), broadcasting the dimensions before the last two.

    Returns the tensors and the output's dimensions before the last two; None where the tensors are returned as
    they came. Copies only what no strides can express: an expanded dimension between two batch dimensions.

    Raises:
        ValueError: the shapes do not broadcast.
    """
    tensors = (query, key, value)
    dims = max(tensor.dim() for tensor in tensors)
    shapes = [(1,) * (max(dims, 4) - tensor.dim()) + tuple(tensor.shape) for tensor in tensors]
    heads = [shape[-3] for shape in shapes]
    try:
        batch = tuple(_common(sizes) for sizes in zip(*(shape[:-3] for shape in shapes), strict=True))
        if enable_gqa and heads[1] == heads[2] and heads[1] > 0 and heads[0] % heads[1] == 0:
            pass
        else:
            heads = [_common(heads)] * 3
    except ValueError:
        checks.refuse_shapes(query, key, value, enable_gqa)
    wanted = [(*batch, count, *shape[-2:]) for count, shape in zip(heads, shapes, strict=True)]
    if dims == 4 and all(tuple(tensor.shape) == shape for tensor, shape in zip(tensors, wanted, strict=True)):
        return tensors, None
    folded = (
        tensor.expand(shape).reshape(math.prod(batch), *shape[-3:])
        for tensor, shape in zip(tensors, wanted, strict=True)
    )
    leading = (*batch, heads[0]) if dims >= 4 else (heads[0],) * (dims - 2)
    return tuple(folded), leading


def _common(sizes: Iterable[int]) -> int:
    """The size that sizes broadcast to."""
    common = 1
    for size in sizes:
        if size != 1:
            if common not in (1, size):
                raise ValueError
            common = size
    return common
