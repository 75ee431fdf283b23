"""Loads the shared library, which registers the operators of the namespace flash_attention with PyTorch."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_flash_attention.so")


def _stop_building() -> None:
    """End what is compiled in the background for backward."""
    ctypes.CDLL(str(LIBRARY)).fa_stop_building()


@functools.cache
def load() -> ctypes.CDLL:
    """Load the library once per process and return it.

    Raises:
        ImportError: it was not built, or this PyTorch cannot take its operators.
    """
    if not LIBRARY.exists():
        raise ImportError(f"{LIBRARY} is not there: build it with `pip install .` (or `pip install -e .`)")
    torch.ops.load_library(str(LIBRARY))
    library = ctypes.CDLL(str(LIBRARY))
    atexit.register(_stop_building)  # before exit() takes the compiler's library down
    library.fa_torch_error.restype = ctypes.c_char_p
    error = library.fa_torch_error()
    if error is not None:
        reason = error.decode() or "it found no libtorch_cpu.so in this process"
        raise ImportError(f"{LIBRARY.name} did not register its operators with PyTorch {torch.__version__}: {reason}")
    # NVRTC is looked for below these, when a CUDA kernel must be compiled.
    library.fa_set_package_path(os.pathsep.join(sys.path).encode())
    return library
