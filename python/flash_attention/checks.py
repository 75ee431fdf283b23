"""What an input must be, in words. Called after C refused a call, or while a call is traced: never on the fast path."""

from __future__ import annotations

import re
from numbers import Real
from typing import Any, NoReturn

import torch

MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICES = ("cpu", "cuda", "meta")

# Statuses of runtime/flash_attention.h that PyTorch has exceptions for; others are RuntimeErrors.
_STATUS = re.compile(r"flash_attention\[(\d)\]: (.*)", re.DOTALL)
_EXCEPTIONS: dict[int, type[Exception]] = {
    1: ValueError,
    2: TypeError,
    3: NotImplementedError,
    4: torch.OutOfMemoryError,
}


def translate(error: Exception) -> Exception:
    """The exception that a caller should see for one that an operator raised."""
    found = _STATUS.search(str(error))
    if found is None:
        return error
    return _EXCEPTIONS.get(int(found[1]), RuntimeError)(found[2])


def check_tensor(name: str, tensor: Any) -> None:
    """Raise unless `tensor` is a dense tensor of a dtype and on a device that attention is computed for."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is {_describe(tensor)}, must be a torch.Tensor")
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} is a {layout} tensor, must be a dense (strided) one")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, must have torch.float32, torch.float16 or torch.bfloat16")
    if tensor.device.type not in DEVICES:
        raise NotImplementedError(f"{name} is on device {tensor.device}: only cpu and cuda are supported yet")


def check_flag(name: str, value: Any) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {_describe(value)}, must be a bool")


def check_scale(scale: Any) -> None:
    """Raise unless `scale` is None or a number that is finite in float32."""
    if scale is None or torch.compiler.is_compiling() or isinstance(scale, (torch.SymInt, torch.SymFloat)):
        return  # a traced number has no value to look at
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale is {_describe(scale)}, must be a number or None")
    try:
        number = float(scale)
    except OverflowError:
        raise ValueError(f"scale is past 1e308 (type {type(scale).__name__}), must be finite in float32") from None
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"scale is {number}, must be finite in float32 (at most 3.4028e38 in magnitude)")


def check_operands(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raise unless the three tensors agree in dtype, device, seqlen and head dim (their last two dimensions)."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
        if tensor.dim() < 2:
            raise ValueError(f"{name} has shape {_shape(tensor)}, must have at least 2 dimensions (seqlen, head_dim)")
        if not 1 <= tensor.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(
                f"{name} has head_dim {tensor.shape[-1]} (its last dimension), must have 1 to {MAX_HEAD_DIM}"
            )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, must have query's, {query.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on device {tensor.device}, must be on query's, {query.device}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key has head_dim {key.shape[-1]}, must have query's, {query.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"value has seqlen {value.shape[-2]}, must have key's, {key.shape[-2]}")


def check_four_dimensions(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raise unless the operators take these shapes: (batch, heads, seqlen, head_dim), key's heads dividing query's."""
    check_operands(query, key, value)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} has shape {_shape(tensor)}, must have 4 dimensions")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has batch {tensor.shape[0]}, must have query's, {query.shape[0]}")
    if value.shape[1] != key.shape[1]:
        raise ValueError(f"value has {value.shape[1]} heads, must have key's, {key.shape[1]}")
    if key.shape[1] != query.shape[1] and (key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0):
        raise ValueError(f"key has {key.shape[1]} heads, must have a divisor of query's, {query.shape[1]}")


def check_unsupported(attn_mask: Any, dropout_p: Any) -> None:
    """Raise for an attention mask and for dropout, and for a dropout_p that is no probability."""
    if attn_mask is not None:
        kind = f"of shape {_shape(attn_mask)}" if isinstance(attn_mask, torch.Tensor) else _describe(attn_mask)
        raise NotImplementedError(f"attn_mask is {kind}: masks are not supported yet, it must be None")
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, Real):
        raise TypeError(f"dropout_p is {_describe(dropout_p)}, must be a number")
    if not 0.0 <= float(dropout_p) <= 1.0:
        raise ValueError(f"dropout_p is {dropout_p}, must be between 0 and 1")
    if dropout_p != 0.0:
        raise NotImplementedError(f"dropout_p is {dropout_p}: dropout is not supported yet, it must be 0.0")


def refuse_shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool) -> NoReturn:
    """Raise the ValueError of tensors whose leading dimensions (batch, heads) do not fit together."""
    shapes = f"query has shape {_shape(query)}, key {_shape(key)} and value {_shape(value)}"
    if enable_gqa:
        rule = (
            "must have batch dimensions that broadcast, and heads of key and value (dimension -3) that divide query's"
        )
    else:
        rule = "must have batch and head dimensions that broadcast (enable_gqa=True: heads of key may divide query's)"
    raise ValueError(f"{shapes}: they {rule}")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _describe(value: Any) -> str:
    return f"{value!r} (a {type(value).__name__})" if len(repr(value)) < 80 else f"a {type(value).__name__}"
