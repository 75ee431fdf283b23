/* Lists of accesses, from one pool. */
#include "history.h"

namespace emu {

static std::vector<Past> pool;
static u32 unused;

void history_launch() {
  pool.assign(1, Past{}); /* that of NO_HISTORY */
  unused = 0;
}

Past past_now(Use use, u32 lanes, uintptr_t pc) {
  const Warp &warp = *machine.now->warp;
  return {pc, warp.block->index, warp.epoch, lanes, (unsigned char)warp.index, use, 0};
}

/* A lane that tells of its later access tells of its earlier ones, and of all that its warp has synchronised. */
bool implies(u32 later, u32 later_lanes, u32 earlier, u32 earlier_lanes, u32 synchronised) {
  if (earlier <= synchronised)
    return true;
  if (earlier > later || (earlier_lanes == AS_ONE) != (later_lanes == AS_ONE))
    return false;
  return !(earlier_lanes & ~later_lanes);
}

static bool same_user(const Past &a, const Past &b) { return a.block == b.block && a.warp == b.warp && a.use == b.use; }

static void put(u32 &link) {
  u32 index = link;
  link = pool[index].next;
  pool[index].next = unused;
  unused = index;
}

static u32 put_in_front(const Past &past, u32 head) {
  u32 index = unused;
  if (index) {
    unused = pool[index].next;
  } else {
    index = (u32)pool.size();
    pool.emplace_back();
  }
  pool[index] = past;
  pool[index].next = head;
  return index;
}

void add_to_history(u32 &head, const Past &past) {
  bool under_way = past.use == USE_ADD && past.clock == NEVER; /* each ends for itself */
  for (u32 *link = &head; *link && !under_way;) {
    Past &old = pool[*link];
    if (same_user(old, past)) {
      if (old.clock == past.clock && (old.lanes == AS_ONE) == (past.lanes == AS_ONE)) {
        old.lanes |= past.lanes;
        old.pc = past.pc;
        return;
      }
      if (implies(past.clock, past.lanes, old.clock, old.lanes, machine.now->warp->synchronised)) {
        put(*link);
        continue;
      }
    }
    link = &old.next;
  }
  head = put_in_front(past, head);
}

void forget_history(u32 &head) {
  while (head)
    put(head);
}

u32 copy_history(u32 head) {
  if (!head)
    return NO_HISTORY;
  u32 rest = copy_history(pool[head].next);
  Past past = pool[head]; /* the pool may move */
  return put_in_front(past, rest);
}

const Past *history(u32 head) { return head ? &pool[head] : nullptr; }
const Past *next(const Past &past) { return history(past.next); }

bool history_done(u32 head, const Past &done) {
  for (u32 i = head; i; i = pool[i].next) {
    Past &past = pool[i];
    if (same_user(past, done) && past.clock == NEVER && past.lanes == done.lanes) {
      past.clock = done.clock;
      return true;
    }
  }
  return false;
}

} // namespace emu
