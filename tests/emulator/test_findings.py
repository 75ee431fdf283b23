"""What is wrong with a kernel is found and said: a right kernel passes, and each way of breaking it does not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emulator import build, wrappers
from emulator.machine import TIMINGS, EmulatorError, Settings
from emulator.small import hopper, run
from emulator.test_instructions import bits

# C = A B for a block of 64 rows and 64 columns: four warps, K in tiles of 16 through two stages of shared memory.
MATMUL = """
enum { M = 64, N = 64, K_TILE = 16, PITCH_A = 24, PITCH_B = 72, STAGE = M * PITCH_A + K_TILE * PITCH_B };

static __device__ __forceinline__ void load(u32 stage, const half_bits *a, const half_bits *b, int k, int depth) {
  for (int i = threadIdx.x; i < M * K_TILE / 8; i += 128) {
    int row = i / 2, col = i % 2 * 8;
    copy_async<16>(stage + (row * PITCH_A + col) * 2, a + row * depth + k + col, true);
  }
  for (int i = threadIdx.x; i < K_TILE * N / 8; i += 128) {
    int row = i / 8, col = i % 8 * 8;
    copy_async<16>(stage + (M * PITCH_A + row * PITCH_B + col) * 2, b + (k + row) * N + col, true);
  }
}

