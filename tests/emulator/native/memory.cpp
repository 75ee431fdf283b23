/*
 * Every byte that a kernel may touch, and who touched it last.
 *
 * Each two bytes of shared and of global memory have a cell: the last write and the last reads, with the writer's
 * vector clock. Two accesses, one of them a write, that no barrier (or release and acquire) orders are a race whether
 * or not they happened to meet in this run.
 */
#include "machine.h"

#include <algorithm>
#include <cstring>
#include <link.h>
#include <sys/mman.h>

namespace emu {

enum Kind : unsigned char { UNWRITTEN, HOST, GAP, WRITTEN, ADDED, IN_FLIGHT };
enum { ALL_LANES = 62, SEVERAL_LANES = 63, CELL = 2, PAGE = 4096, STACK_BYTES = 256 * 1024 };

struct Mark {
  uintptr_t pc;
  u64 block;
  u32 clock;
  unsigned char warp, lane;
  Kind kind;
};

struct Region {
  std::string name;
  unsigned char *begin, *end;
  bool writable;
  std::vector<Mark> write, read;
};

/* Shadow of a block's shared memory: dynamic, then static. Reads are kept by warp: clock << 6 | lane. */
struct SharedShadow {
  std::vector<Mark> write;
  std::vector<uintptr_t> read_pc;
  std::vector<u32> reads;
};

static std::vector<Region> regions; /* in the order of their addresses */
static std::vector<std::pair<uintptr_t, uintptr_t>> modules;
static std::vector<SharedShadow> shadows; /* by slot */
static unsigned char *shared_arena, *stacks;
static size_t shared_stride, stacks_bytes, shared_arena_bytes;
static u32 shared_offset;

static size_t dynamic_cells() { return (machine.shared_bytes + CELL - 1) / CELL; }
static size_t static_bytes() { return (size_t)(machine.static_end - machine.static_begin); }

/* --- ordering ---------------------------------------------------------------------------------------------------- */

static Mark mark_now(Kind kind, uintptr_t pc) {
  Thread &t = *machine.now;
  return {pc,
          t.warp->block->index,
          t.warp->clock.local[t.warp->index],
          (unsigned char)t.warp->index,
          (unsigned char)t.lane,
          kind};
}

static bool ordered(const Mark &mark) {
  Thread &t = *machine.now;
  Warp &warp = *t.warp;
  if (mark.block != warp.block->index) {
    auto found = warp.clock.foreign.find(mark.block * MAX_WARPS + mark.warp);
    return found != warp.clock.foreign.end() && found->second >= mark.clock;
  }
  if (mark.warp == warp.index)
    return mark.lane == t.lane || mark.clock < warp.clock.local[warp.index];
  return warp.clock.local[mark.warp] >= mark.clock;
}

static std::string describe(const Mark &mark) {
  char text[120];
  snprintf(text, sizeof text, "block %llu warp %u lane %u at ", (unsigned long long)mark.block, mark.warp, mark.lane);
  return text + at(mark.pc);
}

/* --- one access -------------------------------------------------------------------------------------------------- */

struct Place {
  const char *name;
  size_t offset;
};

static void check_written(const Mark &w, Access access, const Place &place, uintptr_t pc) {
  const char *name = place.name;
  size_t offset = place.offset;
  bool reads = access == READ || access == COLLECTIVE_READ || access == COPY_SOURCE;
  switch (w.kind) {
  case UNWRITTEN:
    if (reads || access == ATOMIC)
      finding(pc, "reads %s + %zu, which nobody has written", name, offset);
    break;
  case GAP:
    finding(pc, "%s %s + %zu, which lies between the elements of the tensor", reads ? "reads" : "writes", name, offset);
    break;
  case IN_FLIGHT:
    finding(pc, "%s %s + %zu, to which a copy is under way that nobody has waited for, begun by %s",
            reads ? "reads" : "writes", name, offset, describe(w).c_str());
    break;
  case WRITTEN:
  case ADDED:
    if (w.kind == ADDED && access == ATOMIC)
      break;
    /* A warp-wide read takes other lanes' rows too, so that the same lane wrote is no excuse. */
    if (!ordered(w) || (access == COLLECTIVE_READ && w.block == machine.now->warp->block->index &&
                        w.warp == machine.now->warp->index && w.clock >= machine.now->warp->clock.local[w.warp]))
      finding(pc, "race: %s %s + %zu, written by %s, with no barrier in between", reads ? "reads" : "writes", name,
              offset, describe(w).c_str());
    break;
  case HOST:
    break;
  }
}

static void touch_shared(Block &block, size_t offset, bool is_static, size_t bytes, Access access, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)block.slot];
  size_t first = offset / CELL + (is_static ? dynamic_cells() : 0);
  size_t count = (offset % CELL + bytes + CELL - 1) / CELL;
  Thread &t = *machine.now;
  Warp &warp = *t.warp;
  u32 warps = block.num_warps, self = warp.index;
  bool writes = access == WRITE || access == ATOMIC;
  u32 my_read = warp.clock.local[self] << 6 | (access == COLLECTIVE_READ ? (u32)ALL_LANES : t.lane);
  for (size_t i = 0; i < count; i++) {
    size_t cell = first + i;
    Place place = {is_static ? "static shared memory" : "shared memory", (offset / CELL + i) * CELL};
    Mark &w = shadow.write[cell];
    if (w.kind != HOST)
      check_written(w, access, place, pc);
    u32 *reads = &shadow.reads[cell * warps];
    if (!writes) {
      u32 &mine = reads[self];
      mine = mine >> 6 == my_read >> 6 && (mine & 63) != (my_read & 63) ? (my_read | SEVERAL_LANES) : my_read;
      shadow.read_pc[cell] = pc;
      continue;
    }
    for (u32 r = 0; r < warps; r++) {
      if (!reads[r])
        continue;
      u32 clock = reads[r] >> 6, lane = reads[r] & 63;
      bool fine = r != self ? warp.clock.local[r] >= clock
                            : lane == t.lane || lane == ALL_LANES || clock < warp.clock.local[self];
      if (!fine && access != ATOMIC)
        finding(pc, "race: writes %s + %zu, read by warp %u at %s, with no barrier in between", place.name,
                place.offset, r, at(shadow.read_pc[cell]).c_str());
      reads[r] = 0;
    }
    w = mark_now(access == ATOMIC ? ADDED : WRITTEN, pc);
  }
}

