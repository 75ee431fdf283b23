"""What starting costs: importing, the first call on a machine, and the first call of a later process.

Each number is of fresh processes with a cache of their own. What PyTorch does on first use (threads, its autograd
engine, loading its kernels, a CUDA context) is done before and not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from flash_attention import bench

# (dtype, batch, heads, seqlen, head dim)
SHAPES = {
    "cpu": (("fp32", 1, 8, 512, 64),),
    "cuda": (("fp32", 2, 8, 512, 64), ("bf16", 4, 16, 4096, 128)),
}

# What a child process runs: seconds to import, of the first call, and of a warm one.
CHILD = """
import json, statistics, sys, time
import torch
started = time.perf_counter()
import flash_attention
imported = time.perf_counter() - started
device, dtype, shape, op = sys.argv[1], getattr(torch, sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
peer = torch.nn.functional.scaled_dot_product_attention(*inputs)
peer.backward(peer)
if op == "forward":
    inputs = [tensor.detach() for tensor in inputs]
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
def call():
    wait()
    started = time.perf_counter()
    output = flash_attention.flash_attention(*inputs)
    if op != "forward":
        output.backward(output)
    wait()
    return time.perf_counter() - started
first = call()
warm = statistics.median(call() for _ in range(20))
print(json.dumps([imported, first, warm]))
"""


@dataclass(frozen=True)
class Startup:
    """Medians, in seconds."""

    op: str  # "forward" or "forward + backward"
    dtype: str
    batch: int
    heads: int
    seqlen: int
    head_dim: int
    import_time: float  # `import flash_attention` after `import torch`
    cold: float  # first call with an empty cache: generates, compiles, tunes
    cold_untuned: float  # the same with FLASH_ATTENTION_AUTOTUNE=0: generates and compiles
    second_process: float  # first call of a process that finds the kernels in the cache
    warm: float  # a later call


def child(arguments: list[str], cache: str, autotune: str) -> list[float]:
    """Seconds of import, first call and warm call in a process of its own."""
    environment = dict(os.environ, FLASH_ATTENTION_CACHE_DIR=cache, FLASH_ATTENTION_AUTOTUNE=autotune)
    environment["CUDA_CACHE_DISABLE"] = "1"  # NVRTC keeps what it compiled in the driver's cache
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    line = [sys.executable, "-c", CHILD, *arguments]
    run = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"a process that measures starting failed:\n{run.stderr}")
    times: list[float] = json.loads(run.stdout.splitlines()[-1])
    return times


def measure_startup(device: str, repeats: int) -> list[Startup]:
    """Each cold call has a cache directory of its own; `repeats` later processes share the last one."""
    results = []
    for dtype, batch, heads, seqlen, head_dim in SHAPES[device]:
        for op in ("forward", "forward + backward"):
            name = str(bench.DTYPES[dtype]).removeprefix("torch.")
            arguments = [device, name, json.dumps([batch, heads, seqlen, head_dim]), op]
            cold, untuned, later = [], [], []
            for i in range(max(1, repeats // 2)):
                with tempfile.TemporaryDirectory() as cache:
                    untuned.append(child(arguments, cache, "0"))
                with tempfile.TemporaryDirectory() as cache:
                    cold.append(child(arguments, cache, "1"))
                    if i == 0:
                        later = [child(arguments, cache, "1") for _ in range(repeats)]
            result = Startup(
                op,
                dtype,
                batch,
                heads,
                seqlen,
                head_dim,
                import_time=statistics.median(times[0] for times in cold + untuned + later),
                cold=statistics.median(times[1] for times in cold),
                cold_untuned=statistics.median(times[1] for times in untuned),
                second_process=statistics.median(times[1] for times in later),
                warm=statistics.median(times[2] for times in later),
            )
            results.append(result)
    return results
