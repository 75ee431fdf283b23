"""Single bytes are known one by one: neighbours do not race, a hole of one is seen, and no access is forgotten."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

from emulator.machine import EmulatorError, Kernel, Memory, Session, Settings, lonely
from emulator.small import run

# Two warps. All of the memory is first used as words (or not), then a thread each has a byte of it.
TEXT = """
extern "C" __global__ void kernel(unsigned char *MEMORY_GLOBAL, unsigned char *out_y) {
  __shared__ __align__(16) unsigned char near[64];
  extern __shared__ __align__(16) unsigned char far[];
  unsigned char *bytes = MEMORY;
  u32 *words = (u32 *)bytes;
  int i = threadIdx.x;
  FIRST
  bytes[i] = i + 1;
  __syncthreads();
  out_y[i] = bytes[63 - i];
}"""
MEMORIES = {
    "near": r"static shared memory near \+ ",
    "far + 64": r"shared memory \+ (?:64 \+ )?",
    "out_x": r"out_x \+ ",
}


def kernel(memory: str, first: str = "") -> str:
    return TEXT.replace("MEMORY_GLOBAL", "out_x").replace("MEMORY", memory).replace("FIRST", first)


def launch(text: str, seed: int = 0) -> np.ndarray:
    out = np.zeros(64, np.uint8)
    run(text, np.zeros(64, np.uint8), out, block=64, shared=128, settings=Settings(seed))
    return out


def offset(memory: str, byte: int) -> str:
    return MEMORIES[memory] + str(byte + 64 * memory.startswith("far")) + ","


def must_find(text: str, finding: str) -> None:
    """By a run of whichever order: who comes later says so."""
    found = ""
    for seed in range(4):
        with pytest.raises(EmulatorError) as error:
            launch(text, seed)
        found += str(error.value)
    assert re.search(finding, found), found


@pytest.mark.parametrize("memory", MEMORIES)
def test_neighbours_do_not_race(memory: str) -> None:
    """Whoever has which byte, and whether or not it was a part of a word before."""
    word = "if (i < 16) words[i] = 0; __syncthreads();"
    for first in ("", word, f"{word} out_y[i] = words[i % 16] + bytes[i]; __syncthreads();"):
        for other in ("i", "(i % 32 * 2 + i / 32)", "(63 - i)"):
            text = kernel(memory, first).replace("bytes[i] = i + 1", f"bytes[{other}] = {other} + 1")
            for seed in range(2):
                np.testing.assert_array_equal(launch(text, seed), 64 - np.arange(64))


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_byte_that_nobody_has_written(memory: str) -> None:
    text = kernel(memory).replace("bytes[i] =", "if (i != 37) bytes[i] =")
    with pytest.raises(EmulatorError, match=f"reads {offset(memory, 37)} which nobody has written"):
        launch(text)
    with pytest.raises(EmulatorError, match=f"reads {offset(memory, 37)} which nobody has written"):
        launch(text.replace("bytes[63 - i]", "words[i / 4]"))


@pytest.mark.parametrize("memory", MEMORIES)
def test_races_for_a_byte(memory: str) -> None:
    must_find(kernel(memory).replace("bytes[i] =", "bytes[i == 37 ? 5 : i] ="), f"race: writes {offset(memory, 5)} wri")
    must_find(kernel(memory).replace("__syncthreads();\n  out", "out"), f"race: reads {MEMORIES[memory]}")


# What is done to words, by others than those who then have their bytes; what must be known of it at each byte.
WORDS = {
    "written": ("if (i < 16) words[15 - i] = 0; __syncwarp();", "written by .*warp 0"),
    "read": (
        "if (i < 16) words[i] = 0; __syncthreads(); out_y[i] = words[i % 16]; __syncwarp();",
        "read by .*warp [01]",
    ),
    "added to": (
        "if (i < 16) words[i] = 0; __syncthreads(); atomicAdd(words + i % 16, 0); __syncwarp();",
        "added to by",
    ),
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", WORDS)
def test_what_was_done_to_the_word(memory: str, name: str) -> None:
    """The later accesses to bytes of it must be ordered behind it."""
    first, finding = WORDS[name]
    launch(kernel(memory, f"{first} __syncthreads();"))
    must_find(kernel(memory, first), f"race: writes {MEMORIES[memory]}.*{finding}")


def test_a_copy_to_bytes() -> None:
    """It is under way at each byte of its destination, and arrives at each, though they were parted meanwhile."""
    text = """
extern "C" __global__ void kernel(const unsigned char *in_x, unsigned char *out_y) {
  extern __shared__ __align__(16) unsigned char far[];
  __shared__ volatile unsigned char near[32]; /* g++ keeps what is only written */
  copy_async<16>(shared_address(far) + 16 * threadIdx.x, in_x + 16 * threadIdx.x, true);
  copy_commit();
  if (threadIdx.x != 7)
    near[threadIdx.x] = 0;
  EARLY
  copy_wait<0>();
  __syncwarp();
  for (int i = 0; i < 16; i++)
    out_y[16 * threadIdx.x + i] = far[16 * threadIdx.x + 15 - i];
}"""
    x, out = np.arange(512).astype(np.uint8), np.zeros(512, np.uint8)
    run(text.replace("EARLY", ""), x, out, shared=512)
    np.testing.assert_array_equal(out.reshape(32, 16), x.reshape(32, 16)[:, ::-1])
    with pytest.raises(EmulatorError, match=r"reads shared memory \+ 5, to which a copy is under way"):
        run(text.replace("EARLY", "near[0] = far[5];"), x, out, shared=512)


def test_holes_of_a_byte_in_an_output() -> None:
    """They are counted one by one, also where undefined behaviour made the launch be run again."""
    source = """
extern "C" __global__ void kernel(unsigned char *out_x, int by) {
  if (threadIdx.x % 4)
    out_x[threadIdx.x] = 1 << by;
}"""
    memory = Memory("out_x", lonely(32), writable=True)
    session = Session([memory])
    pointer = ctypes.c_void_p(memory.array.ctypes.data)
    assert session.unwritten("out_x") == 32
    with pytest.raises(EmulatorError, match="shift by 40"):
        session.launch(Kernel(source), "kernel", 1, 32, 0, [pointer, ctypes.c_int(40)], Settings())
    session.launch(Kernel(source), "kernel", 1, 16, 0, [pointer, ctypes.c_int(3)], Settings())
    assert session.unwritten("out_x") == 8
