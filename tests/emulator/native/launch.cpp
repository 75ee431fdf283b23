/* The way in from Python. */
#include "machine.h"

#include <cstdio>

namespace emu {

struct Launch {
  unsigned grid[3], block[3];
  u64 shared_bytes;
  u64 seed;
  int timing, model, exp2_error, resident, shuffle, drain, shared_alignment, registers;
  unsigned cluster[3];
};

/* Runs one launch; returns 0 when every thread came to its end, 2 after a trap. What was found is in emu_findings(). */
extern "C" int emu_launch(void (*kernel)(void **), void **arguments, const Launch *launch,
                          void *const static_range[4]) {
  machine.settings = {launch->seed,     launch->timing,  launch->model, launch->exp2_error,
                      launch->resident, launch->shuffle, launch->drain};
  machine.random = launch->seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  if (!machine.random)
    machine.random = 1;
  for (int i = 0; i < 8; i++)
    random_below(2);
  machine.grid = {launch->grid[0], launch->grid[1], launch->grid[2]};
  machine.block_dim = {launch->block[0], launch->block[1], launch->block[2]};
  machine.cluster_dim = {launch->cluster[0], launch->cluster[1], launch->cluster[2]};
  machine.registers = (u32)launch->registers;
  machine.shared_bytes = launch->shared_bytes;
  machine.shared_alignment = (u32)launch->shared_alignment;
  machine.kernel = kernel;
  machine.arguments = arguments;
  setup_static(static_range);
  memory_launch();
  flags_launch();
  bulk_launch();
  catch_crashes();
  bool whole = run_grid();
  leave_crashes();
  fflush(stdout); /* what the kernel has printed */
  return machine.trapped ? 2 : whole ? 0 : 1;
}

} // namespace emu
