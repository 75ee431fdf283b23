/*
 * Registers, as far as correctness depends on them. Local variables that instructions take by reference lie on the
 * stacks of threads, and accesses to them are seen, as far as the compiler has not kept a value in a register of its
 * own.
 *
 * Products of warpgroups: accumulators must not be touched, and registers of A not be written, from a product's
 * beginning to the wait for it; and a wgmma_fence must lie between an access to either and the product, except between
 * products with the same accumulators. For the fence every four bytes of a stack have the number of the last fence in
 * front of their last access.
 *
 * setmaxnreg: warpgroups hand registers on, out of what the block got at its launch.
 */
#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>

namespace emu {

enum { WORD = 4, LEAST = 24, MOST = 256, STEP = 8 };

static unsigned char *stacks;
static size_t stacks_bytes, stamps_bytes;
static u32 *stamps;    /* of each word of the stacks */
static u32 last_fence; /* of all threads and launches, as a thread gets the stack of one that has ended */

void registers_launch(unsigned char *begin, size_t bytes) {
  if (stacks != begin || stacks_bytes != bytes) {
    if (stamps)
      munmap(stamps, stamps_bytes);
    stacks = begin;
    stacks_bytes = stamps_bytes = bytes;
    stamps = (u32 *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  machine.watches_registers = false;
}

/* --- accesses ---------------------------------------------------------------------------------------------------- */

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
  return (uintptr_t)a < (uintptr_t)b + b_bytes && (uintptr_t)b < (uintptr_t)a + a_bytes;
}

static void check_products(const Thread &thread, const void *address, size_t bytes, bool writes, uintptr_t pc) {
  for (const Product &product : thread.warp->products) {
    const Accumulator &c = *product.c;
    const float *mine = c.c[thread.lane];
    if (overlap(address, bytes, mine, c.n / 2 * sizeof(float)))
      finding(pc, "%s register %ld of the accumulator of a wgmma under way that nobody has waited for, begun at %s",
              writes ? "writes" : "reads", ((long)address - (long)mine) / WORD, at(product.pc).c_str());
    else if (writes && product.from_registers && overlap(address, bytes, product.a_registers[thread.lane], 16))
      finding(pc, "writes a register of A of a wgmma under way that nobody has waited for, begun at %s",
              at(product.pc).c_str());
    else
      continue;
    return;
  }
}

void touch_registers(const void *address, size_t bytes, bool writes, uintptr_t pc) {
  const Thread &thread = *machine.now;
  size_t first = (size_t)((unsigned char *)address - stacks) / WORD;
  size_t last = (size_t)((unsigned char *)address + bytes - 1 - stacks) / WORD;
  for (size_t i = first; i <= last; i++)
    stamps[i] = thread.fences;
  if (!thread.warp->products.empty())
    check_products(thread, address, bytes, writes, pc);
}

void registers_fence(Thread &thread) {
  machine.watches_registers = true;
  thread.fences = ++last_fence;
}

/* Has the thread left them alone since its last fence? */
bool registers_fenced(const Thread &thread, const void *address, size_t bytes) {
  const unsigned char *p = (const unsigned char *)address;
  if (!thread.fences)
    return false;
  if ((size_t)(p - stacks) >= stacks_bytes)
    return true;
  for (size_t i = 0; i < bytes; i += WORD)
    if (stamps[(size_t)(p + i - stacks) / WORD] == thread.fences)
      return false;
  return true;
}

/* --- setmaxnreg -------------------------------------------------------------------------------------------------- */

struct Request {
  u32 count;
  bool increase;
  uintptr_t pc;
};

static void check_request(const Warp &warp, const Request &request) {
  const char *what = request.increase ? "registers_increase" : "registers_decrease";
  u32 count = request.count;
  if (!machine.registers)
    fatal(request.pc, "%s: without __launch_bounds__ it is ignored", what);
  if (count < LEAST || count > MOST || count % STEP)
    fatal(request.pc, "%s: %u registers; it must be %d to %d in steps of %d", what, count, LEAST, MOST, STEP);
  if (request.increase ? count < warp.registers : count > warp.registers)
    fatal(request.pc, "%s: to %u registers from %u", what, count, warp.registers);
}

static void hand_on(Warp &warp, u32, void **arguments) {
  const Request &request = *(Request *)arguments[0];
  check_request(warp, request);
  warp.register_counts.push_back({request.count, request.pc});
  if (request.increase)
    return;
  warp.block->free_registers += (long)warp.registers - (long)request.count;
  warp.registers = request.count;
  for (Thread &thread : warp.block->thread)
    if (thread.waits_for && !strcmp(thread.waits_for, "registers"))
      wake(thread);
  passed();
}

static std::string missing_registers(const Thread &thread) {
  const Warp &warp = *thread.warp;
  char text[120];
  snprintf(text, sizeof text, ": %u each, %ld more, and %ld are free for one warp", thread.wants_registers,
           (long)thread.wants_registers - (long)warp.registers, warp.block->free_registers);
  return text;
}

extern "C" void emu_registers(int count, int increase) {
  static const char kinds[2] = {};
  Request request = {(u32)count, increase != 0, EMU_PC};
  Warp &warp = *machine.now->warp;
  Block &block = *warp.block;
  meet_aligned("setmaxnreg", &kinds[increase], &request, EMU_PC, hand_on);
  while (increase && warp.registers < (u32)count) {
    long needed = count - (long)warp.registers;
    if (block.free_registers >= needed) {
      block.free_registers -= needed;
      warp.registers = (u32)count;
      break;
    }
    machine.now->wants_registers = (u32)count;
    wait_here("registers", EMU_PC, missing_registers);
  }
}

/* All warps of a warpgroup must have asked for the same. */
void registers_at_exit(Warp &warp) {
  Block &block = *warp.block;
  u32 first = warp.index / WARPGROUP * WARPGROUP;
  for (u32 w = first; w < first + WARPGROUP; w++) {
    if (w >= block.num_warps) {
      if (!warp.register_counts.empty())
        finding(warp.register_counts.front().second, "setmaxnreg in a warpgroup of fewer than %d warps", WARPGROUP);
      return;
    }
    if (!has_ended(block.warp[w]))
      return;
  }
  const auto &firsts = block.warp[first].register_counts;
  for (u32 w = first; w < first + WARPGROUP; w++) {
    const auto &counts = block.warp[w].register_counts;
    if (counts == firsts)
      continue;
    size_t i = 0; /* the first that differs */
    while (i < std::min(counts.size(), firsts.size()) && counts[i] == firsts[i])
      i++;
    finding((i < counts.size() ? counts : firsts)[i].second,
            "setmaxnreg: warp %u has executed %zu, warp %u of its warpgroup %zu, or others at other places", w,
            counts.size(), first, firsts.size());
  }
}

} // namespace emu
