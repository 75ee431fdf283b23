"""Protects: what Hopper kernels are made of - barriers, TMA, wgmma, roles - compiles to what is meant, and works.

The kernel is templates/cuda/matmul.cu. Without a GPU it is compiled (here) and run in the emulator (tests/emulator/).
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import tf32
from flash_attention import _native, flash_attention
from gpu import driver, layouts, recorded, sanitize
from gpu.launch import expand
from gpu.matmul import Call, Matmul

RESULTS = ("store", "add", "add_fragments")
needs_hopper = pytest.mark.usefixtures("_hopper")


@pytest.fixture
def _hopper(cuda: torch.device) -> None:
    if reason := driver.missing():
        pytest.skip(reason)


@pytest.fixture
def _nvrtc() -> None:
    if "cuda compiler: none" in _native.info():
        pytest.skip("there is no NVRTC here; PyTorch for CUDA brings one")


def disassembler() -> str:
    """nvdisasm of a CUDA toolkit, or of Triton's wheel, which PyTorch for CUDA depends on."""
    try:
        import triton  # type: ignore[import-not-found]
    except ImportError:
        return shutil.which("nvdisasm") or ""
    path = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    return str(path) if path.exists() else shutil.which("nvdisasm") or ""


def assert_clean(compiled: _native.Compiled, what: object) -> None:
    """No register in memory, and nothing that ptxas does with wgmma or setmaxnreg behind our back (C75xx)."""
    assert compiled.spill_bytes == 0, (what, compiled.log)
    assert not re.search(r"\(C7\d\d\d\)|arning", compiled.log), (what, compiled.log)


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize("result", RESULTS)
def test_matmul_compiles_without_spills_or_messages(result: str) -> None:
    layouts = itertools.product((64, 128, 192), (False, True), (False, True))
    for i, (block_n, a_is_m_major, b_is_n_major) in enumerate(layouts):
        problem = Matmul(1, 1, 1, ("bf16", "fp16")[i % 2], block_n, 3, a_is_m_major, b_is_n_major, result)
        compiled = _native.compile_source("cuda:sm_90a", problem.source())
        assert_clean(compiled, problem)
        assert compiled.registers == 168  # 65536 for 384 threads, without which setmaxnreg is ignored


@pytest.mark.usefixtures("_nvrtc")
def test_matmul_is_made_of_hoppers_instructions(tmp_path: Path) -> None:
    """One wgmma for each 16 of a stage's k, none serialised by waits between; TMA in and out; registers handed on."""
    if not disassembler():
        pytest.skip("there is no nvdisasm here; Triton's wheel brings one")
    sass = {}
    for result in RESULTS:
        problem = Matmul(1, 1, 1, b_is_n_major=True, result=result)
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(_native.compile_source("cuda:sm_90a", problem.source()).image)
        command = [disassembler(), str(cubin)]
        sass[result] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for text in sass.values():
        assert len(re.findall(r"\bHGMMA\.64x128x16\.F32\.BF16", text)) == 4
        assert len(re.findall(r"\bWARPGROUP\.ARRIVE", text)) == 1  # wgmma_fence
        assert len(re.findall(r"\bWARPGROUP\.DEPBAR", text)) == 2  # wgmma_wait
        assert len(re.findall(r"\bUTMALDG\.2D", text)) == 3
        assert len(re.findall(r"\bUSETMAXREG", text)) == 2
        assert "SYNCS.PHASECHK.TRANS64.TRYWAIT" in text
        assert "FENCE.VIEW.ASYNC" in text
    assert len(re.findall(r"\bSTSM\.16\.M88\.4", sass["store"])) == 8
    assert len(re.findall(r"\bUTMASTG\.2D", sass["store"])) == 2
    assert len(re.findall(r"\bUTMAREDG\.2D\.ADD", sass["add"])) == 4
    assert len(re.findall(r"\bUBLKRED\.G\.S\.ADD\.F32", sass["add_fragments"])) == 1


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize("dtype", recorded.DTYPES)
def test_recorded_kernels_compile(dtype: str) -> None:
    """A recording is a run on a machine that is not at hand: it must not end at a typing error."""
    for n in (8, 80, 256):
        assert_clean(_native.compile_source("cuda:sm_90a", recorded.wgmma_source(n, dtype)), (n, dtype))
    head = expand("cuda/ptx.h", "cuda/hopper.h", op="forward", dtype_16=dtype)
    for text in (recorded.MMA, recorded.FUNCTIONS, recorded.BOX):
        assert_clean(_native.compile_source("cuda:sm_90a", head + text), text[:80])


@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.name)
def test_layouts_hold_each_element_once(layout: layouts.Layout) -> None:
    """Of what is recorded: no two elements in one place, none outside of the image."""
    for rows in (8, 64, 80, 256):
        addresses = layout.addresses(rows)
        image = recorded.b_image(rows) if rows != 64 else min(recorded.b_image(rows), recorded.A_IMAGE)
        assert len(np.unique(addresses)) == rows * 16
        assert addresses.max() < image
        assert not (addresses % 2).any()


