/* Where a box of a tensor lies in global and in shared memory. */
#include "tensor_map.h"
#include "tensor_core.h"

#include <algorithm>
#include <cstring>

namespace emu {

TensorMap decode_tensor_map(const void *map, u32 rank, const char *what, uintptr_t pc) {
  u64 words[16], sum = 0;
  if ((uintptr_t)map % 64)
    fatal(pc, "%s: the tensor map is not aligned to 64 bytes", what);
  memcpy(words, map, sizeof words);
  for (int i = 0; i < 15; i++)
    sum += words[i];
  if ((words[0] & 0xffffffff) != TENSOR_MAP_MAGIC || sum != words[15])
    fatal(pc, "%s: this is no tensor map", what);
  TensorMap m = {};
  m.rank = words[0] >> 32 & 255;
  m.type = (int)(words[0] >> 40 & 255);
  m.swizzle = words[0] >> 48 & 255;
  m.base = (unsigned char *)words[1];
  if (m.rank != rank)
    fatal(pc, "%s: the tensor map has %u dimensions, the instruction %u", what, m.rank, rank);
  m.stride[0] = m.type == TYPE_FP32 ? 4 : 2;
  for (u32 i = 0; i < MAX_RANK; i++) {
    m.size[i] = words[2 + i];
    m.box[i] = words[11 + i / 4] >> 16 * (i % 4) & 0xffff;
    if (i)
      m.stride[i] = words[6 + i];
  }
  return m;
}

std::vector<Piece> box_pieces(const TensorMap &map, u32 shared, const int *coordinates, bool writes) {
  std::vector<Piece> pieces;
  long element = (long)map.stride[0], row_bytes = (long)map.box[0] * element;
  /* As an H200 has it: rows of a box that is narrower than its swizzle lie as far apart as those of one that is not. */
  u32 pitch = std::max((u32)row_bytes, (u32)CHUNK << map.swizzle);
  long first = (long)coordinates[0] * element, limit = (long)map.size[0] * element;
  if (writes)
    limit = (limit + CHUNK - 1) / CHUNK * CHUNK;
  u32 rows = 1;
  for (u32 d = 1; d < map.rank; d++)
    rows *= map.box[d];
  for (u32 row = 0; row < rows; row++) {
    bool exists = true;
    unsigned char *global = map.base;
    for (u32 d = 1, rest = row; d < map.rank; rest /= map.box[d++]) {
      long index = (long)coordinates[d] + (long)(rest % map.box[d]);
      exists &= index >= 0 && (u64)index < map.size[d];
      global += index * (long)map.stride[d];
    }
    for (long byte = 0; byte < row_bytes; byte += CHUNK) {
      long begin = std::clamp(-(first + byte), 0l, (long)CHUNK),
           end = std::clamp(limit - first - byte, 0l, (long)CHUNK);
      u32 address = swizzled(shared + row * pitch + (u32)byte, map.swizzle, 0);
      bool any = exists && begin < end;
      pieces.push_back({address, any ? (u32)begin : 0, any ? (u32)end : 0, global + first + byte});
    }
  }
  return pieces;
}

std::vector<Piece> row_pieces(u32 shared, unsigned char *global, u32 bytes) {
  std::vector<Piece> pieces;
  for (u32 i = 0; i < bytes; i += CHUNK)
    pieces.push_back({shared + i, 0, CHUNK, global + i});
  return pieces;
}

} // namespace emu
