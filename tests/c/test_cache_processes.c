/*
 * Many processes and threads at once: one maker per key, one first record, writers that are killed again and again,
 * two versions in one directory, eviction under readers.
 */
#define _GNU_SOURCE
#include "tests/c/cache_together.h"

#include <pthread.h>

/* ---- 16 processes on a cold cache: each key is made once, and all have it ---- */

static void cold_body(void *argument) {
  struct shared *shared = argument;
  fa_cache *cache = fa_cache_open(shared->s.directory);
  wait_for_start(shared);
  for (int number = 0; number < shared->keys; ++number) {
    uint64_t seed = 0;
    fa_key key = key_of("kernel", number);
    if (get_stamped(cache, number, &seed) == 0) {
      fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 60.0);
      CHECK(lock != NULL);
      if (get_stamped(cache, number, &seed) == 0) {
        atomic_fetch_add(&shared->makers, 1);
        sleep_microseconds(20000); /* the compiler at work */
        CHECK(put_stamped(cache, FA_CACHE_REPLACE, number, (uint64_t)getpid(), 5000));
      }
      fa_cache_unlock(lock);
    }
    CHECK(get_stamped(cache, number, &seed) == 1);
    fa_key_free(&key);
  }
  fa_cache_close(cache);
}
static void test_cold_cache(void) {
  struct shared *shared = share(scratch_make());
  char locks[PATH_MAX];
  shared->keys = 5;
  run_at_once(shared, 16, cold_body);
  CHECK_NUMBER(shared->makers, shared->keys);
  fa_path_join(locks, shared->s.directory, "locks");
  CHECK_NUMBER(count_names(locks, ""), 0);
  CHECK_NUMBER(count_names(shared->s.directory, ".tmp-"), 0);
  unshare_it(shared);
}

/* ---- FA_CACHE_KEEP_FIRST: of all who publish at once exactly one is told that it won, and all read that one ---- */

static void first_body(void *argument) {
  struct shared *shared = argument;
  fa_cache *cache = fa_cache_open(shared->s.directory);
  uint64_t seed = 0;
  wait_for_start(shared);
  if (put_stamped(cache, FA_CACHE_KEEP_FIRST, 1, (uint64_t)getpid(), 3000)) {
    atomic_fetch_add(&shared->won, 1);
    atomic_store(&shared->winner, (unsigned long long)getpid());
  }
  CHECK(get_stamped(cache, 1, &seed) == 1);
  sleep_microseconds(50000);
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == atomic_load(&shared->winner));
  fa_cache_close(cache);
}
static void test_first_record_wins(void) {
  for (int round = 0; round < 10; ++round) {
    struct shared *shared = share(scratch_make());
    if (round % 2 == 1) { /* a damaged entry is in the way */
      char path[PATH_MAX];
      fa_key key = key_of("kernel", 1);
      CHECK(mkdir(shared->s.directory, 0700) == 0);
      entry_path(shared->s.directory, &key, FA_CACHE_SCHEMA, path);
      CHECK(write_file(path, "FAcache\n", 8));
      fa_key_free(&key);
    }
    run_at_once(shared, 16, first_body);
    CHECK_NUMBER(shared->won, 1);
    CHECK_NUMBER(count_names(shared->s.directory, ".tmp-"), 0);
    unshare_it(shared);
  }
}

/* ---- kill -9 in the middle of writes, again and again, on a real disk ---- */

static void endless_writer_body(void *argument) {
  struct shared *shared = argument;
  fa_cache *cache = fa_cache_open(shared->s.directory);
  uint64_t random = (uint64_t)getpid() * 2654435761U + 1;
  for (;;) {
    int number = (int)(next_random(&random) % (unsigned)shared->keys);
    uint64_t seed = 0;
    fa_key key = key_of("kernel", number);
    fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0.002);
    put_stamped(cache, next_random(&random) % 2 == 0 ? FA_CACHE_REPLACE : FA_CACHE_KEEP_FIRST, number,
                next_random(&random), next_random(&random) % 60000);
    if (get_stamped(cache, number, &seed) < 0)
      atomic_fetch_add(&shared->wrong, 1);
    fa_cache_unlock(lock);
    fa_key_free(&key);
  }
}
static void count_valid(const fa_cache_item *item, void *context) { *(int *)context += item->valid; }
static void test_killed_writers(void) {
  struct shared *shared = share(scratch_make_in("/tmp"));
  uint64_t random = 88172645463325252ULL, seed = 0;
  fa_cache *cache = fa_cache_open(shared->s.directory);
  int in_the_middle = 0, hits = 0;
  shared->keys = 6;
  for (int round = 0; round < 60; ++round) {
    pid_t writers[3];
    int before = count_names(shared->s.directory, ".tmp-");
    for (int i = 0; i < 3; ++i)
      writers[i] = check_fork(endless_writer_body, shared);
    sleep_microseconds((long)(next_random(&random) % 25000) + 500);
    for (int i = 0; i < 3; ++i)
      kill(writers[i], SIGKILL);
    for (int i = 0; i < 3; ++i)
      waitpid(writers[i], NULL, 0);
    in_the_middle += count_names(shared->s.directory, ".tmp-") > before;
    for (int number = 0; number < shared->keys; ++number) {
      int found = get_stamped(cache, number, &seed);
      CHECK(found >= 0);
      hits += found;
      fa_key key = key_of("kernel", number);
      fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0.0);
      CHECK(lock != NULL);
      fa_cache_unlock(lock);
      fa_key_free(&key);
    }
  }
  CHECK_NUMBER(shared->wrong, 0);
  CHECKF(in_the_middle > 5 && hits > 60, "%d rounds hit a write, %d hits", in_the_middle, hits);
  int valid = 0;
  CHECK(fa_cache_visit(cache, count_valid, &valid) == valid && valid == shared->keys);
  fa_cache_close(cache);
  unshare_it(shared);
}

