/* A crash of a kernel's thread (a wild address, a stack that is too small) becomes a finding, not the end of Python; so
 * does a thread that runs for long and never meets others. */
#include "machine.h"

#include <csignal>
#include <cstring>
#include <pthread.h>
#include <sys/time.h>
#include <ucontext.h>

namespace emu {

enum { SIGNALS = 6 };
/* Of processor time: without a barrier that lets somebody pass or a thread that ends; without a thread that ends. */
extern "C" int emu_seconds_to_pass, emu_seconds_to_end;
int emu_seconds_to_pass = 10, emu_seconds_to_end = 300;
static struct sigaction before[SIGNALS];
static const int signals[SIGNALS] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGVTALRM};
static u64 last_turn, last_pass, last_end;
static int since_pass, since_end;
static pthread_t ours; /* the thread that runs the grid */

/* The handler returns into this instead of to where the crash was, on the thread's stack or what is left of it. */
static uintptr_t crash_pc;
static int crash_signal;
static const void *crash_address;
alignas(64) static unsigned char spare_stack[65536];

static void crashed() {
  if (crash_signal == SIGVTALRM)
    fatal(crash_pc + 1, "runs for %d seconds and waits for nobody: an endless loop", since_pass);
  if (crash_signal == SIGFPE)
    fatal(crash_pc + 1, "%s", UNDEFINED_DIVISION);
  machine.trapped = crash_signal == SIGILL || crash_signal == SIGTRAP; /* x86-64, aarch64 */
  fatal(crash_pc + 1, "crashes at the address %p: a wild pointer, a trap, or more local variables than a stack holds",
        crash_address);
}

static void handle(int signal, siginfo_t *info, void *context) {
  if (signal == SIGVTALRM) {
    bool lets_others_run = machine.turns != last_turn;
    since_pass = machine.passes == last_pass ? since_pass + 1 : 0;
    since_end = machine.ends == last_end ? since_end + 1 : 0;
    last_turn = machine.turns;
    last_pass = machine.passes;
    last_end = machine.ends;
    machine.overdue = since_pass >= emu_seconds_to_pass || since_end >= emu_seconds_to_end;
    if (!machine.overdue || lets_others_run || !machine.now || !pthread_equal(ours, pthread_self()))
      return; /* the scheduler says who is where */
  } else if (!machine.now) {
    for (int i = 0; i < SIGNALS; i++)
      if (signals[i] == signal)
        sigaction(signal, &before[i], nullptr);
    return; /* it happens again, to whom it belongs */
  }
  ucontext_t *c = (ucontext_t *)context;
  crash_address = info->si_addr;
  crash_signal = signal;
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
  for (int i = 0; i < SIGNALS; i++)
    sigaction(signals[i], &action, &before[i]);
  since_pass = since_end = 0;
  ours = pthread_self();
  const itimerval each_second = {{1, 0}, {1, 0}};
  setitimer(ITIMER_VIRTUAL, &each_second, nullptr);
}

void leave_crashes() {
  const itimerval never = {};
  setitimer(ITIMER_VIRTUAL, &never, nullptr);
  for (int i = 0; i < SIGNALS; i++)
    sigaction(signals[i], &before[i], nullptr);
}

} // namespace emu
