/*
 * cp.async: between its issue and the wait for its group a copy may happen at any moment. Until it does, the
 * destination is NaN; the source is read when it happens. Timing: at once, at the wait, or at a random moment between.
 */
#include "machine.h"

#include <cstring>

namespace emu {

static void arrive(Copy &copy) {
  if (copy.arrived)
    return;
  copy.arrived = true;
  if (copy.valid)
    memcpy(copy.to, copy.from, copy.bytes);
  else
    memset(copy.to, 0, copy.bytes);
}

extern "C" void emu_copy_async(u32 shared, const void *global, int bytes, int valid) {
  Thread &thread = *machine.now;
  u32 n = (u32)bytes;
  if (shared % n)
    fatal(EMU_PC, "copy_async: the shared address %#x is not aligned to %d bytes", shared, bytes);
  unsigned char *to = shared_pointer(shared, n, "copy_async", EMU_PC);
  if (valid) {
    if ((uintptr_t)global % n)
      fatal(EMU_PC, "copy_async: the global address is not aligned to %d bytes (it is %d off)", bytes,
            (int)((uintptr_t)global % n));
    if (is_shared(global))
      fatal(EMU_PC, "copy_async: the source is in shared memory");
    touch(global, n, COPY_SOURCE, EMU_PC);
  }
  touch(to, n, WRITE, EMU_PC);
  mark_in_flight(to, n, EMU_PC);
  memset(to, 0xff, n);
  thread.copies.push_back({to, (const unsigned char *)global, n, valid != 0, false, thread.group, EMU_PC});
  bool early = machine.settings.timing == TIMING_EARLY;
  if (early || (machine.settings.timing == TIMING_RANDOM && random_below(3) == 0))
    arrive(thread.copies.back());
}

extern "C" void emu_copy_commit() { machine.now->group++; }

extern "C" void emu_copy_wait(int pending) {
  Thread &thread = *machine.now;
  size_t left = 0;
  for (Copy &copy : thread.copies) {
    if (copy.group + (u64)pending < thread.group) {
      arrive(copy);
      mark_arrived(copy.to, copy.bytes, copy.pc);
    } else {
      thread.copies[left++] = copy;
    }
  }
  thread.copies.resize(left);
}

void copies_tick(Thread &thread) {
  if (machine.settings.timing == TIMING_RANDOM && !thread.copies.empty() && random_below(4) == 0)
    arrive(thread.copies[random_below((u32)thread.copies.size())]);
}

void copies_at_exit(Thread &thread) {
  if (machine.settings.drain && !thread.copies.empty())
    finding(thread.copies[0].pc, "%zu copies are under way when the thread ends", thread.copies.size());
}

} // namespace emu
