/* The lock of a key: one holder among threads and processes, a time bound, an end with its holder, and forks. */
#define _GNU_SOURCE
#include "tests/c/cache_together.h"

#include <pthread.h>

/* At most one holder at any time, though the lock's file comes and goes with each of them. */
static void hold_in_turn(struct shared *shared, fa_cache *cache) {
  fa_key key = key_of("kernel", 1);
  for (int round = 0; round < shared->rounds; ++round) {
    fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 60.0);
    if (!CHECK(lock != NULL))
      continue;
    int holders = atomic_fetch_add(&shared->holders, 1) + 1;
    if (holders > atomic_load(&shared->most_holders))
      atomic_store(&shared->most_holders, holders);
    atomic_fetch_add(&shared->entered, 1);
    if (round % 4 == 0)
      sched_yield();
    atomic_fetch_sub(&shared->holders, 1);
    fa_cache_unlock(lock);
  }
  fa_key_free(&key);
}
static void *thread_body(void *argument) {
  struct shared *shared = argument;
  fa_cache *cache = fa_cache_open(shared->s.directory);
  hold_in_turn(shared, cache);
  fa_cache_close(cache);
  return NULL;
}
static void holder_body(void *argument) {
  pthread_t threads[3];
  wait_for_start(argument);
  for (int i = 0; i < 3; ++i)
    CHECK(pthread_create(&threads[i], NULL, thread_body, argument) == 0);
  for (int i = 0; i < 3; ++i)
    CHECK(pthread_join(threads[i], NULL) == 0);
}
static void test_one_holder(void) {
  struct shared *shared = share(scratch_make());
  char locks[PATH_MAX];
  shared->rounds = 60;
  run_at_once(shared, 5, holder_body);
  CHECK_NUMBER(shared->most_holders, 1);
  CHECK_NUMBER(shared->entered, 5 * 3 * shared->rounds);
  fa_path_join(locks, shared->s.directory, "locks");
  CHECK_NUMBER(count_names(locks, ""), 0);
  unshare_it(shared);
}

static double monotonic_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void keeper_body(void *argument) {
  struct shared *shared = argument;
  fa_cache *cache = fa_cache_open(shared->s.directory);
  fa_key key = key_of("kernel", 1);
  fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0.0);
  CHECK(lock != NULL);
  atomic_store(&shared->ready, 1);
  for (;;)
    pause();
}
static void test_lock_bounds_and_death(void) {
  struct shared *shared = share(scratch_make());
  fa_cache *cache = fa_cache_open(shared->s.directory);
  fa_key key = key_of("kernel", 1), other = key_of("kernel", 2), same_fields = key_of("tuning", 1);
  pid_t keeper = check_fork(keeper_body, shared);
  while (atomic_load(&shared->ready) == 0)
    sleep_microseconds(200);
  double start = monotonic_seconds();
  CHECK(fa_cache_lock_key(cache, &key, 0.0) == NULL);
  CHECK(fa_cache_lock_key(cache, &key, -1.0) == NULL);
  CHECK(fa_cache_lock_key(cache, &key, 0.0 / 0.0) == NULL);
  CHECK(monotonic_seconds() - start < 5.0);
  start = monotonic_seconds();
  CHECK(fa_cache_lock_key(cache, &key, 0.25) == NULL);
  double waited = monotonic_seconds() - start;
  CHECKF(waited >= 0.25 && waited < 5.0, "waited %.3f s", waited);
  fa_cache_lock *lock = fa_cache_lock_key(cache, &other, 0.0); /* other keys are free */
  CHECK(lock != NULL);
  fa_cache_unlock(lock);
  lock = fa_cache_lock_key(cache, &same_fields, 0.0);
  CHECK(lock != NULL);
  fa_cache_unlock(lock);
  kill(keeper, SIGKILL);
  waitpid(keeper, NULL, 0);
  lock = fa_cache_lock_key(cache, &key, 0.0); /* at once */
  CHECK(lock != NULL);
  fa_cache_unlock(lock);
  fa_cache_unlock(NULL);
  fa_key_free(&key);
  fa_key_free(&other);
  fa_key_free(&same_fields);
  fa_cache_close(cache);
  unshare_it(shared);
}

