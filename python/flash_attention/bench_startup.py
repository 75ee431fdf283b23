"""What starting costs: importing, the first call on a machine, and the first call of a later process.

Each is measured in fresh processes with a cache of their own: one call of fp32 attention, B 1, H 8, S 512, d 64,
forward or forward and backward.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

# What a child process runs: seconds to import, of the first call, and of a warm one.
CHILD = """
import json, statistics, sys, time
import torch
started = time.perf_counter()
import flash_attention
imported = time.perf_counter() - started
backward = sys.argv[1] == "backward"
inputs = [torch.randn(1, 8, 512, 64, requires_grad=backward) for _ in range(3)]
# PyTorch starts its threads and its autograd engine, and imports much, on first use: that is not ours to count.
peer = torch.nn.functional.scaled_dot_product_attention(*inputs)
if backward:
    peer.backward(peer)
def call():
    started = time.perf_counter()
    output = flash_attention.flash_attention(*inputs)
    if backward:
        output.backward(output)
    return time.perf_counter() - started
first = call()
warm = statistics.median(call() for _ in range(20))
print(json.dumps([imported, first, warm]))
"""


@dataclass(frozen=True)
class Startup:
    """Medians, in seconds."""

    op: str  # "forward" or "forward + backward"
    import_time: float  # `import flash_attention` after `import torch`
    cold: float  # first call with an empty cache: tunes and compiles
    second_process: float  # first call of a process that finds the kernels in the cache
    warm: float  # a later call

    def above_warm(self) -> float:
        return self.second_process - self.warm


def child(op: str, cache: str) -> list[float]:
    environment = dict(os.environ, FLASH_ATTENTION_CACHE_DIR=cache)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-c", CHILD, op], env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"a process that measures starting failed:\n{run.stderr}")
    times: list[float] = json.loads(run.stdout.splitlines()[-1])
    return times


def measure_startup(repeats: int = 5) -> list[Startup]:
    """Each cold call has a cache directory of its own; the processes after it share the last one."""
    results = []
    for op in ("forward", "backward"):
        cold, later = [], []
        for _ in range(max(1, repeats // 2)):
            with tempfile.TemporaryDirectory() as cache:
                cold.append(child(op, cache))
        with tempfile.TemporaryDirectory() as cache:
            cold.append(child(op, cache))
            later = [child(op, cache) for _ in range(repeats)]
        imports = statistics.median(times[0] for times in cold + later)
        first = statistics.median(times[1] for times in later)
        warm = statistics.median(times[2] for times in later)
        name = "forward" if op == "forward" else "forward + backward"
        results.append(Startup(name, imports, statistics.median(times[1] for times in cold), first, warm))
    return results