static void touch_global(Region &region, size_t offset, size_t bytes, Access access, uintptr_t pc) {
  bool writes = access == WRITE || access == ATOMIC;
  if (writes && !region.writable)
    fatal(pc, "writes %s + %zu, which is an input", region.name.c_str(), offset);
  for (size_t cell = offset / CELL; cell * CELL < offset + bytes; cell++) {
    Place place = {region.name.c_str(), cell * CELL};
    Mark &w = region.write[cell];
    if (w.kind != HOST)
      check_written(w, access, place, pc);
    Mark &r = region.read[cell];
    if (!writes) {
      r = mark_now(WRITTEN, pc);
      continue;
    }
    if (access == WRITE && r.kind == WRITTEN && !ordered(r))
      finding(pc, "race: writes %s + %zu, read by %s, with no barrier in between", place.name, place.offset,
              describe(r).c_str());
    r.kind = UNWRITTEN;
    w = mark_now(access == ATOMIC ? ADDED : WRITTEN, pc);
  }
}

static void no_such_address(const void *address, size_t bytes, Access access, uintptr_t pc) {
  const Region *nearest = nullptr;
  long best = 1 << 20;
  const unsigned char *p = (const unsigned char *)address;
  for (const Region &region : regions) {
    long distance = p < region.begin ? region.begin - p : p - region.end;
    if (distance < best) {
      best = distance;
      nearest = &region;
    }
  }
  const char *verb = access == WRITE || access == ATOMIC ? "writes" : "reads";
  if (nearest)
    fatal(pc, "%s %zu bytes at %s %+ld, out of bounds: it has %ld bytes", verb, bytes, nearest->name.c_str(),
          (long)(p - nearest->begin), (long)(nearest->end - nearest->begin));
  fatal(pc, "%s %zu bytes at %p, which is no memory of this kernel", verb, bytes, address);
}

