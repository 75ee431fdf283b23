"""Launches of templates/cuda/matmul.cu, on a GPU or in the emulator, and what a right result is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flash_attention import _native
from gpu.launch import Array, Launch, TensorMap
from gpu.operands import from_bits, to_bits

BLOCK_M, BLOCK_K, THREADS = 128, 64, 384
NAN = 0x7FFF  # of both 16-bit types


@dataclass(frozen=True)
class Matmul:
    """C = A Bᵀ, or C += A Bᵀ: A is (m, k), B is (n, k)."""

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    block_n: int = 128
    num_stages: int = 3
    a_is_m_major: bool = False
    b_is_n_major: bool = False
    result: str = "store"  # "add", "add_fragments"
    splits: int = 1  # of k
    blocks: int = 0  # of threads; 0: one for each tile
    data: str = "integers"  # results are exact; "normal"

    def source(self) -> str:
        constants = {
            "dtype_16": self.dtype,
            "block_n": self.block_n,
            "num_stages": self.num_stages,
            "a_is_m_major": int(self.a_is_m_major),
            "b_is_n_major": int(self.b_is_n_major),
            "result": self.result,
        }
        return _native.expand("cuda/matmul.cu", constants)

    def tiles(self) -> tuple[int, int]:
        return -(-self.m // BLOCK_M), -(-self.n // self.block_n)

    def shared_bytes(self) -> int:
        size = 2 if self.result == "store" else 4
        stage = (BLOCK_M + self.block_n) * BLOCK_K * 2 + 16
        return self.num_stages * stage + BLOCK_M * self.block_n * size


def _operand(rng: np.random.Generator, problem: Matmul, rows: int, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    """float64 values (rows, k), and their bits as they lie in memory: rows a little apart, NaN between them."""
    values = rng.integers(-8, 9, (rows, problem.k)) if problem.data == "integers" else None
    values = rng.standard_normal((rows, problem.k)) if values is None else values.astype(np.float64)
    bits = to_bits(values, problem.dtype)
    stored = bits.T if transposed else bits
    memory = np.full((stored.shape[0], -(-stored.shape[1] // 8) * 8 + 8), NAN, np.uint16)
    memory[:, : stored.shape[1]] = stored
    return from_bits(bits, problem.dtype), memory


class Call:
    """One launch with its operands. After it has run, check() says what is wrong."""

    def __init__(self, problem: Matmul, source: str = "") -> None:
        self.problem = p = problem
        rng = np.random.default_rng([p.m, p.n, p.k])
        self.a, a_memory = _operand(rng, p, p.m, p.a_is_m_major)
        self.b, b_memory = _operand(rng, p, p.n, p.b_is_n_major)
        a, b = Array("a", a_memory), Array("b", b_memory)
        a_map = TensorMap(a, p.dtype, (p.m, p.k), (64, 64)) if p.a_is_m_major else None
        b_map = TensorMap(b, p.dtype, (p.n, p.k), (64, 64)) if p.b_is_n_major else None
        a_map = a_map or TensorMap(a, p.dtype, (p.k, p.m), (64, BLOCK_M))
        b_map = b_map or TensorMap(b, p.dtype, (p.k, p.n), (64, p.block_n))
        tiles_m, tiles_n = p.tiles()
        if p.result == "add_fragments":
            self.before = rng.integers(-50, 51, (tiles_m * 2, tiles_n, p.block_n // 2, 128)).astype(np.float32)
        elif p.result == "add":
            self.before = np.full((p.m, -(-p.n // 4) * 4 + 4), np.nan, np.float32)
            self.before[:, : p.n] = rng.integers(-50, 51, (p.m, p.n))
        else:
            self.before = np.full((p.m, -(-p.n // 8) * 8 + 8), 0xFFFF, np.uint16)
        self.c = Array("c", self.before.copy(), "out" if p.result == "store" else "inout")
        of_c = {
            "store": lambda: TensorMap(self.c, p.dtype, (p.n, p.m), (64, 64)),
            "add": lambda: TensorMap(self.c, "fp32", (p.n, p.m), (32, 64)),
            "add_fragments": lambda: self.c,
        }[p.result]()
        arguments = [a_map, b_map, of_c, p.m, p.n, p.k, p.splits]
        blocks = p.blocks or tiles_m * tiles_n * p.splits
        self.launch = Launch(source or p.source(), "matmul", blocks, THREADS, p.shared_bytes(), arguments)

    def _rows_and_columns(self, values: np.ndarray) -> np.ndarray:
        """A result in memory as a matrix (m, n); of fragments, after PTX's figure of wgmma's D."""
        p = self.problem
        if p.result != "add_fragments":
            return values[:, : p.n]
        i, thread = np.arange(p.block_n // 2)[:, None], np.arange(128)[None, :]
        row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
        column = i // 4 * 8 + thread % 4 * 2 + i % 2
        tiles = np.empty((*values.shape[:2], 64, p.block_n), values.dtype)
        tiles[:, :, row, column] = values
        return tiles.transpose(0, 2, 1, 3).reshape(values.shape[0] * 64, -1)[: p.m, : p.n]

    def _bound(self) -> np.ndarray:
        """How far each element may be off where data are not integers.

        A product of 16 and the sum so far are aligned to the largest of 17 terms and cut at 2^-25 of it, and their sum
        at 2^-23 of it; no term is larger than the sum of all magnitudes. Sums of parts, where k is split, are rounded.
        """
        p = self.problem
        before = np.abs(self._rows_and_columns(self.before).astype(np.float64)) if p.result != "store" else 0
        magnitude = np.abs(self.a) @ np.abs(self.b).T
        cut = math.ceil(p.k / 16) * (17 * 2.0**-25 + 2.0**-23) * magnitude
        return cut + p.splits * 2.0**-24 * (magnitude + before)

    def _between_rows(self, written: np.ndarray) -> str:
        """What was written behind the columns of C that may not: TMA goes on to a multiple of 16 bytes, with zeros."""
        end = -(-self.problem.n * written.itemsize // 16) * 16 // written.itemsize
        allowed = (written == self.before) | ((written == 0) & (np.arange(written.shape[1]) < end))
        allowed |= np.isnan(written) if self.problem.result == "add" else False
        wrong = np.argwhere(~allowed[:, self.problem.n :])
        if not len(wrong):
            return ""
        columns = sorted(set((wrong[:, 1] + self.problem.n).tolist()))
        bits = np.ascontiguousarray(written[:, columns]).view(f"u{written.itemsize}")
        values = sorted({hex(x) for x in bits.reshape(-1).tolist()})
        return f"what lies between the rows of C was written: columns {columns[:20]}, with {values[:8]}"

    def check(self) -> str:
        """ "" if the result is right, else what is wrong."""
        p, written = self.problem, self.c.values
        if p.result != "add_fragments" and (text := self._between_rows(written)):
            return text
        exact = self.a @ self.b.T
        if p.result != "store":
            exact = exact + self._rows_and_columns(self.before)
        actual = self._rows_and_columns(written)
        actual = from_bits(actual, p.dtype) if p.result == "store" else actual.astype(np.float64)
        bound = np.zeros_like(exact) if p.data == "integers" else self._bound()
        if p.result == "store":  # and then rounded to 16 bits: between what the ends of the interval round to
            low, high = (from_bits(to_bits(x, p.dtype), p.dtype) for x in (exact - bound, exact + bound))
        else:
            low, high = exact - bound, exact + bound
        wrong = np.argwhere(~((low <= actual) & (actual <= high)))
        if not len(wrong):
            return ""
        row, column = wrong[0]
        return (
            f"{len(wrong)} of {exact.size} elements are wrong; rows {wrong[:, 0].min()}-{wrong[:, 0].max()}, columns "
            f"{wrong[:, 1].min()}-{wrong[:, 1].max()}; the first, ({row}, {column}), is {actual[row, column]}, "
            f"must be {exact[row, column]}"
        )
