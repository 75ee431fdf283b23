"""Static shared variables are memory like any other: bounds of each, initialisation, races, and their names."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emulator.machine import EmulatorError
from emulator.small import run

TEXT = """
static __device__ __noinline__ float get(const float *x, int i) { return x[i]; }
static __device__ __noinline__ void set(float *x, int i, float value) { x[i] = value; }

template <int N> static __device__ __forceinline__ float last(const float *x) {
  __shared__ float kept[N];
  if (threadIdx.x < N)
    kept[threadIdx.x] = x[threadIdx.x];
  __syncthreads(); /* kept */
  return kept[N - 1];
}

extern "C" __global__ void kernel(float *out_x, int blocks) {
  __shared__ float a[64], b[64];
  __shared__ __align__(128) float c[64];
  int i = threadIdx.x;
  set(a, i, i);
  set(b, i, blockIdx.x);
  set(c, i, 1);
  __syncthreads(); /* set */
  float sum = get(a, 63 - i) + get(b, 63 - i) + get(c, 63 - i);
  __syncthreads(); /* got */
  a[i] = sum;
  out_x[blockIdx.x * 64 + i] = sum + last<8>(b) + last<40>(a);
}"""


def test_right_kernel() -> None:
    out = np.zeros((3, 64), np.float32)
    run(TEXT, out, 3, grid=3, block=64)
    i, block = np.arange(64), np.arange(3)[:, None]
    np.testing.assert_array_equal(out, 63 - i + block + 1 + block + 63 - 39 + block + 1)


BROKEN = {
    "read behind": (
        "get(b, 63 - i)",
        "get(b, 64 - i)",
        r"reads 4 bytes at static shared memory b \+ 256, out of bounds",
    ),
    "read before": ("get(a, 63 - i)", "get(a, 62 - i)", r"reads 4 bytes at static shared memory a - 4, out of bounds"),
    "write behind": ("set(c, i, 1)", "set(c, i + 8, 1)", r"writes 4 bytes at static shared memory c \+ 256, out of"),
    "far behind": ("set(c, i, 1)", "set(c, i + 64, 1)", r"writes 4 bytes at static shared memory \w [+-] \d+, out of"),
    "other thread": (
        "set(b, i,",
        "set(b, i + 8 * (i == 63),",
        r"static shared memory b \+ 284, out of bounds: it has 256",
    ),
    "of a template": (
        "kept[N - 1]",
        "get(kept, N)",
        r"static shared memory kept \+ 32, out of bounds: it has 32 bytes",
    ),
    "of a template, not written": (
        "threadIdx.x < N",
        "threadIdx.x < N - 1",
        r"static shared memory kept \+ 28, which nob",
    ),
    "not written": ("set(b, i,", "if (i != 5) set(b, i,", r"static shared memory b \+ 20, which nobody has written"),
    "read too early": ("__syncthreads(); /* set */", "", r"race: reads static shared memory [abc] \+ \d+, written by"),
    "written too early": ("__syncthreads(); /* got */", "", r"race: writes static shared memory a \+ \d+, read by"),
    "race in a template": (
        "__syncthreads(); /* kept */",
        "",
        r"race: reads static shared memory kept \+ 28, written by",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernel(name: str) -> None:
    old, new, finding = BROKEN[name]
    assert old in TEXT
    with pytest.raises(EmulatorError) as error:
        run(TEXT.replace(old, new), np.zeros((3, 64), np.float32), 3, grid=3, block=64)
    assert re.search(rf"^small\.cu:\d+ \(.*{finding}", str(error.value), re.MULTILINE), error.value
    assert re.search(r"by block \(\d, 0, 0\) thread \d+ \(warp \d lane \d+\)", str(error.value))


@pytest.mark.parametrize("specifiers", ["", "inline", "static", "static inline", "__noinline__", "__forceinline__"])
@pytest.mark.parametrize("template", ["", "template <int N>"])
def test_wherever_it_is_declared(template: str, specifiers: str) -> None:
    """In functions of every kind it is one of each block, with bounds. So it is if another kernel has the same."""
    text = f"""
static __device__ __noinline__ float get(const float *x, int i) {{ return x[i]; }}
{template} __device__ {specifiers} float shifted(float x, int by) {{
  __shared__ float kept[64];
  kept[threadIdx.x] = x;
  __syncthreads();
  return get(kept, threadIdx.x / 2 + by);
}}
extern "C" __global__ void kernel(float *out_x, int by) {{
  out_x[blockIdx.x * 64 + threadIdx.x] = shifted{"<0>" if template else ""}(blockIdx.x * 100.0f + threadIdx.x, by);
}}"""
    for more in ("", "/* another one */"):
        out = np.zeros((3, 64), np.float32)
        run(text + more, out, 32, grid=3, block=64)
        np.testing.assert_array_equal(out, np.arange(3)[:, None] * 100 + 32 + np.arange(64) // 2)
        with pytest.raises(EmulatorError, match=r"static shared memory kept \+ 256, out of bounds: it has 256 bytes"):
            run(text + more, out, 33, grid=3, block=64)


def test_instructions_at_the_end_of_a_variable() -> None:
    text = """
