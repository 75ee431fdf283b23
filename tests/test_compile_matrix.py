"""Protects: every CUDA kernel that a user may get compiles, for every architecture, within registers and shared memory.

No GPU is needed: NVRTC, which comes with PyTorch, compiles for all of them.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from flash_attention import _native

DTYPES = ["fp32", "fp16", "bf16"]
OPS = ["forward", "backward"]
HEAD_DIMS = [1, 8, 33, 64, 80, 96, 128, 160, 192, 256]
# With columns that tiles have and tensors have not, at every number of registers for sums; and a mask.
RAGGED = {
    "fp32": [(50, True), (145, True), (212, False)],
    "fp16": [(50, True), (212, True)],
    "bf16": [(72, True), (100, False), (136, True)],
}
MAIN = ["sm_80", "sm_90"]
HOPPER = "sm_90a"  # families of its own: 16 bits, head dims that are multiples of 8; forward in fp32, either precision
OTHERS = ["sm_86", "sm_89", "sm_100", "sm_120", "sm_121"]
# Bytes of shared memory that a block may ask for: CUDA C++ Programming Guide, technical specifications.
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, HOPPER: 232448, "sm_100": 232448} | dict.fromkeys(
    OTHERS[:2] + OTHERS[3:], 101376
)
# Each compiles on a processor; a worker of pytest-xdist has another one beside it.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2


def spill_limit(dtype: str, head_dim: int, architecture: str) -> int:
    """Bytes that a thread of the kernel may store and load, together.

    A few addresses and statistics that are used once for a block of keys do not fit beside sums that fill the 255
    registers of a thread. In fp32 there are high and low parts of each operand beside them, and with a head_dim above
    128 half of a block's sums are one thread's. None of it is in an innermost loop. From sm_100 on
    ptxas keeps more addresses.
    """
    if dtype != "fp32":
        return 112 if int(architecture.removeprefix("sm_").rstrip("af")) < 100 else 192
    return 160 if head_dim <= 128 else 256


Kernel = tuple[
    str, str, int, bool, str, str, bool
]  # op, dtype, head_dim, is_causal, architecture, config, deterministic


def complaint(kernel: Kernel) -> str | None:
    op, dtype, head_dim, is_causal, architecture, config, deterministic, *own = kernel
    head_dim_v = own[0] if own else head_dim
    problem = _native.problem(op, dtype, head_dim, head_dim_v, is_causal, f"cuda:{architecture}", deterministic)
    what = f"{op} {dtype} {head_dim}/{head_dim_v} {'causal' if is_causal else 'full'} {architecture} {config}"
    try:
        compiled = _native.compile_kernel(problem, config)
    except RuntimeError as error:
        return f"{what}: {str(error)[:1000]}"
    if compiled.spill_bytes > spill_limit(dtype, max(head_dim, head_dim_v), architecture):
        return f"{what}: {compiled.registers} registers, {compiled.spill_bytes} bytes spilled"
    # C75xx: ptxas waits for each product of a warpgroup, or gives registers back that a role was to have.
    if "arning" in compiled.log or "(C75" in compiled.log:
        return f"{what}: {compiled.log[:1000]}"
    return None


def check(kernels: Iterable[Kernel]) -> None:
    """Compile all of them, two at a time on two processors."""
    with ThreadPoolExecutor(THREADS) as pool:
        complaints = [text for text in pool.map(complaint, kernels) if text]
    assert not complaints, "\n".join(complaints)


def shared_bytes(problem: _native.Problem, config: str) -> int:
    """Of a block of threads of the phase that asks for most."""
    text, shape = ctypes.c_void_p(), (ctypes.c_int64 * 5)(1, 1, 1, 100, 100)
    _native.call("fa_plan_text", ctypes.byref(problem), config.encode(), shape, ctypes.byref(text))
    phases = [line.split() for line in _native.take_text(text).splitlines() if line.startswith("phase")]
    return max(int(phase[3]) for phase in phases)


@pytest.fixture(autouse=True)
def _needs_nvrtc() -> None:
    if "cuda compiler: none" in _native.info():
        pytest.skip("there is no NVRTC here; PyTorch for CUDA brings one")


@pytest.mark.parametrize("architecture", MAIN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_best_guesses(op: str, dtype: str, architecture: str) -> None:
    """What FLASH_ATTENTION_AUTOTUNE=0 runs, for head dims of every kind."""
    dims = [*itertools.product(HEAD_DIMS, (False, True)), *RAGGED[dtype]]
    check((op, dtype, d, causal, architecture, "", False) for d, causal in dims)


@pytest.mark.parametrize("architecture", OTHERS)
def test_best_guesses_elsewhere(architecture: str) -> None:
    """A thinner set for the other architectures, whose shared memory is smaller or whose ptxas is another."""
    check(
        (op, dtype, d, d == 64, architecture, "", False)
        for op, dtype, d in itertools.product(OPS, ("fp32", "bf16"), (64, 128, 256))
    )


@pytest.mark.parametrize("architecture", MAIN)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("op", OPS)
def test_every_config(op: str, bits: int, head_dim: int, architecture: str) -> None:
    """All that the tuner may choose. Configs take turns at masks, and have the other one on the other architecture.

    fp16 and bf16 differ in one instruction: fp16 is compiled without the mask, bf16 with it.
    """
    dtypes = ("fp16", "bf16") if bits == 16 else ("fp32", "fp32")
    problem = _native.problem(op, dtypes[0], head_dim, head_dim, False, f"cuda:{architecture}")
    masks = itertools.cycle((False, True) if architecture == MAIN[0] else (True, False))
    kernels = zip(_native.list_configs(problem), masks, strict=False)
    check((op, dtypes[causal], head_dim, causal, architecture, config, False) for config, causal in kernels)


MASKS = (False, True) * 8  # by turns


def with_masks(configs: list[str]) -> list[tuple[str, bool]]:
    """The best guess with either, others by turns."""
    return [(configs[0], True), *zip(configs, MASKS, strict=False)]


# Bytes that a thread of Hopper's kernels may store and load. Forward: three warpgroups have 160 registers each, and an
# address or two, used once for a block of keys, do not fit. Backward: with a head dim of 128, dK, dV, scores, and
# dQ or what becomes d_scores take 192 of 240 registers, weights at 16 bits 16 more; with a causal mask a few values
# that are the same for all lanes and used once a step do not fit beside them (12 bytes).
HOPPER_SPILL_LIMIT = {"forward": 16, "backward": 16}


@pytest.mark.parametrize("op", OPS)
def test_hopper(op: str) -> None:
    """The family of sm_90a: head dims of every kind, next to nothing spilled, products of warpgroups not serialised.

    fp16 without the mask and bf16 with it, as above.
    """
    dims = [(8, 8), (56, 56), (64, 64), (80, 80), (96, 96), (128, 128), (8, 64), (72, 40)]
    dims += [(160, 160), (192, 192), (256, 256), (192, 128)] if op == "forward" else [(72, 128), (128, 8), (120, 120)]
    check_hopper(op, (("fp16", *d, False, "") for d in dims))
    check_hopper(op, (("bf16", *d, True, "") for d in dims))


def test_hopper_wide_backward() -> None:
    """Head dims above 128: nothing spilled, though sums take 128 registers of 168."""
    dims = [(136, 136), (160, 160), (192, 128), (72, 136), (256, 8), (192, 256), (248, 248), (256, 136)]
    check_hopper("backward", (("fp16", *d, causal, "") for d, causal in zip(dims, MASKS, strict=False)))


def test_hopper_fp32() -> None:
    """Forward in fp32: any head dim, V's own."""
    dims = [(d, d) for d in (1, 33, 80, 96, 100, 160, 224, 250)]
    dims += [(8, 64), (72, 40), (192, 128), (40, 200), (256, 8)]
    check_hopper("forward", (("fp32", *d, causal, "") for d, causal in zip(dims, MASKS, strict=False)))


