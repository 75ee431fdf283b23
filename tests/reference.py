"""Attention and its gradients in float64, and how far from them a result may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAMES = ("output", "grad_query", "grad_key", "grad_value")
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-9}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_output: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and gradients of (batch, heads, seqlen, head_dim) tensors in float64, a block of rows at a time.

    On the tensors' device: on a CPU the long sequences that a GPU is tested with would take minutes.
    """
    q, k, v, do = (tensor.detach().double() for tensor in (query, key, value, grad_output))
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    output = q.new_zeros(*q.shape[:3], v.shape[3])
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    step = max(1, 2**23 // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    for begin in range(0, q.shape[2] if k.shape[2] else 0, step):
        rows = slice(begin, min(begin + step, q.shape[2]))
        scores = q[:, :, rows] @ k.mT * scale
        if is_causal:
            columns = torch.arange(k.shape[2], device=q.device)
            numbers = torch.arange(rows.start, rows.stop, device=q.device)
            scores.masked_fill_(columns > numbers[:, None], -math.inf)
        p = torch.softmax(scores, -1)
        output[:, :, rows] = p @ v
        dv += p.mT @ do[:, :, rows]
        ds = p * (do[:, :, rows] @ v.mT - (do[:, :, rows] * output[:, :, rows]).sum(-1, keepdim=True)) * scale
        dq[:, :, rows] = ds @ k
        dk += ds.mT @ q[:, :, rows]
    dk, dv = (x.unflatten(1, (-1, max(group, 1))).sum(2) if x.numel() else x[:, ::group] for x in (dk, dv))
    return output, dq, dk, dv


def run(attention, query: Tensor, key: Tensor, value: Tensor, grad_output: Tensor, **options) -> tuple[Tensor, ...]:
    """Output and gradients of an attention function."""
    inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = attention(*inputs, **options)
    return output.detach(), *torch.autograd.grad(output, inputs, grad_output)


def _largest(error: Tensor) -> Tensor:
    """The largest error of an eighth of the rows of a head, averaged: one number would be a matter of luck."""
    parts = error.flatten(0, 1).unbind() if error.dim() == 4 else [error]
    groups = [group for part in parts for group in part.chunk(8) if group.numel()]
    return torch.stack([group.amax() for group in groups]).mean()


def _rms(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()


def assert_accurate(
    actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], peer: tuple[Tensor, ...], what: str = ""
) -> None:
    """Errors of `actual` are at most 1.1 times those of `peer`, PyTorch's own, plus one rounding of the result.

    That holds for the root mean square and for the largest error; of the very largest one, which is the luck of
    a single element, twice as much is allowed.
    """
    for name, a, e, p in zip(NAMES, actual, expected, peer, strict=True):
        assert a.shape == e.shape, f"{what} {name}: shape {tuple(a.shape)}, must be {tuple(e.shape)}"
        if not e.numel():
            continue
        assert not a.isnan().any(), f"{what} {name} has NaN"
        error, limit = (a.double() - e).abs(), (p.double() - e).abs()
        rounding = ROUNDING[a.dtype] * e.abs() + SMALLEST[a.dtype] / 2
        for measure, of, factor in (("rms", _rms, 1.1), ("largest", _largest, 1.1), ("very largest", torch.amax, 2.2)):
            worst, bound = of(error).item(), factor * of(limit).item() + of(rounding).item()
            assert worst <= bound, f"{what} {name}: {measure} error {worst:.3g}, may be {bound:.3g}"


def assert_close(
    actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str = "", peer: tuple[Tensor, ...] | None = None
) -> None:
    """`actual` is `expected` within a few roundings of the largest value: for tests of anything but accuracy.

    Where a gradient is zero because all of its terms cancel, what remains is noise that grows with their number: with
    `peer`, PyTorch's own result, 1.1 times its error is allowed too.
    """
    for i, (name, a, e) in enumerate(zip(NAMES, actual, expected, strict=False)):
        assert a.shape == e.shape, f"{what} {name}: shape {tuple(a.shape)}, must be {tuple(e.shape)}"
        if e.numel():
            worst = (a.double() - e).abs().max().item()
            bound = 64 * ROUNDING[a.dtype] * max(e.abs().max().item(), 1.0)
            if peer is not None:
                bound = max(bound, 1.1 * (peer[i].double() - e).abs().max().item())
            assert worst <= bound, f"{what} {name}: error {worst:.3g}, may be {bound:.3g}"


def sdpa(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """PyTorch's own."""
    return scaled_dot_product_attention(query, key, value, **options)
