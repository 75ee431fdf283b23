#include "fiber.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emu_switch, .-emu_switch
)");
enum { SAVED_WORDS = 6 };
#elif defined(__aarch64__)
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emu_switch, .-emu_switch
)");
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

namespace emu {

void *fiber_prepare(void *stack, size_t bytes, void (*entry)()) {
  uintptr_t top = ((uintptr_t)stack + bytes) & ~(uintptr_t)63;
#if defined(__x86_64__)
  /* As behind a call: the stack pointer is 8 off a multiple of 16 when `entry` begins. */
  uintptr_t *sp = (uintptr_t *)(top - 8);
  *--sp = (uintptr_t)entry;
  for (int i = 0; i < SAVED_WORDS; i++)
    *--sp = 0;
#else
  uintptr_t *sp = (uintptr_t *)(top - 160);
  for (int i = 0; i < 20; i++)
    sp[i] = 0;
  sp[11] = (uintptr_t)entry; /* x30 */
#endif
  return sp;
}

} // namespace emu