extern "C" __global__ void __launch_bounds__(128)
kernel(const half_bits *in_a, const half_bits *in_b, float *out_c, int depth) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float sum[4];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 stages = shared_address(shared);
  in_a += blockIdx.x * M * depth;
  load(stages, in_a, in_b, 0, depth);
  copy_commit();
  float c[8][4] = {};
  for (int k = 0; k < depth; k += K_TILE) {
    if (k + K_TILE < depth)
      load(stages + (k / K_TILE + 1) % 2 * STAGE * 2, in_a, in_b, k + K_TILE, depth);
    copy_commit();
    copy_wait<1>();
    __syncthreads(); /* loaded */
    u32 a_tile = stages + k / K_TILE % 2 * STAGE * 2, b_tile = a_tile + M * PITCH_A * 2;
    u32 a[4], b[4];
    ldmatrix_x4(a, a_tile + ((warp * 16 + lane % 16) * PITCH_A + lane / 16 * 8) * 2);
    for (int n = 0; n < N / 16; n++) {
      ldmatrix_x4_trans(b, b_tile + (lane % 16 * PITCH_B + n * 16 + lane / 16 * 8) * 2);
      mma_m16n8k16(c[2 * n], a, b[0], b[1]);
      mma_m16n8k16(c[2 * n + 1], a, b[2], b[3]);
    }
    __syncthreads(); /* used */
  }
  float mine = 0;
  for (int n = 0; n < 8; n++)
    for (int i = 0; i < 4; i++)
      mine += c[n][i];
  for (int other = 16; other > 0; other /= 2)
    mine += __shfl_xor_sync(0xffffffffu, mine, other);
  if (lane == 0)
    sum[warp] = mine;
  __syncthreads(); /* summed */
  float total = sum[0] + sum[1] + sum[2] + sum[3];
  for (int n = 0; n < 8; n++)
    for (int i = 0; i < 4; i++)
      out_c[(blockIdx.x * M + warp * 16 + lane / 4 + i / 2 * 8) * N + n * 8 + lane % 4 * 2 + i % 2] = c[n][i] + total;
}
"""
SHARED = 2 * (64 * 24 + 16 * 72) * 2


def matmul(text: str, settings: Settings, shared: int = SHARED) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((3 * 64, 80), (80, 64)))
    out = np.zeros((3 * 64, 64), np.float32)
    run(text, bits(a, "fp16"), bits(b, "fp16"), out, 80, grid=3, block=128, shared=shared, settings=settings)
    c = (a @ b).reshape(3, 64, 64)
    np.testing.assert_array_equal(out, (c + c.sum((1, 2), keepdims=True)).reshape(out.shape))


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("seed", range(4))
def test_right_kernel(seed: int, timing: str) -> None:
    matmul(MATMUL, Settings(seed, timing, resident=1 + seed, shuffle=seed == 3))


BROKEN = {
    "no wait": ("copy_wait<1>();", "", "to which a copy is under way that nobody has waited for"),
    "waits for less": ("copy_wait<1>", "copy_wait<2>", "to which a copy is under way that nobody has waited for"),
    "no commit": ("copy_commit();\n    copy_wait", "copy_wait", "to which a copy is under way"),
    "tile used before all have loaded": ("__syncthreads(); /* loaded */", "", "race: reads shared memory"),
    "tile loaded before all have used it": ("__syncthreads(); /* used */", "", "race: writes shared memory"),
    "sum read before it is written": ("__syncthreads(); /* summed */", "", "static shared memory"),
    "a warp that never comes to a barrier": (
        "__syncthreads(); /* summed */",
        "if (warp) __syncthreads(); else for (;;) __nanosleep(20);",
        r"deadlock: (.|\n)*waits for __syncthreads .*\(barrier 0, where 96 of 128 threads are\)",
    ),
    "a warp that passes by a barrier and ends": (
        "__syncthreads(); /* summed */",
        "if (warp) __syncthreads();",
        r"(race: reads static shared memory sum \+ \d+, written by|sum \+ \d+, which nobody has written)",
    ),
    "only some lanes at mma": ("mma_m16n8k16(c[2 * n],", "if (lane < 31) mma_m16n8k16(c[2 * n],", "waits for mma"),
    "mask without own lane": ("__shfl_xor_sync(0xffffffffu", "__shfl_xor_sync(0xfffffffeu", "not in its own mask"),
    "reads behind A": ("a + row * depth + k", "a + (row + 1) * depth + k", "in_a \\+30720, out of bounds"),
    "reads before B": ("b + (k + row) * N", "b + (k + row - 1) * N", "in_b -128, out of bounds"),
    "writes behind C": ("out_c[(blockIdx.x", "out_c[1 + (blockIdx.x", "out_c \\+49152, out of bounds"),
    "writes A": ("out_c[(blockIdx.x", "((float *)in_a)[(blockIdx.x", "writes in_a"),
    "two blocks write the same": ("out_c[(blockIdx.x * M +", "out_c[(", "race: writes out_c"),
    "misaligned copy": ("a + row * depth + k + col, true", "a + row * depth + k + col + 1, true", "not aligned to 16"),
    "misaligned ldmatrix": ("(lane % 16 * PITCH_B", "(4 + lane % 16 * PITCH_B", "not aligned to 16"),
    "beyond shared memory": ("(k / K_TILE + 1) % 2", "(k / K_TILE + 1) % 3", "shared memory \\+\\d+, out of bounds"),
    "index out of a register array": ("mine += c[n][i]", "mine += c[n + 1][i]", "index 8 is out of bounds of 'float"),
    "wild pointer": ("out_c[(blockIdx.x", "((float *)16)[(blockIdx.x", "no memory of this kernel"),
    "shift too far": ("total = sum[0]", "total = (1 << (32 + warp)) + sum[0]", "shift by 3"),
    "unwritten shared memory": ("if (lane == 0)", "if (lane == 0 && warp != 2)", "nobody has written"),
    "asks for the wrong lanes": ("lane % 16 * PITCH_B", "lane % 8 * PITCH_B", None),
    "a local variable too large": ("float mine = 0;", "float mine = 0, big[100000]; big[depth] = mine;", "crashes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernel(name: str) -> None:
    old, new, finding = BROKEN[name]
    text = MATMUL.replace(old, new)
    assert text != MATMUL
    if finding is None:
        with pytest.raises(AssertionError, match="not equal"):
            matmul(text, Settings())
        return
    with pytest.raises(EmulatorError, match=finding) as error:
        matmul(text, Settings(1, "random"))
    if "deadlock" not in str(error.value):
        assert re.search(r"^small\.cu:\d+ \(", str(error.value), re.MULTILINE)


def test_what_is_undefined_is_said_of_the_same_launch() -> None:
    """After a trap it is run again: memory is what it was before, and written where it was."""
    text = """extern "C" __global__ void kernel(int *inout_x, int *out_y) {
  int by = inout_x[0];
  inout_x[0] = 40;
  out_y[0] = by;
  out_y[1] = 1 << by;
}"""
    with pytest.raises(EmulatorError) as error:
        run(text, np.full(1, 33, np.int32), np.zeros(2, np.int32), block=1)
    assert re.search(r"^small\.cu:5 \(kernel\): shift by 33", str(error.value), re.MULTILINE)
    with pytest.raises(EmulatorError) as error:
        run(text.replace("out_y[0] = by", "by += out_y[0]"), np.full(1, 33, np.int32), np.zeros(2, np.int32), block=1)
    assert "small.cu:4 (kernel): reads out_y + 0, which nobody has written" in str(error.value)


@pytest.mark.parametrize("kind", ["int", "unsigned", "long long", "unsigned long long"])
@pytest.mark.parametrize("operator", ["/", "%"])
def test_division_of_integers(operator: str, kind: str) -> None:
    """On a GPU it is no trap, and on the CPU it does not end Python."""
    text = f"""
