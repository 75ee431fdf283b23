"""Protects: the emulator computes what GPUs do. Each file in recordings/ is what one computed (tests/gpu/record.py).

Instructions are compared bit for bit. The attention kernels differ from a GPU's by 2^x, contraction and the order of
sums: both results must lie between the same values, which intervals.py derives.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emulator import attention, intervals, launches, tensors
from emulator.attention import Case
from emulator.machine import Settings
from gpu import attention as recorded_attention
from gpu import operands, recorded

RECORDINGS = Path(__file__).parent / "recordings"
FILES = [f for f in sorted(RECORDINGS.glob("sm_*/*.npz")) if not f.stem.startswith("attention_hopper")]


def kinds(prefix: str) -> list[pytest.param]:
    """The recordings whose name begins so; where there are none, one that says so."""
    found = [pytest.param(f, id=f"{f.parent.name}-{f.stem}") for f in FILES if f.stem.startswith(prefix)]
    missing = pytest.mark.skip(reason=f"there are no recordings of {prefix} in tests/emulator/recordings")
    return found or [pytest.param(None, marks=missing)]


def model(path: Path) -> str:
    """How the tensor cores add on which it was recorded."""
    return "hopper" if path.parent.name in ("sm_90", "emulator") else "ampere"


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


def load(path: Path, case: Case) -> dict[str, Tensor]:
    """What was recorded of a case: 16-bit tensors are kept as their bits."""
    file = np.load(path)
    if "config" in file and str(file["config"]) != case.config:
        raise ValueError(f"{path.name} is of the config {file['config']}, the case has {case.config}: record again")
    names = [name for name in ("output", *recorded_attention.GRADIENTS) if name in file]
    results = {name: torch.from_numpy(file[name]).view(tensors.TORCH[case.dtype]) for name in names}
    return {**results, "lse": torch.from_numpy(file["lse"])}


def emulate(case: Case, given: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output and statistics by forward; gradients, where there are theirs, by backward from their output and theirs."""
    ours = {name: torch.full_like(tensor, math.nan) for name, tensor in theirs.items()}
    forward = {name: given[name] for name in recorded_attention.FORWARD}
    attention.run_given(case, "forward", forward, {name: ours[name] for name in ("output", "lse")})
    if wanted := {name: ours[name] for name in recorded_attention.GRADIENTS if name in ours}:
        attention.run_given(case, "backward", {**given, "output": theirs["output"], "lse": theirs["lse"]}, wanted)
    return ours


def slack_of(path: Path) -> float:
    """SLACK of the kernels that were recorded."""
    return float(np.load(path)["slack"])


def outside(path: Path, name: str, op: str) -> list[str]:
    """What of a case lies outside of the intervals that are derived in intervals.py: the GPU's and the emulator's.

    Most elements of an output in bf16 can be one number only.
    """
    target, settings = str(np.load(path)["target"]), Settings(model=model(path))
    case, given = recorded_attention.filled(name, op, target, settings), recorded_attention.inputs(name)
    theirs = load(path, case)
    ours = emulate(case, given, theirs)
    found = []
    slack = {"the GPU": slack_of(path), "the emulator": recorded_attention.SLACK[case.dtype]}
    for who, results in (("the GPU", theirs), ("the emulator", ours)):
        allowed = {
            "output": intervals.output(case, given, settings.model, slack[who]),
            "lse": intervals.statistics(case, given, settings.model, slack[who]),
        }
        if op == "backward":
            allowed |= intervals.gradients(case, given, theirs["output"], theirs["lse"], settings.model)
        for what, (low, high) in allowed.items():
            result = results[what].view(low.shape)
            wrong = ~((low <= result.double()) & (result.double() <= high))
            if wrong.any():
                found.append(f"{who}: {tensors.describe_wrong(what, result, (low + high) / 2, wrong)}")
    return found


@pytest.mark.parametrize("path", kinds("attention"))
def test_attention_is_as_on_the_gpu(path: Path) -> None:
    """The portable kernels."""
    assert not outside(path, path.stem.removeprefix("attention_"), "backward")


@pytest.mark.parametrize("name", recorded_attention.HOPPER)
def test_hopper_forward_is_as_on_the_gpu(name: str) -> None:
    """wgmma and TMA, as one kernel uses them."""
    path = RECORDINGS / "sm_90" / f"attention_{name}.npz"
    if not path.exists():
        pytest.skip(f"there is no recording {path.relative_to(RECORDINGS.parents[2])} yet: tests/gpu/record.py")
    assert not outside(path, name, "forward")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hopper's recordings with the emulator in the GPU's place, from the command that records on one."""
    folder = tmp_path_factory.mktemp("recordings")
    command = [sys.executable, Path(recorded.__file__).with_name("record.py"), folder, "--emulate", "--only", "hopper"]
    subprocess.run(command, check=True)
    return folder / "emulator"


@pytest.mark.parametrize("name", recorded_attention.HOPPER)
def test_a_number_outside_of_its_interval_is_found(emulated: Path, name: str, tmp_path: Path) -> None:
    """What the emulator recorded passes; with one number moved past its bound, it does not."""
    path = emulated / f"attention_{name}.npz"
    assert not outside(path, name, "forward")
    arrays, scratch = dict(np.load(path)), tmp_path / "emulator" / "changed.npz"
    scratch.parent.mkdir()
    case, given = recorded_attention.filled(name, "forward", "cuda:sm_90a"), recorded_attention.inputs(name)
    for what, allowed in (("output", intervals.output), ("lse", intervals.statistics)):
        high = allowed(case, given, "hopper", slack_of(path))[1].flatten()
        place = len(high) // 3
        kind = tensors.TORCH[case.dtype] if what == "output" else torch.float32
        above = torch.nextafter(high[place].to(kind), torch.tensor(math.inf, dtype=kind))
        while above.double() <= high[place]:
            above = torch.nextafter(above, torch.tensor(math.inf, dtype=kind))
        changed = arrays[what].copy()
        changed.reshape(-1)[place] = above.view({2: torch.int16, 4: torch.float32}[above.itemsize]).item()
        np.savez(scratch, **{**arrays, what: changed})
        (text,) = outside(scratch, name, "forward")
        assert text.startswith(f"the GPU: {what}: 1 of"), text
