/* What is known of the accesses before this one, and what is said of it. */
#include "order.h"

#include <algorithm>
#include <cstring>

namespace emu {

/* --- what is known ----------------------------------------------------------------------------------------------- */

static bool ordered(const Mark &mark, bool collective) {
  /* What is known stays known: neighbours mostly have the same mark. To the warp as a whole, and to a thread. */
  static Mark last[2];
  static const void *last_one[2];
  static u64 last_turn[2];
  const void *one = collective ? (const void *)machine.now->warp : machine.now;
  Mark &m = last[collective];
  if (mark.clock == m.clock && mark.agent == m.agent && mark.lane == m.lane && mark.block == m.block &&
      one == last_one[collective] && machine.turns == last_turn[collective])
    return true;
  if (!knows(mark.block, mark.agent, mark.clock, 1u << mark.lane, collective))
    return false;
  m = mark;
  last_one[collective] = one;
  last_turn[collective] = machine.turns;
  return true;
}

/* The same of the last reads of the running thread's turn, one of each warp. */
static bool ordered_read(u64 block, u32 warp, const Reads &read) {
  static Reads last[MAX_WARPS];
  static u64 last_block, last_turn;
  static const Thread *last_thread;
  if (machine.now != last_thread || machine.turns != last_turn || block != last_block) {
    memset(last, 0, sizeof last);
    last_thread = machine.now;
    last_turn = machine.turns;
    last_block = block;
  }
  if (read.clock == last[warp].clock && read.lanes == last[warp].lanes)
    return true;
  bool known = knows(block, warp, read.clock, read.lanes, false);
  if (known)
    last[warp] = read;
  return known;
}

static Block *find_block(u64 index) {
  for (Block *block : machine.blocks)
    if (block->index == index)
      return block;
  return nullptr;
}

/* Have the lanes that wrote this made it known to asynchronous operations, and is that known here? */
static bool fenced(u64 of, u32 agent, u32 clock, u32 lanes, bool collective) {
  Block *block = find_block(of);
  if (!block || agent >= MAX_WARPS)
    return true;
  for (; lanes; lanes &= lanes - 1) {
    u32 lane = (u32)__builtin_ctz(lanes);
    const std::vector<u32> &fences = block->thread[agent * WARP + lane].proxy_fences;
    auto fence = std::lower_bound(fences.begin(), fences.end(), clock);
    if (fence == fences.end() || !knows(of, agent, *fence + 1, 1u << lane, collective))
      return false;
  }
  return true;
}

/* --- for people -------------------------------------------------------------------------------------------------- */

static std::string describe(const Mark &mark) {
  char text[120];
  const char *format = mark.agent < MAX_WARPS ? "block %llu warp %u lane %u at " : "a copy to block %llu begun at ";
  snprintf(text, sizeof text, format, (unsigned long long)mark.block, mark.agent, mark.lane);
  return text + at(mark.pc);
}

static std::string describe(u64 block, u32 warp, u32 lanes, uintptr_t pc) {
  std::string text = "warp " + std::to_string(warp);
  if (block != machine.now->warp->block->index)
    text = "block " + std::to_string(block) + " " + text;
  if (lanes && !(lanes & (lanes - 1)))
    text += " lane " + std::to_string(__builtin_ctz(lanes));
  return text + " at " + at(pc);
}

static const char *verb(Access access) {
  static const char *const verbs[] = {"reads",       "writes",     "reads",       "writes",       "reads",     "reads",
                                      "wgmma reads", "copy reads", "copy writes", "copy adds to", "copy reads"};
  return verbs[access];
}

std::string Place::text() const {
  return shared ? SharedPlace{shared->block, offset, shared->is_static}.text()
                : region->name + " + " + std::to_string(offset);
}

/* --- one access -------------------------------------------------------------------------------------------------- */

static bool is_async(Access access) { return access == PRODUCT_READ || access == BULK_READ || access == BULK_WRITE; }

static void check_order(const Mark &w, Access access, const Place &place, uintptr_t pc) {
  bool collective = is_collective(access);
  if (ordered(w, collective)) {
    if (is_async(access) && !fenced(w.block, w.agent, w.clock, 1u << w.lane, collective))
      finding(pc, "%s %s, written by %s with no fence_async_shared behind it", verb(access), place.text().c_str(),
              describe(w).c_str());
    if (access == BULK_SOURCE && !w.bulk)
      finding(pc, "%s %s, written by %s: that takes a proxy fence for global memory, which hopper.h has not",
              verb(access), place.text().c_str(), describe(w).c_str());
  } else if (w.agent >= MAX_WARPS) {
    Block *block = find_block(w.block);
    finding(pc, "race: %s %s, where %s brings data, and phase %u of the barrier at %s has not been waited for",
            verb(access), place.text().c_str(), describe(w).c_str(), w.clock - 1,
            block ? block->mbarrier[w.agent - MAX_WARPS].name.c_str() : "");
  } else if (w.clock == NEVER) {
    finding(pc, "race: %s %s, which a bulk copy writes that nobody has waited for, begun by %s", verb(access),
            place.text().c_str(), describe(w).c_str());
  } else {
    finding(pc, "race: %s %s, written by %s, with no barrier in between", verb(access), place.text().c_str(),
            describe(w).c_str());
  }
}

void check_written(const Mark &w, Access access, const Place &place, uintptr_t pc) {
  switch (w.kind) {
  case UNWRITTEN:
    if (is_read(access) || is_add(access))
      finding(pc, "%s %s, which nobody has written", is_read(access) ? "reads" : "adds to", place.text().c_str());
    break;
  case GAP:
    finding(pc, "%s %s, which lies between the elements of the tensor", verb(access), place.text().c_str());
    break;
  case IN_FLIGHT:
    finding(pc, "%s %s, to which a copy is under way that nobody has waited for, begun by %s", verb(access),
            place.text().c_str(), describe(w).c_str());
    break;
  case BARRIER:
    finding(pc, "%s %s, where an mbarrier is that was initialised by %s", verb(access), place.text().c_str(),
            describe(w).c_str());
    break;
  case WRITTEN:
    check_order(w, access, place, pc);
    break;
  case HOST:
    break;
  }
}

std::string SharedPlace::text() const {
  std::string part = is_static ? "static shared memory" : "shared memory";
  if (machine.now && block != machine.now->warp->block)
    part += " of block " + std::to_string(block->index);
  return part + (is_static ? " " + static_name(offset) : " + " + std::to_string(offset));
}

/* An access to what has been read, or added to, since it was written. */
static void check_past(u64 block, u32 warp, Use use, const Reads &past, bool known, Access access, const Place &place,
                       uintptr_t pc) {
  std::string text = place.text(), by = describe(block, warp, past.lanes, past.pc);
  const char *did = use == USE_ADD ? "added to" : "read";
  if (known)
    finding(pc, "%s %s, added to by %s with no fence_async_shared behind it", verb(access), text.c_str(), by.c_str());
  else if (past.clock == NEVER && use == USE_ADD)
    finding(pc, "race: %s %s, to which a bulk copy adds that nobody has waited for, begun by %s", verb(access),
            text.c_str(), by.c_str());
  else if (past.clock == NEVER)
    finding(pc, "race: %s %s, which an asynchronous operation of warp %u still reads, begun at %s", verb(access),
            text.c_str(), warp, at(past.pc).c_str());
  else
    finding(pc, "race: %s %s, %s by %s, with no barrier in between", verb(access), text.c_str(), did, by.c_str());
}

static bool conflict(Access access, Use past) {
  if (is_add(access))
    return past == USE_READ;
  return is_read(access) ? past == USE_ADD && access != ATOMIC_READ : true;
}

/* What the warp has read as one it may write: all its lanes have come to the read. */
static bool read_by_own_warp(u64 block, u32 warp, u32 clock, u32 lanes) {
  const Warp &own = *machine.now->warp;
  return lanes == AS_ONE && clock != NEVER && block == own.block->index && warp == own.index;
}

void check_history(u32 head, Access access, const Place &place, uintptr_t pc) {
  bool collective = is_collective(access);
  for (const Past *past = history(head); past; past = next(*past)) {
    if (!conflict(access, past->use) || read_by_own_warp(past->block, past->warp, past->clock, past->lanes))
      continue;
    bool known = knows(past->block, past->warp, past->clock, past->lanes, collective);
    if (!known || (is_async(access) && past->use == USE_ADD &&
                   !fenced(past->block, past->warp, past->clock, past->lanes, collective)))
      check_past(past->block, past->warp, past->use, {past->pc, past->clock, past->lanes}, known, access, place, pc);
  }
}

void check_read(const Block &block, u32 warp, const Reads &read, Access access, const Place &place, uintptr_t pc) {
  if (!read_by_own_warp(block.index, warp, read.clock, read.lanes) && !ordered_read(block.index, warp, read))
    check_past(block.index, warp, USE_READ, read, false, access, place, pc);
}

} // namespace emu
