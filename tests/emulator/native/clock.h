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
/* Whose accesses they were: a bit for each lane, or the warp's as one, so that what one lane tells is true of all. */
enum : u32 { AS_ONE = 0 };
enum : u64 { NO_BLOCK = ~0ull };

/* Up to when an agent's accesses are known: of all lanes, and a little further of some of them. */
struct Epoch {
  u32 all, some, lanes;
  /* Of these lanes' accesses at that time, those that are not known. */
  u32 missing(u32 clock, u32 of) const { return clock <= all ? 0 : clock <= some ? of & ~lanes : of; }
  bool covers_one(u32 clock) const { return clock <= all || (clock <= some && lanes != 0); }
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

/* Does the running thread (or, `collective`, do all lanes of its warp) know of all these lanes' accesses at this time?
 */
bool knows(u64 block, u32 agent, u32 clock, u32 lanes, bool collective);

} // namespace emu
