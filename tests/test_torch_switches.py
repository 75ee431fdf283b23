"""PyTorch's switches that torch_cuda.c reads: determinism and TF32, through functions outside of the stable ABI."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from flash_attention import library


def test_deterministic_algorithms_can_be_asked_for_in_c():
    """torch_cuda.c reads the switch through two functions that are not part of the stable ABI."""
    library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD)
    context, deterministic = (
        library._ZN2at13globalContextEv,
        library._ZNK2at7Context23deterministicAlgorithmsEv,
    )
    context.restype, deterministic.restype = ctypes.c_void_p, ctypes.c_bool
    deterministic.argtypes = [ctypes.c_void_p]
    assert deterministic(context()) is False
    torch.use_deterministic_algorithms(True)
    try:
        assert deterministic(context()) is True
    finally:
        torch.use_deterministic_algorithms(False)


def set_fp32_precision(of, value):
    of.fp32_precision = value


@pytest.mark.parametrize(
    ("allow", "refuse"),
    [
        (lambda: torch.set_float32_matmul_precision("high"), lambda: None),
        (lambda: torch.set_float32_matmul_precision("medium"), lambda: None),
        (lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True), lambda: None),
        (
            lambda: set_fp32_precision(torch.backends.cuda.matmul, "tf32"),
            lambda: set_fp32_precision(torch.backends.cuda.matmul, "ieee"),
        ),
    ],
    ids=["high", "medium", "allow_tf32", "fp32_precision"],
)
def test_every_way_to_allow_tf32_is_seen_in_c(allow, refuse):
    """torch_cuda.c reads the one setting that all of them end in, through a function that is not in the stable ABI."""
    allowed = library.load().fa_torch_allows_tf32
    allowed.restype = ctypes.c_bool
    assert allowed() is False
    try:
        allow()
        assert allowed() is True
    finally:
        refuse()
        torch.set_float32_matmul_precision("highest")
    assert allowed() is False
