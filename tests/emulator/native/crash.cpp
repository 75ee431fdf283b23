/* A crash of a kernel's thread (a wild address, a stack that is too small) becomes a finding, not the end of Python. */
#include "machine.h"

#include <csignal>
#include <cstring>
#include <ucontext.h>

namespace emu {

static struct sigaction before[3];
static const int signals[3] = {SIGSEGV, SIGBUS, SIGILL};

/* The handler returns into this instead of to where the crash was, on the thread's stack or what is left of it. */
static uintptr_t crash_pc;
static const void *crash_address;
alignas(64) static unsigned char spare_stack[65536];

static void crashed() {
  fatal(crash_pc + 1, "crashes at the address %p: a wild pointer, a trap, or more local variables than a stack holds",
        crash_address);
}

static void handle(int signal, siginfo_t *info, void *context) {
  if (!machine.now) {
    for (int i = 0; i < 3; i++)
      if (signals[i] == signal)
        sigaction(signal, &before[i], nullptr);
    return; /* it happens again, to whom it belongs */
  }
  ucontext_t *c = (ucontext_t *)context;
  crash_address = info->si_addr;
  uintptr_t top = (uintptr_t)(spare_stack + sizeof spare_stack - 64);
#if defined(__x86_64__)
  crash_pc = (uintptr_t)c->uc_mcontext.gregs[REG_RIP];
  c->uc_mcontext.gregs[REG_RIP] = (greg_t)crashed;
  c->uc_mcontext.gregs[REG_RSP] = (greg_t)(top - 8);
#else
  crash_pc = (uintptr_t)c->uc_mcontext.pc;
  c->uc_mcontext.pc = (uintptr_t)crashed;
  c->uc_mcontext.sp = top;
#endif
}

void catch_crashes() {
  static unsigned char signal_stack[65536];
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 3; i++)
    sigaction(signals[i], &action, &before[i]);
}

void leave_crashes() {
  for (int i = 0; i < 3; i++)
    sigaction(signals[i], &before[i], nullptr);
}

} // namespace emu
