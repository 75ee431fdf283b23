"""The operators of binding.c in Python's half of the dispatcher: fake kernels, autograd, vmap, autocast.

    forward        (query, key, value, scale, is_causal, enable_gqa) -> output; no gradient, no statistics
    forward_lse    the same arguments -> (output, lse); differentiable
    backward       (grad_output, query, key, value, output, lse, scale, is_causal, needs_query, needs_key,
                   needs_value) -> three gradients, of shape (0,) where not needed; refuses to be differentiated
    _forward_lse, _backward   the same two without their autograd kernels, for autograd.py
    call_forward, call_forward_lse, call_backward   forward, _forward_lse and _backward where has_torch_function says no

Tensors are (batch, heads, seqlen, head_dim); lse is fp32 (batch, heads, seqlen, 2): row maximum and sum of
exponentials. functional.py decides which one a call needs: `forward` costs a third of what autograd does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad as _forward_ad

from flash_attention import checks
from flash_attention.library import load

load()
_ops = torch.ops.flash_attention
forward = _ops.forward.default
forward_lse = _ops.forward_lse.default
backward = _ops.backward.default
raw_forward_lse = _ops._forward_lse.default
raw_backward = _ops._backward.default


def _direct(name: str) -> Callable[..., Any]:
    """An operator straight into the dispatcher: 0.5 microseconds a call.

    It looks for no __torch_function__: the caller has seen that no argument has one and that no mode is active.
    """
    handle = torch._C._dispatch_find_schema_or_throw(f"flash_attention::{name}", "")
    return partial(torch._C._dispatch_call_boxed, handle)


call_forward = _direct("forward")
call_forward_lse = _direct("_forward_lse")
call_backward = _direct("_backward")
has_torch_function = torch._C._has_torch_function_variadic

# Registrations last as long as this object.
library = torch.library.Library("flash_attention", "IMPL")


def dense_strides(sizes: tuple[int, ...], like: torch.Tensor) -> list[int]:
    """Dense strides for `sizes`, dimensions in the order in which `like` has them in memory.

    Contiguous where `like` overlaps itself (an expanded tensor) or is empty. binding.c does the same.
    """
    order = list(range(4))
    if not like.is_contiguous():
        memory, inner = list(like.stride()), 1
        for i in reversed(range(4)):  # the stride of a dimension of size 1 says nothing: take a contiguous one's
            if like.shape[i] == 1:
                memory[i] = inner
            inner = memory[i] * like.shape[i]
        for i in range(1, 4):  # stable, largest stride first
            for j in range(i, 0, -1):
                if not memory[order[j - 1]] < memory[order[j]]:
                    break
                order[j - 1], order[j] = order[j], order[j - 1]
        extent = 1  # elements from the first to the last of the dimensions so far
        overlaps = False
        for i in reversed(order):
            if like.shape[i] == 1:
                continue
            if memory[i] < extent:
                overlaps = True
                break
            extent = extent + (like.shape[i] - 1) * memory[i]
        if overlaps:
            order = list(range(4))
    strides = [1] * 4
    stride = 1
    for i in reversed(order):
        strides[i] = stride
        stride = stride * torch.sym_max(sizes[i], 1)
    return strides


def _empty_dense(sizes: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(sizes, dense_strides(sizes, like), dtype=like.dtype, device=like.device)


def _fake_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, is_causal: bool, enable_gqa: bool
) -> torch.Tensor:
    checks.check_four_dimensions(query, key, value)
    if not enable_gqa and key.shape[1] != query.shape[1]:
        checks.refuse_shapes(query, key, value, enable_gqa)
    return _empty_dense((*query.shape[:3], value.shape[3]), query)


def _fake_forward_lse(query: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    output = _fake_forward(query, *arguments)
    return output, torch.empty((*query.shape[:3], 2), dtype=torch.float32, device=query.device)


def _fake_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    is_causal: bool,
    *needs: bool,
) -> tuple[torch.Tensor, ...]:
    checks.check_four_dimensions(query, key, value)
    return tuple(
        _empty_dense(tuple(tensor.shape), tensor) if needed else tensor.new_empty(0)
        for tensor, needed in zip((query, key, value), needs, strict=True)
    )


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, is_causal: bool, enable_gqa: bool
) -> torch.Tensor:
    """Attention of tensors that the operators take, by the cheapest operator that keeps what autograd asks for."""
    # While torch.compile traces torch.func.grad, a tensor does not say that it requires a gradient.
    if _forward_ad._current_level >= 0 or (
        torch.is_grad_enabled()
        and (torch.compiler.is_compiling() or query.requires_grad or key.requires_grad or value.requires_grad)
    ):
        return forward_lse(query, key, value, scale, is_causal, enable_gqa)[0]
    return forward(query, key, value, scale, is_causal, enable_gqa)


def _fold(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """Take the dimension that vmap maps over into the batch: (size * batch, heads, seqlen, head_dim)."""
    tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _unfold(tensor: torch.Tensor, size: int) -> tuple[torch.Tensor, int | None]:
    """The other way, and where the dimension is; a gradient that was not needed has no such dimension."""
    if tensor.dim() == 1:
        return tensor, None
    return tensor.unflatten(0, (size, tensor.shape[0] // max(size, 1))), 0


def vmap_rule(num_tensors: int, operator: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for an operator whose first `num_tensors` arguments are tensors: the new dimension is more batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        tensors = zip(arguments[:num_tensors], in_dims[:num_tensors], strict=True)
        results = operator(*(_fold(tensor, dim, size) for tensor, dim in tensors), *arguments[num_tensors:])
        if isinstance(results, torch.Tensor):
            return _unfold(results, size)
        outputs, dims = zip(*(_unfold(result, size) for result in results), strict=True)
        return outputs, dims

    return rule


def _backward_of_batch(*arguments: Any) -> tuple[torch.Tensor, ...]:
    """backward of folded tensors: it takes lse contiguous alone, and of a batch of 1 folding makes a view."""
    return backward(*arguments[:5], arguments[5].contiguous(), *arguments[6:])


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors as autocast casts the inputs of PyTorch's own attention; as they are where it is off."""
    return tuple(
        tensor.to(torch.get_autocast_dtype(tensor.device.type))
        if tensor.is_floating_point()
        and tensor.dtype != torch.float64
        and tensor.device.type in ("cpu", "cuda")
        and torch.is_autocast_enabled(tensor.device.type)
        else tensor
        for tensor in tensors
    )