void touch(const void *address, size_t bytes, Access access, uintptr_t pc) {
  unsigned char *p = (unsigned char *)address;
  if ((size_t)(p - stacks) < stacks_bytes || !machine.now)
    return;
  Block &block = *machine.now->warp->block;
  if ((size_t)(p - shared_arena) < shared_arena_bytes) {
    long offset = p - block.shared;
    if (offset < 0 || (size_t)offset + bytes > machine.shared_bytes)
      fatal(pc, "%s %zu bytes at shared memory %+ld, out of bounds: the block has %zu bytes",
            access == WRITE ? "writes" : "reads", bytes, offset, machine.shared_bytes);
    touch_shared(block, (size_t)offset, false, bytes, access, pc);
    return;
  }
  if (p >= machine.static_begin && p < machine.static_end) {
    touch_shared(block, (size_t)(p - machine.static_begin), true, bytes, access, pc);
    return;
  }
  auto behind = std::upper_bound(regions.begin(), regions.end(), p,
                                 [](const unsigned char *address, const Region &r) { return address < r.begin; });
  if (behind != regions.begin()) {
    Region &region = behind[-1];
    if (p < region.end && bytes <= (size_t)(region.end - p)) {
      touch_global(region, (size_t)(p - region.begin), bytes, access, pc);
      return;
    }
  }
  for (const auto &module : modules)
    if ((uintptr_t)p >= module.first && (uintptr_t)p < module.second)
      return;
  no_such_address(address, bytes, access, pc);
}

/* --- copies ------------------------------------------------------------------------------------------------------ */

static void mark(unsigned char *to, u32 bytes, Kind kind, uintptr_t pc) {
  Block &block = *machine.now->warp->block;
  bool is_static = to >= machine.static_begin && to < machine.static_end;
  size_t offset = (size_t)(to - (is_static ? machine.static_begin : block.shared));
  for (u32 i = 0; i < bytes / CELL; i++)
    shadows[(size_t)block.slot].write[offset / CELL + i + (is_static ? dynamic_cells() : 0)] = mark_now(kind, pc);
}

void mark_in_flight(unsigned char *to, u32 bytes, uintptr_t pc) { mark(to, bytes, IN_FLIGHT, pc); }
void mark_arrived(unsigned char *to, u32 bytes, uintptr_t pc) { mark(to, bytes, WRITTEN, pc); }

/* --- addresses of shared memory ---------------------------------------------------------------------------------- */

enum { WINDOW = PAGE, STATIC_WINDOW = 1 << 24 };

bool is_shared(const void *address) {
  const unsigned char *p = (const unsigned char *)address;
  return (size_t)(p - shared_arena) < shared_arena_bytes || (p >= machine.static_begin && p < machine.static_end);
}

/* Congruent to the pointer modulo a page. Where the memory begins is as badly aligned as its declaration allows. */
u32 shared_window(const void *pointer, uintptr_t pc) {
  unsigned char *p = (unsigned char *)pointer;
  Block &block = *machine.now->warp->block;
  if (p >= machine.static_begin && p < machine.static_end)
    return (u32)(STATIC_WINDOW + ((uintptr_t)machine.static_begin % PAGE) + (p - machine.static_begin));
  if ((size_t)(p - shared_arena) >= shared_arena_bytes)
    fatal(pc, "the address %p is not in shared memory", pointer);
  return (u32)(WINDOW + shared_offset + (p - block.shared));
}

unsigned char *shared_pointer(u32 address, u32 bytes, const char *what, uintptr_t pc) {
  Block &block = *machine.now->warp->block;
  if (address >= STATIC_WINDOW) {
    size_t offset = address - STATIC_WINDOW - (uintptr_t)machine.static_begin % PAGE;
    if (offset + bytes <= static_bytes())
      return machine.static_begin + offset;
  } else {
    long offset = (long)address - WINDOW - (long)shared_offset;
    if (offset >= 0 && (size_t)offset + bytes <= machine.shared_bytes)
      return block.shared + offset;
    fatal(pc, "%s: shared memory %+ld, out of bounds: the block has %zu bytes", what, offset, machine.shared_bytes);
  }
  fatal(pc, "%s: %#x is no address of shared memory", what, address);
}

/* --- setting up -------------------------------------------------------------------------------------------------- */

void setup_static(unsigned char *begin, unsigned char *end) {
  machine.static_begin = begin;
  machine.static_end = end;
}

