/*
 * What the emulator knows of memory. Each two bytes of shared and of global memory have a cell: the last write, and all
 * reads and atomic additions since, each with the time of who did it. Where a single byte is touched, the cells of that
 * memory are divided into one for each byte; nearly all accesses are wider, and half as many cells take half the time.
 */
#pragma once

#include "history.h"

namespace emu {

enum Kind : unsigned char { UNWRITTEN, HOST, GAP, WRITTEN, IN_FLIGHT, BARRIER };
enum : u32 { WIDE = 1, NARROW = 0 }; /* the logarithms of the bytes of a cell */

/* Is it in need of cells of single bytes? */
inline bool divides_cell(size_t offset, size_t bytes) { return ((offset | bytes) & 1) != 0; }
/* All cells that an access of at least one byte is in. */
inline size_t cells_of(size_t offset, size_t bytes, u32 width) {
  return ((offset + bytes - 1) >> width) - (offset >> width) + 1;
}
/* How many cells memory of this size has. */
inline size_t total_cells(size_t bytes, u32 width) { return (bytes + (1u << width) - 1) >> width; }

/* A write: by a lane of a warp or, where the agent is an mbarrier, by a copy that its phase waits for. */
struct Mark {
  uintptr_t pc;
  u64 block;
  u32 clock;
  unsigned char agent, lane;
  Kind kind;
  bool bulk; /* by a bulk copy to global memory */
};

/* Global memory that the kernel was given. */
struct Region {
  std::string name;
  unsigned char *begin, *end;
  bool writable;
  u32 width; /* of its cells */
  std::vector<Mark> write;
  std::vector<u32> since; /* heads of histories; none where nobody may write */
};

void touch_global(Region &region, size_t offset, size_t bytes, Access access, uintptr_t pc);
void global_done(Region &region, size_t offset, size_t bytes, uintptr_t pc); /* what a bulk copy of this thread wrote */
void shadow_launch(size_t resident);
void shadow_begin(Block &block); /* nobody has touched its shared memory */

} // namespace emu
