/*
 * Runs a grid. A few blocks are resident at once, lower indices first, as a GPU does; which warp runs next is random,
 * by seed. A lane runs until it has to wait: for the other lanes of its warp, for its block, for a flag.
 */
#include "machine.h"

#include <cstdio>
#include <cstring>

namespace emu {

Machine machine;
extern "C" Ids emu_ids_now;
Ids emu_ids_now;

u32 random_below(u32 n) {
  machine.random ^= machine.random << 13;
  machine.random ^= machine.random >> 7;
  machine.random ^= machine.random << 17;
  return n ? (u32)((machine.random >> 11) % n) : 0;
}

void Clock::join(const Clock &other) {
  for (int i = 0; i < MAX_WARPS; i++)
    if (other.local[i] > local[i])
      local[i] = other.local[i];
  for (const auto &item : other.foreign) {
    u32 &mine = foreign[item.first];
    if (item.second > mine)
      mine = item.second;
  }
}

void progress() { machine.spins = 0; }

static void to_scheduler(Thread &thread) { emu_switch(&thread.sp, machine.scheduler_sp); }

void wait_here(const char *what, uintptr_t pc) {
  Thread &thread = *machine.now;
  thread.waits_for = what;
  thread.wait_pc = pc;
  thread.warp->ready &= ~(1u << thread.lane);
  copies_tick(thread);
  to_scheduler(thread);
}

void wake(Thread &thread) {
  thread.waits_for = nullptr;
  thread.warp->ready |= 1u << thread.lane;
}

void yield() {
  machine.yielded = true;
  copies_tick(*machine.now);
  to_scheduler(*machine.now);
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
  Meeting *meeting = nullptr;
  for (Meeting &m : warp.meeting)
    if (m.what == kind && m.mask == mask && !(m.arrived >> thread.lane & 1))
      meeting = &m;
  for (int i = 0; !meeting && i < MAX_PENDING; i++)
    if (!warp.meeting[i].what) {
      meeting = &warp.meeting[i];
      meeting->what = kind;
      meeting->mask = mask;
      meeting->arrived = 0;
    }
  meeting->arrived |= 1u << thread.lane;
  meeting->argument[thread.lane] = argument;
  if (meeting->arrived != mask) {
    wait_here(what, pc);
    return;
  }
  progress();
  perform(warp, mask, meeting->argument);
  meeting->what = nullptr;
  for (u32 i = 0; i < WARP; i++)
    if (mask >> i & 1 && i != thread.lane)
      wake(warp.thread[i]);
  if (random_below(8) == 0)
    yield();
}

static void release_barrier(Block &block, Barrier &barrier) {
  Clock joined;
  for (u32 w = 0; w < block.num_warps; w++)
    if (barrier.warps >> w & 1)
      joined.join(block.warp[w].clock);
  for (u32 w = 0; w < block.num_warps; w++)
    if (barrier.warps >> w & 1) {
      block.warp[w].clock.join(joined);
      block.warp[w].clock.local[w]++;
    }
  for (Thread *thread : barrier.waiting)
    wake(*thread);
  barrier.waiting.clear();
  barrier.result_votes = barrier.votes;
  barrier.result_arrived = (int)barrier.arrived;
  barrier.arrived = barrier.warps = 0;
  barrier.votes = 0;
  progress();
}

/* Returns how many threads voted `yes`. */
extern "C" int emu_barrier(int id, int threads, int vote, int arrive_only) {
  Thread &thread = *machine.now;
  Block &block = *thread.warp->block;
  if (id < 0 || id > 15)
    fatal(EMU_PC, "barrier %d does not exist: 0 to 15 do", id);
  Barrier &barrier = block.barrier[id];
  u32 wanted = threads ? (u32)threads : block.num_threads;
  if (barrier.arrived && barrier.wanted != wanted)
    fatal(EMU_PC, "barrier %d: this thread expects %u threads, an earlier one %u", id, wanted, barrier.wanted);
  barrier.wanted = wanted;
  barrier.arrived++;
  barrier.warps |= 1u << thread.warp->index;
  barrier.votes += vote != 0;
  if (barrier.arrived == wanted)
    release_barrier(block, barrier);
  else if (!arrive_only) {
    barrier.waiting.push_back(&thread);
    wait_here(id == 0 && !threads ? "__syncthreads" : "a named barrier", EMU_PC);
  }
  return barrier.result_votes;
}

static void thread_main() {
  machine.kernel(machine.arguments);
  Thread &thread = *machine.now;
  copies_at_exit(thread);
  thread.done = true;
  thread.warp->ready &= ~(1u << thread.lane);
  thread.warp->block->live--;
  progress();
  to_scheduler(thread);
}

static Block *begin_block(u64 index, int slot) {
  Block *block = new Block();
  const Dim &size = machine.block_dim;
  block->index = index;
  block->slot = slot;
  block->id = {(unsigned)(index % machine.grid.x), (unsigned)(index / machine.grid.x % machine.grid.y),
               (unsigned)(index / machine.grid.x / machine.grid.y)};
  block->num_threads = block->live = size.x * size.y * size.z;
  block->num_warps = (block->num_threads + WARP - 1) / WARP;
  block->thread.resize(block->num_threads);
  block->warp.resize(block->num_warps);
  block_memory_begin(*block);
  for (u32 w = 0; w < block->num_warps; w++) {
    Warp &warp = block->warp[w];
    warp.block = block;
    warp.index = w;
    warp.clock.local[w] = 1;
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

static void load_static(Block &block) {
  size_t bytes = (size_t)(machine.static_end - machine.static_begin);
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

/* Who waits where, a line for each group of threads that waits for the same. */
static std::string waiting() {
  std::map<std::string, std::string> groups;
  for (Block *block : machine.blocks)
    for (Warp &warp : block->warp) {
      std::map<std::string, u32> lanes;
      for (u32 i = 0; i < WARP; i++)
        if (warp.lanes >> i & 1) {
          Thread &t = warp.thread[i];
          lanes[t.done        ? "has exited"
                : t.waits_for ? std::string("waits for ") + t.waits_for + " at " + at(t.wait_pc)
                              : "spins"] |= 1u << i;
        }
      for (auto &item : lanes) {
        char text[100];
        snprintf(text, sizeof text, " (%u,%u,%u)/%u", block->id.x, block->id.y, block->id.z, warp.index);
        groups[item.first] += text;
        if (item.second != warp.lanes) {
          snprintf(text, sizeof text, "[lanes %#x]", item.second);
          groups[item.first] += text;
        }
      }
    }
  std::string text;
  for (auto &item : groups)
    text += "\n    " + item.first + ": block/warp" + item.second.substr(0, 600);
  return text;
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

static void end_block(size_t position) {
  Block *block = machine.blocks[position];
  block_memory_end(*block);
  if (machine.loaded == block)
    machine.loaded = nullptr;
  machine.blocks.erase(machine.blocks.begin() + (long)position);
  delete block;
}

bool run_grid() {
  u64 total = (u64)machine.grid.x * machine.grid.y * machine.grid.z, begun = 0;
  std::vector<u64> order(total);
  for (u64 i = 0; i < total; i++)
    order[i] = i;
  for (u64 i = total; machine.settings.shuffle && i > 1; i--)
    std::swap(order[i - 1], order[random_below((u32)i)]);
  std::vector<bool> used((size_t)machine.settings.resident, false);
  machine.failed = false;
  machine.spins = 0;
  machine.loaded = nullptr;
  machine.now = nullptr;
  while (!machine.failed && (begun < total || !machine.blocks.empty())) {
    for (int slot = 0; slot < machine.settings.resident && begun < total; slot++)
      if (!used[(size_t)slot]) {
        used[(size_t)slot] = true;
        machine.blocks.push_back(begin_block(order[begun++], slot));
      }
    Warp *warp = next_warp();
    u64 limit = 1000000;
    if (!warp || machine.spins > limit) {
      machine.now = nullptr;
      finding(0, "deadlock: %s%s", warp ? "threads spin and nothing happens" : "all threads wait", waiting().c_str());
      machine.failed = true;
      break;
    }
    run_warp(*warp);
    for (size_t i = machine.blocks.size(); i-- > 0;)
      if (machine.blocks[i]->live == 0 && !machine.failed) {
        used[(size_t)machine.blocks[i]->slot] = false;
        end_block(i);
      }
  }
  machine.now = nullptr;
  while (!machine.blocks.empty())
    end_block(machine.blocks.size() - 1);
  return !machine.failed;
}

} // namespace emu
