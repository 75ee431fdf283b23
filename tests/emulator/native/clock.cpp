/* Vector clocks: who tells whom what has happened. */
#include "machine.h"

#include <algorithm>

namespace emu {

/* Where two lanes of a warp tell their own part, it is as if both had done so when the later one did. */
void Epoch::join(const Epoch &other) {
  all = std::max(all, other.all);
  u32 both = 0;
  if (some > all)
    both |= lanes;
  if (other.some > all)
    both |= other.lanes;
  some = both ? std::max(some, other.some) : 0;
  lanes = both;
}

const Epoch &Clock::of(u64 of_block, u32 agent) const {
  static const Epoch nothing = {};
  if (of_block == block)
    return local[agent];
  auto found = foreign.find(of_block * MAX_AGENTS + agent);
  return found == foreign.end() ? nothing : found->second;
}

void Clock::join(const Clock &other) {
  if (block == NO_BLOCK && foreign.empty())
    block = other.block;
  for (u32 i = 0; i < MAX_AGENTS; i++) {
    const Epoch &epoch = other.local[i];
    if (!epoch.all && !epoch.some)
      continue;
    if (other.block == block)
      local[i].join(epoch);
    else
      foreign[other.block * MAX_AGENTS + i].join(epoch);
  }
  for (const auto &item : other.foreign)
    if (item.first / MAX_AGENTS == block)
      local[item.first % MAX_AGENTS].join(item.second);
    else
      foreign[item.first].join(item.second);
}

Clock release_lane(Thread &thread) {
  Warp &warp = *thread.warp;
  Clock clock = warp.clock;
  if (thread.known)
    clock.join(*thread.known);
  clock.local[warp.index] = {warp.synchronised, warp.epoch, 1u << thread.lane};
  warp.epoch++;
  return clock;
}

Clock release_warp(Warp &warp) {
  Clock clock = warp.clock;
  for (u32 i = 0; i < WARP; i++)
    if (warp.lanes >> i & 1 && warp.thread[i].known)
      clock.join(*warp.thread[i].known);
  clock.local[warp.index] = {warp.epoch, 0, 0};
  warp.epoch++;
  return clock;
}

void acquire(Thread &thread, const Clock &clock) {
  if (!thread.known) {
    thread.known.reset(new Clock());
    thread.known->block = thread.warp->block->index;
  }
  thread.known->join(clock);
}

void synchronise(Warp &warp, u32 lanes) {
  for (u32 i = 0; i < WARP; i++)
    if (lanes >> i & 1 && warp.thread[i].known) {
      warp.clock.join(*warp.thread[i].known);
      warp.thread[i].known.reset();
    }
  warp.synchronised = warp.epoch++;
}

static bool lane_knows(const Thread &thread, u64 block, u32 agent, u32 clock, u32 lanes) {
  if (!thread.known)
    return false;
  const Epoch &epoch = thread.known->of(block, agent);
  return lanes == AS_ONE ? epoch.covers_one(clock) : !epoch.missing(clock, lanes);
}

bool knows(u64 block, u32 agent, u32 clock, u32 lanes, bool collective) {
  const Thread &thread = *machine.now;
  const Warp &warp = *thread.warp;
  if (clock == NEVER)
    return false;
  bool own = block == warp.block->index && agent == warp.index;
  if (own && clock <= warp.synchronised)
    return true;
  const Epoch &epoch = warp.clock.of(block, agent);
  if (lanes == AS_ONE) {
    if (epoch.covers_one(clock))
      return true;
  } else {
    if (own && !collective)
      lanes &= ~(1u << thread.lane);
    lanes = epoch.missing(clock, lanes);
    if (!lanes)
      return true;
  }
  if (!collective)
    return lane_knows(thread, block, agent, clock, lanes);
  for (u32 i = 0; i < WARP; i++)
    if (warp.lanes >> i & 1 && !lane_knows(warp.thread[i], block, agent, clock, lanes))
      return false;
  return true;
}

} // namespace emu
