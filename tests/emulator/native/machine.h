/*
 * The emulated GPU: a grid of blocks of warps of threads, each thread a fiber. Every plain access of a kernel comes
 * here too, because kernels are compiled with the calls that -fsanitize=thread inserts.
 *
 *     scheduler.cpp      runs blocks, lets lanes of a warp meet
 *     deadlock.cpp       what a thread waits for or polls, and whether anybody can go on
 *     barrier.cpp        lets threads of a block meet
 *     clock.cpp          what is known to have happened
 *     memory.cpp         what an address is: bounds
 *     variables.cpp      static shared variables
 *     shadow.cpp         who touched each byte since it was written
 *     order.cpp          whether the next access is in order with those: initialisation, races by happens-before
 *     history.cpp        the accesses of which shadow.cpp keeps more than one
 *     registers.cpp      registers: those that products use, and those that warpgroups hand on
 *     instructions.cpp   ldmatrix, stmatrix, mma, shuffles, atomics
 *     tensor_core.cpp    how tensor cores add; conversions of 16-bit types
 *     copies.cpp         cp.async: data arrive early, late or at a random moment
 *     mbarrier.cpp       barriers in shared memory: phases, arrivals, bytes
 *     tensor_map.cpp     where a box of a tensor lies in global and in shared memory
 *     bulk.cpp           copies by the Tensor Memory Accelerator
 *     wgmma.cpp          products of warpgroups; matrix_descriptor.cpp: where their operands lie
 *     cluster.cpp        blocks that run together and reach each other's shared memory
 *     crash.cpp          a crash becomes a finding
 *     report.cpp         findings
 */
#pragma once

#include "clock.h"
#include "fiber.h"

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace emu {

enum { MAX_PENDING = 32, WARPGROUP = 4 /* warps */ };

struct Barrier;
struct Block;
struct Cluster;
struct Mbarrier;
struct Thread;
struct Warp;

struct Dim {
  unsigned x, y, z;
};

/* How many since what has another number with each event. */
struct Count {
  u32 count;
  u64 since;
  u32 of(u64 now) const { return since == now ? count : 0; }
  void add(u64 now) {
    count = of(now) + 1;
    since = now;
  }
};

/* What a thread that polls looked at last. */
struct Look {
  uintptr_t pc;
  const void *address;     /* or nullptr */
  const Mbarrier *barrier; /* or nullptr */
  u32 parity;
  Count looks; /* since machine.events */
};

/* What threadIdx and its like read; the kernel side (cuda.h) has the same struct. */
struct Ids {
  Dim thread, block, block_dim, grid_dim;
};

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
  unsigned lane, index;                               /* index in the block */
  const char *waits_for;                              /* nullptr: can run */
  uintptr_t wait_pc;                                  /* where it waits, or let others run last */
  std::string (*describe_wait)(const Thread &thread); /* or nullptr */
  Look look;
  bool done, timed_out, at_cluster_barrier;
  const Mbarrier *awaits; /* or nullptr */
  u32 awaits_parity;
  const Barrier *at_barrier; /* the last one */
  u32 wants_registers;
  std::vector<Copy> copies;
  u64 group;                     /* the open group of copies */
  u64 bulk_group;                /* the open group of bulk stores */
  std::unique_ptr<Clock> known;  /* what this lane has learned and its warp has not */
  std::vector<u32> proxy_fences; /* when */
  u64 cluster_phase;
  u32 fences; /* of wgmma */
};

/* Lanes on their way to one warp-wide operation. */
struct Meeting {
  const void *what;         /* nullptr: free */
  u32 mask, arrived, first; /* lane that has come */
  uintptr_t pc;             /* where that is */
  void *argument[WARP];
};

/* Accumulators in registers of a warp while products are under way. */
struct Accumulator {
  float *c[WARP];
  u32 n; /* columns; a lane holds n / 2 elements */
  u32 products;
  std::vector<float> value; /* of lane l from l * n / 2 */
  uintptr_t pc;
};

/* A warp's part of a wgmma: 16 rows. */
struct Product {
  std::shared_ptr<Accumulator> c;
  u64 a, b;                     /* descriptors; */
  const u32 *a_registers[WARP]; /* or this */
  bool from_registers, trans_a, trans_b, accumulate, done;
  int type;
  u64 group;
  uintptr_t pc;
};

struct Warp {
  Block *block;
  unsigned index;
  u32 lanes, ready; /* lanes that exist; lanes that can run */
  u32 epoch;        /* this warp's time */
  u32 synchronised; /* until when its lanes know of each other */
  Clock clock;
  Meeting meeting[MAX_PENDING];
  Thread *thread; /* of lane 0 */
  std::deque<Product> products;
  u64 product_group; /* the open group of products */
  u64 products_begun;
  Count looks, looks_since_any; /* of its threads, since machine.events and machine.happenings */
  u32 registers;                /* of a thread */
  std::vector<std::pair<u32, uintptr_t>> register_counts; /* that setmaxnreg asked for, and where */
};