/* ---- two versions of the cache in one directory ---- */

static void version_body(void *argument) {
  struct shared *shared = argument;
  fa_cache *cache = fa_cache_open(shared->s.directory);
  wait_for_start(shared);
  cache->schema = FA_CACHE_SCHEMA + (unsigned)getpid() % 2;
  for (int round = 0; round < shared->rounds; ++round) {
    uint64_t seed = 0;
    int number = round % 7;
    int found = get_stamped(cache, number, &seed);
    CHECK(found >= 0 && (found == 0 || seed % 2 == cache->schema % 2)); /* always one of one's own version */
    CHECK(put_stamped(cache, FA_CACHE_REPLACE, number, (uint64_t)round * 2 + cache->schema % 2, 500));
    CHECK(get_stamped(cache, number, &seed) == 1); /* never thrown out by the other version */
  }
  fa_cache_close(cache);
}
static void count_item(const fa_cache_item *item, void *context) {
  CHECK(item->valid && strcmp(item->kind, "kernel") == 0 && strlen(item->hex) == 32);
  *(int *)context += item->trouble[0] != '\0'; /* "of another version" */
}
static void test_two_versions(void) {
  struct shared *shared = share(scratch_make());
  shared->rounds = 60;
  run_at_once(shared, 12, version_body);
  fa_cache *cache = fa_cache_open(shared->s.directory);
  int others = 0;
  int all = fa_cache_visit(cache, count_item, &others);
  CHECKF(all == 14 && others == 7, "%d entries, %d of the other version", all, others);
  /* Both count, and both go. */
  CHECK(fa_cache_bytes(cache) > 14 * 500 * 8);
  CHECK_NUMBER(fa_cache_clear(cache), 14);
  fa_cache_close(cache);
  unshare_it(shared);
}

/* ---- eviction while others read ---- */

static void crowded_body(void *argument) {
  struct shared *shared = argument;
  setenv("FLASH_ATTENTION_CACHE_SIZE", "200K", 1);
  fa_cache *cache = fa_cache_open(shared->s.directory);
  uint64_t random = (uint64_t)getpid();
  wait_for_start(shared);
  for (int round = 0; round < shared->rounds; ++round) {
    uint64_t seed = 0;
    int number = (int)(next_random(&random) % 40);
    int found = get_stamped(cache, number, &seed);
    CHECK(found >= 0);
    atomic_fetch_add(&shared->hits, found);
    if (found == 0)
      CHECK(put_stamped(cache, FA_CACHE_REPLACE, number, (uint64_t)round, 1500));
  }
  CHECK(fa_cache_bytes(cache) < 400 * 1024);
  fa_cache_close(cache);
}
static void test_eviction_under_readers(void) {
  struct shared *shared = share(scratch_make());
  shared->rounds = 150;
  run_at_once(shared, 8, crowded_body);
  CHECKF(shared->hits > 100, "%d hits", shared->hits);
  CHECK_NUMBER(count_names(shared->s.directory, ".tmp-"), 0);
  unshare_it(shared);
}

/* ---- one fa_cache, many threads ---- */

static fa_cache *shared_cache;
static void *user_body(void *argument) {
  uint64_t random = (uint64_t)(uintptr_t)argument + 77;
  for (int round = 0; round < 100; ++round) {
    uint64_t seed = 0;
    int number = (int)(next_random(&random) % 10);
    CHECK(get_stamped(shared_cache, number, &seed) >= 0);
    CHECK(put_stamped(shared_cache, FA_CACHE_REPLACE, number, next_random(&random), 200));
    CHECK(get_stamped(shared_cache, number, &seed) == 1);
  }
  return NULL;
}
static void test_threads(void) {
  scratch s = scratch_make();
  pthread_t threads[8];
  shared_cache = fa_cache_open(s.directory);
  for (uintptr_t i = 0; i < 8; ++i)
    CHECK(pthread_create(&threads[i], NULL, user_body, (void *)i) == 0);
  for (int i = 0; i < 8; ++i)
    CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK_NUMBER(count_names(s.directory, "kernel-"), 10);
  CHECK_NUMBER(count_names(s.directory, ".tmp-"), 0);
  fa_cache_close(shared_cache);
  scratch_remove(&s);
}

int main(void) {
  RUN(test_cold_cache);
  RUN(test_first_record_wins);
  RUN(test_killed_writers);
  RUN(test_two_versions);
  RUN(test_eviction_under_readers);
  RUN(test_threads);
  return check_summary();
}
