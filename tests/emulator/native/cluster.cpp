/*
 * Clusters: blocks that run together, with a barrier of their own and a way into each other's shared memory. A mapped
 * address is that of the block's own memory and, above it, which block of the cluster it is in.
 */
#include "machine.h"

#include <cstring>

namespace emu {

enum { RANK_SHIFT = 24 };

extern "C" u32 emu_cluster_rank() { return machine.now->warp->block->rank; }

/* --- the barrier ------------------------------------------------------------------------------------------------- */

/* Threads that have ended are not waited for. */
static void release_if_complete(Cluster &cluster) {
  u32 live = 0;
  for (Block *block : cluster.block)
    live += block->live;
  if (!cluster.arrived || cluster.arrived < live)
    return;
  cluster.phase++;
  cluster.published = cluster.gathered;
  cluster.arrived = 0;
  for (Thread *thread : cluster.waiting)
    wake(*thread);
  cluster.waiting.clear();
  passed();
}

extern "C" void emu_cluster_arrive() {
  Thread &thread = *machine.now;
  Cluster &cluster = *thread.warp->block->cluster;
  if (thread.at_cluster_barrier)
    fatal(EMU_PC, "cluster_arrive: this thread has arrived before and not waited");
  thread.at_cluster_barrier = true;
  thread.cluster_phase = cluster.phase;
  cluster.gathered.join(release_lane(thread));
  cluster.arrived++;
  release_if_complete(cluster);
}

static std::string barrier_state(const Thread &thread) {
  const Cluster &cluster = *thread.warp->block->cluster;
  return " (phase " + std::to_string(cluster.phase) + ", where " + std::to_string(cluster.arrived) + " threads are)";
}

extern "C" void emu_cluster_wait() {
  Thread &thread = *machine.now;
  Cluster &cluster = *thread.warp->block->cluster;
  if (!thread.at_cluster_barrier)
    fatal(EMU_PC, "cluster_wait: this thread has not arrived");
  if (cluster.phase == thread.cluster_phase) {
    cluster.waiting.push_back(&thread);
    wait_here("the barrier of the cluster", EMU_PC, barrier_state);
  }
  thread.at_cluster_barrier = false;
  acquire(thread, cluster.published);
}

/* The thread no longer counts as live. */
void cluster_at_exit(Thread &thread) {
  Cluster &cluster = *thread.warp->block->cluster;
  if (thread.at_cluster_barrier && cluster.phase == thread.cluster_phase)
    cluster.arrived--;
  release_if_complete(cluster);
}

/* --- each other's shared memory ---------------------------------------------------------------------------------- */

extern "C" u32 emu_map_shared(u32 address, u32 rank) {
  Block &block = *machine.now->warp->block;
  if (rank >= block.cluster->block.size())
    fatal(EMU_PC, "map_shared: the cluster has no block %u", rank);
  shared_place(block, address, 1, "map_shared", EMU_PC);
  return address | (rank + 1) << RANK_SHIFT;
}

static SharedPlace mapped_place(u32 mapped, u32 bytes, const char *what, uintptr_t pc) {
  Block &own = *machine.now->warp->block;
  u32 number = mapped >> RANK_SHIFT, address = mapped & ((1u << RANK_SHIFT) - 1);
  if (number > own.cluster->block.size())
    fatal(pc, "%s: %#x is no address that map_shared has given", what, mapped);
  Block &block = number ? *own.cluster->block[number - 1] : own;
  if (!block.live)
    fatal(pc, "%s: block %u of the cluster has ended, and its shared memory with it", what, block.rank);
  if (address % bytes)
    fatal(pc, "%s: the address %#x is not aligned to %u bytes", what, address, bytes);
  return shared_place(block, address, bytes, what, pc);
}

extern "C" void emu_store_shared_cluster(u32 mapped, float x) {
  SharedPlace place = mapped_place(mapped, 4, "store_shared_cluster_f32", EMU_PC);
  touch_shared(place, 4, WRITE, EMU_PC);
  memcpy(shared_data(place), &x, 4);
}

extern "C" float emu_load_shared_cluster(u32 mapped) {
  float x;
  SharedPlace place = mapped_place(mapped, 4, "load_shared_cluster_f32", EMU_PC);
  touch_shared(place, 4, READ, EMU_PC);
  memcpy(&x, shared_data(place), 4);
  return x;
}

/* fence.proxy.async: what this thread wrote in shared memory is there for asynchronous operations. */
extern "C" void emu_fence_async_shared() {
  Thread &thread = *machine.now;
  thread.proxy_fences.push_back(thread.warp->epoch++);
}

} // namespace emu
