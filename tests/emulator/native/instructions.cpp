/* What a warp does together (ldmatrix, mma, shuffles, votes) and what memory does for one thread (flags, adds). */
#include "machine.h"
#include "tensor_core.h"

#include <cmath>
#include <cstring>

namespace emu {

/* --- ldmatrix ---------------------------------------------------------------------------------------------------- */

struct LoadMatrix {
  u32 *r, address;
  int count; /* matrices: 1, 2 or 4 */
  bool trans;
  uintptr_t pc;
};

static void load_matrices(Warp &warp, u32 mask, void **arguments) {
  const unsigned char *row[WARP];
  int count = ((LoadMatrix *)arguments[0])->count;
  bool trans = ((LoadMatrix *)arguments[0])->trans;
  Thread *self = machine.now;
  if (mask != 0xffffffffu)
    fatal(((LoadMatrix *)arguments[0])->pc, "ldmatrix by a warp of fewer than 32 lanes");
  for (int l = 0; l < 8 * count; l++) {
    LoadMatrix &load = *(LoadMatrix *)arguments[l];
    machine.now = &warp.thread[l]; /* findings name the lane whose address it is */
    if (load.address % 16)
      fatal(load.pc, "ldmatrix: the address %#x is not aligned to 16 bytes", load.address);
    row[l] = shared_pointer(load.address, 16, "ldmatrix", load.pc);
    touch(row[l], 16, COLLECTIVE_READ, load.pc);
  }
  machine.now = self;
  for (int l = 0; l < WARP; l++)
    for (int m = 0; m < count; m++) {
      uint16_t low, high;
      int i = l / 4, j = 2 * (l % 4);
      memcpy(&low, row[8 * m + (trans ? j : i)] + 2 * (trans ? i : j), 2);
      memcpy(&high, row[8 * m + (trans ? j + 1 : i)] + 2 * (trans ? i : j + 1), 2);
      ((LoadMatrix *)arguments[l])->r[m] = low | (u32)high << 16;
    }
}

extern "C" void emu_ldmatrix(u32 *r, u32 address, int count, int trans) {
  static const char kinds[2][5] = {};
  LoadMatrix load = {r, address, count, trans != 0, EMU_PC};
  meet_aligned(trans ? "ldmatrix (trans)" : "ldmatrix", &kinds[trans][count], &load, EMU_PC, load_matrices);
}

/* --- stmatrix ---------------------------------------------------------------------------------------------------- */

struct StoreMatrix {
  const u32 *r;
  u32 address;
  int count;
  bool trans;
  uintptr_t pc;
};

static void store_matrices(Warp &warp, u32 mask, void **arguments) {
  StoreMatrix &any = *(StoreMatrix *)arguments[0];
  Thread *self = machine.now;
  if (mask != 0xffffffffu)
    fatal(any.pc, "stmatrix by a warp of fewer than 32 lanes");
  for (int l = 0; l < 8 * any.count; l++) {
    StoreMatrix &store = *(StoreMatrix *)arguments[l];
    machine.now = &warp.thread[l];
    if (store.address % 16)
      fatal(store.pc, "stmatrix: the address %#x is not aligned to 16 bytes", store.address);
    unsigned char *row = shared_pointer(store.address, 16, "stmatrix", store.pc);
    touch(row, 16, WRITE, store.pc);
    for (int k = 0; k < 8; k++) {
      int i = any.trans ? k : l % 8, j = any.trans ? l % 8 : k; /* which element a lane holds as (i, j) */
      u32 pair = ((StoreMatrix *)arguments[4 * i + j / 2])->r[l / 8];
      uint16_t element = (uint16_t)(j % 2 ? pair >> 16 : pair);
      memcpy(row + 2 * k, &element, 2);
    }
  }
  machine.now = self;
}

extern "C" void emu_stmatrix(const u32 *r, u32 address, int count, int trans) {
  static const char kinds[2][5] = {};
  StoreMatrix store = {r, address, count, trans != 0, EMU_PC};
  meet_aligned(trans ? "stmatrix (trans)" : "stmatrix", &kinds[trans][count], &store, EMU_PC, store_matrices);
}

/* --- mma --------------------------------------------------------------------------------------------------------- */

struct Multiply {
  float *c;
  const u32 *a;
  u32 b[2];
  int type;
  uintptr_t pc;
};

static void multiply(Warp &, u32 mask, void **arguments) {
  uint16_t a[16][16], b[16][8];
  float c[16][8];
  if (mask != 0xffffffffu)
    fatal(((Multiply *)arguments[0])->pc, "mma by a warp of fewer than 32 lanes");
  for (int l = 0; l < WARP; l++) {
    Multiply &m = *(Multiply *)arguments[l];
    int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; i++) {
      int row = g + 8 * (i & 1), col = 2 * t + 8 * (i >> 1);
      a[row][col] = (uint16_t)m.a[i];
      a[row][col + 1] = (uint16_t)(m.a[i] >> 16);
      c[g + 8 * (i >> 1)][2 * t + (i & 1)] = m.c[i];
    }
    for (int i = 0; i < 2; i++) {
      b[2 * t + 8 * i][g] = (uint16_t)m.b[i];
      b[2 * t + 8 * i + 1][g] = (uint16_t)(m.b[i] >> 16);
    }
  }
  tensor_core_multiply(c, a, b, ((Multiply *)arguments[0])->type, machine.settings.model);
  for (int l = 0; l < WARP; l++) {
    Multiply &m = *(Multiply *)arguments[l];
    for (int i = 0; i < 4; i++)
      m.c[i] = c[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)];
  }
}

