"""Protects: the emulator computes what GPUs do. Each file in recordings/ is what one computed (tests/gpu/record.py).

Instructions are compared bit for bit. The attention kernels differ from a GPU's by 2^x, contraction and the order of
sums: both results must lie between the same values, which intervals.py derives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emulator import attention, intervals, launches, tensors
from emulator.attention import Case
from emulator.machine import Memory, Settings, lonely
from gpu import attention as recorded_attention
from gpu import operands, recorded

FILES = sorted((Path(__file__).parent / "recordings").glob("sm_*/*.npz"))


def kinds(prefix: str) -> list[pytest.param]:
    """The recordings whose name begins so; where there are none, one that says so."""
    found = [pytest.param(f, id=f"{f.parent.name}-{f.stem}") for f in FILES if f.stem.startswith(prefix)]
    missing = pytest.mark.skip(reason=f"there are no recordings of {prefix} in tests/emulator/recordings")
    return found or [pytest.param(None, marks=missing)]


def model(path: Path) -> str:
    """How the tensor cores add on which it was recorded."""
    return "hopper" if path.parent.name == "sm_90" else "ampere"


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, names: list[str]) -> None:
    """For each name, along the first axis, how many elements differ and the first one."""
    bits = {4: np.uint32, 2: np.uint16}[actual.itemsize]
    differ = actual.view(bits) != expected.view(bits)
    lines = []
    for i, name in enumerate(names):
        if places := np.argwhere(differ[i]).tolist():
            first = tuple(places[0])
            a, e = actual[i][first], expected[i][first]
            lines.append(f"{name} [{i}]: {len(places)} of {differ[i].size}; {first} is {a!r}, the GPU has {e!r}")
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("n", [8, 64, 80, 256])
def test_wgmma_finds_each_element_in_every_layout(n: int) -> None:
    """Without a recording: layouts.py, written from the PTX ISA, and the emulator's decoding of descriptors agree."""
    sets = [("integers", 0)]
    a, b, c = (x[None] for x in operands.make("integers", 0, 64, n, "fp16"))
    cases = recorded.wgmma_cases(sets)
    index = np.zeros(len(cases), int)
    actual = recorded.multiply_wgmma(launches.run, a[index], b[index], c[index], "fp16", [case[1:] for case in cases])
    expected = c[0] + operands.from_bits(a[0], "fp16") @ operands.from_bits(b[0], "fp16").T
    for (_, of_a, of_b), result in zip(cases, actual, strict=True):
        assert (result == expected).all(), (of_a.name if of_a else "registers", of_b.name)


@pytest.mark.parametrize("path", kinds("mma"))
def test_mma_is_the_gpus_bit_for_bit(path: Path) -> None:
    file = np.load(path)

    def run(launch: recorded.Launch) -> None:
        launches.run(launch, Settings(model=model(path)))

    actual = recorded.multiply_mma(run, file["a"], file["b"], file["c"], path.stem.split("_")[1])
    assert_same_bits(actual, file["result"], file["names"].tolist())


@pytest.mark.parametrize("path", kinds("wgmma"))
def test_wgmma_is_the_gpus_bit_for_bit(path: Path) -> None:
    """Sums, and where the elements lie: all widths, layouts, swizzles and transposes, a from registers too."""
    file = np.load(path)
    index, dtype = file["sets"], path.stem.split("_")[1]
    sets = zip(file["names"].tolist(), file["seeds"].tolist(), strict=True)
    cases = recorded.wgmma_cases(list(sets))
    assert [case[0] for case in cases] == index.tolist(), "the cases are others than those recorded: record again"
    a, b, c = (file[name][index] for name in "abc")
    actual = recorded.multiply_wgmma(launches.run, a, b, c, dtype, [case[1:] for case in cases])
    names = [f"{file['names'][i]} a {of_a.name if of_a else 'registers'} b {of_b.name}" for i, of_a, of_b in cases]
    assert_same_bits(actual, file["results"][file["which"]], names)


