/* A fiber: a stack of its own and a switch between stacks. Callee-saved registers only, so a switch costs a few ns. */
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

/* Saves the running fiber's stack pointer in *from and goes on where `to` was saved. */
extern "C" void emu_switch(void **from, void *to);

/* A stack pointer for emu_switch that begins `entry` (which must not return) at the top of a stack. */
void *fiber_prepare(void *stack, size_t bytes, void (*entry)());

} // namespace emu