extern "C" __global__ void kernel(const int *in_x, int *out_y) {{
  {kind} least = ({kind})in_x[0] * ({kind})(sizeof(least) == 8 ? 1ll << 32 : 1);
  {kind} by = threadIdx.x == 40 ? in_x[1] : 3;
  out_y[threadIdx.x] = least {operator} by;
}}"""
    where = r"^small\.cu:4 \(kernel\): divides integers by zero, or .* undefined\n    by block \(0, 0, 0\) thread 40 "
    run(text, np.array([-(2**31), 1], np.int32), np.zeros(64, np.int32), block=64)
    for by in [0] if "unsigned" in kind else [0, -1]:
        with pytest.raises(EmulatorError) as error:
            run(text, np.array([-(2**31), by], np.int32), np.zeros(64, np.int32), block=64)
        assert re.search(where, str(error.value), re.MULTILINE), error.value


def test_place_of_a_finding() -> None:
    """The line, who came to it through which calls, and the other side of a race."""
    with pytest.raises(EmulatorError) as error:
        matmul(MATMUL.replace("__syncthreads(); /* used */", ""), Settings(0, "late"))
    lines = MATMUL.strip().splitlines()
    copies = [i + 1 for i, line in enumerate(lines) if "copy_async<16>" in line]
    caller = next(i + 1 for i, line in enumerate(lines) if "load(stages + (k" in line)
    places = "|".join(map(str, copies))
    assert re.search(rf"^small\.cu:({places}) \(load\) < small\.cu:{caller} \(kernel\): race", str(error.value), re.M)
    assert re.search(r"read by warp \d (lane \d+ )?at small\.cu:\d+ \(kernel\)", str(error.value))


def test_place_in_a_function_of_its_own() -> None:
    """A template that is not inlined: its line, its file and its name as it is written."""
    text = """
template <int N> static __device__ __noinline__ void fill(float *x) {
  for (int i = 0; i < N; i++)
    x[i] = i;
}
#line 70 "other.h"
template <int N> static __device__ __noinline__ void fill_more(float *x) {
  fill<N>(x);
  x[N] = 0;
}
extern "C" __global__ void kernel(float *out_x) { fill_more<32>(out_x); }"""
    with pytest.raises(EmulatorError) as error:
        run(text, np.zeros(32, np.float32), block=1)
    assert re.search(r"^other\.h:72 \(fill_more<32>\)", str(error.value), re.MULTILINE)
    with pytest.raises(EmulatorError) as error:
        run(text.replace("fill<N>", "fill<N + 1>"), np.zeros(32, np.float32), block=1)
    assert re.search(r"^small\.cu:3 \(fill<33>\)", str(error.value), re.MULTILINE)


@pytest.mark.parametrize(
    "atomic",
    ["reduce_add(inout_sum + at, 1.0f)", "atomicAdd(inout_sum + at, 1)", "atomicCAS((int *)inout_sum + at, 0, 1)"],
)
def test_place_of_an_atomic(atomic: str) -> None:
    text = f"""
static __device__ __forceinline__ void add(float *inout_sum, int at) {{
  {atomic};
}}
extern "C" __global__ void kernel(float *inout_sum, int at) {{
  add(inout_sum, at + threadIdx.x);
}}"""
    run(text, np.zeros(32, np.float32), 0)
    with pytest.raises(EmulatorError) as error:
        run(text, np.zeros(32, np.float32), 32)
    place = r"^small\.cu:2 \(add\) < small\.cu:5 \(kernel\): .*inout_sum \+128, out of bounds"
    assert re.search(place, str(error.value), re.MULTILINE)


def test_launch_bounds_with_parentheses() -> None:
    text = """
