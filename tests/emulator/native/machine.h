/*
 * The emulated GPU: a grid of blocks of warps of threads, each thread a fiber.
 *
 *     scheduler.cpp      runs blocks, lets lanes of a warp and threads of a block meet, finds deadlocks
 *     memory.cpp         what each byte of shared and global memory is, and who touched it last: bounds,
 *                        initialisation, races by happens-before; every plain access of a kernel comes here too,
 * because kernels are compiled with the calls that -fsanitize=thread inserts copies.cpp         cp.async: data arrive
 * early, late or at a random moment instructions.cpp   ldmatrix, mma, shuffles, atomics tensor_core.cpp    how tensor
 * cores add; conversions of 16-bit types crash.cpp          a crash becomes a finding report.cpp         findings
 */
#pragma once

#include "fiber.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace emu {

typedef uint32_t u32;
typedef uint64_t u64;

enum { WARP = 32, MAX_WARPS = 32, MAX_PENDING = 32 };

struct Dim {
  unsigned x, y, z;
};

/* What threadIdx and its like read; the kernel side (cuda.h) has the same struct. */
struct Ids {
  Dim thread, block, block_dim, grid_dim;
};

/* Vector clock of a warp: of each warp of its own block, and of warps of other blocks whose release it acquired. */
struct Clock {
  u32 local[MAX_WARPS] = {};
  std::map<u64, u32> foreign; /* block * MAX_WARPS + warp -> clock */
  void join(const Clock &other);
};

struct Block;
struct Warp;

/* A cp.async that has been issued and not waited for. */
struct Copy {
  unsigned char *to;
  const unsigned char *from;
  u32 bytes;
  bool valid, arrived;
  u64 group;
  uintptr_t pc;
};

struct Thread {
  Ids ids;
  void *sp;
  Warp *warp;
  unsigned lane, index;  /* index in the block */
  const char *waits_for; /* nullptr: can run */
  uintptr_t wait_pc;
  bool done;
  std::vector<Copy> copies;
  u64 group; /* the open group of copies */
};

/* Lanes on their way to one warp-wide operation. */
struct Meeting {
  const void *what; /* nullptr: free */
  u32 mask, arrived;
  void *argument[WARP];
};

struct Warp {
  Block *block;
  unsigned index;
  u32 lanes, ready; /* lanes that exist; lanes that can run */
  Clock clock;
  Meeting meeting[MAX_PENDING];
  Thread *thread; /* of lane 0 */
};

struct Barrier {
  u32 arrived, wanted; /* threads */
  u32 warps;           /* that took part, a bit each */
  int votes, result_votes, result_arrived;
  std::vector<Thread *> waiting;
};

struct Block {
  u64 index;
  int slot;
  Dim id;
  u32 num_threads, num_warps, live;
  std::vector<Thread> thread;
  std::vector<Warp> warp;
  Barrier barrier[16];
  unsigned char *shared;                    /* dynamic shared memory */
  std::vector<unsigned char> static_shared; /* while another block of this machine runs */
};

enum Timing { TIMING_EARLY = 0, TIMING_LATE = 1, TIMING_RANDOM = 2 };
enum Model { MODEL_HOPPER = 0, MODEL_AMPERE = 1, MODEL_DOUBLE = 2 };

struct Settings {
  u64 seed;
  int timing, model;
  int exp2_error; /* 2^x is off by at most so many units in the last place, at random */
  int resident;   /* blocks at once */
  int shuffle;    /* blocks begin in random order */
  int drain;      /* copies that are under way when a thread ends are a finding */
};

struct Machine {
  Settings settings;
  u64 random;
  Dim grid, block_dim;
  size_t shared_bytes;
  u32 shared_alignment;
  void (*kernel)(void **);
  void **arguments;
  std::vector<Block *> blocks; /* resident */
  Thread *now;
  Block *loaded; /* whose static shared variables are in place */
  void *scheduler_sp;
  bool failed, yielded;
  u64 spins; /* reads of flags, and atomics, since something else happened */
  u64 turns; /* of threads, so far */
  unsigned char *static_begin, *static_end;
};

extern Machine machine;

u32 random_below(u32 n);

/* scheduler.cpp */
void wait_here(const char *what, uintptr_t pc); /* until wake() */
void wake(Thread &thread);
void yield();
void meet(const char *what, const void *kind, u32 mask, void *argument, uintptr_t pc,
          void (*perform)(Warp &warp, u32 mask, void **arguments));
void progress(); /* something happened that a spinning thread may wait for */
bool run_grid();

/* memory.cpp */
enum Access { READ, WRITE, ATOMIC, COLLECTIVE_READ, COPY_SOURCE };
void touch(const void *address, size_t bytes, Access access, uintptr_t pc);
bool is_shared(const void *address);
void block_memory_begin(Block &block);
void block_memory_end(Block &block);
void mark_in_flight(unsigned char *to, u32 bytes, uintptr_t pc); /* after touch(WRITE) */
void mark_arrived(unsigned char *to, u32 bytes, uintptr_t pc);
void memory_launch(); /* a new launch: what earlier launches wrote is there for everyone */
unsigned char *shared_pointer(u32 address, u32 bytes, const char *what, uintptr_t pc);
u32 shared_window(const void *pointer, uintptr_t pc);
void *stack_of(int slot, unsigned thread, size_t *bytes);
void setup_static(unsigned char *begin, unsigned char *end);

/* copies.cpp */
void copies_tick(Thread &thread); /* data of copies may arrive */
void copies_at_exit(Thread &thread);

/* crash.cpp */
void catch_crashes();
void leave_crashes();

/* instructions.cpp */
void flags_launch();

/* report.cpp */
void finding(uintptr_t pc, const char *format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void fatal(uintptr_t pc, const char *format, ...) __attribute__((format(printf, 2, 3)));
std::string at(uintptr_t pc); /* "@{module offset}", which the Python side turns into a line of source */
std::string who(const Thread &thread);

#define EMU_PC ((uintptr_t)__builtin_return_address(0))

} // namespace emu
