/*
 * What is known to have happened: vector clocks of agents. An agent is a warp, or an mbarrier of a block: the phases of
 * an mbarrier order what asynchronous copies wrote, which no thread did.
 */
#pragma once

#include <cstdint>
#include <map>

namespace emu {

typedef uint32_t u32;
typedef uint64_t u64;

enum {
  WARP = 32,
  MAX_WARPS = 32,
  MAX_BARRIERS = 96, /* mbarriers of a block */
  MAX_AGENTS = MAX_WARPS + MAX_BARRIERS,
  NEVER = 0x3ffffff /* the time of what asynchronous operations still do */
};
/* Whose accesses they were, besides 0 to 31: the warp's as one, so that what one lane tells is true of all; or those of
 * some lanes, nobody knows which. */
enum { ALL_LANES = 62, SEVERAL_LANES = 63 };
enum : u64 { NO_BLOCK = ~0ull };

/* Up to when an agent's accesses are known: of all lanes, and a little further of some of them. */
struct Epoch {
  u32 all, some, lanes;
  bool covers(u32 clock, unsigned lane) const {
    if (clock <= all)
      return true;
    if (clock > some)
      return false;
    return lane == ALL_LANES ? lanes != 0 : lane == SEVERAL_LANES ? lanes == ~0u : (lanes >> lane & 1) != 0;
  }
  void join(const Epoch &other);
};

/* Of the agents of one block, and of agents of other blocks. */
struct Clock {
  u64 block = NO_BLOCK;
  Epoch local[MAX_AGENTS] = {};
  std::map<u64, Epoch> foreign; /* block * MAX_AGENTS + agent */
  const Epoch &of(u64 of_block, u32 agent) const;
  void join(const Clock &other);
};

struct Thread;
struct Warp;

/* What others know when one lane, or a whole warp, tells them what it knows and did; what is done later is newer. */
Clock release_lane(Thread &thread);
Clock release_warp(Warp &warp);
/* One thread learns. Its warp does when its lanes synchronise. */
void acquire(Thread &thread, const Clock &clock);
/* The lanes of a warp learn what each of them knows and did. */
void synchronise(Warp &warp, u32 lanes);

/* Does the running thread (or, `collective`, do all lanes of its warp) know of an access at this time? */
bool knows(u64 block, u32 agent, u32 clock, unsigned lane, bool collective);

} // namespace emu