extern "C" void emu_mma_m16n8k16(float *c, const u32 *a, u32 b0, u32 b1, int type) {
  static const char kind = 0;
  Multiply m = {c, a, {b0, b1}, type, EMU_PC};
  meet_aligned("mma", &kind, &m, EMU_PC, multiply);
}

/* Terms that are not there are zeros: they change no sum. */
extern "C" void emu_mma_m16n8k8(float *c, u32 a0, u32 a1, u32 b, int type) {
  static const char kind = 0;
  const u32 a[4] = {a0, a1, 0, 0};
  Multiply m = {c, a, {b, 0}, type, EMU_PC};
  meet_aligned("mma of 8 terms", &kind, &m, EMU_PC, multiply);
}

/* --- shuffles and votes ------------------------------------------------------------------------------------------ */

struct Exchange {
  u64 value;
  int source;
  uintptr_t pc;
};

static void exchange(Warp &, u32 mask, void **arguments) {
  u64 result[WARP] = {};
  for (u32 l = 0; l < WARP; l++)
    if (mask >> l & 1) {
      Exchange &mine = *(Exchange *)arguments[l];
      if (!(mask >> mine.source & 1))
        fatal(mine.pc, "shuffle: lane %u reads lane %d, which takes no part", l, mine.source);
      result[l] = ((Exchange *)arguments[mine.source])->value;
    }
  for (u32 l = 0; l < WARP; l++)
    if (mask >> l & 1)
      ((Exchange *)arguments[l])->value = result[l];
}

/* mode: 0 idx, 1 up, 2 down, 3 xor. */
extern "C" u64 emu_shuffle(u32 mask, u64 value, int lane, int width, int mode) {
  static const char kind[4] = {};
  int self = (int)machine.now->lane, first = self & ~(width - 1), source = self;
  if (mode == 0)
    source = first + (lane & (width - 1));
  else if (mode == 1)
    source = self - lane < first ? self : self - lane;
  else if (mode == 2)
    source = self + lane >= first + width ? self : self + lane;
  else
    source = (self ^ lane) >= first + width ? self : self ^ lane;
  Exchange e = {value, source, EMU_PC};
  meet("a shuffle", &kind[mode], mask, &e, EMU_PC, exchange);
  return e.value;
}

struct Vote {
  u32 value, result;
};

template <class F> static void reduce(u32 mask, void **arguments, F combine, u32 start) {
  u32 all = start;
  for (u32 l = 0; l < WARP; l++)
    if (mask >> l & 1)
      all = combine(all, ((Vote *)arguments[l])->value, l);
  for (u32 l = 0; l < WARP; l++)
    if (mask >> l & 1)
      ((Vote *)arguments[l])->result = all;
}