extern "C" __global__ void __launch_bounds__(32 * (1 + (2 - 1)), (1)) kernel(int *out_x) {
  out_x[threadIdx.x] = 1;
}"""
    run(text, np.zeros(64, np.int32), block=64)
    with pytest.raises(EmulatorError, match="96 threads, more than its __launch_bounds__"):
        run(text, np.zeros(96, np.int32), block=96)


TURNS = """
extern "C" __global__ void kernel(int *inout_flag, float *inout_sum, int blocks) {
  int turn = blocks - 1 - blockIdx.x;
  if (threadIdx.x == 0)
    while (load_acquire(inout_flag) != turn) {
    }
  __syncthreads(); /* my turn */
  inout_sum[threadIdx.x] = inout_sum[threadIdx.x] * 0.5f + turn;
  __syncthreads(); /* done */
  if (threadIdx.x == 0)
    store_release(inout_flag, turn + 1);
}
"""


def turns(text: str, blocks: int, resident: int) -> None:
    flag, out = np.zeros(1, np.int32), np.zeros(64, np.float32)
    run(text, flag, out, blocks, grid=blocks, block=64, settings=Settings(resident=resident))
    expected = 0.0
    for turn in range(blocks):
        expected = expected * 0.5 + turn
    np.testing.assert_allclose(out, expected)


def test_block_of_more_threads_than_there_can_be() -> None:
    text = 'extern "C" __global__ void kernel(int *out_x) { out_x[threadIdx.x] = 0; }'
    run(text, np.zeros(1024, np.int32), block=1024)
    with pytest.raises(EmulatorError, match="1056 threads, more than a block can have: 1024"):
        run(text, np.zeros(1056, np.int32), block=1056)


def test_blocks_in_turn() -> None:
    turns(TURNS, 5, 8)
    forward = TURNS.replace("blocks - 1 - blockIdx.x", "blockIdx.x")
    turns(forward, 5, 1)
    with pytest.raises(EmulatorError, match="deadlock: threads spin"):
        turns(TURNS, 5, 4)  # the last block never begins
    for barrier in ("my turn", "done"):
        with pytest.raises(EmulatorError, match=r"race: .* inout_sum"):
            turns(forward.replace(f"__syncthreads(); /* {barrier} */", ""), 5, 4)
    with pytest.raises(EmulatorError, match=r"race: .* inout_sum"):
        turns(forward.replace("load_acquire(inout_flag)", "atomicAdd(inout_flag, 0)"), 5, 4)


def test_lanes_of_a_warp_need_syncwarp() -> None:
    text = """