def test_hopper_fp32_in_one_product() -> None:
    """What torch.set_float32_matmul_precision("high") allows: any head dim, V's own."""
    dims = [(d, d) for d in (1, 33, 80, 96, 160, 250)]
    dims += [(8, 64), (72, 40), (192, 128), (40, 200), (256, 8)]
    check_hopper("forward", (("fp32", *d, causal, "") for d, causal in zip(dims, MASKS, strict=False)), "reduced")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_hopper_in_two_passes(dtype: str) -> None:
    """Deterministic backward: head dims of every kind, and each config."""
    dims = [(8, 8), (80, 80), (96, 96), (8, 64)] if dtype == "fp16" else [(72, 40), (72, 128), (128, 8), (120, 120)]
    kernels = [(dtype, *d, causal, "") for d, causal in zip(dims, MASKS, strict=False)]
    d = 64 if dtype == "fp16" else 128
    problem = _native.problem("backward", dtype, d, d, False, f"cuda:{HOPPER}", deterministic=True)
    kernels += [(dtype, d, d, causal, config) for config, causal in with_masks(_native.list_configs(problem))]
    check_hopper("backward", kernels, deterministic=True)


@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
@pytest.mark.parametrize(
    ("op", "dtype", "precision"),
    [
        ("forward", "bf16", "full"),
        ("forward", "fp32", "full"),
        ("forward", "fp32", "reduced"),
        ("backward", "bf16", "full"),
    ],
)
def test_every_config_of_hopper(op: str, dtype: str, precision: str, head_dim: int) -> None:
    problem = _native.problem(op, dtype, head_dim, head_dim, False, f"cuda:{HOPPER}", precision=precision)
    configs = with_masks(_native.list_configs(problem))
    check_hopper(op, ((dtype, head_dim, head_dim, causal, config) for config, causal in configs), precision)


