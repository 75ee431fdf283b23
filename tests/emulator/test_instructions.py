"""The emulated instructions do what the PTX ISA says, and add as tensor cores are known to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emulator import build
from emulator.machine import MODELS, TYPES, library
from emulator.small import run

LANES = np.arange(32)
GROUP, THREAD = LANES // 4, LANES % 4  # groupID and threadID_in_group of the PTX ISA


def bits(values: np.ndarray, dtype: str) -> np.ndarray:
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(kind).view(torch.int16).numpy().view(np.uint16)


def words(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


@pytest.mark.parametrize(("terms", "operands"), [(16, "a, b[0], b[1]"), (8, "a[0], a[1], b[0]")])
@pytest.mark.parametrize("dtype", TYPES)
def test_mma_fragments(dtype: str, terms: int, operands: str) -> None:
    """Figures "MMA .m16n8k16 fragment layout" and "MMA .m16n8k8 fragment layout" of the PTX ISA, for A, B and C."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((16, terms), (terms, 8), (16, 8)))
    a_bits, b_bits = bits(a, dtype), bits(b, dtype)

    def a_word(i: int) -> np.ndarray:
        row, column = GROUP + i % 2 * 8, THREAD * 2 + i // 2 * 8
        return words(a_bits[row, column], a_bits[row, column + 1])

    def b_word(i: int) -> np.ndarray:
        row = THREAD * 2 + i * 8
        return words(b_bits[row, GROUP], b_bits[row + 1, GROUP])

    a_words = np.stack([a_word(i) for i in range(terms // 4)], 1)
    b_words = np.stack([b_word(i) for i in range(terms // 8)], 1)
    c_in = np.stack([c[GROUP + (0 if i < 2 else 8), THREAD * 2 + (i & 1)] for i in range(4)], 1)
    out = np.zeros((32, 4), np.float32)
    run(
        f"""
extern "C" __global__ void kernel(const u32 *in_a, const u32 *in_b, const float *in_c, float *out_c) {{
  u32 a[{terms // 4}], b[{terms // 8}];
  float c[4];
  for (int i = 0; i < {terms // 4}; i++)
    a[i] = in_a[threadIdx.x * {terms // 4} + i];
  for (int i = 0; i < {terms // 8}; i++)
    b[i] = in_b[threadIdx.x * {terms // 8} + i];
  for (int i = 0; i < 4; i++)
    c[i] = in_c[threadIdx.x * 4 + i];
  mma_m16n8k{terms}(c, {operands});
  for (int i = 0; i < 4; i++)
    out_c[threadIdx.x * 4 + i] = c[i];
}}""",
        a_words, b_words, np.ascontiguousarray(c_in), out, dtype=dtype,
    )  # fmt: skip
    expected = a @ b + c
    for i in range(4):
        np.testing.assert_array_equal(out[:, i], expected[GROUP + (0 if i < 2 else 8), THREAD * 2 + (i & 1)])


@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix(trans: bool) -> None:
    """Lane 8 i + r points at row r of matrix i; a lane gets two neighbours of a row, or of a column."""
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((32, 4), np.uint32)
    run(
        f"""
extern "C" __global__ void kernel(const unsigned short *in_m, u32 *out_r) {{
  extern __shared__ __align__(16) unsigned char shared[];
  half_bits *tile = (half_bits *)shared;
  for (int i = 0; i < 8; i++)
    tile[threadIdx.x * 24 + i] = in_m[threadIdx.x * 8 + i];
  __syncwarp();
  u32 r[4];
  ldmatrix_x4{"_trans" * trans}(r, shared_address(tile + threadIdx.x * 24));
  for (int i = 0; i < 4; i++)
    out_r[threadIdx.x * 4 + i] = r[i];
}}""",
        matrices, out, shared=32 * 48,
    )  # fmt: skip
    seen = matrices.transpose(0, 2, 1) if trans else matrices
    expected = words(seen[:, GROUP, THREAD * 2], seen[:, GROUP, THREAD * 2 + 1]).T
    np.testing.assert_array_equal(out, expected)


def multiply(model: str, c: float, products: list[tuple[float, float]], dtype: str = "bf16") -> float:
    """c plus the products, the first at k = 0."""
    a, b = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32)
    for k, (x, y) in enumerate(products):
        a[3, k], b[k, 5] = x, y
    sums = np.zeros((16, 8), np.float32)
    sums[3, 5] = c
    a_bits, b_bits = bits(a, dtype), bits(b, dtype)
    pointers = (sums.ctypes.data, a_bits.ctypes.data, b_bits.ctypes.data)
    library().emu_multiply(*pointers, TYPES[dtype], MODELS[model])
    return float(sums[3, 5])


@pytest.mark.parametrize(
    ("c", "products", "hopper", "ampere", "exact"),
    [
        (1.0, [(1.0, 2.0**-23)], 1 + 2.0**-23, 1 + 2.0**-23, 1 + 2.0**-23),
        (1.0, [(1.0, 2.0**-24)] * 2, 1 + 2.0**-23, 1 + 2.0**-23, 1 + 2.0**-23),
        (1.0, [(1.0, 2.0**-25)] * 4, 1 + 2.0**-23, 1.0, 1 + 2.0**-23),
        (1.0, [(1.0, 2.0**-26)] * 16, 1.0, 1.0, 1 + 2.0**-22),  # below what Hopper keeps, too
        (1.0, [(1.0, 1.5 * 2.0**-23)], 1 + 2.0**-23, 1 + 2.0**-23, 1 + 2.0**-22),  # cut, not rounded
        (-1.0, [(1.0, -1.5 * 2.0**-23)], -1 - 2.0**-23, -1 - 2.0**-23, -1 - 2.0**-22),  # toward zero
        (1.0, [(1.0, 2.0**-23)] * 16, 1 + 2.0**-19, 1 + 2.0**-19, 1 + 2.0**-19),
        (0.0, [(2.0**60, 2.0**60), (-(2.0**60), 2.0**60), (1.0, 1.0)], 0.0, 0.0, 1.0),
        # The halves of k are added one after the other on Ampere: 1 cancels the large ones first there.
        (0.0, [(2.0**25, 1.0), (-(2.0**25), 1.0)] + [(0.0, 0.0)] * 6 + [(1.0, 1.0)], 1.0, 1.0, 1.0),
        (0.0, [(2.0**40, 1.0), (-(2.0**40), 1.0)] + [(0.0, 0.0)] * 6 + [(1.0, 1.0)], 0.0, 1.0, 1.0),
        (2.0**-149, [], 2.0**-149, 2.0**-149, 2.0**-149),
        (3.0, [(1.5, 1.5)], 5.25, 5.25, 5.25),
    ],
)
def test_tensor_core_sums(c: float, products: list, hopper: float, ampere: float, exact: float) -> None:
    assert multiply("hopper", c, products) == hopper
    assert multiply("ampere", c, products) == ampere
    assert multiply("double", c, products) == exact


@pytest.mark.parametrize("model", MODELS)
def test_tensor_core_special_values(model: str) -> None:
    inf, nan = float("inf"), float("nan")
    assert multiply(model, 1.0, [(inf, 2.0)]) == inf
    assert np.isnan(multiply(model, 1.0, [(inf, 0.0)]))
    assert np.isnan(multiply(model, 1.0, [(inf, 1.0), (-inf, 1.0)]))
    assert np.isnan(multiply(model, nan, [(1.0, 1.0)]))
    assert multiply(model, 0.0, [(2.0**100, 2.0**100)]) == inf
    assert multiply(model, 0.0, [(2.0**-24, 2.0**-24)], "fp16") == 2.0**-48  # subnormal fp16


@pytest.mark.parametrize("dtype", TYPES)
def test_conversions(dtype: str) -> None:
    """Every 16-bit value there and back; floats around all of them round as PyTorch rounds."""
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    floats = every.view(kind).float()
    lib = library()
    for index in range(0, 2**16, 7):
        value = lib.emu_to_float(int(every[index]) & 0xFFFF, TYPES[dtype])
        assert value == floats[index].item() or (np.isnan(value) and floats[index].isnan())
    finite = floats[floats.isfinite()].sort().values
    middles = (finite[1:].double() + finite[:-1].double()) / 2
    beside = torch.cat([middles, middles * (1 + 2.0**-20), middles * (1 - 2.0**-20), finite.double()]).float()
    beside = torch.cat([beside[::29], torch.tensor([65519.0, 65520.0, -65520.0, 3.4e38, float("inf"), 1e-30, -0.0])])
    expected = beside.to(kind).view(torch.int16)
    for x, e in zip(beside.tolist(), expected.tolist(), strict=True):
        assert lib.emu_from_float(x, TYPES[dtype]) == e & 0xFFFF, x


def test_shuffles_and_votes() -> None:
    out = np.zeros((12, 32), np.int32)
    run(
        """
extern "C" __global__ void kernel(int *out_x) {
  int lane = threadIdx.x, i = 0;
  u32 all = 0xffffffffu;
  out_x[32 * i++ + lane] = __shfl_sync(all, lane * 3, 5);
  out_x[32 * i++ + lane] = __shfl_sync(all, lane * 3, lane + 1, 8);
  out_x[32 * i++ + lane] = __shfl_up_sync(all, lane, 3);
  out_x[32 * i++ + lane] = __shfl_down_sync(all, lane, 5, 16);
  out_x[32 * i++ + lane] = __shfl_xor_sync(all, lane, 6);
  out_x[32 * i++ + lane] = (int)__shfl_xor_sync(all, (double)lane * 0.5, 2);
  out_x[32 * i++ + lane] = __any_sync(all, lane == 7);
  out_x[32 * i++ + lane] = __all_sync(all, lane < 31);
  out_x[32 * i++ + lane] = (int)__ballot_sync(all, lane % 3 == 0);
  out_x[32 * i++ + lane] = __reduce_max_sync(all, lane - 40);
  out_x[32 * i++ + lane] = (int)__reduce_add_sync(all, (u32)lane);
  out_x[32 * i++ + lane] = lane < 16 ? __shfl_xor_sync(0xffffu, lane, 1) : __reduce_min_sync(0xffff0000u, lane);
}""",
        out,
    )
    lane = LANES
    expected = [
        np.full(32, 15), (lane // 8 * 8 + (lane + 1) % 8) * 3, np.where(lane < 3, lane, lane - 3),
        np.where(lane % 16 + 5 < 16, lane + 5, lane), lane ^ 6, (lane ^ 2) // 2, np.ones(32), np.zeros(32),
        np.full(32, sum(1 << i for i in range(0, 32, 3)) - 0), np.full(32, -9), np.full(32, 496),
        np.where(lane < 16, lane ^ 1, 16),
    ]  # fmt: skip
    np.testing.assert_array_equal(out, np.stack(expected).astype(np.int64).astype(np.int32))


@pytest.mark.skipif("-ffp-contract=off" in build.KERNEL_FLAGS, reason="the processor has no fused multiply-add")
def test_contraction() -> None:
    """a * b - c is rounded once, as NVRTC compiles it; __fmul_rn(a, b) is rounded by itself."""
    x = np.array([1 + 2.0**-12, 1 + 2.0**-12, 1 + 2.0**-11], np.float32)
    out = np.zeros(2, np.float32)
    run(
        """
extern "C" __global__ void kernel(const float *in_x, float *out_y) {
  out_y[0] = in_x[0] * in_x[1] - in_x[2];
  out_y[1] = __fmul_rn(in_x[0], in_x[1]) - in_x[2];
}""",
        x, out, block=1,
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.array([2.0**-24, 0], np.float32))


def test_exp2_approx() -> None:
    x = np.concatenate([np.linspace(-130, 128, 60, dtype=np.float32), [-np.inf, np.inf, np.nan, 0]]).astype(np.float32)
    out = np.zeros(64, np.float32)
    run(
        'extern "C" __global__ void kernel(const float *in_x, float *out_y)'
        "{ out_y[threadIdx.x] = exp2_approx(in_x[threadIdx.x]); }",
        x, out, block=64,
    )  # fmt: skip
    with np.errstate(over="ignore"):
        expected = np.exp2(x.astype(np.float64)).astype(np.float32)
    expected[expected < 2.0**-126] = 0
    np.testing.assert_array_equal(out, expected)
