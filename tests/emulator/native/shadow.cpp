/*
 * Who touched each byte last, and whether the next access is in order. Two accesses, one of them a write, that no
 * barrier (or release and acquire) orders are a race whether or not they happened to meet in this run.
 */
#include "shadow.h"

#include <algorithm>
#include <cstring>

namespace emu {

/* Of a block's shared memory: dynamic, then static. Reads are kept by warp: clock << 6 | lane; the last read by another
 * block of the cluster apart. */
struct SharedShadow {
  std::vector<Mark> write;
  std::vector<uintptr_t> read_pc; /* 0: no warp of the block has read it since it was written */
  std::vector<u32> reads;
  std::map<size_t, Mark> foreign_read;
};

static std::vector<SharedShadow> shadows; /* by slot */

static size_t dynamic_cells() { return (machine.shared_bytes + CELL - 1) / CELL; }

void shadow_launch(size_t resident) { shadows.resize(resident); }

void shadow_begin(Block &block) {
  SharedShadow &shadow = shadows[(size_t)block.slot];
  size_t cells = dynamic_cells() + ((size_t)(machine.static_end - machine.static_begin) + CELL - 1) / CELL;
  shadow.write.assign(cells, Mark{});
  shadow.read_pc.assign(cells, 0);
  shadow.reads.assign(cells * block.num_warps, 0);
  shadow.foreign_read.clear();
}

/* --- ordering ---------------------------------------------------------------------------------------------------- */

static Mark mark_now(Kind kind, uintptr_t pc) {
  Thread &t = *machine.now;
  return {pc, t.warp->block->index, t.warp->epoch, (unsigned char)t.warp->index, (unsigned char)t.lane, kind};
}

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
  if (!knows(mark.block, mark.agent, mark.clock, mark.lane, collective))
    return false;
  m = mark;
  last_one[collective] = one;
  last_turn[collective] = machine.turns;
  return true;
}

/* The same of the last reads of the running thread's turn, one of each warp. */
static bool ordered_read(u64 block, u32 warp, u32 read) {
  static u32 last[MAX_WARPS];
  static u64 last_block, last_turn;
  static const Thread *last_thread;
  if (machine.now != last_thread || machine.turns != last_turn || block != last_block) {
    memset(last, 0, sizeof last);
    last_thread = machine.now;
    last_turn = machine.turns;
    last_block = block;
  }
  if (read == last[warp])
    return true;
  bool known = knows(block, warp, read >> 6, read & 63, false);
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

bool is_read(Access access) {
  return access == READ || access == COLLECTIVE_READ || access == COPY_SOURCE || access == PRODUCT_READ ||
         access == BULK_READ;
}
static bool is_collective(Access access) { return access == COLLECTIVE_READ || access == PRODUCT_READ; }
static bool is_async(Access access) { return access == PRODUCT_READ || access == BULK_READ || access == BULK_WRITE; }
static bool is_add(Access access) { return access == ATOMIC || access == BULK_ADD; }
static const char *verb(Access access) {
  static const char *const verbs[] = {"reads",       "writes",     "writes",      "reads",       "reads",
                                      "wgmma reads", "copy reads", "copy writes", "copy adds to"};
  return verbs[access];
}

/* For people: a place in shared memory, or in a region. */
struct Place {
  const SharedPlace *shared;
  const Region *region;
  size_t offset;
  std::string text() const {
    return shared ? SharedPlace{shared->block, offset, shared->is_static}.text()
                  : region->name + " + " + std::to_string(offset);
  }
};

static void check_order(const Mark &w, Access access, const Place &place, uintptr_t pc) {
  bool collective = is_collective(access);
  if (ordered(w, collective)) {
    if (is_async(access) && !fenced(w, collective))
      finding(pc, "%s %s, written by %s with no fence_async_shared behind it", verb(access), place.text().c_str(),
              describe(w).c_str());
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

std::string SharedPlace::text() const {
  std::string part = is_static ? "static shared memory" : "shared memory";
  if (machine.now && block != machine.now->warp->block)
    part += " of block " + std::to_string(block->index);
  return part + (is_static ? " " + static_name(offset) : " + " + std::to_string(offset));
}

static size_t first_cell(const SharedPlace &place) {
  return place.offset / CELL + (place.is_static ? dynamic_cells() : 0);
}
static size_t count_cells(const SharedPlace &place, size_t bytes) {
  return (place.offset % CELL + bytes + CELL - 1) / CELL;
}

/* A write to a cell: has everybody who reads it done so before? */
static void check_readers(SharedShadow &shadow, size_t cell, const SharedPlace &target, Access access,
                          const Place &place, uintptr_t pc) {
  u32 *reads = &shadow.reads[cell * target.block->num_warps];
  for (u32 r = 0; shadow.read_pc[cell] && r < target.block->num_warps; r++) {
    if (!reads[r])
      continue;
    u32 clock = reads[r] >> 6, lane = reads[r] & 63;
    const Thread &t = *machine.now;
    bool own = target.block == t.warp->block && r == t.warp->index && lane == ALL_LANES && clock != NEVER;
    bool fine = own || ordered_read(target.block->index, r, reads[r]);
    if (!fine && access != ATOMIC)
      finding(pc,
              clock == NEVER ? "race: %s %s, which an asynchronous operation of warp %u still reads, begun at %s"
                             : "race: %s %s, read by warp %u at %s, with no barrier in between",
              verb(access), place.text().c_str(), r, at(shadow.read_pc[cell]).c_str());
    reads[r] = 0;
  }
  shadow.read_pc[cell] = 0;
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

void mark_open_reads(const Warp &warp) {
  mark_store_reads(warp);
  mark_product_reads(warp);
}

void touch_global(Region &region, size_t offset, size_t bytes, Access access, uintptr_t pc) {
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

} // namespace emu
