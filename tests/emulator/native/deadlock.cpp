/*
 * Deadlocks. A thread that cannot go on either waits here (for a barrier, for lanes of its warp) or polls: it looks at
 * a flag or a barrier again and again. So nothing goes on any more when nobody can run; or when each warp that can has
 * looked many times while nothing has happened that a look might have seen. That lanes have met (in __syncwarp, in a
 * shuffle) is no such thing, nor is that a barrier has let somebody pass, as loops that poll do both; but a warp that
 * works may look as well, so that there must be more looks if somebody has passed a barrier meanwhile.
 *
 * A volatile read is a look (hooks.cpp). A loop without any, or that changes memory in each of its rounds, shows by the
 * time that has passed since a barrier let somebody pass (crash.cpp counts it).
 */
#include "machine.h"

#include <cstdio>

namespace emu {

enum {
  MANY_LOOKS = 50000, /* of a warp; atomics are looks too, where they change nothing */
  MANY_MORE_LOOKS = 200000,
  POLLS = 16 /* looks of a thread that is said to poll */
};

void happened() {
  machine.looks = 0;
  machine.may_spin = false;
  machine.events++;
  machine.happenings++;
}

void passed() {
  machine.looks = 0;
  machine.timeouts = 0;
  machine.passes++;
  machine.happenings++;
}

static bool spins(const Warp &warp) {
  return warp.looks_since_any.of(machine.happenings) >= MANY_LOOKS || warp.looks.of(machine.events) >= MANY_MORE_LOOKS;
}

static Look &count_look() {
  Thread &thread = *machine.now;
  Warp &warp = *thread.warp;
  machine.looks++;
  warp.looks.add(machine.events);
  warp.looks_since_any.add(machine.happenings);
  thread.look.looks.add(machine.events);
  machine.may_spin |= spins(warp);
  return thread.look;
}

void saw_what_it_waits_for(Warp &warp) { warp.looks = warp.looks_since_any = Count(); }

void look_at(const void *address, uintptr_t pc) {
  Look &look = count_look();
  look.pc = pc;
  look.address = address;
  look.barrier = nullptr;
}

void look_at_barrier(const Mbarrier &barrier, u32 parity, uintptr_t pc) {
  Look &look = count_look();
  look.pc = pc;
  look.barrier = &barrier;
  look.parity = parity;
}

void look_on(uintptr_t pc) {
  Look &look = count_look();
  if (look.looks.of(machine.events) == 1) {
    look.pc = pc;
    look.address = nullptr;
    look.barrier = nullptr;
  }
}

/* --- who waits where --------------------------------------------------------------------------------------------- */

static std::string what_it_polls(const Look &look) {
  if (look.barrier)
    return "mbarrier" + mbarrier_state(*look.barrier, look.parity);
  if (!look.address)
    return "nothing that is known";
  return place_of(look.address) + ", which is " + std::to_string(*(const int *)look.address);
}

static std::string state(const Thread &thread) {
  if (thread.done)
    return "has ended";
  bool at_barrier = thread.waits_for && thread.describe_wait, polls = thread.look.looks.of(machine.events) >= POLLS;
  if (polls && !at_barrier) /* it may be in the midst of lanes that meet in the loop */
    return "spins on " + what_it_polls(thread.look) + ", at " + at(thread.look.pc);
  if (thread.waits_for)
    return std::string("waits for ") + thread.waits_for + (at_barrier ? thread.describe_wait(thread) : "") + " at " +
           at(thread.wait_pc);
  return thread.wait_pc ? "runs, and was last seen at " + at(thread.wait_pc) : "has not begun";
}

/* Warps of a block of which the same lanes are in the same state. */
struct Group {
  const Block *block;
  u32 first, last, lanes;
  bool all;
  std::string text() const {
    const Dim &id = block->id;
    char text[120];
    int n = snprintf(text, sizeof text, " (%u,%u,%u)/%u", id.x, id.y, id.z, first);
    if (last != first)
      n += snprintf(text + n, sizeof text - (size_t)n, "-%u", last);
    if (!all)
      snprintf(text + n, sizeof text - (size_t)n, "[lanes %#x]", lanes);
    return text;
  }
};

static void add_warp(std::vector<Group> &groups, const Warp &warp, u32 lanes) {
  bool all = lanes == warp.lanes;
  if (!groups.empty()) {
    Group &last = groups.back();
    if (last.block == warp.block && last.last + 1 == warp.index && last.all == all && (all || last.lanes == lanes)) {
      last.last = warp.index;
      return;
    }
  }
  groups.push_back({warp.block, warp.index, warp.index, lanes, all});
}

/* A line for each thing that is waited for. */
static std::string who_waits() {
  std::map<std::string, std::vector<Group>> lines;
  for (const Block *block : machine.blocks)
    for (const Warp &warp : block->warp) {
      std::map<std::string, u32> states;
      for (u32 i = 0; i < WARP; i++)
        if (warp.lanes >> i & 1)
          states[state(warp.thread[i])] |= 1u << i;
      for (const auto &item : states)
        add_warp(lines[item.first], warp, item.second);
    }
  std::string text;
  for (const auto &line : lines) {
    text += "\n    " + line.first + ": block/warp";
    for (const Group &group : line.second)
      text += group.text();
  }
  return text;
}

/* --- is it one? -------------------------------------------------------------------------------------------------- */

void deadlock(const char *how) {
  machine.now = nullptr;
  finding(0, "%s%s", how, who_waits().c_str());
  machine.failed = true;
}

bool all_spin() {
  if (!machine.may_spin)
    return false;
  for (const Block *block : machine.blocks)
    for (const Warp &warp : block->warp)
      if (warp.ready && !spins(warp))
        return false;
  return true;
}

} // namespace emu
