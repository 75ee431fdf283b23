/*
 * What the emulator knows of memory. Each two bytes of shared and of global memory have a cell: the last write, and all
 * reads and atomic additions since, each with the time of who did it.
 */
#pragma once

#include "history.h"

namespace emu {

enum Kind : unsigned char { UNWRITTEN, HOST, GAP, WRITTEN, IN_FLIGHT, BARRIER };
enum { CELL = 2 };

/* A write: by a lane of a warp or, where the agent is an mbarrier, by a copy that its phase waits for. */
struct Mark {
  uintptr_t pc;
  u64 block;
  u32 clock;
  unsigned char agent, lane;
  Kind kind;
};

/* Global memory that the kernel was given. */
struct Region {
  std::string name;
  unsigned char *begin, *end;
  bool writable;
  std::vector<Mark> write;
  std::vector<u32> since; /* heads of histories; none where nobody may write */
};

bool is_read(Access access);
void touch_global(Region &region, size_t offset, size_t bytes, Access access, uintptr_t pc);
void global_done(Region &region, size_t offset, size_t bytes, uintptr_t pc); /* what a bulk copy of this thread wrote */
void shadow_launch(size_t resident);
void shadow_begin(Block &block); /* nobody has touched its shared memory */

} // namespace emu
