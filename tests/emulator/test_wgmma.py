"""wgmma: where it takes its operands from and puts its results, and how it adds."""

from __future__ import annotations

import numpy as np
import pytest

from emulator.layouts import accumulator_element, place_k_major, place_mn_major
from emulator.machine import MODELS, TIMINGS, TYPES, Settings, library
from emulator.small import run
from emulator.test_instructions import bits

B_AT = 32768  # bytes from the beginning of shared memory, behind A
KERNEL = """
template <int TRANS_A, int TRANS_B>
static __device__ __forceinline__ void product(float (&c)[64], u64 a, u64 b) {
  wgmma_m64n128k16<TRANS_A, TRANS_B>(c, a, b, 1);
}

/* C += A B for A of 64 x 16 k and B of 16 k x 128, in `steps` steps of 16 k. */
extern "C" __global__ void __launch_bounds__(128)
kernel(const u32 *in_image, const float *in_c, float *out_c, int words, int trans, int steps, int swizzle_a,
       int leading_a, int stride_a, int step_a, int swizzle_b, int leading_b, int stride_b, int step_b) {
  extern __shared__ __align__(1024) unsigned char shared[];
  for (int i = threadIdx.x; i < words; i += 128)
    ((u32 *)shared)[i] = in_image[i];
  fence_async_shared();
  __syncthreads();
  float c[64];
  for (int i = 0; i < 64; i++)
    c[i] = in_c[threadIdx.x * 64 + i];
  u32 at = shared_address(shared);
  wgmma_fence();
  for (int step = 0; step < steps; step++) {
    u64 a = matrix_descriptor(at + step * step_a, leading_a, stride_a, swizzle_a);
    u64 b = matrix_descriptor(at + 32768 + step * step_b, leading_b, stride_b, swizzle_b);
    if (trans == 0)
      product<0, 0>(c, a, b);
    else if (trans == 1)
      product<1, 0>(c, a, b);
    else if (trans == 2)
      product<0, 1>(c, a, b);
    else
      product<1, 1>(c, a, b);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < 64; i++)
    out_c[threadIdx.x * 64 + i] = c[i];
}
"""
# By swizzle: leading offset, stride, bytes from one k16 step to the next. No offset is the dense one where it need not
# be, so that each can only be right in its own role.
K_MAJOR = {0: (10240, 192, 20480), 32: (16, 768, 0), 64: (16, 1536, 32), 128: (16, 2048, 32)}
MN_MAJOR_A = {0: (4096, 256, 8192), 32: (4096, 512, 1024), 64: (8192, 1024, 2048), 128: (16, 2048, 4096)}
MN_MAJOR_B = {0: (4096, 192, 8192), 32: (2048, 512, 1024), 64: (4096, 1024, 2048), 128: (12288, 2048, 4096)}


