"""Record what a GPU computes, for tests of the emulator (tests/emulator/test_recordings.py):

    PYTHONPATH=python python tests/gpu/record.py tests/emulator/recordings

writes one compressed file for each kind to sm_90 there, if that is the GPU's: operands and results of mma.sync and (on
sm_90) wgmma, boxes that TMA copied, exp2_approx and conversions, and the attention kernels: the portable ones and (on
sm_90) Hopper's forward. Each says on which device with which driver and compiler. Each is recorded in a process of its
own: after a fault a process can do nothing more on a GPU, and one that hangs is ended. Two minutes or so.

    PYTHONPATH=python python tests/gpu/record.py tests/emulator/recordings --only hopper

writes the files with this in their name alone, attention_hopper_*.npz.

With --emulate the emulator stands in for the GPU, which shows that everything here runs; such files are no recordings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flash_attention import _native
from gpu import attention, driver, operands, recorded
from gpu.recorded import DTYPES, Run

Files = dict[str, Callable[[], dict[str, np.ndarray]]]
WIDTHS = (8, 64, 80, 128, 256)
LIMIT = 300  # seconds for a file
TILES = 6  # of mma.sync, for each class of operands


def record_mma(run: Run, dtype: str) -> dict[str, np.ndarray]:
    """names: the class of each tile; a (T, 16, 16) and b (T, 8, 16) as bits, c and result (T, 16, 8)."""
    sets = [(name, seed) for name in operands.CLASSES for seed in range(TILES)]
    a, b, c = (np.stack(x) for x in zip(*(operands.make(*s, 16, 8, dtype) for s in sets), strict=True))
    result = recorded.multiply_mma(run, a, b, c, dtype)
    return {"names": np.array([name for name, _ in sets]), "a": a, "b": b, "c": c, "result": result}


def record_wgmma(run: Run, dtype: str, n: int) -> dict[str, np.ndarray]:
    """names, seeds, a, b, c: of each set of operands, as of mma. sets: which of them each case of wgmma_cases has; its
    result is results[which]: most are equal, and kept once."""
    sets = recorded.wgmma_sets(n, dtype)
    a, b, c = (np.stack(x) for x in zip(*(operands.make(*s, 64, n, dtype) for s in sets), strict=True))
    cases = recorded.wgmma_cases(sets)
    index = [i for i, *_ in cases]
    result = recorded.multiply_wgmma(run, a[index], b[index], c[index], dtype, [case[1:] for case in cases])
    results, which = np.unique(result.view(np.uint32).reshape(len(cases), -1), axis=0, return_inverse=True)
    names, seeds = (np.array(x) for x in zip(*sets, strict=True))
    kept = {"results": results.reshape(-1, 64, n).view(np.float32), "which": which.reshape(-1).astype(np.uint8)}
    return {"names": names, "seeds": seeds, "a": a, "b": b, "c": c, "sets": np.array(index, np.uint8), **kept}


def record_functions(run: Run) -> dict[str, np.ndarray]:
    x = recorded.exp2_arguments()
    result = {"exp2_x": x, "exp2_y": recorded.exp2_all(run, x)}
    for dtype in DTYPES:
        x = recorded.pack_arguments(dtype)
        result |= {f"pack_{dtype}_x": x, f"pack_{dtype}_pairs": recorded.pack_all(run, x, dtype)}
    return result


def record_attention(run: attention.Run, name: str, target: str) -> dict[str, np.ndarray]:
    """Bits of 16-bit tensors; inputs are attention.inputs(name)."""
    results = attention.record(run, name, target)
    as_stored = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.float32}
    arrays = {n: t.contiguous().view(as_stored[t.dtype]).numpy() for n, t in results.items()}
    case = attention.CASES[name]
    settings = {"config": np.array(case.config), "slack": np.array(attention.SLACK[case.dtype])}
    return {"target": np.array(target), **settings, **arrays}


def files(run: Run, run_attention: attention.Run, is_hopper: bool) -> Files:
    def of_attention(names: Iterable[str], target: str) -> Files:
        return {f"attention_{name}": partial(record_attention, run_attention, name, target) for name in names}

    kinds: Files = {f"mma_{dtype}": lambda d=dtype: record_mma(run, d) for dtype in DTYPES}  # type: ignore[misc]
    kinds["functions"] = lambda: record_functions(run)
    kinds |= of_attention(attention.PORTABLE, "cuda:sm_90" if is_hopper else "cuda:sm_80")
    kinds |= of_attention(attention.HOPPER if is_hopper else (), "cuda:sm_90a")
    for dtype in DTYPES:
        for n in WIDTHS if is_hopper else ():
            kinds[f"wgmma_{dtype}_n{n}"] = lambda d=dtype, n=n: record_wgmma(run, d, n)  # type: ignore[misc]
    for what in recorded.COPIES if is_hopper else ():
        kinds[f"boxes_{what}"] = lambda what=what: recorded.copy_boxes(run, what)  # type: ignore[misc]
    return kinds


def record_alone(folder: Path, name: str, emulate: bool) -> None:
    """In a process of its own."""
    command = [sys.executable, __file__, str(folder), "--alone", name, *["--emulate"] * emulate]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {LIMIT} s") from None
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-400:]} {done.stderr[-400:]}")


def compiler() -> str:
    lines = [line for line in _native.info().splitlines() if line.startswith("cuda compiler: ")]
    return lines[0].removeprefix("cuda compiler: ").split(",")[0] if lines else "no compiler"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--emulate", action="store_true", help="the emulator instead of a GPU")
    parser.add_argument("--only", default="", metavar="TEXT", help="files with this in their name")
    parser.add_argument("--alone", default="", metavar="NAME", help="the file of this name, in this process")
    arguments = parser.parse_args()
    if arguments.emulate:
        from emulator import launches
        from emulator.attention import run_given

        run, about, kind = launches.run, "the emulator, which is no device", "emulator"
        run_attention: attention.Run = run_given
    else:
        if reason := driver.missing("cuda:sm_80"):
            sys.exit(f"record.py: {reason}")
        kind = driver.here("cuda:sm_80").removeprefix("cuda:")
        run, about = driver.run, f"{driver.device_and_driver()}, {compiler()}, PyTorch {torch.__version__}"
        run_attention = attention.run_on_gpu
    folder, kinds = arguments.folder / kind, files(run, run_attention, kind in ("sm_90", "emulator"))
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.alone:
        np.savez_compressed(folder / f"{arguments.alone}.npz", about=np.array(about), **kinds[arguments.alone]())
        return
    names, failed = [name for name in kinds if arguments.only in name], []
    if not names:
        sys.exit(f"record.py: no file has {arguments.only!r} in its name; there are {', '.join(kinds)}")
    print(about)
    for name in names:
        start, path = time.monotonic(), folder / f"{name}.npz"
        try:
            record_alone(arguments.folder, name, arguments.emulate)
        except RuntimeError as error:  # the others are worth having
            failed.append(name)
            print(f"{name}: {error}", flush=True)
            continue
        print(f"{name}: {path.stat().st_size} bytes, {time.monotonic() - start:.1f} s", flush=True)
    if failed:
        sys.exit(f"record.py: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
