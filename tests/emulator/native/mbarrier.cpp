/*
 * Barriers in shared memory (mbarrier). A phase ends when as many have arrived as the barrier was initialised for, and
 * all bytes that were announced have come; the count of bytes may be below zero for a while, as bytes may come before
 * they are announced. Who waits for a phase learns what those knew who arrived in it and before.
 */
#include "machine.h"

#include <cstdio>

namespace emu {

enum { MAX_ARRIVALS = (1 << 20) - 1, MAX_BYTES = (1 << 20) - 1, BARRIER_BYTES = 8 };

static Mbarrier *look_up(Block &block, u32 address) {
  for (Mbarrier &barrier : block.mbarrier)
    if (barrier.address == address)
      return &barrier;
  return nullptr;
}

static SharedPlace barrier_place(Block &block, u32 address, const char *what, uintptr_t pc) {
  if (address % BARRIER_BYTES)
    fatal(pc, "%s: an mbarrier's address is a multiple of 8, not %#x", what, address);
  return shared_place(block, address, BARRIER_BYTES, what, pc);
}

u32 barrier_agent(const Block &block, const Mbarrier &barrier) {
  return MAX_WARPS + (u32)(&barrier - block.mbarrier.data());
}

Mbarrier &find_barrier(Block &block, u32 address, const char *what, uintptr_t pc) {
  SharedPlace place = barrier_place(block, address, what, pc);
  Mbarrier *barrier = look_up(block, address);
  if (!barrier)
    fatal(pc, "%s: no mbarrier has been initialised at %s", what, place.text().c_str());
  if (!knows(barrier->init_block, barrier->init_warp, barrier->init_epoch, 1u << barrier->init_lane, false))
    finding(pc, "race: %s: the mbarrier at %s was initialised by warp %u lane %u at %s, with no barrier in between",
            what, barrier->name.c_str(), barrier->init_warp, barrier->init_lane, at(barrier->pc).c_str());
  return *barrier;
}

extern "C" void emu_mbarrier_init(u32 address, u32 arrivals) {
  Thread &thread = *machine.now;
  Block &block = *thread.warp->block;
  SharedPlace place = barrier_place(block, address, "barrier_init", EMU_PC);
  if (arrivals < 1 || arrivals > MAX_ARRIVALS)
    fatal(EMU_PC, "barrier_init: %u arrivals; 1 to %d are possible", arrivals, MAX_ARRIVALS);
  if (look_up(block, address))
    fatal(EMU_PC, "barrier_init: there is an mbarrier at %s already", place.text().c_str());
  if (block.mbarrier.size() == MAX_BARRIERS)
    fatal(EMU_PC, "barrier_init: the emulator knows only %d mbarriers of a block", MAX_BARRIERS);
  if (block.mbarrier.empty())
    block.mbarrier.reserve(MAX_BARRIERS); /* they do not move */
  touch_shared(place, BARRIER_BYTES, WRITE, EMU_PC);
  mark_barrier(place, EMU_PC);
  Mbarrier barrier = {};
  barrier.name = place.text();
  barrier.address = address;
  barrier.arrivals = arrivals;
  barrier.pending = arrivals;
  barrier.init_block = block.index;
  barrier.init_warp = thread.warp->index;
  barrier.init_lane = thread.lane;
  barrier.init_epoch = thread.warp->epoch;
  barrier.pc = EMU_PC;
  barrier.gathered.block = block.index;
  block.mbarrier.push_back(barrier);
}

/* Of this thread's barriers. */
extern "C" void emu_mbarrier_init_done() {
  Thread &thread = *machine.now;
  for (Mbarrier &barrier : thread.warp->block->mbarrier)
    if (barrier.init_warp == thread.warp->index && barrier.init_lane == thread.lane)
      barrier.fenced = true;
}

static void end_phase_if_complete(Block &block, Mbarrier &barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0)
    return;
  barrier.phase++;
  barrier.pending = barrier.arrivals;
  barrier.gathered.local[barrier_agent(block, barrier)] = {barrier.phase, 0, 0};
  barrier.published = barrier.gathered;
  for (Thread *thread : barrier.waiting)
    wake(*thread);
  barrier.waiting.clear();
  passed();
}

/* Not only threads do this, so that it is no `fatal`. */
static void add_bytes(Mbarrier &barrier, long bytes, const char *what, uintptr_t pc) {
  barrier.bytes += bytes;
  if (barrier.bytes > MAX_BYTES || barrier.bytes < -MAX_BYTES)
    finding(pc, "%s: the mbarrier at %s expects %ld bytes; it counts to %d", what, barrier.name.c_str(), barrier.bytes,
            MAX_BYTES);
}

