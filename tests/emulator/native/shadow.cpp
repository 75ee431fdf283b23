/* Who touched each byte since it was written: what is kept of that. order.cpp says whether an access is in order. */
#include "order.h"

namespace emu {

/* Of a block's shared memory: dynamic, then static. Of each warp of the block one time has a place of its own, as there
 * mostly is no other: what is read again was read before the warp last synchronised. */
struct SharedShadow {
  u32 width; /* of the cells */
  size_t cells;
  size_t dynamic; /* cells, in front of the static ones */
  std::vector<Mark> write;
  std::vector<u32> readers;  /* a bit for each warp that has a place */
  std::vector<Reads> places; /* of warp w from w * cells */
  std::vector<u32> since;    /* heads of the histories of all else */
};

static std::vector<SharedShadow> shadows; /* by slot */

void shadow_launch(size_t resident) {
  history_launch();
  shadows.resize(resident);
  for (SharedShadow &shadow : shadows) {
    shadow.width = WIDE;
    shadow.since.clear();
  }
}

static void count_cells(SharedShadow &shadow) {
  shadow.dynamic = total_cells(machine.shared_bytes, shadow.width);
  shadow.cells = shadow.dynamic + total_cells(static_bytes(), shadow.width);
}

void shadow_begin(Block &block) {
  SharedShadow &shadow = shadows[(size_t)block.slot];
  for (u32 &head : shadow.since)
    forget_history(head);
  count_cells(shadow);
  shadow.write.assign(shadow.cells, Mark{});
  shadow.readers.assign(shadow.cells, 0);
  shadow.places.resize(shadow.cells * block.num_warps);
  shadow.since.assign(shadow.cells, NO_HISTORY);
}

/* A cell for each byte from now on, for a block's memory until the launch ends. */
static void divide_cells(SharedShadow &shadow) {
  SharedShadow wide = std::move(shadow);
  shadow.width = NARROW;
  count_cells(shadow);
  size_t warps = wide.places.size() / wide.cells;
  shadow.write.resize(shadow.cells);
  shadow.readers.resize(shadow.cells);
  shadow.places.resize(shadow.cells * warps);
  shadow.since.resize(shadow.cells);
  for (size_t cell = 0; cell < shadow.cells; cell++) {
    size_t old = cell < shadow.dynamic ? cell >> wide.width : wide.dynamic + ((cell - shadow.dynamic) >> wide.width);
    shadow.write[cell] = wide.write[old];
    shadow.readers[cell] = wide.readers[old];
    for (size_t warp = 0; warp < warps; warp++)
      shadow.places[warp * shadow.cells + cell] = wide.places[warp * wide.cells + old];
    shadow.since[cell] = copy_history(wide.since[old]);
  }
  for (u32 &head : wide.since)
    forget_history(head);
}

static void divide_cells(Region &region) {
  std::vector<Mark> write = std::move(region.write);
  std::vector<u32> since = std::move(region.since);
  size_t bytes = (size_t)(region.end - region.begin);
  region.write.resize(bytes);
  region.since.resize(region.writable ? bytes : 0);
  for (size_t i = 0; i < bytes; i++) {
    region.write[i] = write[i >> region.width];
    if (region.writable)
      region.since[i] = copy_history(since[i >> region.width]);
  }
  for (u32 &head : since)
    forget_history(head);
  region.width = NARROW;
}

struct Cells {
  size_t first, count;
};

static Cells cells_at(const SharedShadow &shadow, const SharedPlace &place, size_t bytes) {
  return {(place.offset >> shadow.width) + (place.is_static ? shadow.dynamic : 0),
          cells_of(place.offset, bytes, shadow.width)};
}

/* --- one access -------------------------------------------------------------------------------------------------- */

static Mark mark_now(Kind kind, uintptr_t pc) {
  Thread &t = *machine.now;
  return {pc, t.warp->block->index, t.warp->epoch, (unsigned char)t.warp->index, (unsigned char)t.lane, kind, false};
}

/* A write, or an atomic that changes memory: has everybody who reads it done so before? */
static void check_readers(const SharedShadow &shadow, size_t cell, const Block &block, Access access,
                          const Place &place, uintptr_t pc) {
  for (u32 left = shadow.readers[cell]; left; left &= left - 1) {
    u32 warp = (u32)__builtin_ctz(left);
    check_read(block, warp, shadow.places[warp * shadow.cells + cell], access, place, pc);
  }
}

static void note_read(SharedShadow &shadow, size_t cell, const Block &block, const Past &now) {
  const Warp &warp = *machine.now->warp;
  if (warp.block != &block)
    return add_to_history(shadow.since[cell], now);
  Reads &place = shadow.places[warp.index * shadow.cells + cell];
  u32 bit = 1u << warp.index;
  bool same =
      shadow.readers[cell] & bit && place.clock == now.clock && (place.lanes == AS_ONE) == (now.lanes == AS_ONE);
  if (same)
    place.lanes |= now.lanes;
  else if (!(shadow.readers[cell] & bit) || implies(now.clock, now.lanes, place.clock, place.lanes, warp.synchronised))
    place = {now.pc, now.clock, now.lanes};
  else
    return add_to_history(shadow.since[cell], now);
  place.pc = now.pc;
  shadow.readers[cell] |= bit;
}

void touch_shared(const SharedPlace &target, size_t bytes, Access access, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  if (shadow.width == WIDE && divides_cell(target.offset, bytes))
    divide_cells(shadow);
  u32 width = shadow.width;
  auto [first, count] = cells_at(shadow, target, bytes);
  Past now = past_now(use_of(access), is_collective(access) ? (u32)AS_ONE : 1u << machine.now->lane, pc);
  for (size_t cell = first; cell < first + count; cell++) {
    Place place = {&target, nullptr, ((target.offset >> width) + cell - first) << width};
    Mark &w = shadow.write[cell];
    if (w.kind != HOST)
      check_written(w, access, place, pc);
    if (shadow.since[cell])
      check_history(shadow.since[cell], access, place, pc);
    if (access == PRODUCT_READ || access == BULK_READ)
      continue; /* mark_read says when */
    if (now.use == USE_READ && is_read(access)) {
      note_read(shadow, cell, *target.block, now);
      continue;
    }
    if (!is_read(access))
      check_readers(shadow, cell, *target.block, access, place, pc);
    if (now.use != USE_READ) {
      add_to_history(shadow.since[cell], now);
      if (w.kind == UNWRITTEN)
        w = mark_now(WRITTEN, pc);
      continue;
    }
    shadow.readers[cell] = 0;
    forget_history(shadow.since[cell]);
    w = mark_now(WRITTEN, pc);
  }
}

void mark_bulk_write(const SharedPlace &target, size_t bytes, u32 agent, u32 phase, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  auto [first, count] = cells_at(shadow, target, bytes);
  for (size_t cell = first; cell < first + count; cell++)
    shadow.write[cell] = {pc, target.block->index, phase + 1, (unsigned char)agent, 0, WRITTEN};
}

void mark_barrier(const SharedPlace &target, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  auto [first, count] = cells_at(shadow, target, 8);
  for (size_t cell = first; cell < first + count; cell++)
    shadow.write[cell] = mark_now(BARRIER, pc);
}

/* One that was under way. If there is none, somebody has written it meanwhile, which was a finding. */
static void end_read(SharedShadow &shadow, size_t cell, const Block &block, const Past &done) {
  Reads &place = shadow.places[machine.now->warp->index * shadow.cells + cell];
  bool there = shadow.readers[cell] >> machine.now->warp->index & 1 && place.clock == NEVER &&
               (place.lanes == AS_ONE) == (done.lanes == AS_ONE) && !(done.lanes & ~place.lanes);
  if (!there) {
    history_done(shadow.since[cell], done);
  } else if (place.lanes == done.lanes) {
    place.clock = done.clock;
  } else {
    place.lanes &= ~done.lanes; /* of other lanes it still is */
    note_read(shadow, cell, block, done);
  }
}

/* Reads by asynchronous operations: while they are under way, no write is in order. */
void mark_read(const SharedPlace &target, size_t bytes, ReadState state, u32 lanes, uintptr_t pc) {
  SharedShadow &shadow = shadows[(size_t)target.block->slot];
  Past past = past_now(USE_READ, lanes, pc);
  if (state == UNDER_WAY)
    past.clock = NEVER;
  auto [first, count] = cells_at(shadow, target, bytes);
  for (size_t cell = first; cell < first + count; cell++)
    if (state == UNDER_WAY)
      note_read(shadow, cell, *target.block, past);
    else
      end_read(shadow, cell, *target.block, past);
}

void mark_open_reads(const Warp &warp) {
  mark_store_reads(warp);
  mark_product_reads(warp);
}

void touch_global(Region &region, size_t offset, size_t bytes, Access access, uintptr_t pc) {
  bool reads = is_read(access);
  if (!reads && !region.writable)
    fatal(pc, "writes %s + %zu, which is an input", region.name.c_str(), offset);
  Past now = past_now(use_of(access), is_collective(access) ? (u32)AS_ONE : 1u << machine.now->lane, pc);
  if (access == BULK_ADD)
    now.clock = NEVER;
  if (region.width == WIDE && divides_cell(offset, bytes))
    divide_cells(region);
  u32 width = region.width;
  size_t first = offset >> width, count = cells_of(offset, bytes, width);
  for (size_t cell = first; cell < first + count; cell++) {
    Place place = {nullptr, &region, cell << width};
    Mark &w = region.write[cell];
    if (w.kind != HOST)
      check_written(w, access == BULK_WRITE ? WRITE : access, place, pc);
    if (!region.writable)
      continue;
    u32 &since = region.since[cell];
    if (since)
      check_history(since, access == BULK_WRITE ? WRITE : access, place, pc);
    if (reads || now.use == USE_ADD) {
      add_to_history(since, now);
      if (now.use == USE_ADD && w.kind == UNWRITTEN)
        w = mark_now(WRITTEN, pc);
      continue;
    }
    forget_history(since);
    w = mark_now(WRITTEN, pc);
    if (access == BULK_WRITE) {
      w.clock = NEVER;
      w.bulk = true;
    }
  }
}

void global_done(Region &region, size_t offset, size_t bytes, uintptr_t pc) {
  const Thread &t = *machine.now;
  Past done = past_now(USE_ADD, 1u << t.lane, pc);
  size_t first = offset >> region.width, count = cells_of(offset, bytes, region.width);
  for (size_t cell = first; cell < first + count; cell++) {
    Mark &w = region.write[cell];
    if (history_done(region.since[cell], done))
      continue;
    if (w.clock == NEVER && w.pc == pc && w.block == done.block && w.agent == done.warp && w.lane == t.lane)
      w.clock = done.clock;
  }
}

/* --- copies ------------------------------------------------------------------------------------------------------ */

static void mark(unsigned char *to, u32 bytes, Kind kind, uintptr_t pc) {
  Block &block = *machine.now->warp->block;
  SharedShadow &shadow = shadows[(size_t)block.slot];
  bool in_static = is_static(to);
  size_t offset = (size_t)(to - (in_static ? machine.static_begin : block.shared));
  auto [first, count] = cells_at(shadow, {&block, offset, in_static}, bytes);
  for (size_t cell = first; cell < first + count; cell++)
    shadow.write[cell] = mark_now(kind, pc);
}

void mark_in_flight(unsigned char *to, u32 bytes, uintptr_t pc) { mark(to, bytes, IN_FLIGHT, pc); }
void mark_arrived(unsigned char *to, u32 bytes, uintptr_t pc) { mark(to, bytes, WRITTEN, pc); }

} // namespace emu
