/*
 * Accesses to a cell since it was written: a list, of which a cell has the head. It holds all that a later access may
 * have to be ordered behind. What the knowledge of another access implies is not kept, so that lists are short.
 */
#pragma once

#include "machine.h"

namespace emu {

enum Use : unsigned char { USE_READ, USE_ATOMIC_READ, USE_ADD };

/* By lanes of a warp at one time. */
struct Past {
  uintptr_t pc;
  u64 block;
  u32 clock, lanes; /* a bit each, or AS_ONE */
  unsigned char warp;
  Use use;
  u32 next; /* in the list, or 0 */
};

enum : u32 { NO_HISTORY = 0 };

Past past_now(Use use, u32 lanes, uintptr_t pc);
/* Does who knows of the access `later` by the same warp know of `earlier`? `synchronised`: the warp, since when. */
bool implies(u32 later, u32 later_lanes, u32 earlier, u32 earlier_lanes, u32 synchronised);

void history_launch(); /* there is none */
void add_to_history(u32 &head, const Past &past);
void forget_history(u32 &head);
u32 copy_history(u32 head);    /* the head of a list of the same */
const Past *history(u32 head); /* the first, or nullptr */
const Past *next(const Past &past);
/* One that was under way (its clock NEVER) with the same block, warp, use and lanes is done at this time. False: there
 * is none. */
bool history_done(u32 head, const Past &done);

} // namespace emu
