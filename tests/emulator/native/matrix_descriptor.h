/* The 64 bits that say where a matrix of 16-bit elements lies in shared memory for wgmma. */
#pragma once

#include "machine.h"

namespace emu {

/* Fields as in the PTX ISA, offsets in bytes. */
struct MatrixDescriptor {
  u32 address, leading, stride, base_offset, swizzle; /* swizzle: 0 none, 1 32, 2 64, 3 128 bytes */
};

MatrixDescriptor decode_matrix_descriptor(u64 bits, uintptr_t pc);

/* The address of element (i, k): row i of A or column i of B; `transposed`: neighbours in memory are neighbours along
 * i, not along k. k < 16. */
u32 element_address(const MatrixDescriptor &matrix, bool transposed, u32 i, u32 k);

} // namespace emu
