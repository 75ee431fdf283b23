"""Where Hopper's instructions expect and put elements, in tables: written by hand from the PTX ISA and the CUDA guide,
and nothing here is made of the emulator's own code."""

from __future__ import annotations

import numpy as np

# A swizzle exchanges chunks of 16 bytes within a row of 128 bytes: bits 4 to 6 of the address are combined with bits 7
# to 9. SWIZZLES[bytes][row][chunk] is the chunk in which the given one of the given row lies, rows being as long as the
# swizzle: four rows of the 32-byte swizzle lie in 128 bytes, and two of the 64-byte swizzle.
SWIZZLES = {
    16: [[0]] * 8,
    32: [[0, 1], [0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0]],
    64: [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [1, 0, 3, 2],
        [1, 0, 3, 2],
        [2, 3, 0, 1],
        [2, 3, 0, 1],
        [3, 2, 1, 0],
        [3, 2, 1, 0],
    ],
    128: [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 0, 3, 2, 5, 4, 7, 6],
        [2, 3, 0, 1, 6, 7, 4, 5],
        [3, 2, 1, 0, 7, 6, 5, 4],
        [4, 5, 6, 7, 0, 1, 2, 3],
        [5, 4, 7, 6, 1, 0, 3, 2],
        [6, 7, 4, 5, 2, 3, 0, 1],
        [7, 6, 5, 4, 3, 2, 1, 0],
    ],
}


def place_k_major(values: np.ndarray, swizzle: int, leading: int, stride: int, size: int) -> np.ndarray:
    """An image of shared memory, `size` bytes, of values[row][k] (16 bits). Pieces of 8 rows, `stride` bytes apart;
    rows of `swizzle` bytes, of 16 without one, and then the next 8 k are a piece of their own `leading` bytes on."""
    image = np.zeros(size // 2, np.uint16)
    width = swizzle or 16
    for row, k in np.ndindex(*values.shape):
        chunk, piece = (k // 8, 0) if swizzle else (0, k // 8)
        chunk = SWIZZLES[width][row % 8][chunk]
        byte = row // 8 * stride + piece * leading + row % 8 * width + chunk * 16 + k % 8 * 2
        image[byte // 2] = values[row, k]
    return image


def place_mn_major(values: np.ndarray, swizzle: int, leading: int, stride: int, size: int) -> np.ndarray:
    """The same for a matrix whose neighbours in memory are neighbours along its rows' index: a row of 16 (or `swizzle`)
    bytes is one k, 8 of them are a piece. With a swizzle the next 8 k are `stride` on and what does not fit into a row
    `leading`; without one, the other way round."""
    image = np.zeros(size // 2, np.uint16)
    width = swizzle or 16
    for row, k in np.ndindex(*values.shape):
        piece, chunk = row // (width // 2), row % (width // 2) // 8
        chunk = SWIZZLES[width][k % 8][chunk]
        offset = piece * leading + k // 8 * stride if swizzle else piece * stride + k // 8 * leading
        image[(offset + k % 8 * width + chunk * 16 + row % 8 * 2) // 2] = values[row, k]
    return image


def accumulator_element(thread: int, register: int) -> tuple[int, int]:
    """Row and column of what a thread of a warpgroup holds: figure "WGMMA .m64nNk16 register fragment layout for
    accumulator matrix D"."""
    warp, lane = thread // 32, thread % 32
    row = 16 * warp + lane // 4 + (8 if register % 4 >= 2 else 0)
    return row, register // 4 * 8 + lane % 4 * 2 + register % 2