static void arrive(Block &block, Mbarrier &barrier, const char *what, uintptr_t pc) {
  if (barrier.pending == 0)
    fatal(pc, "%s: more than %u arrivals in phase %u of the mbarrier at %s, which still expects %ld bytes", what,
          barrier.arrivals, barrier.phase, barrier.name.c_str(), barrier.bytes);
  barrier.gathered.join(release_lane(*machine.now));
  barrier.pending--;
  end_phase_if_complete(block, barrier);
}

extern "C" void emu_mbarrier_arrive(u32 address) {
  Block &block = *machine.now->warp->block;
  arrive(block, find_barrier(block, address, "barrier_arrive", EMU_PC), "barrier_arrive", EMU_PC);
  if (random_below(8) == 0)
    yield(EMU_PC);
}

/* At the barrier of another block of the cluster. */
extern "C" void emu_mbarrier_arrive_at(u32 address, u32 rank) {
  Block &own = *machine.now->warp->block;
  if (rank >= own.cluster->block.size())
    fatal(EMU_PC, "barrier_arrive_at: the cluster has no block %u", rank);
  Block &block = *own.cluster->block[rank];
  if (!block.live)
    fatal(EMU_PC, "barrier_arrive_at: block %u of the cluster has ended", rank);
  Mbarrier &barrier = find_barrier(block, address, "barrier_arrive_at", EMU_PC);
  if (!barrier.fenced && &block != &own)
    finding(EMU_PC, "barrier_arrive_at: no barrier_init_done has made the mbarrier at %s known to the cluster",
            barrier.name.c_str());
  arrive(block, barrier, "barrier_arrive_at", EMU_PC);
}

extern "C" void emu_mbarrier_expect(u32 address, u32 bytes) {
  Block &block = *machine.now->warp->block;
  Mbarrier &barrier = find_barrier(block, address, "barrier_expect", EMU_PC);
  add_bytes(barrier, bytes, "barrier_expect", EMU_PC);
  arrive(block, barrier, "barrier_expect", EMU_PC);
}

/* Bytes have come; no thread does this. */
void barrier_bytes(Block &block, u32 address, long bytes, uintptr_t pc) {
  Mbarrier *barrier = look_up(block, address);
  add_bytes(*barrier, -bytes, "a copy", pc);
  end_phase_if_complete(block, *barrier);
}

std::string mbarrier_state(const Mbarrier &barrier, u32 parity) {
  char text[240];
  snprintf(text, sizeof text,
           " at %s: parity %u is awaited, phase %u (parity %u) goes on, %ld of %u arrivals and %ld bytes are missing",
           barrier.name.c_str(), parity, barrier.phase, barrier.phase & 1, barrier.pending, barrier.arrivals,
           barrier.bytes);
  return text;
}

static std::string awaited_state(const Thread &thread) { return mbarrier_state(*thread.awaits, thread.awaits_parity); }

/* A wait that has a time limit: now and then it gives up early. */
extern "C" int emu_mbarrier_try(u32 address, u32 parity) {
  Thread &thread = *machine.now;
  Block &block = *thread.warp->block;
  Mbarrier &barrier = find_barrier(block, address, "barrier_try", EMU_PC);
  if (parity > 1)
    finding(EMU_PC, "barrier_try: parity %u is neither 0 nor 1", parity);
  if ((barrier.phase & 1) == (parity & 1)) {
    if (random_below(8) == 0) {
      look_at_barrier(barrier, parity, EMU_PC);
      yield(EMU_PC);
      return 0;
    }
    barrier.waiting.push_back(&thread);
    thread.timed_out = false;
    thread.awaits = &barrier;
    thread.awaits_parity = parity;
    wait_here("mbarrier", EMU_PC, awaited_state);
    thread.awaits = nullptr;
    if (thread.timed_out) {
      for (size_t i = 0; i < barrier.waiting.size(); i++)
        if (barrier.waiting[i] == &thread)
          barrier.waiting.erase(barrier.waiting.begin() + (long)i--);
      look_at_barrier(barrier, parity, EMU_PC);
      return 0;
    }
    if ((barrier.phase & 1) == (parity & 1))
      return 0; /* while this thread slept, the next phase ended too */
  } else if (random_below(8) == 0) {
    yield(EMU_PC);
    if ((barrier.phase & 1) == (parity & 1))
      return 0;
  }
  saw_what_it_waits_for(*thread.warp);
  acquire(thread, barrier.published);
  return 1;
}

} // namespace emu