/* A forked child uses its parent's cache; it does not hold, keep or release its parent's locks. */
struct family {
  struct shared *shared;
  fa_cache *cache;
  fa_cache_lock *lock;
};
static void child_body(void *argument) {
  struct family *family = argument;
  uint64_t seed = 0;
  fa_key key = key_of("kernel", 1);
  CHECK(get_stamped(family->cache, 1, &seed) == 1);
  CHECK(put_stamped(family->cache, FA_CACHE_REPLACE, 2, 2, 10));
  CHECK(fa_cache_lock_key(family->cache, &key, 0.0) == NULL); /* the parent has it */
  atomic_store(&family->shared->ready, 1);
  while (atomic_load(&family->shared->go) == 0)
    sleep_microseconds(200);
  fa_cache_lock *lock = fa_cache_lock_key(family->cache, &key, 0.0);
  CHECK(lock != NULL); /* released by the parent, although this child has a copy of its open file */
  fa_cache_unlock(lock);
  fa_key_free(&key);
}
static void waiting_body(void *argument) {
  struct family *family = argument;
  fa_key key = key_of("kernel", 1);
  atomic_store(&family->shared->entered, 1);
  fa_cache_lock *lock = fa_cache_lock_key(family->cache, &key, 20.0);
  CHECK(lock != NULL);
  fa_cache_unlock(lock);
  fa_key_free(&key);
}
static void releasing_body(void *argument) { fa_cache_unlock(((struct family *)argument)->lock); }
static void test_fork(void) {
  struct shared *shared = share(scratch_make());
  fa_cache *cache = fa_cache_open(shared->s.directory);
  fa_key key = key_of("kernel", 1);
  uint64_t seed = 0;
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 10));
  fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0.0);
  CHECK(lock != NULL);
  struct family family = {shared, cache, lock};
  IN_CHILD(releasing_body, &family);
  CHECK(fa_cache_lock_key(cache, &key, 0.0) == NULL); /* still ours; and threads of one process exclude each other */
  pid_t child = check_fork(child_body, &family);
  while (atomic_load(&shared->ready) == 0)
    sleep_microseconds(200);
  family.lock = NULL;
  pid_t waiter = check_fork(waiting_body, &family);
  while (atomic_load(&shared->entered) == 0)
    sleep_microseconds(200);
  sleep_microseconds(50000);
  fa_cache_unlock(lock);
  CHECK(check_ended_well(waiter)); /* who was waiting for the old file gets on, too */
  atomic_store(&shared->go, 1);
  CHECK(check_ended_well(child));
  CHECK(get_stamped(cache, 2, &seed) == 1);
  fa_key_free(&key);
  fa_cache_close(cache);
  unshare_it(shared);
}

/* A holder that is killed while a child of its own lives on: the child does not keep the lock. */
static void living_body(void *argument) {
  struct family *family = argument;
  atomic_store(&family->shared->ready, 1);
  while (atomic_load(&family->shared->go) == 0)
    sleep_microseconds(200);
  atomic_store(&family->shared->entered, 1);
}
static void parent_body(void *argument) {
  struct family *family = argument;
  fa_key key = key_of("kernel", 1);
  CHECK(fa_cache_lock_key(family->cache, &key, 0.0) != NULL);
  check_fork(living_body, family);
  for (;;)
    pause();
}
static void test_killed_with_a_child(void) {
  struct shared *shared = share(scratch_make());
  fa_cache *cache = fa_cache_open(shared->s.directory);
  fa_key key = key_of("kernel", 1);
  struct family family = {shared, cache, NULL};
  pid_t parent = check_fork(parent_body, &family);
  while (atomic_load(&shared->ready) == 0)
    sleep_microseconds(200);
  CHECK(fa_cache_lock_key(cache, &key, 0.0) == NULL);
  CHECK(kill(parent, SIGKILL) == 0 && waitpid(parent, NULL, 0) == parent);
  fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0.0);
  CHECK(lock != NULL);
  fa_cache_unlock(lock);
  atomic_store(&shared->go, 1);
  while (atomic_load(&shared->entered) == 0)
    sleep_microseconds(200);
  fa_key_free(&key);
  fa_cache_close(cache);
  unshare_it(shared);
}

int main(void) {
  RUN(test_one_holder);
  RUN(test_lock_bounds_and_death);
  RUN(test_fork);
  RUN(test_killed_with_a_child);
  return check_summary();
}
