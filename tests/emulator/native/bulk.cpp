/*
 * Copies by the Tensor Memory Accelerator. Each goes on in pieces of 16 bytes, at once, at random moments, or at the
 * latest one: a load when nothing else can go on, a store when it is waited for. Loads count for an mbarrier, and what
 * they bring is known to those who have waited for its phase. Stores and additions belong to groups of the thread that
 * began them: shared memory must not be written before they have read it, and what they write is known to nobody
 * before the thread has waited.
 */
#include "tensor_core.h"
#include "tensor_map.h"

#include <algorithm>
#include <cstring>

namespace emu {

enum Kind { LOAD, STORE, ADD };
static const char *const kind_names[] = {"a load", "a store", "an addition"};

struct BulkCopy {
  Kind kind;
  int type; /* of the elements that are added */
  Thread *thread;
  Block *block;
  std::vector<Block *> targets; /* of a load */
  std::vector<u32> phases;      /* of their barriers when it began */
  u32 barrier;
  std::vector<Piece> pieces;
  size_t read, written; /* pieces */
  std::vector<unsigned char> data;
  bool read_awaited;
  u64 group;
  uintptr_t pc;
};

static std::vector<std::unique_ptr<BulkCopy>> copies;

void bulk_launch() { copies.clear(); }

/* --- going on ---------------------------------------------------------------------------------------------------- */

static unsigned char *data_at(Block &block, const Piece &piece, uintptr_t pc) {
  return shared_data(shared_place(block, piece.address, CHUNK, "a copy", pc));
}

static Mbarrier &barrier_of(const BulkCopy &copy, size_t target) {
  std::vector<Mbarrier> &all = copy.targets[target]->mbarrier;
  return *std::find_if(all.begin(), all.end(), [&](const Mbarrier &b) { return b.address == copy.barrier; });
}

static void bring(BulkCopy &copy, size_t count) {
  for (size_t t = 0; t < copy.targets.size(); t++) {
    Block &target = *copy.targets[t];
    for (size_t i = 0; i < count; i++) {
      const Piece &piece = copy.pieces[copy.written + i];
      unsigned char *to = data_at(target, piece, copy.pc);
      memset(to, 0, CHUNK); /* what lies outside of the tensor */
      memcpy(to + piece.begin, piece.global + piece.begin, piece.end - piece.begin);
    }
    Mbarrier &barrier = barrier_of(copy, t);
    if (barrier.phase != copy.phases[t])
      finding(copy.pc,
              "bytes come in phase %u of the mbarrier at %s; their copy was begun in phase %u, which has not "
              "waited for them",
              barrier.phase, barrier.name.c_str(), copy.phases[t]);
    barrier_bytes(target, copy.barrier, (long)(count * CHUNK), copy.pc);
  }
  copy.written += count;
}

static void read(BulkCopy &copy, size_t count) {
  copy.data.resize(copy.pieces.size() * CHUNK);
  for (size_t i = copy.read; i < copy.read + count; i++)
    memcpy(&copy.data[i * CHUNK], data_at(*copy.block, copy.pieces[i], copy.pc), CHUNK);
  copy.read += count;
}

static void add_element(unsigned char *to, const unsigned char *from, int type) {
  if (type == TYPE_FP32) {
    float sum, x;
    memcpy(&sum, to, 4);
    memcpy(&x, from, 4);
    sum += x;
    memcpy(to, &sum, 4);
    return;
  }
  uint16_t sum, x;
  memcpy(&sum, to, 2);
  memcpy(&x, from, 2);
  sum = from_float(to_float(sum, type) + to_float(x, type), type);
  memcpy(to, &sum, 2);
}

static void write(BulkCopy &copy, size_t count) {
  u32 element = copy.type == TYPE_FP32 ? 4 : 2;
  for (size_t i = copy.written; i < copy.written + count; i++) {
    const Piece &piece = copy.pieces[i];
    const unsigned char *from = &copy.data[i * CHUNK];
    if (copy.kind == STORE)
      memcpy(piece.global + piece.begin, from + piece.begin, piece.end - piece.begin);
    else
      for (u32 b = piece.begin; b < piece.end; b += element)
        add_element(piece.global + b, from + b, copy.type);
  }
  copy.written += count;
}

static bool is_done(const BulkCopy &copy) { return copy.written == copy.pieces.size(); }

/* Any number of pieces; for a load often as many as its barrier expects, in case that these are not all. */
static size_t some_pieces(const BulkCopy &copy, size_t left) {
  long expected = copy.kind == LOAD ? barrier_of(copy, 0).bytes / CHUNK : 0;
  if (expected > 0 && (size_t)expected < left && random_below(2))
    return (size_t)expected;
  return 1 + random_below((u32)left);
}

/* Some pieces, or all of what can be done next. */
static void go_on(BulkCopy &copy, bool all) {
  size_t done = copy.kind != LOAD && copy.read < copy.pieces.size() ? copy.read : copy.written;
  size_t left = copy.pieces.size() - done, count = all ? left : some_pieces(copy, left);
  if (copy.kind == LOAD)
    bring(copy, count);
  else if (copy.read < copy.pieces.size())
    read(copy, count);
  else
    write(copy, count);
}

static void finish(BulkCopy &copy) {
  while (!is_done(copy))
    go_on(copy, true);
}

/* A store that is done stays until its thread has waited for it. */
static void remove_done_loads() {
  copies.erase(std::remove_if(copies.begin(), copies.end(),
                              [](const std::unique_ptr<BulkCopy> &c) { return c->kind == LOAD && is_done(*c); }),
               copies.end());
}

bool bulk_pending() {
  return std::any_of(copies.begin(), copies.end(), [](const std::unique_ptr<BulkCopy> &c) { return !is_done(*c); });
}

bool bulk_step() {
  std::vector<BulkCopy *> open;
  for (auto &copy : copies)
    if (!is_done(*copy))
      open.push_back(copy.get());
  if (open.empty())
    return false;
  go_on(*open[random_below((u32)open.size())], random_below(4) == 0);
  remove_done_loads();
  return true;
}

static void begin(std::unique_ptr<BulkCopy> copy) {
  BulkCopy &c = *copy;
  copies.push_back(std::move(copy));
  if (machine.settings.timing == TIMING_EARLY)
    finish(c);
  else if (machine.settings.timing == TIMING_RANDOM && random_below(3) == 0)
    go_on(c, random_below(2) == 0);
  remove_done_loads();
}

/* --- loads ------------------------------------------------------------------------------------------------------- */

static void claim(Block &target, BulkCopy &copy, const char *what) {
  Mbarrier &barrier = find_barrier(target, copy.barrier, what, copy.pc);
  if (!barrier.fenced)
    finding(copy.pc, "%s: no barrier_init_done has made the mbarrier at %s known to asynchronous copies", what,
            barrier.name.c_str());
  for (const Piece &piece : copy.pieces) {
    SharedPlace place = shared_place(target, piece.address, CHUNK, what, copy.pc);
    touch_shared(place, CHUNK, BULK_WRITE, copy.pc);
    mark_bulk_write(place, CHUNK, barrier_agent(target, barrier), barrier.phase, copy.pc);
    memset(shared_data(place), 0xff, CHUNK);
  }
  copy.targets.push_back(&target);
  copy.phases.push_back(barrier.phase);
}

static void load(std::vector<Piece> pieces, u32 barrier, u32 mask, const char *what, uintptr_t pc) {
  Thread &thread = *machine.now;
  Block &own = *thread.warp->block;
  std::unique_ptr<BulkCopy> copy(new BulkCopy());
  *copy = {LOAD, 0, &thread, &own, {}, {}, barrier, std::move(pieces), 0, 0, {}, false, 0, pc};
  for (const Piece &piece : copy->pieces)
    if (piece.begin < piece.end)
      touch(piece.global + piece.begin, piece.end - piece.begin, BULK_SOURCE, pc);
  if (mask >> own.cluster->block.size())
    fatal(pc, "%s: the mask %#x names blocks that the cluster does not have", what, mask);
  for (u32 rank = 0; rank < own.cluster->block.size(); rank++)
    if (mask >> rank & 1) {
      if (!own.cluster->block[rank]->live)
        fatal(pc, "%s: block %u of the cluster has ended", what, rank);
      claim(*own.cluster->block[rank], *copy, what);
    }
  begin(std::move(copy));
}

static void check_box(const TensorMap &map, u32 shared, int column, const char *what, uintptr_t pc) {
  if (shared % 128)
    fatal(pc, "%s: the shared address %#x is not aligned to 128 bytes", what, shared);
  if (column * (long)map.stride[0] % CHUNK)
    fatal(pc, "%s: the box begins at element %d of its first dimension, which is no multiple of 16 bytes", what,
          column);
}

static void check_rows(u32 shared, const void *global, u32 bytes, const char *what, uintptr_t pc) {
  if (shared % CHUNK || (uintptr_t)global % CHUNK)
    fatal(pc, "%s: an address is not aligned to 16 bytes (shared %#x, global %u off)", what, shared,
          (u32)((uintptr_t)global % CHUNK));
  if (bytes % CHUNK || !bytes)
    fatal(pc, "%s: %u bytes are no multiple of 16", what, bytes);
}

/* Loads may begin before the tensor. An H100 stops at others that do with an illegal instruction. */
static void check_start(const int *coordinates, u32 rank, const char *what, uintptr_t pc) {
  for (u32 i = 0; i < rank; i++)
    if (coordinates[i] < 0)
      fatal(pc, "%s: the box begins at %d of dimension %u, before the tensor: illegal instruction on an H100", what,
            coordinates[i], i);
}

/* mask 0: to this block. */
extern "C" void emu_tensor_load(u32 shared, const void *map, u32 barrier, u32 mask, u32 rank, const int *coordinates) {
  const char *what = mask ? "tensor_load_multicast" : "tensor_load";
  TensorMap m = decode_tensor_map(map, rank, what, EMU_PC);
  check_box(m, shared, coordinates[0], what, EMU_PC);
  load(box_pieces(m, shared, coordinates, false), barrier, mask ? mask : 1u << machine.now->warp->block->rank, what,
       EMU_PC);
}

extern "C" void emu_bulk_load(u32 shared, const void *global, u32 bytes, u32 barrier) {
  check_rows(shared, global, bytes, "bulk_load", EMU_PC);
  load(row_pieces(shared, (unsigned char *)global, bytes), barrier, 1u << machine.now->warp->block->rank, "bulk_load",
       EMU_PC);
}

extern "C" void emu_tensor_prefetch(const void *map) {
  u64 word;
  memcpy(&word, map, 8);
  decode_tensor_map(map, word >> 32 & 255, "tensor_prefetch", EMU_PC);
}

/* --- stores and additions ---------------------------------------------------------------------------------------- */

static void mark_reads(const BulkCopy &copy, ReadState state) {
  for (const Piece &piece : copy.pieces)
    if (piece.begin < piece.end)
      mark_read(shared_place(*copy.block, piece.address + piece.begin, piece.end - piece.begin, "a copy", copy.pc),
                piece.end - piece.begin, state, 1u << copy.thread->lane, copy.pc);
}

void mark_store_reads(const Warp &warp) {
  for (auto &copy : copies)
    if (copy->thread->warp == &warp && copy->kind != LOAD && !copy->read_awaited)
      mark_reads(*copy, UNDER_WAY);
}

static void store(std::vector<Piece> pieces, Kind kind, int type, const char *what, uintptr_t pc) {
  Thread &thread = *machine.now;
  std::unique_ptr<BulkCopy> copy(new BulkCopy());
  *copy = {kind, type, &thread, thread.warp->block, {}, {}, 0, std::move(pieces), 0,
           0,    {},   false,   thread.bulk_group,  pc};
  for (const Piece &piece : copy->pieces) {
    u32 bytes = piece.end - piece.begin;
    shared_place(*copy->block, piece.address, CHUNK, what, pc);
    if (!bytes)
      continue;
    touch_shared(shared_place(*copy->block, piece.address + piece.begin, bytes, what, pc), bytes, BULK_READ, pc);
    touch(piece.global + piece.begin, bytes, kind == ADD ? BULK_ADD : BULK_WRITE, pc);
  }
  mark_reads(*copy, UNDER_WAY);
  begin(std::move(copy));
}

extern "C" void emu_tensor_store(const void *map, u32 shared, int add, u32 rank, const int *coordinates) {
  const char *what = add ? "tensor_reduce_add" : "tensor_store";
  TensorMap m = decode_tensor_map(map, rank, what, EMU_PC);
  check_box(m, shared, coordinates[0], what, EMU_PC);
  check_start(coordinates, rank, what, EMU_PC);
  store(box_pieces(m, shared, coordinates, true), add ? ADD : STORE, m.type, what, EMU_PC);
}

extern "C" void emu_bulk_store(void *global, u32 shared, u32 bytes, int add) {
  const char *what = add ? "bulk_reduce_add" : "bulk_store";
  check_rows(shared, global, bytes, what, EMU_PC);
  store(row_pieces(shared, (unsigned char *)global, bytes), add ? ADD : STORE, TYPE_FP32, what, EMU_PC);
}

extern "C" void emu_bulk_commit() { machine.now->bulk_group++; }

static void await_read(BulkCopy &copy) {
  while (copy.read < copy.pieces.size())
    go_on(copy, true);
  if (!copy.read_awaited)
    mark_reads(copy, DONE);
  copy.read_awaited = true;
}

extern "C" void emu_bulk_wait(int pending, int only_reads) {
  Thread &thread = *machine.now;
  std::vector<std::unique_ptr<BulkCopy>> left;
  for (auto &copy : copies) {
    bool awaited = copy->thread == &thread && copy->kind != LOAD && copy->group + (u64)pending < thread.bulk_group;
    if (awaited)
      await_read(*copy);
    if (awaited && !only_reads) {
      finish(*copy);
      for (const Piece &piece : copy->pieces)
        if (piece.begin < piece.end)
          mark_global_done(piece.global + piece.begin, piece.end - piece.begin, copy->pc);
    } else {
      left.push_back(std::move(copy));
    }
  }
  copies = std::move(left);
  mark_open_reads(*thread.warp);
}

/* --- the end ----------------------------------------------------------------------------------------------------- */

void bulk_at_exit(Thread &thread) {
  for (auto &copy : copies)
    if (copy->thread == &thread && copy->kind != LOAD) {
      if (copy->group == thread.bulk_group)
        finding(copy->pc, "%s has not been committed when its thread ends", kind_names[copy->kind]);
      else if (!copy->read_awaited)
        finding(copy->pc, "%s may still read shared memory when its thread ends: nobody has waited for it",
                kind_names[copy->kind]);
    }
}

void bulk_end(Block &block) {
  std::vector<std::unique_ptr<BulkCopy>> left;
  for (auto &copy : copies) {
    bool to_it = std::find(copy->targets.begin(), copy->targets.end(), &block) != copy->targets.end();
    if (to_it)
      finding(copy->pc, "a load still writes shared memory when its block ends: nobody has waited for it");
    if (copy->kind != LOAD && copy->block == &block)
      finish(*copy);
    else if (!to_it)
      left.push_back(std::move(copy));
  }
  copies = std::move(left);
}

} // namespace emu
