"""flash_attention(): scaled_dot_product_attention's arguments, shapes and meaning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import forward_ad as _forward_ad

from flash_attention import checks, operators
from flash_attention.autograd import eager_attention
from flash_attention.shapes import fold

# The fast path below is most of what a small call costs, so it looks nothing up twice.
_call_forward = operators.call_forward
_has_torch_function = operators.has_torch_function
_is_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_DEFAULT_SCALE = [0.0] + [head_dim**-0.5 for head_dim in range(1, checks.MAX_HEAD_DIM + 1)]


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(query @ key.T * scale) @ value, exactly, with memory linear in the sequence lengths.

    Stands for torch.nn.functional.scaled_dot_product_attention: the same arguments with the same meaning.
    The algorithm is FlashAttention (arXiv:2205.14135) and FlashAttention-2 (arXiv:2307.08691); the first call
    of a kind (dtype, head dims, causal, size class) generates, compiles, times and stores its kernel.

    Args:
        query: (..., heads, seqlen_q, head_dim), float32, float16 or bfloat16, on a cpu or cuda device (sm_80
            or newer). Any strides, at least 2 dimensions; head_dim is 1 to 256, seqlen_q 0 or more.
        key: (..., heads, seqlen_k, head_dim), dtype and device of query.
        value: (..., heads, seqlen_k, head_dim_v), dtype and device of query; head_dim_v is 1 to 256. Dimensions
            before the last two broadcast among the three tensors.
        attn_mask: must be None; masks are not supported yet.
        dropout_p: must be 0; dropout is not supported yet.
        is_causal: query i sees keys 0 to i only, aligned top left whatever the two lengths are.
        scale: factor of the scores, any number finite in float32; None is 1 / sqrt(head_dim).
        enable_gqa: allow fewer heads (dimension -3) in key and value than in query, each shared by
            query_heads / key_heads consecutive ones.

    float32 is computed as such. Where PyTorch may use TF32 (torch.set_float32_matmul_precision("high") or "medium",
    torch.backends.cuda.matmul.allow_tf32 = True, or fp32_precision = "tf32" there), an H100 or H200 takes one product
    for three, no less accurate than TF32's, in calls that record no gradient: inside torch.no_grad(), or with inputs
    that require none (compiled code: inside torch.no_grad()). The setting is read in each call. Everywhere else, in
    calls with gradients too, it changes nothing.

    Returns:
        (..., heads, seqlen_q, head_dim_v), dtype and device of query, dimensions in the order in which query
        has them in memory (contiguous where query overlaps itself). Without keys it is zeros. Equal tensors
        (values, shapes, strides, addresses modulo 16) give equal bits, whatever the number of threads, with the same
        cache; gradients of 16-bit tensors on a GPU only under torch.use_deterministic_algorithms(True), which costs up
        to 1.4 times the time; a call in a captured CUDA graph only if this process has loaded its kernel, as any call
        like it outside does. Scores and sums are kept in float32.
        Differentiable once: double backward and forward-mode AD raise NotImplementedError.

    Raises:
        TypeError: an argument is no tensor, or has a dtype that it must not have.
        ValueError: an argument has a value or a shape that it must not have.
        NotImplementedError: attn_mask, dropout_p or a device that is not supported yet.
        torch.OutOfMemoryError: no memory for the output, a gradient or a workspace.
        RuntimeError: no compiler (C, or NVRTC for a GPU), or the kernel did not compile; the message has the details.
            Also a first call of its kind while a CUDA graph is captured: make one call before.
    """
    if attn_mask is not None or (type(dropout_p) is not float and type(dropout_p) is not int) or dropout_p != 0:
        checks.check_unsupported(attn_mask, dropout_p)
    if (is_causal is not False and is_causal is not True) or (enable_gqa is not False and enable_gqa is not True):
        # The operators would take anything that has a truth value, a scale in the wrong place for one.
        checks.check_flag("is_causal", is_causal)
        checks.check_flag("enable_gqa", enable_gqa)
    if _is_compiling():
        return _attend_any(query, key, value, is_causal, scale, enable_gqa, operators.attend)
    if scale is not None and type(scale) is not float:
        # The operators would take what has a float's value, and drop a tensor's gradient.
        checks.check_scale(scale)
    try:
        # Nothing else is checked here: the operators refuse what is wrong and what first has to be folded, and
        # eager_attention refuses tangents of forward-mode AD.
        shape = query.shape
        if len(shape) == 4:
            softmax_scale = _DEFAULT_SCALE[shape[3]] if scale is None else scale
            if _is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
                if not _is_any_autocast_enabled() and not _are_transforms_active():
                    return eager_attention(query, key, value, (softmax_scale, is_causal, enable_gqa))
            elif _forward_ad._current_level < 0:
                forward = operators.forward if _has_torch_function(query, key, value) else _call_forward
                return forward(query, key, value, softmax_scale, is_causal, enable_gqa)
        refusal = None
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    try:
        return _attend_any(query, key, value, is_causal, scale, enable_gqa, _attend, refusal)
    except RuntimeError as error:
        raise checks.translate(error) from None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, is_causal: bool, enable_gqa: bool
) -> torch.Tensor:
    """Attention of tensors that the operators take, outside of torch.compile."""
    if _is_any_autocast_enabled():
        query, key, value = operators.autocast(query, key, value)
    if _are_transforms_active() or _forward_ad._current_level >= 0:
        return operators.forward_lse(query, key, value, scale, is_causal, enable_gqa)[0]
    if _is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return eager_attention(query, key, value, (scale, is_causal, enable_gqa))
    return operators.forward(query, key, value, scale, is_causal, enable_gqa)


def _attend_any(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    attend: Callable[..., torch.Tensor],
    refusal: Exception | None = None,
) -> torch.Tensor:
    """Attention of tensors of any shape. `refusal` is what the operators said of them as they are, if they did."""
    checks.check_scale(scale)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        checks.check_tensor(name, tensor)
    if _is_any_autocast_enabled():
        query, key, value = operators.autocast(query, key, value)
    checks.check_operands(query, key, value)
    folded, leading = fold(query, key, value, enable_gqa)
    if refusal is not None and leading is None:
        raise refusal
    softmax_scale = query.size(-1) ** -0.5 if scale is None else scale
    output = attend(*folded, softmax_scale, is_causal, enable_gqa)
    return output if leading is None else output.reshape(*leading, *output.shape[-2:])
