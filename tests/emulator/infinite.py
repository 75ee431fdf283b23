"""Infinities and NaN in the inputs: where they are, and which results must, may or must not show them.

The interface promises that such an element makes every row that attends to it non-finite, and no other row that
PyTorch's math backend keeps finite. Here that is held element by element, against attention as it is written down, in
float64 (reference.py). That keeps finite all that the math backend does, and more: the backend adds -inf to hidden
scores, where +inf becomes NaN.

    must      what an element is made of has one in it, hidden keys left out. A score of -inf counts, though its weight
              is 0: the reference forgets that key, and here the row is NaN
    may       the reference does not keep the element finite either: it multiplies what is hidden by a weight of 0, and
              0 times NaN is NaN. What is finite nevertheless must be right
    must not  all others, which must be right
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference import NAMES, reference

if TYPE_CHECKING:
    from emulator.attention import Case

# One tensor with one value for each head of keys in turn; one head has none. -inf first: it is forgotten most easily.
SLOTS = [(name, x) for x in (-math.inf, math.nan, math.inf) for name in ("key", "query", "value", "grad_output")]
NUM_SLOTS = len(SLOTS) + 1


def sprinkle(case: Case, inputs: dict[str, Tensor]) -> None:
    """A few elements of the inputs, in place.

    Of queries one early row, so that causal gradients of keys behind it have nothing to do with it, of the first head
    of a group; of keys one in the middle or, of NaN, the last, which is hidden from most.
    """
    group, middle = case.heads_q // case.heads_kv, min(case.seqlen_q, case.seqlen_k) // 2
    for head in range(case.batch * case.heads_kv):
        slot = (head + case.data_seed - 1) % NUM_SLOTS
        if slot < len(SLOTS):
            name, x = SLOTS[slot]
            of_queries = name in ("query", "grad_output")
            row = case.seqlen_q // 3 if of_queries else case.seqlen_k - 1 if math.isnan(x) else middle
            tensor = inputs[name][head // case.heads_kv, head % case.heads_kv * (group if of_queries else 1)]
            tensor[row, 7 * slot % tensor.shape[-1]] = x


def cleaned(x: Tensor) -> Tensor:
    """With 0 in their place, which changes no element that must not show them."""
    return x.nan_to_num(0, 0, 0)


def must_show(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which elements of output and gradients."""
    query, key, value, grad_output = ((~x.isfinite()).double() for x in inputs.values())
    group = case.heads_q // case.heads_kv
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    seen = torch.ones(case.seqlen_q, case.seqlen_k, dtype=torch.double)  # which query sees which key
    seen = seen.tril() if case.causal else seen
    row = query.sum(-1, keepdim=True) + seen @ key.sum(-1, keepdim=True)  # whose scores have one
    output = row + seen @ value
    # Every gradient of a score takes the sum of grad_output times output.
    spoiled = output.sum(-1, keepdim=True) + grad_output.sum(-1, keepdim=True)
    of_keys = (seen.mT @ spoiled, seen.mT @ (row + grad_output))
    grad_key, grad_value = (x.unflatten(1, (-1, group)).sum(2) > 0 for x in of_keys)
    found = {"output": output > 0, "grad_query": spoiled > 0, "grad_key": grad_key, "grad_value": grad_value}
    like = {"output": grad_output, "grad_query": query, "grad_key": inputs["key"], "grad_value": inputs["value"]}
    return {name: x.expand_as(like[name]) for name, x in found.items()}


def reference_keeps_finite(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which elements of output and gradients."""
    results = reference(*inputs.values(), is_causal=case.causal, scale=case.scale)
    return {name: x.isfinite() for name, x in zip(NAMES, results, strict=True)}
