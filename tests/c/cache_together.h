/* Processes that start at the same moment and see the same counters. */
#ifndef FLASH_ATTENTION_TESTS_CACHE_TOGETHER_H
#define FLASH_ATTENTION_TESTS_CACHE_TOGETHER_H

#include "tests/c/cache_help.h"

/* What the processes of one test see together. */
struct shared {
  scratch s;
  atomic_int ready, go, makers, won, holders, most_holders, entered, wrong, hits;
  atomic_ullong winner;
  int keys, rounds;
  unsigned schema;
  fa_cache_mode mode;
};

static inline struct shared *share(scratch s) {
  struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  memset(shared, 0, sizeof *shared);
  shared->s = s;
  return shared;
}
static inline void unshare_it(struct shared *shared) {
  scratch_remove(&shared->s);
  munmap(shared, sizeof *shared);
}

static inline void sleep_microseconds(long microseconds) {
  struct timespec span = {microseconds / 1000000, microseconds % 1000000 * 1000};
  nanosleep(&span, NULL);
}

/* Start together, so that they meet. */
static inline void wait_for_start(struct shared *shared) {
  atomic_fetch_add(&shared->ready, 1);
  while (atomic_load(&shared->go) == 0)
    sleep_microseconds(200);
}

enum { MOST = 64 };
static inline void run_at_once(struct shared *shared, int count, void (*body)(void *argument)) {
  pid_t children[MOST];
  for (int i = 0; i < count; ++i)
    children[i] = check_fork(body, shared);
  while (atomic_load(&shared->ready) < count)
    sleep_microseconds(200);
  atomic_store(&shared->go, 1);
  for (int i = 0; i < count; ++i)
    CHECK(check_ended_well(children[i]));
}

#endif
