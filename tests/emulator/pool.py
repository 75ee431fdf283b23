"""Many runs at once: the emulator is one grid a process, so each worker is a process of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from typing import TypeVar

import torch

from emulator.machine import library

# A worker of pytest-xdist has another one beside it.
PROCESSES = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def _begin() -> None:
    torch.set_num_threads(1)
    library()


@cache
def _workers(processes: int) -> ProcessPoolExecutor:
    """Started once, as each imports PyTorch. Not forked: a worker would inherit the emulator and PyTorch's threads."""
    library()  # compiled before the workers look for it
    executor = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    atexit.register(executor.shutdown, cancel_futures=True)
    return executor


def run(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int = PROCESSES
) -> Iterator[tuple[Item, Result]]:
    """function(item) of each, as they are done; `function` is one of a module, and items and results can be pickled."""
    futures = {_workers(processes).submit(function, item): item for item in items}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()
