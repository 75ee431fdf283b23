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

enum Kind : unsigned char { UNWRITTEN, HOST, GAP, WRITTEN, ADDED, IN_FLIGHT, BARRIER };
enum { CELL = 2, PAGE = 4096, STACK_BYTES = 256 * 1024, STACK_GUARD = 1 << 20 };

/* One access: by a lane of a warp or, where the agent is an mbarrier, by a copy that its phase waits for. */
struct Mark {
  uintptr_t pc;
  u64 block;
  u32 clock;
  unsigned char agent, lane;
  Kind kind;
};

struct Region {
  std::string name;
  unsigned char *begin, *end;
  bool writable;
  std::vector<Mark> write, read;
};

/* Shadow of a block's shared memory: dynamic, then static. Reads are kept by warp: clock << 6 | lane; the last read by
 * another block of the cluster apart. */
struct SharedShadow {
  std::vector<Mark> write;
  std::vector<uintptr_t> read_pc;
  std::vector<u32> reads;
  std::map<size_t, Mark> foreign_read;
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
  return {pc, t.warp->block->index, t.warp->epoch, (unsigned char)t.warp->index, (unsigned char)t.lane, kind};
}

static bool ordered(const Mark &mark, bool collective) {
  /* What is known stays known: neighbours mostly have the same mark. */
  static Mark last;
  static const Thread *last_thread;
  static u64 last_turn;
  if (mark.clock == last.clock && mark.agent == last.agent && mark.lane == last.lane && mark.block == last.block &&
      machine.now == last_thread && machine.turns == last_turn && !collective)
    return true;
  bool known = knows(mark.block, mark.agent, mark.clock, mark.lane, collective);
  if (known && !collective) {
    last = mark;
    last_thread = machine.now;
    last_turn = machine.turns;
  }
  return known;
}

static Block *find_block(u64 index) {
  for (Block *block : machine.blocks)
    if (block->index == index)
      return block;
  return nullptr;
}

/* Has the thread that wrote this made it known to asynchronous operations, and is that known here? */
static bool fenced(const Mark &mark, bool collective) {
  Block *block = find_block(mark.block);
  if (!block || mark.agent >= MAX_WARPS)
    return true;
  const std::vector<u32> &fences = block->thread[mark.agent * WARP + mark.lane].proxy_fences;
  auto fence = std::lower_bound(fences.begin(), fences.end(), mark.clock);
  return fence != fences.end() && knows(mark.block, mark.agent, *fence + 1, mark.lane, collective);
}

static std::string describe(const Mark &mark) {
  char text[120];
  const char *format = mark.agent < MAX_WARPS ? "block %llu warp %u lane %u at " : "a copy to block %llu begun at ";
  snprintf(text, sizeof text, format, (unsigned long long)mark.block, mark.agent, mark.lane);
  return text + at(mark.pc);
}

/* --- one access -------------------------------------------------------------------------------------------------- */

static bool is_read(Access access) {
  return access == READ || access == COLLECTIVE_READ || access == COPY_SOURCE || access == PRODUCT_READ ||
         access == BULK_READ;
}
static bool is_collective(Access access) { return access == COLLECTIVE_READ || access == PRODUCT_READ; }
static bool is_async(Access access) { return access == PRODUCT_READ || access == BULK_READ || access == BULK_WRITE; }
static bool is_add(Access access) { return access == ATOMIC || access == BULK_ADD; }
static const char *verb(Access access) {
  static const char *const verbs[] = {"reads",        "writes",     "writes",     "reads",     "reads",
                                      "wgmma reads", "copy reads", "copy writes", "copy adds to"};
  return verbs[access];
}

/* For people: a place in shared memory, or in a region. */
struct Place {
  const SharedPlace *shared;
  const Region *region;
  size_t offset;
  std::string text() const {
    return (shared ? shared->part() : region->name) + " + " + std::to_string(offset);
  }
};