void *stack_of(int slot, unsigned thread, size_t *bytes) {
  size_t threads = (size_t)machine.block_dim.x * machine.block_dim.y * machine.block_dim.z;
  *bytes = STACK_BYTES - PAGE;
  return stacks + ((size_t)slot * threads + thread) * STACK_BYTES + PAGE;
}

static int add_module(dl_phdr_info *info, size_t, void *wanted) {
  for (int i = 0; i < info->dlpi_phnum; i++) {
    uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    if ((uintptr_t)wanted < begin || (uintptr_t)wanted >= begin + info->dlpi_phdr[i].p_memsz)
      continue;
    for (int k = 0; k < info->dlpi_phnum; k++)
      if (info->dlpi_phdr[k].p_type == PT_LOAD)
        modules.push_back({info->dlpi_addr + info->dlpi_phdr[k].p_vaddr,
                           info->dlpi_addr + info->dlpi_phdr[k].p_vaddr + info->dlpi_phdr[k].p_memsz});
    return 1;
  }
  return 0;
}

void memory_launch() {
  modules.clear();
  dl_iterate_phdr(add_module, (void *)machine.kernel);
  dl_iterate_phdr(add_module, (void *)&machine);
  for (Region &region : regions) {
    for (Mark &w : region.write)
      if (w.kind == WRITTEN || w.kind == ADDED)
        w.kind = HOST;
    for (Mark &r : region.read)
      r.kind = UNWRITTEN;
  }
  if (shared_arena)
    munmap(shared_arena, shared_arena_bytes);
  if (stacks)
    munmap(stacks, stacks_bytes);
  u32 align = machine.shared_alignment;
  shared_offset = align < 1024 ? align : 0;
  size_t resident = (size_t)machine.settings.resident;
  shared_stride = (machine.shared_bytes + shared_offset + 3 * PAGE) / PAGE * PAGE;
  shared_arena_bytes = shared_stride * resident;
  shared_arena = (unsigned char *)mmap(nullptr, shared_arena_bytes, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  size_t threads = resident * machine.block_dim.x * machine.block_dim.y * machine.block_dim.z;
  stacks_bytes = threads * STACK_BYTES;
  stacks = (unsigned char *)mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (size_t i = 0; i < threads; i++)
    mprotect(stacks + i * STACK_BYTES, PAGE, PROT_NONE);
  shadows.resize(resident);
}

void block_memory_begin(Block &block) {
  SharedShadow &shadow = shadows[(size_t)block.slot];
  size_t cells = dynamic_cells() + (static_bytes() + CELL - 1) / CELL;
  shadow.write.assign(cells, Mark{});
  shadow.read_pc.assign(cells, 0);
  shadow.reads.assign(cells * block.num_warps, 0);
  block.shared = shared_arena + (size_t)block.slot * shared_stride + shared_offset;
  memset(block.shared, 0xff, machine.shared_bytes); /* NaN of every type */
  block.static_shared.assign(static_bytes(), 0xff);
}

void block_memory_end(Block &) {}

/* state: for each two bytes, 0 never written, 1 written by the host, 2 between the elements of a tensor. */
extern "C" void emu_add_memory(const char *name, void *memory, size_t bytes, int writable, const unsigned char *state) {
  Region region = {name, (unsigned char *)memory, (unsigned char *)memory + bytes, writable != 0, {}, {}};
  size_t cells = (bytes + CELL - 1) / CELL;
  region.write.resize(cells);
  region.read.resize(cells);
  for (size_t i = 0; i < cells; i++)
    region.write[i].kind = (Kind)state[i];
  auto behind = std::upper_bound(regions.begin(), regions.end(), region.begin,
                                 [](const unsigned char *address, const Region &r) { return address < r.begin; });
  regions.insert(behind, std::move(region));
}

extern "C" void emu_remove_memory() { regions.clear(); }

/* How many bytes of elements of a tensor are still unwritten. */
extern "C" size_t emu_unwritten(const char *name) {
  size_t count = 0;
  for (const Region &region : regions)
    if (region.name == name)
      for (const Mark &w : region.write)
        count += w.kind == UNWRITTEN ? CELL : 0;
  return count;
}

} // namespace emu