static void vote_ballot(Warp &, u32 mask, void **arguments) {
  reduce(
      mask, arguments, [](u32 all, u32 x, u32 l) { return all | (u32)(x != 0) << l; }, 0u);
}
static void vote_max(Warp &, u32 mask, void **arguments) {
  reduce(
      mask, arguments, [](u32 all, u32 x, u32) { return x > all ? x : all; }, 0u);
}
static void vote_min(Warp &, u32 mask, void **arguments) {
  reduce(
      mask, arguments, [](u32 all, u32 x, u32) { return x < all ? x : all; }, ~0u);
}
static void vote_add(Warp &, u32 mask, void **arguments) {
  reduce(
      mask, arguments, [](u32 all, u32 x, u32) { return all + x; }, 0u);
}
static void vote_or(Warp &, u32 mask, void **arguments) {
  reduce(
      mask, arguments, [](u32 all, u32 x, u32) { return all | x; }, 0u);
}
static void vote_and(Warp &, u32 mask, void **arguments) {
  reduce(
      mask, arguments, [](u32 all, u32 x, u32) { return all & x; }, ~0u);
}

/* kind: 0 ballot, 1 max, 2 min, 3 add, 4 or, 5 and (of unsigned ints). */
extern "C" u32 emu_vote(u32 mask, u32 value, int kind) {
  static void (*const perform[6])(Warp &, u32, void **) = {vote_ballot, vote_max, vote_min,
                                                           vote_add,    vote_or,  vote_and};
  Vote vote = {value, 0};
  meet("a vote", (const void *)&perform[kind], mask, &vote, EMU_PC, perform[kind]);
  return vote.result;
}

static void sync_warp(Warp &warp, u32 mask, void **) { synchronise(warp, mask); }

extern "C" void emu_syncwarp(u32 mask) {
  static const char kind = 0;
  meet("__syncwarp", &kind, mask, nullptr, EMU_PC, sync_warp);
}

/* --- one thread -------------------------------------------------------------------------------------------------- */

/* 2^x as ex2.approx.ftz gives it, or off by as much as the settings allow. */
extern "C" float emu_exp2_approx(float x) {
  float y = (float)std::exp2((double)(std::fabs(x) < 0x1p-126f ? 0.0f : x));
  if (y < 0x1p-126f)
    return 0;
  if (machine.settings.exp2_error && std::isfinite(y)) {
    /* Always the same for the same x, as a processor's. */
    u32 bits, hash;
    memcpy(&hash, &x, 4);
    memcpy(&bits, &y, 4);
    hash = (hash ^ hash >> 15) * 0x2c1b3c6du;
    hash = (hash ^ hash >> 12) * 0x297a2d39u;
    bits += (hash >> 8) % (u32)(2 * machine.settings.exp2_error + 1) - (u32)machine.settings.exp2_error;
    memcpy(&y, &bits, 4);
  }
  return y;
}

/* What has been released at a flag: the clocks of those who released. */
static std::map<const void *, Clock> released;

void flags_launch() { released.clear(); }

extern "C" int emu_load_acquire(const int *flag) {
  touch(flag, 4, ATOMIC_READ, EMU_PC);
  look_at(flag, EMU_PC);
  yield(EMU_PC);
  auto found = released.find(flag);
  if (found != released.end())
    acquire(*machine.now, found->second);
  return __atomic_load_n(flag, __ATOMIC_RELAXED);
}

extern "C" void emu_store_release(int *flag, int value) {
  touch(flag, 4, ATOMIC, EMU_PC);
  released[flag].join(release_lane(*machine.now));
  if (*flag != value)
    happened();
  *flag = value;
}

extern "C" void emu_touch_atomic(const void *address, int bytes) {
  if ((uintptr_t)address % (u32)bytes)
    fatal(EMU_PC, "an atomic at an address that is not aligned to %d bytes", bytes);
  touch(address, (size_t)bytes, ATOMIC, EMU_PC);
  look_at(address, EMU_PC); /* a loop of atomics may wait for another thread */
  if (random_below(4) == 0)
    yield(EMU_PC);
}

/* An atomic has changed memory. */
extern "C" void emu_atomic_changed() { happened(); }

extern "C" void emu_yield() {
  look_on(EMU_PC);
  yield(EMU_PC);
}
extern "C" u32 emu_shared_window(const void *pointer) { return shared_window(pointer, EMU_PC); }
extern "C" void *emu_dynamic_shared() { return machine.now->warp->block->shared; }

} // namespace emu