def fragments(matrix: np.ndarray) -> np.ndarray:
    """What each of 128 threads holds of a 64-row matrix."""
    places = [[accumulator_element(t, r) for r in range(matrix.shape[1] // 2)] for t in range(128)]
    return np.array([[matrix[place] for place in row] for row in places], np.float32)


def place(values: np.ndarray, transposed: bool, swizzle: int, offsets: tuple[int, int, int], steps: int) -> np.ndarray:
    """The image of 16 k of a matrix after the other."""
    leading, stride, step = offsets
    image = np.zeros(B_AT // 2, np.uint16)
    if not transposed and step == 32:  # all steps lie in the same rows
        return image + place_k_major(values, swizzle, leading, stride, B_AT)
    put = place_mn_major if transposed else place_k_major
    for i in range(steps):
        part = put(values[:, i * 16 : i * 16 + 16], swizzle, leading, stride, B_AT - i * step)
        image[i * step // 2 :] |= part
    return image


@pytest.mark.parametrize("trans", range(4))
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_operands_in_shared_memory(swizzle: int, trans: int) -> None:
    """Every canonical layout of A and B, by the hand-made tables of layouts.py: offsets, swizzles, steps along k."""
    steps = 2 if swizzle != 32 or trans == 3 else 1
    rng = np.random.default_rng(trans)
    a, b = (rng.integers(-8, 9, (rows, 16 * steps)).astype(np.float32) for rows in (64, 128))
    c = rng.integers(-8, 9, (64, 128)).astype(np.float32)
    offsets_a = (MN_MAJOR_A if trans & 1 else K_MAJOR)[swizzle]
    offsets_b = (MN_MAJOR_B if trans & 2 else K_MAJOR)[swizzle]
    if not swizzle and not trans & 2:
        offsets_b = (6144, 192, 12288)
    image = np.concatenate(
        [
            place(bits(a, "bf16"), bool(trans & 1), swizzle, offsets_a, steps),
            place(bits(b, "bf16"), bool(trans & 2), swizzle, offsets_b, steps),
        ]
    ).view(np.uint32)
    out = np.zeros((128, 64), np.float32)
    numbers = [image.size, trans, steps]
    for leading, stride, step in (offsets_a, offsets_b):
        numbers += [swizzle, leading, stride, step]
    run(
        KERNEL, image, fragments(c), out, *numbers,
        block=128, shared=2 * B_AT, dtype="bf16", widths=(128,), settings=Settings(trans, list(TIMINGS)[trans % 3]),
    )  # fmt: skip
    np.testing.assert_array_equal(out, fragments(c + a @ b.T))


def test_descriptor_bits() -> None:
    """Address, leading and stride offset without their lowest four bits from bits 0, 16 and 32; layout in 62, 63."""
    out = np.zeros(5, np.uint64)
    run(
        """
extern "C" __global__ void kernel(u64 *out_d) {
  out_d[0] = matrix_descriptor(0x2400, 16, 1024, 128);
  out_d[1] = matrix_descriptor(0x38bf0, 8192, 512, 64);
  out_d[2] = matrix_descriptor(0x10, 256, 2048, 32);
  out_d[3] = matrix_descriptor(0x400, 128, 256, 0);
  out_d[4] = matrix_descriptor(0x1000420, 0, 0, 0);
}""",
        out, block=1, widths=(),
    )  # fmt: skip
    expected = [0x4000004000010240, 0x80000020020038BF, 0xC000008000100001, 0x0000001000080040, 0x42]
    assert [int(x) for x in out] == expected


def test_accumulator_fragment() -> None:
    """Some places of the figure read by hand: thread, register, row, column."""
    for thread, register, row, column in [
        (0, 0, 0, 0), (0, 1, 0, 1), (0, 2, 8, 0), (0, 3, 8, 1), (0, 4, 0, 8), (1, 0, 0, 2), (3, 1, 0, 7), (4, 0, 1, 0),
        (31, 3, 15, 7), (32, 0, 16, 0), (69, 7, 41, 11), (127, 63, 63, 127),
    ]:  # fmt: skip
        assert accumulator_element(thread, register) == (row, column)


REGISTERS = """
extern "C" __global__ void __launch_bounds__(128)
kernel(const u32 *in_a, const u32 *in_b, const float *in_c, float *out_c, int accumulate) {
  extern __shared__ __align__(1024) unsigned char shared[];
  for (int i = threadIdx.x; i < WIDTH * 8; i += 128)
    ((u32 *)shared)[i] = in_b[i];
  fence_async_shared();
  __syncthreads();
  float c[WIDTH / 2];
  u32 a[4];
  for (int i = 0; i < WIDTH / 2; i++)
    c[i] = in_c[threadIdx.x * (WIDTH / 2) + i];
  for (int i = 0; i < 4; i++)
    a[i] = in_a[threadIdx.x * 4 + i];
  wgmma_fence();
  wgmma_m64nWIDTHk16<0>(c, a, matrix_descriptor(shared_address(shared), 128, 256, 0), accumulate);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < WIDTH / 2; i++)
    out_c[threadIdx.x * (WIDTH / 2) + i] = c[i];
}
"""


def multiply_registers(
    dtype: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, accumulate: int, settings: Settings
) -> np.ndarray:
    """(bits of) A from registers, 64 x 16; of B, n x 16, K-major without a swizzle; the threads' results."""
    width = len(b)
    threads = np.arange(128)
    group, t, warp = threads % 32 // 4, threads % 4, threads // 32
    rows, columns = (0, 8, 0, 8), (0, 0, 8, 8)  # of the pair in each register
    pairs = [
        a[16 * warp + group + r, 2 * t + k].astype(np.uint32)
        | a[16 * warp + group + r, 2 * t + k + 1].astype(np.uint32) << 16
        for r, k in zip(rows, columns, strict=True)
    ]
    out = np.zeros((128, width // 2), np.float32)
    run(
        REGISTERS.replace("WIDTH", str(width)), np.ascontiguousarray(np.stack(pairs, 1)),
        place_k_major(b, 0, 128, 256, width * 32).view(np.uint32), fragments(c), out, accumulate,
        block=128, shared=width * 32, dtype=dtype, widths=(width,), settings=settings,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_from_registers(dtype: str, timing: str) -> None:
    """Figure "WGMMA .m64nNk16 register fragment layout for matrix A"; with accumulate 0, C does not count."""
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((64, 16), (24, 16), (64, 24)))
    for accumulate in (0, 1):
        out = multiply_registers(dtype, bits(a, dtype), bits(b, dtype), c, accumulate, Settings(2, timing))
        np.testing.assert_array_equal(out, fragments(accumulate * c + a @ b.T))


@pytest.mark.parametrize("width", [8, 80, 256])
def test_widths(width: int) -> None:
    """The narrowest, the widest, and one that is no multiple of 16 times a power of two."""
    rng = np.random.default_rng(width)
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((64, 16), (width, 16), (64, width)))
    out = multiply_registers("fp16", bits(a, "fp16"), bits(b, "fp16"), c, 1, Settings(width))
    np.testing.assert_array_equal(out, fragments(c + a @ b.T))


@pytest.mark.parametrize("model", ["hopper", "double"])
def test_adds_as_hopper_does(model: str) -> None:
    """Sixteen products and the accumulator at once; the model's own sums are in test_instructions.py."""
    rng = np.random.default_rng(2)
    a, b, c = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((64, 16), (24, 16), (64, 24)))
    a_bits, b_bits = bits(a, "fp16"), bits(b, "fp16")
    expected = c.copy()
    for row in range(0, 64, 16):
        for column in range(0, 24, 8):
            part = np.ascontiguousarray(c[row : row + 16, column : column + 8])
            left, right = a_bits[row : row + 16].copy(), b_bits[column : column + 8].T.copy()
            library().emu_multiply(part.ctypes.data, left.ctypes.data, right.ctypes.data, TYPES["fp16"], MODELS[model])
            expected[row : row + 16, column : column + 8] = part
    out = multiply_registers("fp16", a_bits, b_bits, c, 1, Settings(0, "late", model=model))
    np.testing.assert_array_equal(out, fragments(expected))