extern "C" __global__ void kernel(float *out_x, int at) {
  __shared__ __align__(16) half_bits tile[32 * 8], next[32 * 8];
  for (int i = 0; i < 8; i++) {
    tile[threadIdx.x * 8 + i] = 0;
    next[threadIdx.x * 8 + i] = 0;
  }
  __syncwarp();
  u32 r[4];
  ldmatrix_x4(r, shared_address(tile) + (at + threadIdx.x) * 16);
  out_x[threadIdx.x] = r[0];
}"""
    run(text, np.zeros(32, np.float32), 0)
    with pytest.raises(EmulatorError, match=r"ldmatrix 16 bytes at static shared memory tile \+ 512, out of bounds"):
        run(text, np.zeros(32, np.float32), 1)


def test_constants_and_other_variables() -> None:
    """What the text itself holds may be read; a variable of all blocks is none that the emulator has."""
    text = """
static const float table[] = {1, 2, 3, 4};
__constant__ int numbers[] = {5, 6, 7, 8};
static __device__ int counter;
extern "C" __global__ void kernel(float *out_x, int at) {
  const float own[4] = {9, 10, 11, 12};
  out_x[threadIdx.x] = table[at + threadIdx.x % 4] + numbers[threadIdx.x % 4] + own[threadIdx.x % 4];
}"""
    out = np.zeros(32, np.float32)
    run(text, out, 0)
    np.testing.assert_array_equal(out, np.tile(np.arange(4) * 3.0 + 15, 8))
    with pytest.raises(EmulatorError, match="a variable that is neither shared nor constant"):
        run(text.replace("own[threadIdx.x % 4];", "counter++;"), out, 0)


ALIGNMENTS = """
struct __align__(8) pair { float x, y; };
template <class T> struct box { T x[8]; };
template <class T> static __device__ __forceinline__ int offset(int by) {
  __shared__ T of_template[3];
  return shared_address(of_template) % by;
}
extern "C" __global__ void kernel(int *out_x) {
  __shared__ half_bits halves[65], more[3];
  __shared__ unsigned char byte;
  __shared__ pair pairs[16];
  __shared__ float *pointer;
  __shared__ box<double> boxed;
  __shared__ __align__(16) unsigned char sixteen[100];
  __shared__ float __align__(128) most[64];
  u32 at[8] = {shared_address(halves), shared_address(more), shared_address(&byte), shared_address(pairs),
               shared_address(&pointer), shared_address(&boxed), shared_address(sixteen), shared_address(most)};
  for (int i = 0; i < 8; i++)
    out_x[i] = at[i] % 256;
  out_x[8] = offset<short>(256);
  out_x[9] = offset<double>(256);
}"""


def test_alignment_is_what_was_asked_for() -> None:
    """And not more, by an accident of where a variable lies: the largest power of two that divides its address."""
    out = np.zeros(10, np.int32)
    run(ALIGNMENTS, out, block=1)
    np.testing.assert_array_equal(out & -out, [2, 2, 1, 8, 8, 8, 16, 128, 2, 8])


@pytest.mark.parametrize(
    ("use", "needs", "finding"),
    [
        ("out_x[i] = ((const float4 *)a)[i % 16].y;", 16, r"access to a .*float4.* at an address that is \d+ off a m"),
        ("out_x[i] = ((const float2 *)a)[i].y;", 8, r"access to a .*float2.* at an address that is \d+ off a m"),
        (
            "if (i < 16) copy_async<16>(shared_address(a) + i * 16, in_x, true);",
            16,
            r"copy_async: the shared address .* 16 by",
        ),
        ("u32 r[4]; ldmatrix_x4(r, shared_address(a)); out_x[i] = r[0];", 16, r"ldmatrix: the address .* 16 bytes"),
        ("if (i == 0) barrier_init(shared_address(a), 1);", 8, r"address is a multiple of 8, not"),
    ],
)
def test_access_that_needs_more_than_was_asked_for(use: str, needs: int, finding: str) -> None:
    """An array of floats is aligned to a float, whatever the place that g++ would like for it."""
    text = f"""
extern "C" __global__ void kernel(const float *in_x, float *out_x) {{
  __shared__ ALIGN float a[64];
  int i = threadIdx.x;
  a[i] = a[32 + i] = 1;
  __syncthreads();
  {use}
}}"""
    x = np.zeros(32, np.float32)
    run(text.replace("ALIGN", f"__align__({needs})"), x, x.copy(), widths=())
    for asked in ("", f"__align__({needs // 2})"):
        with pytest.raises(EmulatorError, match=finding):
            run(text.replace("ALIGN", asked), x, x.copy(), widths=())


def test_declaration_whose_type_is_not_known() -> None:
    """Nor is then what it asks for."""
    text = """
extern "C" __global__ void kernel(int *out_x) {
  __shared__ struct { int x; } s;
  s.x = 1;
  out_x[0] = s.x;
}"""
    with pytest.raises(NotImplementedError, match=r"not `__shared__ TYPE NAME...;`: .*struct"):
        run(text, np.zeros(1, np.int32), block=1)