@pytest.mark.parametrize("cases", [sanitize.FEW, sanitize.FEW + sanitize.MORE], ids=["few", "all"])
def test_sanitizer_runs_both_families(cases: list[sanitize.Case]) -> None:
    """compute-sanitizer sees on an H100 every family, op and dtype that there is, and head dims of V's own. On other
    devices all is portable."""
    kinds = set(itertools.product(sanitize.OPS, sanitize.DTYPES))

    def seen(target: str, name: str) -> set[tuple[str, str]]:
        return {(text.split()[0], case.dtype) for case in cases for text, f in case.problems(target) if f == name}

    for name, wanted in sanitize.OF_HOPPER.items():
        assert seen("cuda:sm_90a", name) == set(wanted), name
        assert not seen("cuda:sm_80", name), name
    assert seen("cuda:sm_90a", "portable") == kinds
    assert seen("cuda:sm_80", "portable") == kinds
    for name in ("two_pass", "two_pass_wide"):
        assert any(c.value_dim != c.head_dim and name in dict(c.problems("cuda:sm_90a")).values() for c in cases), name


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"matmul\.cu:\d+: block_n is 96; it must be 64, 128 or 192"):
        Matmul(1, 1, 1, block_n=96).source()
    with pytest.raises(RuntimeError, match=r"matmul\.cu:\d+: num_stages is 1"):
        Matmul(1, 1, 1, num_stages=1).source()


# Tiles that are whole, cut and alone; a ring that is never full, just full, and used often; blocks with many tiles.
SHAPES = [(128, 128, 64), (256, 256, 512), (130, 200, 72), (1, 8, 8), (64, 72, 192), (300, 129, 200), (500, 520, 1000)]


@needs_hopper
@pytest.mark.parametrize("dtype", recorded.DTYPES)
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("majors", [(False, False), (False, True), (True, False), (True, True)])
def test_cuda_matmul_is_exact_on_integers(dtype: str, result: str, majors: tuple[bool, bool]) -> None:
    """Every element is where it belongs, whatever the layout, and no zero that TMA fills in is missing."""
    for (m, n, k), block_n in itertools.product(SHAPES, (64, 128, 192)):
        call = Call(Matmul(m, n, k, dtype, block_n, 3, *majors, result))
        driver.run(call.launch)
        assert not call.check(), call.problem


@needs_hopper
@pytest.mark.parametrize("result", RESULTS)
def test_cuda_matmul_of_normal_data_is_near_float64(result: str) -> None:
    for m, n, k in SHAPES:
        splits = 1 if result == "store" else min(3, -(-k // 64))
        call = Call(Matmul(m, n, k, "bf16", result=result, splits=splits, data="normal"))
        driver.run(call.launch)
        assert not call.check(), call.problem


@needs_hopper
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_cuda_ring_goes_on_from_tile_to_tile(num_stages: int) -> None:
    """A few blocks walk over many tiles, with a number of steps that is no multiple of the stages."""
    for blocks, k in itertools.product((1, 3), (64, 320, 448)):
        call = Call(Matmul(700, 600, k, "fp16", num_stages=num_stages, blocks=blocks))
        driver.run(call.launch)
        assert not call.check(), call.problem


@needs_hopper
def test_cuda_many_runs_give_the_same_bits() -> None:
    """What is stored depends on no timing. A race of stages shows here in the end, if nowhere else."""
    problem = Matmul(1024, 1024, 1024, data="normal", blocks=torch.cuda.get_device_properties(0).multi_processor_count)
    first = Call(problem)
    driver.run(first.launch)
    assert not first.check()
    for _ in range(20):
        again = Call(problem)
        driver.run(again.launch)
        assert (again.c.values == first.c.values).all()


@pytest.fixture
def _tf32_allowed() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@needs_hopper
@pytest.mark.usefixtures("_tf32_allowed")
@pytest.mark.parametrize("kind", tf32.KINDS)
@pytest.mark.parametrize(("seqlen", "head_dim", "is_causal"), [(1000, 64, True), (4096, 128, False), (700, 200, True)])
def test_cuda_one_product_is_no_less_accurate_than_tf32(kind: str, seqlen: int, head_dim: int, is_causal: bool) -> None:
    """tests/emulator/test_one_product.py has the same for short sequences, without a GPU."""
    q, k, v = tf32.inputs(kind, (1, 2, seqlen, head_dim), device="cuda")
    scale = tf32.scale_of(kind, head_dim)
    output = flash_attention(q, k, v, is_causal=is_causal, scale=scale)
    assert not (text := tf32.complaint(output, q, k, v, is_causal, scale)), text


@needs_hopper
def test_cuda_the_setting_counts_in_each_call() -> None:
    """One product where TF32 is allowed and no gradient is recorded, three everywhere else; in compiled code too."""
    q, k, v = tf32.inputs("normal", (1, 2, 300, 64), device="cuda")
    exact = tf32.attention(q, k, v, False, 0.125, bits=52)
    compiled = torch.compile(lambda: flash_attention(q, k, v, scale=0.125), fullgraph=True)

    def error(output: torch.Tensor) -> float:
        return tf32.errors(output, exact)[0]

    with torch.no_grad():
        for call in (lambda: flash_attention(q, k, v, scale=0.125), compiled):
            torch.set_float32_matmul_precision("highest")
            assert error(call()) < 2e-6
            try:
                torch.set_float32_matmul_precision("high")
                assert 5e-5 < error(call()) < 1e-3
            finally:
                torch.set_float32_matmul_precision("highest")
            assert error(call()) < 2e-6


@needs_hopper
def test_cuda_gradients_do_not_depend_on_the_setting() -> None:
    """Backward divides by sums of weights that it computes by three products: forward's must be those."""
    results = []
    for precision in ("highest", "high"):
        q, k, v = (x.requires_grad_() for x in tf32.inputs("normal", (1, 2, 300, 64), device="cuda"))
        try:
            torch.set_float32_matmul_precision(precision)
            output = flash_attention(q * 30, k * 30, v, is_causal=True)
            gradients = torch.autograd.grad(output, (q, k, v), torch.ones_like(output))
        finally:
            torch.set_float32_matmul_precision("highest")
        results.append((output, *gradients))
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