struct Barrier {
  u32 arrived, wanted;     /* threads */
  bool whole;              /* wants all threads of the block that have not ended */
  u32 warps;               /* that wait, a bit each */
  uintptr_t pc[MAX_WARPS]; /* where they do, and one of the lanes that do */
  u32 first[MAX_WARPS];
  u32 lanes[MAX_WARPS]; /* that have come, a bit each */
  u32 only_arrived;     /* warps, a bit each */
  /* Who only arrived at an earlier round knows that it has ended from this warp, at this time of it or later. */
  struct {
    u32 warp, epoch;
  } ended[MAX_WARPS];
  int votes, result_votes, result_arrived;
  std::vector<Thread *> waiting;
  Clock gathered; /* of those that only arrived */
};

/* An mbarrier. */
struct Mbarrier {
  std::string name; /* where it is */
  u32 address, arrivals;
  u32 phase; /* that goes on, from 0 */
  long pending, bytes;
  bool fenced; /* its initialisation is known to the cluster and to asynchronous copies */
  u64 init_block;
  u32 init_warp, init_lane, init_epoch;
  uintptr_t pc;
  Clock gathered, published; /* of the phase that goes on; of those that have ended */
  std::vector<Thread *> waiting;
};

/* What the first warp that began a product asked for, for the others of its warpgroup to be held against. */
struct Asked {
  u64 a, b;
  u32 n;
  bool from_registers, trans_a, trans_b, accumulate;
  uintptr_t pc;
  bool operator==(const Asked &o) const {
    return a == o.a && b == o.b && n == o.n && from_registers == o.from_registers && trans_a == o.trans_a &&
           trans_b == o.trans_b && accumulate == o.accumulate;
  }
};

struct Block {
  u64 index;
  int slot;
  Dim id;
  u32 num_threads, num_warps, live;
  Cluster *cluster;
  u32 rank; /* in the cluster */
  std::vector<Thread> thread;
  std::vector<Warp> warp;
  Barrier barrier[16];
  std::vector<Mbarrier> mbarrier; /* the i-th is agent MAX_WARPS + i */
  std::vector<Asked> asked[MAX_WARPS / WARPGROUP];
  long free_registers;                      /* times warps */
  unsigned char *shared;                    /* dynamic shared memory */
  std::vector<unsigned char> static_shared; /* while another block of this machine runs */
};

struct Cluster {
  std::vector<Block *> block; /* by rank */
  u32 arrived;                /* threads at the cluster's barrier */
  Clock gathered, published;
  u64 phase;
  std::vector<Thread *> waiting;
};

enum Timing { TIMING_EARLY = 0, TIMING_LATE = 1, TIMING_RANDOM = 2 };
enum Model { MODEL_HOPPER = 0, MODEL_AMPERE = 1, MODEL_DOUBLE = 2 };

struct Settings {
  u64 seed;
  int timing, model;
  int exp2_error; /* 2^x is off by at most so many units in the last place, at random */
  int resident;   /* blocks at once, a cluster at least */
  int shuffle;    /* blocks begin in random order */
  int drain;      /* copies that are under way when a thread ends are a finding */
};

struct Machine {
  Settings settings;
  u64 random;
  Dim grid, block_dim, cluster_dim;
  size_t shared_bytes;
  u32 shared_alignment;
  u32 registers; /* of a thread at the start; 0: the kernel does not say how many threads it has */
  void (*kernel)(void **);
  void **arguments;
  std::vector<Block *> blocks; /* resident */
  Thread *now;
  Block *loaded; /* whose static shared variables are in place */
  void *scheduler_sp;
  bool failed, yielded;
  bool trapped; /* a thread came to an instruction that stands for undefined behaviour, or to a __trap() */
  u64 looks;    /* of threads that poll, since something happened */
  bool may_spin;
  u64 events;        /* that a look may have seen, so far */
  u64 passes;        /* barriers that let somebody pass, so far */
  u64 happenings;    /* of both kinds */
  u64 ends;          /* of threads */
  bool overdue;      /* nobody has passed a barrier for long */
  u64 turns;         /* of threads, so far */
  u32 timeouts;      /* of waits with a time limit, since a barrier let someone pass */
  u64 products_open; /* that have not read their operands */
  bool watches_registers;
  u32 elected; /* the lane that elect.sync chooses */
  unsigned char *static_begin, *static_end;
};

extern Machine machine;
extern "C" Ids emu_ids_now;

u32 random_below(u32 n);

/* scheduler.cpp */
void wait_here(const char *what, uintptr_t pc,
               std::string (*describe)(const Thread &thread) = nullptr); /* until wake() */
void wake(Thread &thread);
void yield(uintptr_t pc);
void meet(const char *what, const void *kind, u32 mask, void *argument, uintptr_t pc,
          void (*perform)(Warp &warp, u32 mask, void **arguments));
