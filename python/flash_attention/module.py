"""FlashAttention: flash_attention() as a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses import FakeTensor

from flash_attention import checks
from flash_attention.functional import flash_attention

_is_dynamo_compiling = torch.compiler.is_dynamo_compiling


class _Multiplier(torch.nn.Parameter):
    """The parameter of FlashAttention. While it is frozen, FullyShardedDataParallel leaves it where it is.

    With use_orig_params=False that FSDP refuses a frozen parameter beside trained ones; with True it would put a
    view of its flat parameter in our place. It passes over what says that it was flattened already.
    """

    @property
    def _fsdp_flattened(self) -> bool:
        return not self.requires_grad or "_is_in_flat_parameter" in self.__dict__

    @_fsdp_flattened.setter
    def _fsdp_flattened(self, _: bool) -> None:
        self._is_in_flat_parameter = True


class FlashAttention(torch.nn.Module):
    """Attention with a fixed head_dim: module(query, key, value).

    The module owns one parameter, scale_multiplier of shape (1,), a factor of the softmax scale that starts at
    1. It is frozen unless learnable_scale=True: it gives optimizers, DDP and FSDP a parameter to hold, and its
    exact value lives on the host, so that a call does not read it from the device and no cast rounds it. The
    device is asked once after the parameter was written to: by load_state_dict, in place, or by an optimizer while
    requires_grad_(True) had unfrozen it. A checkpoint without it loads. A tensor that functional_call puts in its
    place, and one that requires a gradient, is used as a learnable one.

    FullyShardedDataParallel ignores a frozen one, which is therefore neither sharded nor broadcast by its
    sync_module_states; fully_shard and DistributedDataParallel treat it as any other.

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
        self.scale_multiplier = _Multiplier(torch.ones(1), requires_grad=learnable_scale)
        self._multiplier = 1.0  # the exact value, of which the parameter may be a rounded copy
        # A frozen parameter, its version, and its value on the host. None: to be read, it may have been trained.
        self._known: tuple[torch.Tensor, int, float] | None = None
        self._know(self._multiplier)

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
        factor = self._host_value()
        if factor is None:
            # In float32, so that autograd's sum of query * grad_query is.
            query = (query.float() * self.scale_multiplier.float()).to(query.dtype)
            return flash_attention(query, key, value, None, 0.0, self.is_causal, self.scale, True)
        return flash_attention(query, key, value, None, 0.0, self.is_causal, self.scale * factor, True)

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

    def _host_value(self) -> float | None:
        """The value of a frozen parameter; None where the tensor in its place is to be used."""
        known = self._known
        if known is not None and not _is_dynamo_compiling():
            own = self._parameters.get("scale_multiplier")  # what the attribute is, faster
            if own is known[0] and not own.requires_grad and (own.is_inference() or own._version == known[1]):
                return known[2]
        parameter = self.scale_multiplier
        if parameter.requires_grad:
            if known is not None:
                self._known = None  # it is about to be trained
            return None
        if torch.compiler.is_compiling():  # nothing can be read while a call is traced
            return None if known is None or not isinstance(parameter, torch.nn.Parameter) else known[2]
        return self._read()

    @torch.no_grad()
    def _read(self) -> float | None:
        """Ask the device for the value of a frozen parameter that is new or was written to."""
        parameter = self.scale_multiplier
        if not isinstance(parameter, torch.nn.Parameter):
            return None  # functional_call's
        if parameter.is_meta or isinstance(parameter, FakeTensor):
            return self._multiplier
        value = float(getattr(parameter, "full_tensor", lambda: parameter)())  # a DTensor's is in one shard
        # fully_shard's mixed precision, or a cast, may have made a rounded copy.
        rounded = torch.tensor(self._multiplier, dtype=parameter.dtype).item()
        return self._know(self._multiplier if value == rounded else value)

    def _know(self, value: float) -> float:
        """Note that `value` is the parameter's, if it is frozen."""
        parameter = self.scale_multiplier
        version = 0 if parameter.is_inference() else parameter._version
        self._known = None if parameter.requires_grad else (parameter, version, value)
        return value

    def _adopt(self) -> None:
        """Make a parameter that PyTorch has put in the place of ours one of ours."""
        if type(self.scale_multiplier) is torch.nn.Parameter:
            self.scale_multiplier = _Multiplier(self.scale_multiplier.data, self.scale_multiplier.requires_grad)

    @torch.no_grad()
    def _restore(self) -> None:
        if not self.scale_multiplier.is_meta:
            self.scale_multiplier.fill_(self._multiplier)
        self._know(self._multiplier)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FlashAttention:
        """Every .to(), .half(), .cuda() and .to_empty() comes through here."""
        before = self.scale_multiplier
        value = None if before.is_meta else self._host_value()
        if value is not None:
            self._multiplier = value
        super()._apply(fn, recurse)
        if self.scale_multiplier is not before:
            self._adopt()
        # to_empty leaves memory as it finds it, and a detour over float16 rounds.
        if before.is_meta or value is not None:
            self._restore()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and unpickled modules have a parameter of their own."""
        super().__setstate__(state)
        self._adopt()
        if self._known is not None:
            self._know(self._known[2])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        name = prefix + "scale_multiplier"
        if name not in state_dict:
            return  # a checkpoint of a model that had another attention; the only parameter stays as it is
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._adopt()
        saved = state_dict[name]
        if hasattr(saved, "full_tensor"):  # a DTensor's value is in one shard
            saved = saved.full_tensor()
        if saved.numel() == 1 and not saved.is_meta:
            self._multiplier = self._know(float(saved))