extern "C" __global__ void kernel(float *out_x) {
  __shared__ float x[32];
  x[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out_x[threadIdx.x] = x[31 - threadIdx.x];
}"""
    run(text, np.zeros(32, np.float32))
    with pytest.raises(EmulatorError, match=r"race: reads static shared memory|nobody has written"):
        run(text.replace("__syncwarp();", ""), np.zeros(32, np.float32))


def test_same_seed_same_run() -> None:
    """A finding can be had again: the text of the error is the same."""
    texts = []
    for _ in range(2):
        with pytest.raises(EmulatorError) as error:
            matmul(MATMUL.replace("__syncthreads(); /* loaded */", ""), Settings(7, "random"))
        texts.append(str(error.value))
    assert texts[0] == texts[1]


def test_unknown_instruction() -> None:
    text = """
static __device__ __forceinline__ void prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
extern "C" __global__ void kernel(float *out_x) { prefetch(out_x); }"""
    with pytest.raises(NotImplementedError, match="no model of prefetch"):
        run(text, np.zeros(32, np.float32))


@pytest.mark.parametrize("keyword", ["asm", "__asm__", "__asm"])
def test_unknown_assembly(keyword: str) -> None:
    """However it is spelled, and wherever it stands; not where it is only spoken of."""
    text = f"""
/* asm */
static __device__ __forceinline__ void wait() {{ {keyword} __volatile__("membar.gl;"); }}
extern "C" __global__ void kernel(float *out_x) {{ wait(); /* in __asm__ */ }}"""
    with pytest.raises(NotImplementedError, match="no model of wait"):
        run(text, np.zeros(32, np.float32))
    text = text.replace("wait();", f'{keyword} volatile("membar.gl;");').replace(
        f'{{ {keyword} __volatile__("me', '{ ("me'
    )
    with pytest.raises(NotImplementedError, match=r"inline assembly outside of .*: extern"):
        run(text, np.zeros(32, np.float32))
    run(text.replace(f'{keyword} volatile("membar.gl;");', "out_x[threadIdx.x] = 1;"), np.zeros(32, np.float32))


def test_known_assembly_in_another_spelling() -> None:
    source = hopper("fp16", (16,))
    build.translate(source.replace("asm volatile(", "__asm__ __volatile__("))


@pytest.mark.parametrize(
    "declaration",
    [
        "extern __shared__ __align__(128) float x[];",
        "if (blocks) { extern __shared__ float x[]; x[threadIdx.x] = 0; } extern __shared__ float x[];",
        "/* */ extern  __shared__\n  float  x [ ] ;",
    ],
)
def test_dynamic_shared_memory(declaration: str) -> None:
    text = f"""
extern "C" __global__ void kernel(float *out_x, int blocks) {{ {declaration}
  __syncthreads();
  x[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out_x[threadIdx.x] = x[31 - threadIdx.x] * blocks;
}}"""
    out = np.zeros(32, np.float32)
    run(text, out, 1, shared=128)
    np.testing.assert_array_equal(out, 31 - np.arange(32))
    with pytest.raises(EmulatorError, match=r"shared memory \+ ?124, out of bounds"):
        run(text, out, 1, shared=124)


def test_dynamic_shared_memory_in_another_way() -> None:
    text = 'extern "C" __global__ void kernel(float *out_x) { extern __shared__ float x[][4]; out_x[0] = x[0][0]; }'
    with pytest.raises(NotImplementedError, match=r"dynamic shared memory that is not .* x\[\]\[4\]"):
        run(text, np.zeros(32, np.float32))


def test_as_many_blocks_at_once_as_there_are_or_can_be() -> None:
    """Those of the grid, whatever is asked for; and no more threads than there are stacks."""
    turns(TURNS, 5, 1 << 30)
    text = 'extern "C" __global__ void kernel(int *out_x) { out_x[blockIdx.x * 1024 + threadIdx.x] = 1; }'
    with pytest.raises(ValueError, match="20 blocks of 1024 threads at once; 16384 threads are possible"):
        run(text, np.zeros(20480, np.int32), grid=20, block=1024, settings=Settings(resident=100000))
    run(text, np.zeros(20480, np.int32), grid=20, block=1024, settings=Settings(resident=16))


CHANGED_WRAPPERS = {
    "sign of a product": ("accumulate, 1, 1, %11,", "accumulate, -1, 1, %11,"),
    "transposes": ("accumulate, 1, 1, %11, %12;", "accumulate, 1, 1, %12, %11;"),
    "descriptors": ("}, %8, %9, accumulate", "}, %9, %8, accumulate"),
    "predicate": ("setp.ne.b32", "setp.eq.b32"),
    "result of a wait": ("selp.u32 %0, 1, 0, ended", "selp.u32 %0, 0, 1, ended"),
    "bytes": ('"r"(barrier), "r"(bytes) : "memory"', '"r"(barrier), "r"(bytes / 2) : "memory"'),
    "comment in the assembly": ("fence.proxy.async.shared::cta;", "// fence.proxy.async.shared::cta;"),
    "no assembly": ('asm volatile("fence.proxy.async.shared::cta;" ::: "memory");', ""),
    "registers": ('"=r"(r[0]), "=r"(r[1])', '"=r"(r[1]), "=r"(r[0])'),
    "size of a copy": ("valid ? BYTES : 0", "valid ? BYTES : BYTES"),
    "type": ("cvt.rn.f16x2.f32", "cvt.rn.bf16x2.f32"),
}


@pytest.mark.parametrize("name", CHANGED_WRAPPERS)
def test_changed_wrapper(name: str) -> None:
    """A function of inline assembly that is not the one of which there is a model, however little it differs."""
    old, new = CHANGED_WRAPPERS[name]
    source = hopper("fp16", (16,))
    assert old in source
    with pytest.raises(NotImplementedError, match=r"is not what the emulator has a model of|in one kernel"):
        build.translate(source.replace(old, new))


def test_wrapper_that_is_written_in_another_way() -> None:
    """Comments, white space and how strings are divided do not matter; wrappers.txt has no more than the templates."""
    source = hopper("fp16", (16,))
    changed = source.replace("selp.u32 %0, 1, 0, ended", 'selp.u32 %0, "\n /* so */ "1, 0, ended')
    changed = changed.replace("u32 ended;\n  asm volatile(", "u32  ended; // so\n#line 7\n asm  volatile (")
    assert changed.count("so") == source.count("so") + 2
    build.translate(changed)
    assert wrappers.templates() == wrappers.EXPECTED.read_text()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_products_of_every_width(dtype: str) -> None:
    build.translate(hopper(dtype, tuple(range(8, 257, 8))))


def test_printf(capfd: pytest.CaptureFixture[str]) -> None:
    """A kernel may print, as on a GPU, for whoever debugs one."""
    text = """
extern "C" __global__ void kernel(const float *in_x) {
  if (threadIdx.x == 3)
    printf("lane %d: %g\\n", threadIdx.x, in_x[threadIdx.x]);
}"""
    run(text, np.arange(32, dtype=np.float32) / 2)
    assert capfd.readouterr().out == "lane 3: 1.5\n"