void differ(const char *what, u32 lane, uintptr_t pc, uintptr_t other); /* a finding: two lanes are not at the same */
/* Of instructions that are .aligned: all lanes of the warp must be at the same one. */
void meet_aligned(const char *what, const void *kind, void *argument, uintptr_t pc,
                  void (*perform)(Warp &warp, u32 mask, void **arguments));
bool has_ended(const Warp &warp); /* all its threads have */
bool run_grid();

/* barrier.cpp */
void barrier_at_exit(Thread &thread);

/* deadlock.cpp */
void happened(); /* something that a thread that polls may wait for */
void passed();   /* a barrier let someone pass */
void saw_what_it_waits_for(Warp &warp);
void look_at(const void *address, uintptr_t pc);
void look_at_barrier(const Mbarrier &barrier, u32 parity, uintptr_t pc);
void look_on(uintptr_t pc); /* at what it looked at before */
bool all_spin();
void deadlock(const char *how); /* ends the launch and says who waits where */

/* memory.cpp */
enum Access {
  READ,
  WRITE,
  ATOMIC_READ,
  ATOMIC, /* what changes memory */
  COLLECTIVE_READ,
  COPY_SOURCE, /* of cp.async */
  PRODUCT_READ,
  BULK_READ,
  BULK_WRITE,
  BULK_ADD,
  BULK_SOURCE /* of a load, in global memory */
};
void touch(const void *address, size_t bytes, Access access, uintptr_t pc);
bool is_shared(const void *address);
std::string place_of(const void *address); /* for people */
void block_memory_begin(Block &block);
void block_memory_end(Block &block);
void mark_in_flight(unsigned char *to, u32 bytes, uintptr_t pc); /* after touch(WRITE) */
void mark_arrived(unsigned char *to, u32 bytes, uintptr_t pc);
void memory_launch(); /* a new launch: what earlier launches wrote is there for everyone */
unsigned char *shared_pointer(u32 address, u32 bytes, const char *what, uintptr_t pc);
u32 shared_window(const void *pointer, uintptr_t pc);
void *stack_of(int slot, unsigned thread, size_t *bytes);

/* A place in the shared memory of a block: window addresses there, offsets for people. */
struct SharedPlace {
  Block *block;
  size_t offset; /* in the dynamic or the static part */
  bool is_static;
  std::string text() const; /* for people */
};
SharedPlace shared_place(Block &block, u32 address, u32 bytes, const char *what, uintptr_t pc);
unsigned char *shared_data(const SharedPlace &place); /* good until another block runs */
void touch_shared(const SharedPlace &place, size_t bytes, Access access, uintptr_t pc);
void mark_bulk_write(const SharedPlace &place, size_t bytes, u32 agent, u32 phase, uintptr_t pc);
void mark_barrier(const SharedPlace &place, uintptr_t pc);
enum ReadState { UNDER_WAY, DONE };
void mark_read(const SharedPlace &place, size_t bytes, ReadState state, u32 lanes, uintptr_t pc);
void mark_open_reads(const Warp &warp); /* after DONE: what this warp still reads, be it the same */
void mark_global_done(unsigned char *address, size_t bytes, uintptr_t pc);

/* variables.cpp */
void setup_static(void *const range[4]); /* where they lie, and their table */
bool is_static(const void *address);
size_t static_bytes();
void check_static(size_t offset, size_t bytes, const char *does, uintptr_t pc); /* bounds */
std::string static_name(size_t offset);

/* registers.cpp */
void registers_launch(unsigned char *stacks, size_t bytes);
void touch_registers(const void *address, size_t bytes, bool writes, uintptr_t pc);
void registers_fence(Thread &thread);
bool registers_fenced(const Thread &thread, const void *address, size_t bytes);
void registers_at_exit(Warp &warp);

/* copies.cpp */
void copies_tick(Thread &thread); /* data of copies may arrive */
void copies_at_exit(Thread &thread);

/* mbarrier.cpp */
Mbarrier &find_barrier(Block &block, u32 address, const char *what, uintptr_t pc);
void barrier_bytes(Block &block, u32 address, long bytes, uintptr_t pc);
std::string mbarrier_state(const Mbarrier &barrier, u32 awaited_parity);
u32 barrier_agent(const Block &block, const Mbarrier &barrier);

/* bulk.cpp */
void bulk_launch();
void bulk_at_exit(Thread &thread);
void bulk_end(Block &block);
void mark_store_reads(const Warp &warp);
bool bulk_pending(); /* there are copies that are not done */
bool bulk_step();    /* one goes on; false: there is none */

/* wgmma.cpp */
void products_at_exit(Thread &thread);
void mark_product_reads(const Warp &warp);
bool products_pending(); /* there are products that have not read their operands */
bool products_step();    /* one does; false: there is none */

/* cluster.cpp */
void cluster_at_exit(Thread &thread);

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
#define UNDEFINED_DIVISION "divides integers by zero, or the least by -1: no trap on a GPU, but the result is undefined"

#define EMU_PC ((uintptr_t)__builtin_return_address(0))

} // namespace emu
