/*
 * Runs a grid. A few blocks are resident at once, lower indices first, as a GPU does; which warp runs next is random,
 * by seed. A lane runs until it has to wait: for the other lanes of its warp, for its block, for a flag. Asynchronous
 * operations go on in between, at random moments or (timing late) when nothing else can go on.
 */
#include "machine.h"

#include <algorithm>
#include <cstring>

namespace emu {

Machine machine;
Ids emu_ids_now;

u32 random_below(u32 n) {
  machine.random ^= machine.random << 13;
  machine.random ^= machine.random >> 7;
  machine.random ^= machine.random << 17;
  return n ? (u32)((machine.random >> 11) % n) : 0;
}

static void to_scheduler(Thread &thread) { emu_switch(&thread.sp, machine.scheduler_sp); }

void wait_here(const char *what, uintptr_t pc, std::string (*describe)(const Thread &)) {
  Thread &thread = *machine.now;
  thread.waits_for = what;
  thread.describe_wait = describe;
  thread.wait_pc = pc;
  thread.warp->ready &= ~(1u << thread.lane);
  copies_tick(thread);
  to_scheduler(thread);
}

void wake(Thread &thread) {
  thread.waits_for = nullptr;
  thread.warp->ready |= 1u << thread.lane;
}

void yield(uintptr_t pc) {
  machine.yielded = true;
  machine.now->wait_pc = pc;
  copies_tick(*machine.now);
  to_scheduler(*machine.now);
}

/* Those who have come to the same before, with the same mask; or a new one. */
static Meeting &find_meeting(Warp &warp, const void *kind, u32 mask, u32 lane, uintptr_t pc) {
  for (Meeting &m : warp.meeting)
    if (m.what == kind && m.mask == mask && !(m.arrived >> lane & 1))
      return m;
  for (Meeting &m : warp.meeting)
    if (!m.what) {
      m.what = kind;
      m.mask = mask;
      m.arrived = 0;
      m.first = lane;
      m.pc = pc;
      return m;
    }
  fatal(pc, "lanes of a warp are at more than %d places at once", MAX_PENDING);
}

/* This lane has come; the last one does what all have come for. */
static void join(Meeting &meeting, const char *what, void *argument, uintptr_t pc,
                 void (*perform)(Warp &, u32, void **)) {
  Thread &thread = *machine.now;
  Warp &warp = *thread.warp;
  meeting.arrived |= 1u << thread.lane;
  meeting.argument[thread.lane] = argument;
  if (meeting.arrived != meeting.mask) {
    wait_here(what, pc);
    return;
  }
  perform(warp, meeting.mask, meeting.argument);
  meeting.what = nullptr;
  for (u32 i = 0; i < WARP; i++)
    if (meeting.mask >> i & 1 && i != thread.lane)
      wake(warp.thread[i]);
  if (random_below(8) == 0)
    yield(pc);
}

void meet(const char *what, const void *kind, u32 mask, void *argument, uintptr_t pc,
          void (*perform)(Warp &, u32, void **)) {
  Thread &thread = *machine.now;
  Warp &warp = *thread.warp;
  if (mask == 0xffffffffu)
    mask = warp.lanes;
  if (!(mask >> thread.lane & 1))
    fatal(pc, "%s: lane %u is not in its own mask %#x", what, thread.lane, mask);
  if (mask & ~warp.lanes)
    fatal(pc, "%s: mask %#x has lanes that do not exist", what, mask);
  join(find_meeting(warp, kind, mask, thread.lane, pc), what, argument, pc, perform);
}

void differ(const char *what, u32 lane, uintptr_t pc, uintptr_t other) {
  finding(pc,
          "%s: lane %u of the warp is at another one, at %s; an instruction that is .aligned must be the same for all",
          what, lane, at(other).c_str());
}

void meet_aligned(const char *what, const void *kind, void *argument, uintptr_t pc,
                  void (*perform)(Warp &, u32, void **)) {
  Thread &thread = *machine.now;
  Meeting &meeting = find_meeting(*thread.warp, kind, thread.warp->lanes, thread.lane, pc);
  if (meeting.pc != pc)
    differ(what, meeting.first, pc, meeting.pc);
  join(meeting, what, argument, pc, perform);
}

/* --- threads and blocks ------------------------------------------------------------------------------------------ */

bool has_ended(const Warp &warp) {
  for (u32 i = 0; i < WARP; i++)
    if (warp.lanes >> i & 1 && !warp.thread[i].done)
      return false;
  return true;
}

static void thread_main() {
  machine.kernel(machine.arguments);
  Thread &thread = *machine.now;
  copies_at_exit(thread);
  bulk_at_exit(thread);
  thread.done = true;
  thread.warp->ready &= ~(1u << thread.lane);
  thread.warp->block->live--;
  products_at_exit(thread);
  registers_at_exit(*thread.warp);
  barrier_at_exit(thread);
  cluster_at_exit(thread);
  machine.ends++;
  passed();
  to_scheduler(thread);
}

static Block *begin_block(Dim id, int slot) {
  Block *block = new Block();
  const Dim &size = machine.block_dim;
  block->index = id.x + (u64)machine.grid.x * (id.y + (u64)machine.grid.y * id.z);
  block->slot = slot;
  block->id = id;
  block->num_threads = block->live = size.x * size.y * size.z;
  block->num_warps = (block->num_threads + WARP - 1) / WARP;
  block->thread.resize(block->num_threads);
  block->warp.resize(block->num_warps);
  block_memory_begin(*block);
  for (u32 w = 0; w < block->num_warps; w++) {
    Warp &warp = block->warp[w];
    warp.block = block;
    warp.index = w;
    warp.epoch = 1;
    warp.clock.block = block->index;
    warp.registers = machine.registers;
    warp.thread = &block->thread[w * WARP];
    u32 lanes = block->num_threads - w * WARP;
    warp.lanes = warp.ready = lanes >= WARP ? 0xffffffffu : (1u << lanes) - 1;
  }
  for (u32 i = 0; i < block->num_threads; i++) {
    Thread &thread = block->thread[i];
    thread.warp = &block->warp[i / WARP];
    thread.lane = i % WARP;
    thread.index = i;
    thread.ids = {{i % size.x, i / size.x % size.y, i / size.x / size.y}, block->id, size, machine.grid};
    size_t bytes;
    void *stack = stack_of(slot, i, &bytes);
    thread.sp = fiber_prepare(stack, bytes, thread_main);
  }
  return block;
}

/* Blocks of a cluster begin together. */
static void begin_cluster(u64 index, const std::vector<int> &slots) {
  const Dim &size = machine.cluster_dim;
  Dim clusters = {machine.grid.x / size.x, machine.grid.y / size.y, machine.grid.z / size.z};
  Dim id = {(unsigned)(index % clusters.x), (unsigned)(index / clusters.x % clusters.y),
            (unsigned)(index / clusters.x / clusters.y)};
  Cluster *cluster = new Cluster();
  for (u32 rank = 0; rank < size.x * size.y * size.z; rank++) {
    Dim at = {id.x * size.x + rank % size.x, id.y * size.y + rank / size.x % size.y,
              id.z * size.z + rank / size.x / size.y};
    Block *block = begin_block(at, slots[rank]);
    block->cluster = cluster;
    block->rank = rank;
    cluster->block.push_back(block);
    machine.blocks.push_back(block);
  }
}

static void load_static(Block &block) {
  size_t bytes = static_bytes();
  if (!bytes || machine.loaded == &block)
    return;
  if (machine.loaded)
    memcpy(machine.loaded->static_shared.data(), machine.static_begin, bytes);
  memcpy(machine.static_begin, block.static_shared.data(), bytes);
  machine.loaded = &block;
}

static void run_warp(Warp &warp) {
  load_static(*warp.block);
  machine.yielded = false;
  /* Half of the time lanes run in order, else from a random one on. */
  u32 first = random_below(2) ? 0 : random_below(WARP);
  while (warp.ready && !machine.failed && !machine.yielded) {
    u32 behind = warp.ready >> first << first;
    u32 lane = (u32)__builtin_ctz(behind ? behind : warp.ready);
    first = (lane + 1) % WARP;
    machine.now = &warp.thread[lane];
    emu_ids_now = machine.now->ids;
    machine.turns++;
    emu_switch(&machine.scheduler_sp, machine.now->sp);
    machine.now = nullptr;
  }
}

static Warp *next_warp() {
  static std::vector<Warp *> ready;
  ready.clear();
  for (Block *block : machine.blocks)
    for (Warp &warp : block->warp)
      if (warp.ready)
        ready.push_back(&warp);
  return ready.empty() ? nullptr : ready[random_below((u32)ready.size())];
}

static void end_block(Block *block) {
  block_memory_end(*block);
  if (machine.loaded == block)
    machine.loaded = nullptr;
  machine.blocks.erase(std::find(machine.blocks.begin(), machine.blocks.end(), block));
  delete block;
}

/* A block's shared memory stays while others of its cluster may reach it. */
static void end_cluster(Cluster *cluster, std::vector<bool> &used) {
  for (Block *block : cluster->block) {
    if (!machine.failed)
      bulk_end(*block);
    used[(size_t)block->slot] = false;
  }
  for (Block *block : cluster->block)
    end_block(block);
  delete cluster;
}

static void end_finished(std::vector<bool> &used) {
  for (size_t i = 0; i < machine.blocks.size() && !machine.failed;) {
    Cluster *cluster = machine.blocks[i]->cluster;
    bool live = false;
    for (Block *block : cluster->block)
      live |= block->live != 0;
    if (live)
      i++;
    else
      end_cluster(cluster, used), i = 0;
  }
}

static bool begin_next(u64 index, std::vector<bool> &used) {
  std::vector<int> slots;
  for (size_t slot = 0; slot < used.size(); slot++)
    if (!used[slot])
      slots.push_back((int)slot);
  const Dim &size = machine.cluster_dim;
  if (slots.size() < (size_t)size.x * size.y * size.z)
    return false;
  slots.resize((size_t)size.x * size.y * size.z);
  for (int slot : slots)
    used[(size_t)slot] = true;
  begin_cluster(index, slots);
  return true;
}

/* Asynchronous operations: one goes on; false: there is none. */
static bool step_async() {
  if (!bulk_pending() && !products_pending())
    return false;
  bool first = random_below(2) != 0;
  return first ? bulk_step() || products_step() : products_step() || bulk_step();
}

/* Those whose wait has a time limit find that it is over; a few times, as that may never help. */
static bool time_out() {
  bool any = false;
  if (machine.timeouts >= 20)
    return false;
  for (Block *block : machine.blocks)
    for (Thread &thread : block->thread)
      if (thread.waits_for && !strcmp(thread.waits_for, "mbarrier")) {
        thread.timed_out = true;
        wake(thread);
        any = true;
      }
  machine.timeouts += any;
  return any;
}

/* One warp goes on, or what is asynchronous does. Where all poll it is as if they waited. */
static void step() {
  enum { LOOKS_LATE = 2000 };
  Warp *warp = next_warp();
  bool idle = !warp || machine.looks > LOOKS_LATE;
  bool now = machine.settings.timing == TIMING_RANDOM && (bulk_pending() || products_pending()) && !random_below(4);
  if ((idle || now) && step_async()) {
    happened();
    if (idle)
      return;
  }
  if (idle && time_out())
    return;
  if (machine.overdue)
    deadlock("an endless loop: for long nobody has passed a barrier, or no thread has ended");
  else if (!warp)
    deadlock("deadlock: all threads wait");
  else if (all_spin())
    deadlock("deadlock: threads spin and nothing happens");
  else
    run_warp(*warp);
}

static std::vector<u64> order_of_clusters() {
  const Dim &size = machine.cluster_dim;
  u64 total = (u64)machine.grid.x * machine.grid.y * machine.grid.z / (size.x * size.y * size.z);
  std::vector<u64> order(total);
  for (u64 i = 0; i < total; i++)
    order[i] = i;
  for (u64 i = total; machine.settings.shuffle && i > 1; i--)
    std::swap(order[i - 1], order[random_below((u32)i)]);
  return order;
}

bool run_grid() {
  std::vector<u64> order = order_of_clusters();
  std::vector<bool> used((size_t)machine.settings.resident, false);
  size_t begun = 0;
  machine.failed = machine.trapped = false;
  machine.overdue = false;
  happened();
  passed();
  machine.products_open = 0;
  machine.loaded = nullptr;
  machine.now = nullptr;
  machine.elected = (u32)(machine.settings.seed * 2654435761u >> 8) % WARP;
  while (!machine.failed && (begun < order.size() || !machine.blocks.empty())) {
    while (begun < order.size() && begin_next(order[begun], used))
      begun++;
    step();
    end_finished(used);
  }
  machine.now = nullptr;
  while (!machine.blocks.empty())
    end_cluster(machine.blocks[0]->cluster, used);
  return !machine.failed;
}

} // namespace emu
