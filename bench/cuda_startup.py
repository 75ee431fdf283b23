"""What the first calls cost on a GPU: on a fresh cache with the tuner on and off, and in a second process.

    python bench/cuda_startup.py

Each number is of a process of its own; imports and the creation of the CUDA context are not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

CALL = """
import json, sys, time
import torch
started = time.perf_counter()
import flash_attention
imported = time.perf_counter() - started
backward = sys.argv[1] == "backward"
shape, dtype = json.loads(sys.argv[2]), getattr(torch, sys.argv[3])
query, key, value = (torch.randn(shape, device="cuda", dtype=dtype, requires_grad=backward) for _ in range(3))
torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().item()
def call():
    started = time.perf_counter()
    output = flash_attention.flash_attention(query, key, value)
    if backward:
        torch.autograd.grad(output, (query, key, value), output)
    torch.cuda.synchronize()
    return time.perf_counter() - started
first = call()
print(json.dumps([imported, first, min(call() for _ in range(5))]))
"""


def run(op: str, shape: list[int], dtype: str, cache: str, autotune: str) -> list[float]:
    environment = dict(os.environ, FLASH_ATTENTION_CACHE_DIR=cache, FLASH_ATTENTION_AUTOTUNE=autotune)
    line = [sys.executable, "-c", CALL, op, json.dumps(shape), dtype]
    return json.loads(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    print("milliseconds: cold, tuner on | cold, tuner off | second process | warm | import")
    for shape, dtype in (([2, 8, 512, 64], "float32"), ([4, 16, 4096, 128], "bfloat16")):
        for op in ("forward", "backward"):
            with tempfile.TemporaryDirectory() as tuned, tempfile.TemporaryDirectory() as guessed:
                cold = run(op, shape, dtype, tuned, "1")
                plain = run(op, shape, dtype, guessed, "0")
                second = run(op, shape, dtype, tuned, "1")
            what = "forward" if op == "forward" else "forward + backward"
            numbers = " | ".join(f"{1e3 * x:.1f}" for x in (cold[1], plain[1], second[1], second[2], second[0]))
            print(f"{what:20} {shape} {dtype}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