@pytest.mark.parametrize("path", kinds("boxes"))
def test_boxes_of_tensors_are_the_gpus_byte_for_byte(path: Path) -> None:
    """TMA: what is outside of a tensor, swizzles by address, where a store ends, sums."""
    wrong = []
    boxes = recorded.boxes(path.stem.removeprefix("boxes_"))
    for box, expected in zip(boxes, np.load(path)["results"], strict=True):
        actual = recorded.copy_box(launches.run, box)
        if places := np.argwhere(actual != expected)[:, 0].tolist():
            wrong.append(f"{box.name}: {len(places)} bytes differ, {places[:8]}: {actual[places[:8]]}, the GPU has")
            wrong[-1] += f" {expected[places[:8]]}"
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", kinds("functions"))
def test_conversions_are_the_gpus_bit_for_bit(path: Path) -> None:
    file = np.load(path)
    for dtype in recorded.DTYPES:
        actual = recorded.pack_all(launches.run, file[f"pack_{dtype}_x"], dtype)
        differ = actual != file[f"pack_{dtype}_pairs"]
        places = np.argwhere(differ)[:4, 0]
        pairs = [(file[f"pack_{dtype}_x"][2 * i : 2 * i + 2], hex(actual[i])) for i in places]
        assert not differ.any(), (dtype, pairs, [hex(x) for x in file[f"pack_{dtype}_pairs"][places]])


@pytest.mark.parametrize("path", kinds("functions"))
def test_exp2_is_within_what_intervals_count(path: Path) -> None:
    """ex2.approx is at most 2 units in the last place off 2^x, and the emulator's half of one; the same at the ends."""
    file = np.load(path)
    x, theirs, ours = file["exp2_x"], file["exp2_y"], recorded.exp2_all(launches.run, file["exp2_x"])
    with np.errstate(over="ignore"):
        exact = np.exp2(x.astype(np.float64))
    ordinary = np.isfinite(theirs) & (theirs > 2.0**-125)
    assert (np.abs(theirs[ordinary] / exact[ordinary] - 1) <= 2.0**-22).all()
    assert (np.abs(ours[ordinary] / exact[ordinary] - 1) <= 2.0**-24).all()
    np.testing.assert_array_equal(ours[~ordinary & ~(exact < 2.0**-125)], theirs[~ordinary & ~(exact < 2.0**-125)])
    small = exact < 2.0**-127
    assert (theirs[small] == 0).all()
    assert (ours[small] == 0).all()


def emulate(case: Case, given: dict[str, Tensor], output: Tensor, lse: Tensor) -> dict[str, Tensor]:
    """Output and statistics by forward, gradients by backward from this output and these statistics."""
    made = {name: tensors.make(name, tuple(t.shape), case.dtype, "contiguous", t) for name, t in given.items()}
    written = tensors.make("output", tuple(output.shape), case.dtype, "contiguous", None, True)
    statistics = Memory("lse", lonely(lse.nbytes), True)
    forward = {name: made[name] for name in ("query", "key", "value")}
    problems = attention.run_op(case, "forward", {**forward, "output": written}, statistics, attention.unchanged)
    found = torch.from_numpy(statistics.array.copy()).view(torch.float32)
    statistics = Memory("lse", lonely(lse.nbytes))
    statistics.array[:] = lse.contiguous().view(torch.uint8).numpy()
    wanted = {
        name: tensors.make(name, tuple(given[name.removeprefix("grad_")].shape), case.dtype, "contiguous", None, True)
        for name in recorded_attention.GRADIENTS
    }
    read = {**made, "output": tensors.make("output", tuple(output.shape), case.dtype, "contiguous", output)}
    problems += attention.run_op(case, "backward", {**read, **wanted}, statistics, attention.unchanged)
    assert not problems
    return {"output": written.tensor, "lse": found, **{name: made.tensor for name, made in wanted.items()}}


@pytest.mark.parametrize("path", kinds("attention"))
def test_attention_is_as_on_the_gpu(path: Path) -> None:
    """Both lie in the intervals that are derived in intervals.py; most elements at 16 bits can be one number only."""
    file, name = np.load(path), path.stem.removeprefix("attention_")
    settings = Settings(model=model(path))
    case = recorded_attention.filled(name, "backward", str(file["target"]), settings)
    given, kind = recorded_attention.inputs(name), tensors.TORCH[case.dtype]
    theirs = {n: torch.from_numpy(file[n]).view(kind) for n in ("output", *recorded_attention.GRADIENTS)}
    lse = torch.from_numpy(file["lse"])
    ours = emulate(case, given, theirs["output"], lse)
    allowed = intervals.gradients(case, given, theirs["output"], lse, settings.model)
    allowed["output"] = intervals.output(case, given, settings.model)
    allowed["lse"] = intervals.statistics(case, given, settings.model)
    theirs["lse"], ours["lse"] = (x.view(allowed["lse"][0].shape) for x in (lse, ours["lse"]))
    for what, (low, high) in allowed.items():
        for who, result in (("the GPU", theirs[what]), ("the emulator", ours[what])):
            wrong = ~((low <= result.double()) & (result.double() <= high))
            text = tensors.describe_wrong(what, result, (low + high) / 2, wrong) if wrong.any() else ""
            assert not text, f"{who}: {text}"
