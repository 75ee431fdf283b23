"""Bulk copies (TMA): what they bring where, what lies outside of a tensor, stores, additions, the driver's rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emulator.layouts import SWIZZLES
from emulator.machine import TIMINGS, EmulatorError, Settings
from emulator.small import Mapped, run
from emulator.tensor_map import encode
from emulator.test_instructions import bits

# One box comes to shared memory, and shared memory as it is goes out.
LOAD = """
extern "C" __global__ void
kernel(const __grid_constant__ tensor_map in_a, u32 *out_x, int bytes, int c0, int c1, int c2) {
  extern __shared__ __align__(1024) unsigned char shared[];
  u32 at = shared_address(shared), barrier = at + bytes;
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
    barrier_expect(barrier, bytes);
    COPY
  }
  __syncwarp();
  barrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += 32)
    out_x[i] = ((u32 *)shared)[i];
}
"""
LOAD_2D = LOAD.replace("COPY", "tensor_load(at, &in_a, barrier, c0, c1);")
LOAD_3D = LOAD.replace("COPY", "tensor_load(at, &in_a, barrier, c0, c1, c2);")


def load(text: str, tensor: Mapped, coordinates: tuple[int, ...], settings: Settings) -> np.ndarray:
    count = int(np.prod(tensor.box))
    out = np.zeros(count, tensor.array.dtype)
    size = out.nbytes
    where = (*coordinates, 0, 0)[:3]
    run(text, tensor, out.view(np.uint32), size, *where, shared=size + 8, widths=(), settings=settings)
    return out


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzled_box(swizzle: int, timing: str) -> None:
    """A row as long as the swizzle: each chunk of 16 bytes lies where the hand-made table says."""
    elements = swizzle // 2
    tensor = np.arange(40 * 64, dtype=np.uint16).reshape(40, 64)
    out = load(LOAD_2D, Mapped(tensor, "fp16", (elements, 24), swizzle), (0, 8), Settings(1, timing))
    chunks = out.reshape(24, swizzle // 16, 8)
    for row in range(24):
        for chunk in range(swizzle // 16):
            lies = chunks[row, SWIZZLES[swizzle][row % 8][chunk]]
            np.testing.assert_array_equal(lies, tensor[8 + row, chunk * 8 : chunk * 8 + 8])


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize(("columns", "swizzle"), [(8, 128), (16, 128), (8, 64)])
def test_box_narrower_than_its_swizzle(columns: int, swizzle: int, timing: str) -> None:
    """Its rows are as far apart as the swizzle is wide, and only its own bytes count: measured on an H200."""
    text = """