static void check_order(const Mark &w, Access access, const Place &place, uintptr_t pc) {
  bool collective = is_collective(access);
  if (ordered(w, collective)) {
    if (is_async(access) && !fenced(w, collective))
      finding(pc, "%s %s, written by %s with no fence_async_shared behind it", verb(access), place.text().c_str(), describe(w).c_str());
  } else if (w.agent >= MAX_WARPS) {
    Block *block = find_block(w.block);
    finding(pc,
            "race: %s %s, where %s brings data, and phase %u of the barrier at %s has not been waited for",
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

static void check_written(const Mark &w, Access access, const Place &place, uintptr_t pc) {
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
  case ADDED:
    if (!(w.kind == ADDED && is_add(access)))
      check_order(w, access, place, pc);
    break;
  case HOST:
    break;
  }
}

std::string SharedPlace::part() const {
  std::string text = is_static ? "static shared memory" : "shared memory";
  return !machine.now || block == machine.now->warp->block ? text : text + " of block " + std::to_string(block->index);
}

static size_t first_cell(const SharedPlace &place) { return place.offset / CELL + (place.is_static ? dynamic_cells() : 0); }
static size_t count_cells(const SharedPlace &place, size_t bytes) {
  return (place.offset % CELL + bytes + CELL - 1) / CELL;
}

/* A write to a cell: has everybody who reads it done so before? */
static void check_readers(SharedShadow &shadow, size_t cell, const SharedPlace &target, Access access,
                          const Place &place, uintptr_t pc) {
  u32 *reads = &shadow.reads[cell * target.block->num_warps];
  for (u32 r = 0; r < target.block->num_warps; r++) {
    if (!reads[r])
      continue;
    u32 clock = reads[r] >> 6, lane = reads[r] & 63;
    const Thread &t = *machine.now;
    bool own = target.block == t.warp->block && r == t.warp->index && lane == ALL_LANES && clock != NEVER;
    bool fine = own || knows(target.block->index, r, clock, lane, false);
    if (!fine && access != ATOMIC)
      finding(pc, clock == NEVER ? "race: %s %s, which an asynchronous operation of warp %u still reads, begun at %s"
                                 : "race: %s %s, read by warp %u at %s, with no barrier in between",
              verb(access), place.text().c_str(), r, at(shadow.read_pc[cell]).c_str());
    reads[r] = 0;
  }
  auto foreign = shadow.foreign_read.find(cell);
  if (foreign == shadow.foreign_read.end())
    return;
  if (!ordered(foreign->second, false))
    finding(pc, "race: %s %s, read by %s, with no barrier in between", verb(access), place.text().c_str(),
            describe(foreign->second).c_str());
  shadow.foreign_read.erase(foreign);
}

static void note_read(SharedShadow &shadow, size_t cell, const SharedPlace &target, u32 clock, u32 lane, uintptr_t pc) {
  const Thread &t = *machine.now;
  if (target.block != t.warp->block) {
    shadow.foreign_read[cell] = mark_now(WRITTEN, pc);
    shadow.foreign_read[cell].clock = clock;
    return;
  }
  u32 &mine = shadow.reads[cell * target.block->num_warps + t.warp->index];
  if (mine >> 6 == NEVER && clock != NEVER)
    return;
  u32 read = clock << 6 | lane;
  mine = mine >> 6 == clock && (mine & 63) != lane ? (read | SEVERAL_LANES) : read;
  shadow.read_pc[cell] = pc;
}

void touch_shared(const SharedPlace &target, size_t bytes, Access access, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  size_t first = first_cell(target), count = count_cells(target, bytes);
  Thread &t = *machine.now;
  u32 lane = is_collective(access) ? (u32)ALL_LANES : t.lane;
  for (size_t i = 0; i < count; i++) {
    size_t cell = first + i;
    Place place = {&target, nullptr, (target.offset / CELL + i) * CELL};
    Mark &w = shadow.write[cell];
    if (w.kind != HOST)
      check_written(w, access, place, pc);
    if (is_read(access)) {
      note_read(shadow, cell, target, t.warp->epoch, lane, pc);
      continue;
    }
    check_readers(shadow, cell, target, access, place, pc);
    w = mark_now(access == ATOMIC ? ADDED : WRITTEN, pc);
  }
}

void mark_bulk_write(const SharedPlace &target, size_t bytes, u32 agent, u32 phase, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  for (size_t i = 0; i < count_cells(target, bytes); i++)
    shadow.write[first_cell(target) + i] = {pc, target.block->index, phase + 1, (unsigned char)agent, 0, WRITTEN};
}

void mark_barrier(const SharedPlace &target, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  for (size_t i = 0; i < count_cells(target, 8); i++)
    shadow.write[first_cell(target) + i] = mark_now(BARRIER, pc);
}

/* Reads by asynchronous operations: while they are under way, no write is in order. */
void mark_read(const SharedPlace &target, size_t bytes, ReadState state, bool collective, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  const Thread &t = *machine.now;
  u32 clock = state == UNDER_WAY ? (u32)NEVER : t.warp->epoch, lane = collective ? (u32)ALL_LANES : t.lane;
  for (size_t i = 0; i < count_cells(target, bytes); i++) {
    size_t cell = first_cell(target) + i;
    u32 &mine = shadow.reads[cell * target.block->num_warps + t.warp->index];
    if (state == DONE && mine >> 6 != NEVER)
      continue; /* somebody has written it meanwhile, which was a finding */
    mine = clock << 6 | lane;
    shadow.read_pc[cell] = pc;
  }
}

static void touch_global(Region &region, size_t offset, size_t bytes, Access access, uintptr_t pc) {
  bool writes = !is_read(access);
  if (writes && !region.writable)
    fatal(pc, "writes %s + %zu, which is an input", region.name.c_str(), offset);
  for (size_t cell = offset / CELL; cell * CELL < offset + bytes; cell++) {
    Place place = {nullptr, &region, cell * CELL};
    Mark &w = region.write[cell];
    if (w.kind != HOST)
      check_written(w, access == BULK_WRITE ? WRITE : access, place, pc);
    Mark &r = region.read[cell];
    if (!writes) {
      r = mark_now(WRITTEN, pc);
      continue;
    }
    if (!is_add(access) && r.kind == WRITTEN && !ordered(r, false))
      finding(pc, "race: %s %s, read by %s, with no barrier in between", verb(access), place.text().c_str(),
              describe(r).c_str());
    r.kind = UNWRITTEN;
    w = mark_now(is_add(access) ? ADDED : WRITTEN, pc);
    if (access == BULK_WRITE || access == BULK_ADD)
      w.clock = NEVER;
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
  const char *does = is_read(access) ? "reads" : "writes";
  if (nearest)
    fatal(pc, "%s %zu bytes at %s %+ld, out of bounds: it has %ld bytes", does, bytes, nearest->name.c_str(),
          (long)(p - nearest->begin), (long)(nearest->end - nearest->begin));
  fatal(pc, "%s %zu bytes at %p, which is no memory of this kernel", does, bytes, address);
}

static Region *find_region(unsigned char *p) {
  auto behind = std::upper_bound(regions.begin(), regions.end(), p,
                                 [](const unsigned char *address, const Region &r) { return address < r.begin; });
  return behind != regions.begin() && p < behind[-1].end ? &behind[-1] : nullptr;
}

void touch(const void *address, size_t bytes, Access access, uintptr_t pc) {
  unsigned char *p = (unsigned char *)address;
  if (!machine.now)
    return;
  if ((size_t)(p - stacks) < stacks_bytes) {
    if (machine.watches_registers)
      touch_registers(address, bytes, access == WRITE, pc);
    return;
  }
  Block &block = *machine.now->warp->block;
  if ((size_t)(p - shared_arena) < shared_arena_bytes) {
    long offset = p - block.shared;
    if (offset < 0 || (size_t)offset + bytes > machine.shared_bytes)
      fatal(pc, "%s %zu bytes at shared memory %+ld, out of bounds: the block has %zu bytes",
            access == WRITE ? "writes" : "reads", bytes, offset, machine.shared_bytes);
    touch_shared({&block, (size_t)offset, false}, bytes, access, pc);
    return;
  }
  if (p >= machine.static_begin && p < machine.static_end) {
    touch_shared({&block, (size_t)(p - machine.static_begin), true}, bytes, access, pc);
    return;
  }
  Region *region = find_region(p);
  if (region && bytes <= (size_t)(region->end - p)) {
    touch_global(*region, (size_t)(p - region->begin), bytes, access, pc);
    return;
  }
  for (const auto &module : modules)
    if ((uintptr_t)p >= module.first && (uintptr_t)p < module.second)
      return;
  no_such_address(address, bytes, access, pc);
}

/* What a bulk copy of the running thread wrote there is done and known to it. */
void mark_global_done(unsigned char *address, size_t bytes, uintptr_t pc) {
  Region *region = find_region(address);
  if (!region)
    return;
  const Thread &t = *machine.now;
  size_t offset = (size_t)(address - region->begin);
  for (size_t cell = offset / CELL; cell * CELL < offset + bytes; cell++) {
    Mark &w = region->write[cell];
    if (w.clock == NEVER && w.pc == pc && w.block == t.warp->block->index && w.agent == t.warp->index &&
        w.lane == t.lane)
      w.clock = t.warp->epoch;
  }
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

/* As on a GPU, whose descriptors of matrices have 18 bits of an address, all of it lies below 1 << 18: dynamic shared
 * memory, then static. */
enum { WINDOW = PAGE };

static u32 static_window() { return (u32)(WINDOW + (shared_offset + machine.shared_bytes + 2 * PAGE) / PAGE * PAGE); }

bool is_shared(const void *address) {
  const unsigned char *p = (const unsigned char *)address;
  return (size_t)(p - shared_arena) < shared_arena_bytes || (p >= machine.static_begin && p < machine.static_end);
}

/* Congruent to the pointer modulo a page. Where the memory begins is as badly aligned as its declaration allows. */
u32 shared_window(const void *pointer, uintptr_t pc) {
  unsigned char *p = (unsigned char *)pointer;
  Block &block = *machine.now->warp->block;
  if (p >= machine.static_begin && p < machine.static_end)
    return (u32)(static_window() + ((uintptr_t)machine.static_begin % PAGE) + (p - machine.static_begin));
  if ((size_t)(p - shared_arena) >= shared_arena_bytes)
    fatal(pc, "the address %p is not in shared memory", pointer);
  return (u32)(WINDOW + shared_offset + (p - block.shared));
}

SharedPlace shared_place(Block &block, u32 address, u32 bytes, const char *what, uintptr_t pc) {
  if (address >= static_window()) {
    size_t offset = address - static_window() - (uintptr_t)machine.static_begin % PAGE;
    if (offset + bytes <= static_bytes())
      return {&block, offset, true};
  } else {
    long offset = (long)address - WINDOW - (long)shared_offset;
    if (offset >= 0 && (size_t)offset + bytes <= machine.shared_bytes)
      return {&block, (size_t)offset, false};
    fatal(pc, "%s: shared memory %+ld, out of bounds: the block has %zu bytes", what, offset, machine.shared_bytes);
  }
  fatal(pc, "%s: %#x is no address of shared memory", what, address);
}

unsigned char *shared_data(const SharedPlace &place) {
  if (!place.is_static)
    return place.block->shared + place.offset;
  return (machine.loaded == place.block ? machine.static_begin : place.block->static_shared.data()) + place.offset;
}

unsigned char *shared_pointer(u32 address, u32 bytes, const char *what, uintptr_t pc) {
  return shared_data(shared_place(*machine.now->warp->block, address, bytes, what, pc));
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
    munmap(stacks - STACK_GUARD, stacks_bytes + STACK_GUARD);
  u32 align = machine.shared_alignment;
  shared_offset = align < 1024 ? align : 0;
  size_t resident = (size_t)machine.settings.resident;
  shared_stride = (machine.shared_bytes + shared_offset + 3 * PAGE) / PAGE * PAGE;
  shared_arena_bytes = shared_stride * resident;
  shared_arena = (unsigned char *)mmap(nullptr, shared_arena_bytes, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  size_t threads = resident * machine.block_dim.x * machine.block_dim.y * machine.block_dim.z;
  stacks_bytes = threads * STACK_BYTES;
  stacks = (unsigned char *)mmap(nullptr, stacks_bytes + STACK_GUARD, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  mprotect(stacks, STACK_GUARD, PROT_NONE); /* what is too large for the first stack ends here */
  stacks += STACK_GUARD;
  for (size_t i = 0; i < threads; i++)
    mprotect(stacks + i * STACK_BYTES, PAGE, PROT_NONE);
  registers_launch(stacks, stacks_bytes);
  shadows.resize(resident);
}

void block_memory_begin(Block &block) {
  SharedShadow &shadow = shadows[(size_t)block.slot];
  size_t cells = dynamic_cells() + (static_bytes() + CELL - 1) / CELL;
  shadow.write.assign(cells, Mark{});
  shadow.read_pc.assign(cells, 0);
  shadow.reads.assign(cells * block.num_warps, 0);
  shadow.foreign_read.clear();
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
