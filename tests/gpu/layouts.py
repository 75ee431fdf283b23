"""Where wgmma finds the elements of an operand in shared memory, after the canonical layouts of the PTX ISA
("Asynchronous Warpgroup Level Matrix Shared Memory Layout"): written for tests, apart from the emulator's decoding.

An operand is (rows, 16): rows along M or N, 16 along K. Its 16-byte chunks are made of 8 neighbours along K (K-major)
or along M or N (MN-major).

    swizzle s = 32, 64, 128, K-major     8 rows of s bytes are an atom of 8 s bytes; the next 8 rows are `stride` on
    the same, MN-major                   an atom is 8 k of s bytes, each s / 2 neighbours along M or N; the next 8 k are
                                         `stride` on, the next s / 2 neighbours `leading`
    no swizzle                           atoms are 8 chunks of 16 bytes; the next along M or N is `stride` on, the next
                                         along K `leading`

and in the swizzled ones bits 4 and up of an address are XORed with as many bits from bit 7 on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    swizzle: int = 128  # bytes: 0, 32, 64, 128
    mn_major: bool = False
    padded: bool = False  # atoms lie apart
    step: int = 0  # which 16 of a K-major row are meant: its address is 32 bytes further on

    @property
    def name(self) -> str:
        major, padded = "mn" if self.mn_major else "k", "_padded" * self.padded
        return f"{major}{self.swizzle}{padded}" + (f"_step{self.step}" if self.step else "")

    def strides(self, rows: int) -> tuple[int, int]:
        """leading and stride, in bytes."""
        atom = 8 * max(self.swizzle, 16)
        apart = 2 * atom if self.padded else atom
        if self.swizzle and not self.mn_major:
            return 16, apart
        if self.swizzle:
            return 2 * apart, apart  # 16 k are two atoms
        return -(-rows // 8) * apart, apart

    def addresses(self, rows: int) -> np.ndarray:
        """(rows, 16): the first byte of each element, from a start that is a multiple of 1024."""
        leading, stride = self.strides(rows)
        row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
        if not self.swizzle:
            inner = row % 8 * 2 + k % 8 * 16 if self.mn_major else row % 8 * 16 + k % 8 * 2
            return inner + row // 8 * stride + k // 8 * leading
        if self.mn_major:
            wide = self.swizzle // 2
            address = row % wide * 2 + row // wide * leading + k % 8 * self.swizzle + k // 8 * stride
        else:
            address = row % 8 * self.swizzle + row // 8 * stride + (16 * self.step + k) * 2
        return address ^ (address >> 7 & self.swizzle // 16 - 1) << 4

    def place(self, operand: np.ndarray, size: int) -> np.ndarray:
        """The operand's bits in `size` bytes of shared memory; NaN where there is none."""
        image = np.full(size // 2, 0x7FFF, np.uint16)
        image[self.addresses(len(operand)) // 2] = operand
        return image


SWIZZLES = (0, 32, 64, 128)
LAYOUTS = (
    *(Layout(s, major, padded) for s in SWIZZLES for major in (False, True) for padded in (False, True)),
    *(Layout(s, step=step) for s in (64, 128) for step in range(1, s // 32)),
)
PLAIN = Layout()