def _autocast_kernel(device_type: str, operator: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *attributes: Any) -> Any:
        query, key, value = autocast(query, key, value)
        with torch.autocast(device_type, enabled=False):
            return operator(query, key, value, *attributes)

    return kernel


def _register() -> None:
    qualified = "flash_attention::{}".format
    for name, fake in (("forward", _fake_forward), ("forward_lse", _fake_forward_lse), ("backward", _fake_backward)):
        torch.library.register_fake(qualified(name), fake)
    torch.library.register_fake(qualified("_forward_lse"), _fake_forward_lse)
    torch.library.register_fake(qualified("_backward"), _fake_backward)

    for name in ("forward", "_forward_lse", "_backward"):
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")

    # What is inside vmap may still need a gradient: the rules call the differentiable operators.
    torch.library.register_vmap(qualified("forward"), vmap_rule(3, attend))
    for name in ("forward_lse", "_forward_lse"):
        torch.library.register_vmap(qualified(name), vmap_rule(3, forward_lse))
    for name in ("backward", "_backward"):
        torch.library.register_vmap(qualified(name), vmap_rule(6, _backward_of_batch))

    for device_type in ("cpu", "cuda"):
        for name, operator in (("forward", attend), ("forward_lse", forward_lse)):
            library.impl(name, _autocast_kernel(device_type, operator), f"Autocast{device_type.upper()}")


_register()
