"""FlashAttention: flash_attention() as a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flash_attention import checks
from flash_attention.functional import flash_attention


class FlashAttention(torch.nn.Module):
    """Attention with a fixed head_dim: module(query, key, value).

    The module owns one parameter, scale_multiplier of shape (1,), a factor of the softmax scale that starts at
    1. It is frozen unless learnable_scale=True: it gives optimizers, DDP and FSDP a parameter to hold, and its
    exact value lives on the host, so that a call never reads it from the device and no cast rounds it.
    load_state_dict changes it, and a checkpoint without it loads. Writing to a frozen scale_multiplier in place
    changes nothing but a later checkpoint. One that requires_grad_(True) unfreezes, or that functional_call puts in
    its place with requires_grad, is used as a learnable one is until it is frozen again.

    FullyShardedDataParallel needs use_orig_params=True, as with any frozen parameter beside trained ones;
    fully_shard needs nothing.

    A learnable one multiplies query before the scores (rounded to query's dtype, which is exact for powers of
    two). Its gradient, sum(query * grad_query) with grad_query taken before the factor (FlashAttention,
    arXiv:2205.14135, algorithm 4), is summed in float32.

    Args:
        head_dim: last dimension of query and key, 1 to 256.
        is_causal: query i sees keys 0 to i only, aligned top left.
        scale: factor of the scores; None is 1 / sqrt(head_dim).
        learnable_scale: train scale_multiplier.

    Raises:
        TypeError, ValueError: an argument has a type or a value that it must not have.
    """

    scale_multiplier: torch.nn.Parameter

    def __init__(
        self, head_dim: int, *, is_causal: bool = False, scale: float | None = None, learnable_scale: bool = False
    ) -> None:
        super().__init__()
        if isinstance(head_dim, bool) or not isinstance(head_dim, int):
            raise TypeError(f"head_dim is {head_dim!r}, must be an int")
        if not 1 <= head_dim <= checks.MAX_HEAD_DIM:
            raise ValueError(f"head_dim is {head_dim}, must be 1 to {checks.MAX_HEAD_DIM}")
        checks.check_flag("is_causal", is_causal)
        checks.check_flag("learnable_scale", learnable_scale)
        checks.check_scale(scale)
        self.head_dim = head_dim
        self.is_causal = is_causal
        self.scale = head_dim**-0.5 if scale is None else float(scale)
        self.learnable_scale = learnable_scale
        self.scale_multiplier = torch.nn.Parameter(torch.ones(1), requires_grad=learnable_scale)
        self._multiplier = 1.0  # scale_multiplier's exact value, while it is frozen

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of (..., heads, seqlen, head_dim) tensors: see flash_attention, whose errors it raises.

        Dimensions before the last two broadcast; key and value may have fewer heads than query, if they divide
        its heads (grouped-query attention).

        Returns:
            (..., heads, seqlen_q, head_dim_v), dtype and device of query.
        """
        try:
            head_dim = query.size(-1)
        except (AttributeError, IndexError, TypeError):
            checks.check_operands(query, key, value)
            raise
        if head_dim != self.head_dim:
            raise ValueError(f"query has head_dim {head_dim} (its last dimension), must have {self.head_dim}")
        if self.learnable_scale or self.scale_multiplier.requires_grad:  # unfrozen, or functional_call's
            # In float32, so that autograd's sum of query * grad_query is.
            query = (query.float() * self.scale_multiplier.float()).to(query.dtype)
            return flash_attention(query, key, value, None, 0.0, self.is_causal, self.scale, True)
        return flash_attention(query, key, value, None, 0.0, self.is_causal, self.scale * self._multiplier, True)

    def reset_parameters(self) -> None:
        """Set the multiplier to 1, as a new module has it."""
        self._multiplier = 1.0
        self._restore()

    def extra_repr(self) -> str:
        """What print(module) shows between the parentheses."""
        return (
            f"head_dim={self.head_dim}, is_causal={self.is_causal}, scale={self.scale}, "
            f"learnable_scale={self.learnable_scale}"
        )

    @torch.no_grad()
    def _restore(self) -> None:
        if not self.scale_multiplier.is_meta:
            self.scale_multiplier.fill_(self._multiplier)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FlashAttention:
        """Every .to(), .half(), .cuda() and .to_empty() comes through here."""
        was_meta = self.scale_multiplier.is_meta
        super()._apply(fn, recurse)
        # to_empty leaves memory as it finds it, and a detour over float16 rounds.
        if was_meta or not (self.learnable_scale or self.scale_multiplier.requires_grad):
            self._restore()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        name = prefix + "scale_multiplier"
        if name not in state_dict:
            return  # a checkpoint of a model that had another attention; the only parameter stays as it is
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        saved = state_dict[name]
        if hasattr(saved, "full_tensor"):  # a DTensor's value is in one shard
            saved = saved.full_tensor()
        if saved.numel() == 1 and not saved.is_meta:
            self._multiplier = float(saved)
