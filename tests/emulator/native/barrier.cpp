/*
 * Barriers of a block: __syncthreads, bar.sync and bar.arrive; and elect.sync.
 *
 * PTX ISA, bar and exit: without a number of threads a barrier waits for those that have not exited, and one that
 * exits may be the last that was missing. With a number, as bar.sync has it here, so many must come. What a thread did
 * that exits is told to nobody by that.
 */
#include "machine.h"

#include <cstdio>
#include <cstring>

namespace emu {

static void release_barrier(Block &block, Barrier &barrier) {
  Clock joined = barrier.gathered;
  for (u32 w = 0; w < block.num_warps; w++)
    if (barrier.warps >> w & 1)
      joined.join(release_warp(block.warp[w]));
  for (u32 w = 0; w < block.num_warps; w++)
    if (barrier.warps >> w & 1) {
      block.warp[w].clock.join(joined);
      synchronise(block.warp[w], block.warp[w].lanes);
    }
  for (u32 w = 0; w < block.num_warps; w++)
    if (barrier.only_arrived >> w & 1 && barrier.warps) {
      u32 waiter = (u32)__builtin_ctz(barrier.warps);
      barrier.ended[w] = {waiter, block.warp[waiter].epoch};
    }
  for (Thread *thread : barrier.waiting)
    wake(*thread);
  barrier.waiting.clear();
  barrier.gathered = Clock();
  barrier.result_votes = barrier.votes;
  barrier.result_arrived = (int)barrier.arrived;
  barrier.arrived = barrier.warps = barrier.only_arrived = 0;
  memset(barrier.lanes, 0, sizeof barrier.lanes);
  barrier.votes = 0;
  passed();
}

static u32 wanted(const Block &block, const Barrier &barrier) { return barrier.whole ? block.live : barrier.wanted; }

static std::string barrier_state(const Thread &thread) {
  const Barrier &barrier = *thread.at_barrier;
  char text[80];
  snprintf(text, sizeof text, " (barrier %d, where %u of %u threads are)",
           (int)(&barrier - thread.warp->block->barrier), barrier.arrived, wanted(*thread.warp->block, barrier));
  return text;
}

static Barrier &arrive_at_barrier(int id, u32 wanted, bool waits, uintptr_t pc) {
  Thread &thread = *machine.now;
  Block &block = *thread.warp->block;
  Barrier &barrier = block.barrier[id];
  if (barrier.arrived && barrier.wanted != wanted)
    fatal(pc, "barrier %d: this thread expects %u threads, an earlier one %u", id, wanted, barrier.wanted);
  u32 warp = thread.warp->index;
  if (barrier.lanes[warp] >> thread.lane & 1)
    fatal(pc, "barrier %d: this thread comes a second time before all %u have come once", id, wanted);
  auto [waiter, epoch] = barrier.ended[warp];
  if (epoch && !knows(block.index, waiter, epoch, 1u << (u32)__builtin_ctz(block.warp[waiter].lanes), false))
    fatal(pc, "barrier %d: this thread has arrived before, and comes again without knowing that all had come", id);
  barrier.lanes[warp] |= 1u << thread.lane;
  barrier.wanted = wanted;
  barrier.arrived++;
  thread.at_barrier = &barrier;
  if (waits) {
    if (barrier.warps >> warp & 1 && barrier.pc[warp] != pc)
      differ(id ? "a named barrier" : "__syncthreads", barrier.first[warp], pc, barrier.pc[warp]);
    barrier.warps |= 1u << warp;
    barrier.pc[warp] = pc;
    barrier.first[warp] = thread.lane;
  } else {
    barrier.only_arrived |= 1u << warp;
    barrier.gathered.join(release_lane(thread));
  }
  return barrier;
}

/* __syncthreads. Returns how many threads voted `yes`. */
extern "C" int emu_barrier(int vote) {
  Thread &thread = *machine.now;
  Block &block = *thread.warp->block;
  Barrier &barrier = arrive_at_barrier(0, block.num_threads, true, EMU_PC);
  barrier.whole = true;
  barrier.votes += vote != 0;
  if (barrier.arrived == wanted(block, barrier)) {
    release_barrier(block, barrier);
  } else {
    barrier.waiting.push_back(&thread);
    wait_here("__syncthreads", EMU_PC, barrier_state);
  }
  return barrier.result_votes;
}

/* The thread no longer counts as live. */
void barrier_at_exit(Thread &thread) {
  Block &block = *thread.warp->block;
  Barrier &barrier = block.barrier[0];
  if (barrier.whole && barrier.arrived && barrier.arrived == block.live)
    release_barrier(block, barrier);
}

static void nothing(Warp &, u32, void **) {}

/* bar.sync and bar.arrive: by whole warps. */
extern "C" void emu_named_barrier(int id, int threads, int waits) {
  static const char kinds[2] = {};
  Thread &thread = *machine.now;
  Block &block = *thread.warp->block;
  if (id < 0 || id > 15)
    fatal(EMU_PC, "barrier %d does not exist: 0 to 15 do", id);
  if (threads <= 0 || threads % WARP)
    fatal(EMU_PC, "barrier %d: %d threads are no whole number of warps", id, threads);
  if ((u32)threads > block.num_warps * WARP)
    fatal(EMU_PC, "barrier %d: %d threads are more than the block has", id, threads);
  meet_aligned("the other lanes of its warp at a named barrier", &kinds[waits], nullptr, EMU_PC, nothing);
  Barrier &barrier = arrive_at_barrier(id, (u32)threads, waits != 0, EMU_PC);
  barrier.whole = false;
  if (barrier.arrived == barrier.wanted) {
    release_barrier(block, barrier);
  } else if (waits) {
    barrier.waiting.push_back(&thread);
    wait_here("a named barrier", EMU_PC, barrier_state);
  }
}

/* elect.sync: always the same lane, and nobody knows which. */
extern "C" int emu_elect() {
  static const char kind = 0;
  meet("elect", &kind, 0xffffffffu, nullptr, EMU_PC, nothing);
  Warp &warp = *machine.now->warp;
  u32 lane = warp.lanes >> machine.elected & 1 ? machine.elected : 0;
  return machine.now->lane == lane;
}

} // namespace emu
