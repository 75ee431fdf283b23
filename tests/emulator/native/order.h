/*
 * Is an access in order with those before it? If not, that is said. Two accesses, one of them a write, that no barrier
 * (or release and acquire) orders are a race whether or not they happened to meet in this run. Atomics are in order
 * with each other.
 */
#pragma once

#include "shadow.h"

namespace emu {

/* The last reads by a warp. */
struct Reads {
  uintptr_t pc;
  u32 clock, lanes;
};

inline bool is_add(Access access) { return access == ATOMIC || access == BULK_ADD; }
inline bool is_read(Access access) {
  return access == READ || access == COLLECTIVE_READ || access == COPY_SOURCE || access == PRODUCT_READ ||
         access == BULK_READ || access == ATOMIC_READ || access == BULK_SOURCE;
}
inline Use use_of(Access access) {
  return is_add(access) ? USE_ADD : access == ATOMIC_READ ? USE_ATOMIC_READ : USE_READ;
}
inline bool is_collective(Access access) { return access == COLLECTIVE_READ || access == PRODUCT_READ; }

/* For people: a place in shared memory, or in a region. */
struct Place {
  const SharedPlace *shared;
  const Region *region;
  size_t offset;
  std::string text() const;
};

/* By the running thread: an access to what was written so, */
void check_written(const Mark &w, Access access, const Place &place, uintptr_t pc);
/* to what has been used so since, */
void check_history(u32 head, Access access, const Place &place, uintptr_t pc);
/* and a write to what this warp of the block has read. */
void check_read(const Block &block, u32 warp, const Reads &read, Access access, const Place &place, uintptr_t pc);

} // namespace emu
