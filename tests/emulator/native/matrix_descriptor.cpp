/*
 * Descriptors of matrices, after the PTX ISA: bits 0-13 the address, 16-29 the leading and 32-45 the stride offset, all
 * without their lowest four bits; 49-51 the base offset; 62-63 the layout, 1 for a swizzle of 128 bytes, 2 for 64, 3
 * for 32.
 *
 * A matrix is made of pieces of 8 rows. A row is as long as the swizzle (16 bytes without one) and 8 of them are dense.
 *     K-major: a row is a row of A (a column of B), its elements are those along k. The next 8 rows are `stride` on.
 *         Without a swizzle k 8 to 15 are `leading` on; with one they are in the same row and `leading` is not used.
 *     MN-major (transposed): a row is one k, its elements are along i. With a swizzle the next 8 k are `stride` on, and
 *         the elements along i that do not fit into a row `leading`. Without one it is the other way round.
 * The swizzle works on the bits of the address in the end, so that a matrix may begin inside of a row (a step along k)
 * or of a piece; where the piece itself does not begin on a multiple of 8 rows of 128 bytes, the base offset says by
 * how many rows it is off.
 */
#include "matrix_descriptor.h"
#include "tensor_map.h"

namespace emu {

MatrixDescriptor decode_matrix_descriptor(u64 bits, uintptr_t pc) {
  static const u32 swizzles[4] = {0, 3, 2, 1};
  const u64 unused = ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62);
  if (bits & unused)
    fatal(pc, "wgmma: bits that must be 0 are set in the descriptor %#llx", (unsigned long long)bits);
  return {(u32)(bits & 0x3fff) << 4, (u32)(bits >> 16 & 0x3fff) << 4, (u32)(bits >> 32 & 0x3fff) << 4,
          (u32)(bits >> 49 & 7), swizzles[bits >> 62]};
}

u32 element_address(const MatrixDescriptor &matrix, bool transposed, u32 i, u32 k) {
  u32 row_bytes = CHUNK << matrix.swizzle, row_elements = row_bytes / 2, offset;
  if (!transposed) {
    offset = i / 8 * matrix.stride + i % 8 * row_bytes;
    offset += matrix.swizzle ? k * 2 : k / 8 * matrix.leading + k % 8 * 2;
  } else {
    u32 along_i = matrix.swizzle ? matrix.leading : matrix.stride;
    u32 along_k = matrix.swizzle ? matrix.stride : matrix.leading;
    offset = i / row_elements * along_i + i % row_elements * 2 + k / 8 * along_k + k % 8 * row_bytes;
  }
  return swizzled((matrix.address + offset) & 0x3ffff, matrix.swizzle, matrix.base_offset);
}

} // namespace emu