extern "C" __global__ void
kernel(const __grid_constant__ tensor_map in_a, const __grid_constant__ tensor_map out_b, float *out_x, int columns,
       int swizzle) {
  extern __shared__ __align__(1024) unsigned char shared[];
  u32 at = shared_address(shared), barrier = at + 1024;
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
    barrier_expect(barrier, 8 * columns * 4);
    tensor_load(at, &in_a, barrier, 0, 0);
  }
  __syncwarp();
  barrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < 8 * columns; i += 32) {
    int byte = i / columns * swizzle + i % columns * 4;
    out_x[i] = *(float *)(shared + (byte ^ (byte / 128 % (swizzle / 16)) * 16));
  }
  if (threadIdx.x == 0) {
    tensor_store(&out_b, at, 0, 0);
    bulk_commit();
    bulk_wait<0>();
  }
}"""
    tensor = np.arange(16 * 64, dtype=np.float32).reshape(16, 64)
    out, stored = np.zeros((8, columns), np.float32), np.zeros((8, columns), np.float32)
    maps = (Mapped(array, "fp32", (columns, 8), swizzle) for array in (tensor, stored))
    run(text, *maps, out, columns, swizzle, shared=1032, widths=(), settings=Settings(1, timing))
    np.testing.assert_array_equal(out, tensor[:8, :columns])
    np.testing.assert_array_equal(stored, tensor[:8, :columns])


@pytest.mark.parametrize("timing", TIMINGS)
def test_box_across_all_borders(timing: str) -> None:
    """Zeros before and behind the tensor in every dimension."""
    tensor = np.arange(1, 1 + 4 * 5 * 16, dtype=np.float32).reshape(4, 5, 16)
    padded = np.pad(tensor, 16)
    for c0, c1, c2 in [(0, 0, 0), (-4, 0, 0), (8, 0, 0), (0, -2, 1), (4, 3, -1), (12, 4, 3), (-20, 0, 0), (0, 5, 0)]:
        out = load(LOAD_3D, Mapped(tensor, "fp32", (12, 3, 2)), (c0, c1, c2), Settings(2, timing))
        box = padded[16 + c2 : 18 + c2, 16 + c1 : 19 + c1, 16 + c0 : 28 + c0] if c0 > -16 else np.zeros((2, 3, 12))
        np.testing.assert_array_equal(out.reshape(2, 3, 12), box)


def test_destination_decides_the_swizzle() -> None:
    """Address bits 7 to 9, not the row of the box: a tile 128 bytes off begins with the second row of the table."""
    tensor = np.arange(16 * 64, dtype=np.uint16).reshape(16, 64)
    text = LOAD_2D.replace("tensor_load(at,", "tensor_load(at + 128,").replace("at + bytes", "at + bytes + 128")
    out = np.zeros(8 * 64, np.uint16)
    run(
        text.replace("(u32 *)shared)[i]", "(u32 *)(shared + 128))[i]"),
        Mapped(tensor, "fp16", (64, 8), 128), out.view(np.uint32), 1024, 0, 0, 0, shared=2048, widths=(),
    )  # fmt: skip
    chunks = out.reshape(8, 8, 8)
    for row in range(8):
        for chunk in range(8):
            expected = tensor[row, chunk * 8 : chunk * 8 + 8]
            np.testing.assert_array_equal(chunks[row, SWIZZLES[128][(row + 1) % 8][chunk]], expected)


STORE = """
extern "C" __global__ void kernel(const float *in_x, const __grid_constant__ tensor_map inout_a, int c0, int c1) {
  extern __shared__ __align__(1024) unsigned char shared[];
  for (int i = threadIdx.x; i < 4 * 32; i += 32) {
    int row = i / 32, chunk = i % 32 / 4;
    ((float *)shared)[row * 32 + (chunk ^ row) * 4 + i % 4] = in_x[i];
  }
  fence_async_shared();
  __syncwarp();
  if (elect_one()) {
    COPY(&inout_a, shared_address(shared), c0, c1);
    bulk_commit();
    bulk_wait_read<0>();
  }
}
"""


@pytest.mark.parametrize("timing", TIMINGS)
def test_store_and_add_leave_out_what_is_outside(timing: str) -> None:
    x = np.arange(1, 129, dtype=np.float32).reshape(4, 32)
    for copy, (c0, c1) in [("tensor_store", (12, 3)), ("tensor_reduce_add", (12, 3)), ("tensor_reduce_add", (0, 5))]:
        tensor = np.arange(6 * 40, dtype=np.float32).reshape(6, 40)
        expected = np.pad(tensor, 40)
        place = expected[40 + c1 : 44 + c1, 40 + c0 : 72 + c0]
        place[:] = x if copy == "tensor_store" else place + x
        run(
            STORE.replace("COPY", copy), x, Mapped(tensor, "fp32", (32, 4), 128), c0, c1,
            shared=512, widths=(), settings=Settings(3, timing),
        )  # fmt: skip
        np.testing.assert_array_equal(tensor, expected[40:46, 40:80])


def test_box_that_begins_inside_of_16_bytes() -> None:
    """An H100 stops with an illegal instruction."""
    x, tensor = np.zeros((4, 32), np.float32), np.zeros((6, 40), np.float32)
    with pytest.raises(EmulatorError, match="element 5 of its first dimension, which is no multiple of 16 bytes"):
        run(STORE.replace("COPY", "tensor_store"), x, Mapped(tensor, "fp32", (32, 4), 128), 5, 0, shared=512, widths=())


@pytest.mark.parametrize("copy", ["tensor_store", "tensor_reduce_add"])
@pytest.mark.parametrize(("start", "named"), [((-4, 0), "-4 of dimension 0"), ((0, -2), "-2 of dimension 1")])
def test_store_that_begins_before_the_tensor(copy: str, start: tuple[int, int], named: str) -> None:
    """A load may; of a store or an addition an H100 stops with an illegal instruction."""
    x, tensor = np.zeros((4, 32), np.float32), np.zeros((6, 40), np.float32)
    with pytest.raises(EmulatorError, match=f"{copy}: the box begins at {named}, before the tensor: illegal instr"):
        run(STORE.replace("COPY", copy), x, Mapped(tensor, "fp32", (32, 4), 128), *start, shared=512, widths=())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_sixteen_bit_additions_round_to_nearest(dtype: str) -> None:
    rng = np.random.default_rng(3)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    x, y = (torch.from_numpy(rng.normal(0, 3, (4, 64)).astype(np.float32)).to(kind) for _ in range(2))
    tensor = bits(y.float().numpy(), dtype)
    run(
        STORE.replace("COPY", "tensor_reduce_add"), bits(x.float().numpy(), dtype).view(np.float32),
        Mapped(tensor, dtype, (64, 4), 128), 0, 0, shared=512, widths=(),
    )  # fmt: skip
    np.testing.assert_array_equal(tensor.view(np.int16), (x + y).view(torch.int16).numpy())


ROWS = """
/* Each block adds its floats to the same ones, and writes a copy of its own. */
extern "C" __global__ void kernel(const float *in_x, float *inout_sum, float *out_copy) {
  extern __shared__ __align__(128) unsigned char shared[];
  u32 at = shared_address(shared), barrier = at + 512;
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
    bulk_load(at, in_x + blockIdx.x * 128, 512, barrier); /* announced when it may be there already */
    barrier_expect(barrier, 512);
    barrier_wait(barrier, 0);
    bulk_reduce_add(inout_sum, at, 512);
    bulk_commit();
    bulk_store(out_copy + blockIdx.x * 128, at, 512);
    bulk_commit();
    bulk_wait<1>();
    bulk_wait_read<0>();
  }
}
"""


@pytest.mark.parametrize("timing", TIMINGS)
def test_rows_of_bytes(timing: str) -> None:
    x = np.arange(5 * 128, dtype=np.float32).reshape(5, 128)
    total, copy = np.ones(128, np.float32), np.zeros((5, 128), np.float32)
    run(ROWS, x, total, copy, grid=5, shared=520, widths=(), settings=Settings(4, timing))
    np.testing.assert_array_equal(total, 1 + x.sum(0))
    np.testing.assert_array_equal(copy, x)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"address": 8}, "multiple of 16"),
        ({"strides": (24,)}, "multiple of 16"),
        ({"box": (257, 1)}, "1 to 256"),
        ({"box": (4, 1)}, "multiple of 16"),
        ({"box": (128, 8), "swizzle": 128}, "the swizzle only 128"),
        ({"sizes": (64, 0)}, "1 to 2"),
        ({"strides": ()}, "one less"),
        ({"swizzle": 16}, "0, 32, 64 or 128"),
        ({"dtype": "fp32", "box": (256, 256), "swizzle": 0}, "more than shared memory"),
    ],
)
def test_maps_that_the_driver_refuses(changed: dict, message: str) -> None:
    right = {"address": 256, "dtype": "fp32", "sizes": (64, 8), "strides": (256,), "box": (32, 8), "swizzle": 128}
    encode(**right)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        encode(**{**right, "dtype": "fp16", **changed})  # type: ignore[arg-type]


MULTICAST = """
extern "C" __global__ void kernel(const __grid_constant__ tensor_map in_a, float *out_x) {
  extern __shared__ __align__(1024) unsigned char shared[];
  u32 at = shared_address(shared), barrier = at + 1024, rank = cluster_rank();
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
    barrier_expect(barrier, 1024);
  }
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) /* half of the tile each, for both */
    tensor_load_multicast(at + rank * 512, &in_a, barrier, 3, 0, blockIdx.x / 2 * 8 + rank * 4);
  barrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < 256; i += 32)
    out_x[blockIdx.x * 256 + i] = ((float *)shared)[i];
  cluster_arrive();
  cluster_wait();
}
"""


@pytest.mark.parametrize("timing", TIMINGS)
def test_multicast(timing: str) -> None:
    tensor = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    out = np.zeros((4, 8, 32), np.float32)
    run(
        MULTICAST, Mapped(tensor, "fp32", (32, 4)), out,
        grid=4, shared=1032, widths=(), cluster=2, settings=Settings(5, timing),
    )  # fmt: skip
    np.testing.assert_array_equal(out, tensor.reshape(2, 8, 32)[[0, 0, 1, 1]])
    with pytest.raises(EmulatorError, match="names blocks that the cluster does not have"):
        run(
            MULTICAST.replace("barrier, 3,", "barrier, 5,"), Mapped(tensor, "fp32", (32, 4)), out,
            grid=4, shared=1032, widths=(), cluster=2,
        )  # fmt: skip