def check_hopper(
    op: str, kernels: Iterable[tuple[str, int, int, bool, str]], precision: str = "full", deterministic: bool = False
) -> None:
    """Each is the family's own."""

    def complaint_of(kernel: tuple[str, int, int, bool, str]) -> str | None:
        dtype, head_dim, head_dim_v, causal, config = kernel
        target = f"cuda:{HOPPER}"
        problem = _native.problem(op, dtype, head_dim, head_dim_v, causal, target, deterministic, precision)
        compiled = _native.compile_kernel(problem, config)
        # In fp32, above 192 columns of V, sums and parts take 192 of 240 registers: a dozen addresses and statistics do
        # not fit.
        parts = dtype == "fp32" and precision == "full"
        wide = op == "backward" and max(head_dim, head_dim_v) > 128
        two_pass = wide or deterministic
        limit = 208 if parts and head_dim_v > 192 else 0 if two_pass else HOPPER_SPILL_LIMIT[op]
        if compiled.spill_bytes > limit or "arning" in compiled.log or "(C75" in compiled.log:
            return f"{kernel}: {compiled.spill_bytes} bytes spilled\n{compiled.log}"
        if shared_bytes(problem, config) > SHARED_LIMIT[HOPPER]:
            return f"{kernel}: {shared_bytes(problem, config)} bytes of shared memory"
        own = f"hopper/{op}{'_fp32' * parts}{'_two_pass' * two_pass}.cu"
        return None if f"templates/{own}," in _native.source(problem, config)[0] else f"{kernel}: another family"

    with ThreadPoolExecutor(THREADS) as pool:
        complaints = [text for text in pool.map(complaint_of, kernels) if text]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (64, 128), (128, 64), (40, 8)])
def test_head_dims_of_their_own(head_dim: int, head_dim_v: int) -> None:
    """V's head_dim is not Q's; and an H100's target, whose name has a suffix."""
    kernels = itertools.product(OPS, ("fp32", "bf16"))
    check((op, dtype, head_dim, True, "sm_90a", "", False, head_dim_v) for op, dtype in kernels)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_deterministic_backward(head_dim: int) -> None:
    """What torch.use_deterministic_algorithms asks for."""
    check(("backward", "bf16", head_dim, causal, "sm_90", "", True) for causal in (False, True))


@pytest.mark.parametrize(
    ("dtype", "architecture", "at_once"), [("fp32", "sm_90", 1), ("fp32", "sm_120", 0), ("bf16", "sm_90", 0)]
)
def test_functions_of_a_kernel_are_compiled_at_once(dtype: str, architecture: str, at_once: int) -> None:
    """First calls wait for less; from sm_100 on the code would be worse, and a single function gains nothing."""
    compiled = _native.compile_kernel(_native.problem("forward", dtype, 8, 8, False, f"cuda:{architecture}"), "")
    assert compiled.command.count("--split-compile") == at_once


@pytest.mark.parametrize(("minor", "vectors", "scalars"), [(0, 0, 4), (1, 1, 0)])
def test_vector_reduction_needs_cuda_12_1(minor: int, vectors: int, scalars: int) -> None:
    """An older NVRTC's assembler does not know red.v4.f32: dQ's four neighbours are added one by one there."""
    version = "#undef __CUDACC_VER_MAJOR__\n#undef __CUDACC_VER_MINOR__\n"
    version += f"#define __CUDACC_VER_MAJOR__ 12\n#define __CUDACC_VER_MINOR__ {minor}\n"
    text = _native.expand("cuda/ptx.h", {"dtype_16": "bf16", "op": "backward", "vector_reduce": 1})
    text += 'extern "C" __global__ void add(float *to, float x) { reduce_add_4(to, x, 1, 2, 3); }\n'
    ptx = _native.compile_source("cuda:sm_990", version + text).image  # newer than all: PTX
    assert ptx.count(b"red.relaxed.gpu.global.add.v4.f32") == vectors
    assert ptx.count(b"red.relaxed.gpu.global.add.f32") == scalars


@pytest.mark.parametrize("architecture", [*MAIN, HOPPER, *OTHERS])
def test_every_config_fits(architecture: str) -> None:
    """Shared memory of every config is within the device's, and every problem has a config."""
    for op, dtype, head_dim in itertools.product(OPS, DTYPES, (1, 64, 100, 128, 200, 256)):
        problem = _native.problem(op, dtype, head_dim, head_dim, True, f"cuda:{architecture}")
        for config in _native.list_configs(problem):
            assert shared_bytes(problem, config) <= SHARED_LIMIT[architecture], config
