"""The kernels that are recorded on a GPU (record.py) and held against the emulator: one instruction each.

`run` is what runs a launch: driver.run, or the emulator's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpu import layouts, operands
from gpu.launch import ELEMENT_BYTES, Array, Launch, TensorMap, expand
from gpu.layouts import Layout
from gpu.operands import to_bits

Run = Callable[[Launch], None]
DTYPES = ("fp16", "bf16")
PORTABLE = "cuda:sm_80"

MMA = """
extern "C" __global__ void multiply(const half_bits *a, const half_bits *b, float *c)
{
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  a += blockIdx.x * 256, b += blockIdx.x * 128, c += blockIdx.x * 128;
  u32 left[4], right[2];
  float sums[4];
  for (int i = 0; i < 4; i++)
    left[i] = *(const u32 *)(a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8);
  for (int i = 0; i < 2; i++)
    right[i] = *(const u32 *)(b + g * 16 + 2 * t + i * 8);
  for (int i = 0; i < 4; i++)
    sums[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  mma_m16n8k16(sums, left, right[0], right[1]);
  for (int i = 0; i < 4; i++)
    c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}
"""

# Of each block, fields has: where the images begin and how long they are, the descriptors' fields, and which product.
WGMMA = """
enum { N = WIDTH };
enum { A_BYTES, A_START, A_LEADING, A_STRIDE, A_SWIZZLE, B_BYTES, B_START, B_LEADING, B_STRIDE, B_SWIZZLE, PRODUCT,
       NUM_FIELDS };

extern "C" __global__ void __launch_bounds__(128) multiply(const unsigned char *a_images, const unsigned char *b_images,
                                                           const half_bits *a, const int *fields, float *c)
{
  extern __shared__ __align__(1024) unsigned char shared[];
  fields += blockIdx.x * NUM_FIELDS;
  a_images += (long long)blockIdx.x * A_IMAGE, b_images += (long long)blockIdx.x * B_IMAGE;
  a += blockIdx.x * 1024, c += (long long)blockIdx.x * 64 * N;
  for (int i = threadIdx.x * 16; i < fields[A_BYTES]; i += 2048)
    *(uint4 *)(shared + i) = *(const uint4 *)(a_images + i);
  for (int i = threadIdx.x * 16; i < fields[B_BYTES]; i += 2048)
    *(uint4 *)(shared + A_IMAGE + i) = *(const uint4 *)(b_images + i);
  fence_async_shared();
  __syncthreads();

  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = threadIdx.x / 32 * 16 + g;
  u32 left[4];
  float sums[N / 2];
  for (int i = 0; i < 4; i++)
    left[i] = *(const u32 *)(a + (row + i % 2 * 8) * 16 + 2 * t + i / 2 * 8);
#pragma unroll
  for (int i = 0; i < N / 2; i++)
    sums[i] = c[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + 2 * t + i % 2];
  u64 from_a = matrix_descriptor(shared_address(shared) + fields[A_START], fields[A_LEADING], fields[A_STRIDE],
                                 fields[A_SWIZZLE]);
  u64 from_b = matrix_descriptor(shared_address(shared) + A_IMAGE + fields[B_START], fields[B_LEADING],
                                 fields[B_STRIDE], fields[B_SWIZZLE]);
  int product = fields[PRODUCT];
  keep_registers(sums);
  wgmma_fence();
  if (product == 0)
    MULTIPLY<0, 0>(sums, from_a, from_b, 1);
  else if (product == 1)
    MULTIPLY<0, 1>(sums, from_a, from_b, 1);
  else if (product == 2)
    MULTIPLY<1, 0>(sums, from_a, from_b, 1);
  else if (product == 3)
    MULTIPLY<1, 1>(sums, from_a, from_b, 1);
  else if (product == 4)
    MULTIPLY<0>(sums, left, from_b, 1);
  else
    MULTIPLY<1>(sums, left, from_b, 1);
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(sums);
#pragma unroll
  for (int i = 0; i < N / 2; i++)
    c[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + 2 * t + i % 2] = sums[i];
}
"""

FUNCTIONS = """
extern "C" __global__ void exp2_all(const float *x, float *y)
{
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = exp2_approx(x[i]);
}
extern "C" __global__ void pack_all(const float *x, u32 *pairs)
{
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  pairs[i] = pack(x[2 * i], x[2 * i + 1]);
}
"""


# One box, by one block: "load" shows what shared memory holds then, "store" and "add" what the tensor does.
BOX = """
enum { SHARED = 2048 };

extern "C" __global__ void copy_box(const __grid_constant__ tensor_map map, unsigned char *image, int what, int offset,
                                    int bytes, int column, int row)
{
  extern __shared__ __align__(1024) unsigned char shared[];
  u32 tile = shared_address(shared) + offset, barrier = shared_address(shared) + SHARED;
  for (int i = threadIdx.x; i < SHARED / 4; i += 32)
    ((u32 *)shared)[i] = ((const u32 *)image)[i];
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
  }
  fence_async_shared();
  __syncwarp();
  if (what == 0) {
    if (threadIdx.x == 0) {
      barrier_expect(barrier, bytes);
      tensor_load(tile, &map, barrier, column, row);
    }
    barrier_wait(barrier, 0);
  } else if (threadIdx.x == 0) {
    if (what == 1)
      tensor_store(&map, tile, column, row);
    else
      tensor_reduce_add(&map, tile, column, row);
    bulk_commit();
    bulk_wait<0>();
  }
  __syncwarp();
  for (int i = threadIdx.x; i < SHARED / 4; i += 32)
    ((u32 *)image)[i] = ((const u32 *)shared)[i];
}
"""


def multiply_mma(run: Run, a: np.ndarray, b: np.ndarray, c: np.ndarray, dtype: str) -> np.ndarray:
    """c + a bᵀ by mma.sync for many (16, 16), (8, 16) and (16, 8) at once."""
    source = expand("cuda/ptx.h", op="forward", dtype_16=dtype) + MMA
    sums = Array("c", c.copy(), "inout")
    arguments = [Array("a", np.ascontiguousarray(a)), Array("b", np.ascontiguousarray(b)), sums]
    run(Launch(source, "multiply", len(a), 32, 0, arguments, PORTABLE))
    return sums.values


A_IMAGE = 16384


def b_image(n: int) -> int:
    """Bytes for the largest layout of n rows: MN-major, 128-byte swizzle, padded, or K-major, the same."""
    return max(-(-n // 8) * 2048, -(-n // 64) * 4096)


def wgmma_source(n: int, dtype: str) -> str:
    head = expand("cuda/ptx.h", "cuda/hopper.h", "cuda/wgmma.h", op="forward", dtype_16=dtype, wgmma_n=n)
    names = {"WIDTH": str(n), "A_IMAGE": str(A_IMAGE), "B_IMAGE": str(b_image(n)), "MULTIPLY": f"wgmma_m64n{n}k16"}
    body = WGMMA
    for name, value in names.items():
        body = body.replace(name, value)
    return head + body


def _fields(layout: Layout, rows: int, image: int) -> list[int]:
    leading, stride = layout.strides(rows)
    used = int(layout.addresses(rows).max()) + 2
    return [min(image, -(-used // 16) * 16), 32 * layout.step, leading, stride, layout.swizzle]


def multiply_wgmma(
    run: Run, a: np.ndarray, b: np.ndarray, c: np.ndarray, dtype: str, cases: Sequence[tuple[Layout | None, Layout]]
) -> np.ndarray:
    """c + a bᵀ by wgmma for many (64, 16), (N, 16) and (64, N), each in layouts of a and b; None: a from registers."""
    n = b.shape[1]
    a_images = np.zeros((len(cases), A_IMAGE // 2), np.uint16)
    b_images = np.zeros((len(cases), b_image(n) // 2), np.uint16)
    fields = []
    for i, (of_a, of_b) in enumerate(cases):
        placed = of_a or layouts.PLAIN
        a_images[i] = placed.place(a[i], A_IMAGE)
        b_images[i] = of_b.place(b[i], b_image(n))
        product = 2 * of_a.mn_major + of_b.mn_major if of_a else 4 + of_b.mn_major
        fields.append([*_fields(placed, 64, A_IMAGE), *_fields(of_b, n, b_image(n)), product])
    sums = Array("c", c.copy(), "inout")
    arguments = [
        Array("a_images", a_images),
        Array("b_images", b_images),
        Array("a", np.ascontiguousarray(a)),
        Array("fields", np.array(fields, np.int32)),
        sums,
    ]
    run(Launch(wgmma_source(n, dtype), "multiply", len(cases), 128, A_IMAGE + b_image(n), arguments))
    return sums.values


def exp2_all(run: Run, x: np.ndarray) -> np.ndarray:
    y = Array("y", np.zeros_like(x), "out")
    source = expand("cuda/ptx.h", op="forward", dtype_16="fp16") + FUNCTIONS
    run(Launch(source, "exp2_all", len(x) // 256, 256, 0, [Array("x", x), y], PORTABLE))
    return y.values


def pack_all(run: Run, x: np.ndarray, dtype: str) -> np.ndarray:
    pairs = Array("pairs", np.zeros(len(x) // 2, np.uint32), "out")
    source = expand("cuda/ptx.h", op="forward", dtype_16=dtype) + FUNCTIONS
    run(Launch(source, "pack_all", len(x) // 512, 256, 0, [Array("x", x), pairs], PORTABLE))
    return pairs.values


def exp2_arguments() -> np.ndarray:
    """4096: the whole range, its ends, what a softmax sees, what is no number."""
    rng = np.random.default_rng(5)
    ends = [0.0, -0.0, 1.0, -1.0, -125.5, -126.0, -126.25, -127.0, -149.0, 127.0, 127.99, 128.0, 1e-40, np.inf, -np.inf]
    parts = [rng.uniform(-130, 130, 1024), rng.uniform(-24, 0, 2048), np.ldexp(rng.uniform(-2, 2, 512), -12), ends]
    x = np.concatenate(parts)
    return np.concatenate([x, rng.uniform(-1, 1, 4096 - len(x))]).astype(np.float32)


def pack_arguments(dtype: str) -> np.ndarray:
    """4096: numbers beside and in the middle between neighbours, subnormal and too large ones, what is no number."""
    rng = np.random.default_rng(6)
    bits = rng.integers(0, 2**16, 1024).astype(np.uint16)
    exact = operands.from_bits(bits, dtype)
    after = operands.from_bits(bits + np.uint16(1), dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        middle = ((exact + after) / 2).astype(np.float32)
        beside = [np.nextafter(middle, np.float32(s)) for s in (-np.inf, np.inf)]
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, -65520, 3.4e38, 3.39e38, 2.0**-25, 1e-45]
    x = np.concatenate([exact.astype(np.float32), middle, *beside])
    x[: len(special)] = special
    return x


def wgmma_sets(n: int, dtype: str) -> list[tuple[str, int]]:
    """Class and seed of the operands that are recorded for a width: all where results are small."""
    if n == 8:
        return [(name, seed) for name in operands.CLASSES for seed in range(2)]
    normal = [("normal", 0)] if n == 64 or (n == 256 and dtype == "bf16") else []
    return [("integers", 0), *normal]


def wgmma_cases(sets: Sequence[tuple[str, int]]) -> list[tuple[int, Layout | None, Layout]]:
    """Which set in which layouts: all layouts with integers, and how sums are made with a from both places."""
    plain, cases = layouts.PLAIN, []
    for i, (name, seed) in enumerate(sets):
        if name == "integers" and seed == 0:
            cases += [(i, layout, plain) for layout in layouts.LAYOUTS]
            cases += [(i, a, layout) for layout in layouts.LAYOUTS for a in (plain, None)]
            both = (Layout(128, True), Layout(64, True), Layout(0, True), Layout(32, False))
            cases += [(i, layout, layout) for layout in both]
        else:
            cases += [(i, plain, plain), (i, None, plain)]
    return cases


@dataclass(frozen=True)
class Box:
    """A copy of a box between shared memory and a tensor of 11 rows of 37 (fp32) or 74 (16-bit) elements."""

    what: str  # "load", "store", "add"
    dtype: str
    swizzle: int
    column: int
    row: int
    offset: int = 0  # of the tile in shared memory

    @property
    def name(self) -> str:
        return "_".join(str(x) for x in (self.what, self.dtype, self.swizzle, self.column, self.row, self.offset))


COPIES = ("load", "store", "add")
BOX_ROWS, TENSOR_ROWS, SHARED_BYTES = 8, 11, 2048


def boxes(what: str) -> list[Box]:
    """Inside, over each end, outside; tiles at any multiple of 128. TMA takes columns at multiples of 16 bytes only.

    Only a load may begin before the tensor.
    """
    second = (-16, -2, 128) if what == "load" else (16, 2, 128)
    places = [(0, 0, 0), second, (128, 7, 256), (96, 0, 0), (144, 2, 384), (16, 4, 1024), (160, 0, 0)]
    result = []
    for dtype, swizzle in itertools.product(("bf16", "fp32"), layouts.SWIZZLES):
        size = ELEMENT_BYTES[dtype]
        result += [Box(what, dtype, swizzle, start // size, row, offset) for start, row, offset in places]
    return result


def copy_box(run: Run, box: Box) -> np.ndarray:
    """Bytes of shared memory after a load, or of the tensor after a store; its rows of 148 bytes begin every 176."""
    rng = np.random.default_rng(11)
    size = ELEMENT_BYTES[box.dtype]
    kind = {2: np.uint16, 4: np.float32}[size]
    columns, row = 148 // size, 176 // size

    def values(*shape: int) -> np.ndarray:
        numbers = rng.integers(-9, 10, shape).astype(np.float64)
        return to_bits(numbers, box.dtype) if size == 2 else numbers.astype(kind)

    tensor = Array("tensor", values(TENSOR_ROWS, row), "in" if box.what == "load" else "inout")
    image = Array("image", values(SHARED_BYTES // size), "inout")
    width = (box.swizzle or 64) // size
    tensor_map = TensorMap(tensor, box.dtype, (columns, TENSOR_ROWS), (width, BOX_ROWS), box.swizzle)
    what = COPIES.index(box.what)
    arguments = [tensor_map, image, what, box.offset, width * BOX_ROWS * size, box.column, box.row]
    source = expand("cuda/ptx.h", "cuda/hopper.h", op="forward", dtype_16="bf16") + BOX
    run(Launch(source, "copy_box", 1, 32, SHARED_BYTES + 16, arguments))
    written = image if box.what == "load" else tensor
    return written.values.reshape(-1).view(np.uint8)


def copy_boxes(run: Run, what: str) -> dict[str, np.ndarray]:
    """results: the bytes for each of boxes()."""
    results = []
    for box in boxes(what):
        try:
            results.append(copy_box(run, box))
        except RuntimeError as error:
            raise RuntimeError(f"{box.name}: {error}") from error
    return {"results": np.stack(results)}
