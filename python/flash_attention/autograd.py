"""Attention that records a gradient: the autograd kernels of the operators, and a shorter way for eager calls.

The kernels serve everything: torch.compile, torch.func's transforms, direct calls of the operators. An eager
call takes EagerAttention, which costs what scaled_dot_product_attention costs. Both differentiate once: a
second time, and forward-mode AD, raise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad as _forward_ad
from torch.autograd.function import _SingleLevelFunction

from flash_attention import operators
from flash_attention.checks import translate

_call_forward_lse = operators.call_forward_lse
_call_backward = operators.call_backward
_has_torch_function = operators.has_torch_function
_is_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_below_autograd = torch._C._AutoDispatchBelowAutograd
_keys_below_autograd = torch._C._after_autograd_keyset


class _Kernel(_SingleLevelFunction):
    """Base of the functions behind the operators' autograd kernels: forward is the operator itself.

    PyTorch gives a kernel of its own level of torch.func to a function of a single level (torch.library's
    register_autograd does not, and knows no forward-mode AD: it drops tangents without a word).
    """

    operator: Any

    @classmethod
    def redispatch(cls, keyset: Any, *arguments: Any) -> Any:
        keys = keyset & _keys_below_autograd
        if torch._C._are_functorch_transforms_active():
            # The next level has its own gradient to record: neither the guard nor what Function.forward switches
            # off may last into it.
            with torch.enable_grad(), _forward_ad._set_fwd_grad_enabled(True):
                return cls.operator.redispatch(keys, *arguments)
        with _below_autograd():
            return cls.operator.redispatch(keys, *arguments)

    @classmethod
    def kernel(cls, keyset: Any, *arguments: Any) -> Any:
        """The autograd kernel."""
        wants_gradient = _is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        if not wants_gradient and _forward_ad._current_level < 0:
            return cls.redispatch(keyset, *arguments)
        with enable_single_level_autograd_function():
            return cls.apply(keyset, *arguments)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError("flash_attention has no forward-mode derivative (jvp) yet")


class _ForwardKernel(_Kernel):
    operator = operators.forward_lse

    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output, lse = _ForwardKernel.redispatch(keyset, *arguments)
        query, key, value, *ctx.attributes = arguments
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        scale, is_causal, _ = ctx.attributes
        needs = ctx.needs_input_grad[1:4]
        results = operators.backward(grad_output, query, key, value, output, lse, scale, is_causal, *needs)
        gradients = (result if needed else None for result, needed in zip(results, needs, strict=True))
        return None, *gradients, None, None, None


class _BackwardKernel(_Kernel):
    operator = operators.backward

    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        return _BackwardKernel.redispatch(keyset, *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("flash_attention has no double backward: its gradients cannot be differentiated yet")


class EagerAttention(_SingleLevelFunction):
    """(query, key, value, (scale, is_causal, enable_gqa)) -> output, outside of every transform and of autocast."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attributes: tuple[float, bool, bool]
    ) -> torch.Tensor:
        overridden = _has_torch_function(query, key, value)
        forward = operators.raw_forward_lse if overridden else _call_forward_lse
        output, lse = forward(query, key, value, *attributes)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.attributes = attributes
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        scale, is_causal, _ = ctx.attributes
        need_query, need_key, need_value, _ = ctx.needs_input_grad
        # Only where somebody may differentiate the gradient is it worth the cost of refusing that.
        recorded = _is_grad_enabled() or _forward_ad._current_level >= 0
        if recorded or _is_compiling():
            operator = operators.backward
        elif _has_torch_function(grad_output, query, key, value):
            operator = operators.raw_backward
        else:
            operator = _call_backward
        try:
            grad_query, grad_key, grad_value = operator(
                grad_output, query, key, value, output, lse, scale, is_causal, need_query, need_key, need_value
            )
        except RuntimeError as error:
            raise translate(error) from None
        if need_query and need_key and need_value:
            return grad_query, grad_key, grad_value, None
        return (
            grad_query if need_query else None,
            grad_key if need_key else None,
            grad_value if need_value else None,
            None,
        )

    jvp = _Kernel.jvp
    # What compiled autograd calls the node by; a function of a single level does not inherit it.
    _compiled_autograd_key = staticmethod(torch.autograd.Function._compiled_autograd_key)


# The engine calls the node's apply, which looks for EagerAttention.backward on every call: 3 microseconds of 50.
EagerAttention._backward_cls.apply = EagerAttention.backward
eager_attention = EagerAttention.apply

for _kernel in (_ForwardKernel, _BackwardKernel):
    _name = _kernel.operator._schema.name.removeprefix("flash_attention::")
    operators.library.impl(_name, _kernel.kernel, "Autograd", with_keyset=True)
