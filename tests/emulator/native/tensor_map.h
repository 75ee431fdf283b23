/*
 * A tensor map as the emulator has it in the 128 bytes that are opaque to a kernel; tensor_map.py makes them:
 *     word 0       MAGIC, then a byte each: rank, type, swizzle (0 none, 1 32, 2 64, 3 128 bytes)
 *     word 1       address of the tensor
 *     words 2-6    elements along each dimension, the one whose elements are neighbours first
 *     words 7-10   bytes from an element to the next along dimensions 1 to 4
 *     words 11-12  elements of a box along each dimension, 16 bits each
 *     word 15      the sum of the others
 */
#pragma once

#include "machine.h"

namespace emu {

enum { MAX_RANK = 5, CHUNK = 16 /* bytes, which a swizzle keeps together */ };
enum : u64 { TENSOR_MAP_MAGIC = 0x54534e54 };

struct TensorMap {
  u32 rank, swizzle;
  int type; /* TYPE_FP16, TYPE_BF16, TYPE_FP32 */
  unsigned char *base;
  u64 size[MAX_RANK], stride[MAX_RANK];
  u32 box[MAX_RANK];
};

/* 16 bytes of shared memory and what they are in global memory, of which bytes begin to end - 1 exist. */
struct Piece {
  u32 address;
  u32 begin, end;
  unsigned char *global; /* of byte 0, whether it exists or not */
};

TensorMap decode_tensor_map(const void *map, u32 rank, const char *what, uintptr_t pc);
/* A copy to global memory goes on to the next 16 bytes behind the end of a row, as on GPUs. */
std::vector<Piece> box_pieces(const TensorMap &map, u32 shared, const int *coordinates, bool writes);
std::vector<Piece> row_pieces(u32 shared, unsigned char *global, u32 bytes);

/* Where a swizzle puts what would lie at this address: bits 4 to 6 are exchanged by bits 7 to 9, as many as it has. */
inline u32 swizzled(u32 address, u32 swizzle, u32 base_offset) {
  u32 mask = swizzle == 3 ? 7 : swizzle == 2 ? 3 : swizzle == 1 ? 1 : 0;
  return address ^ (((address >> 7) - base_offset) & mask) << 4;
}

} // namespace emu
