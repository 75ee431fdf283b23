/* The size cap: what goes, what stays, what is left behind; and what the command line shows of it all. */
#define _GNU_SOURCE
#include "tests/c/cache_help.h"

/* The least recently used entries go first, a hit counts as use, and files of others are left alone. */
static void test_eviction(void) {
  scratch s = scratch_make();
  char path[PATH_MAX], foreign[PATH_MAX];
  uint64_t seed = 0;
  setenv("FLASH_ATTENTION_CACHE_SIZE", "12K", 1);
  fa_cache *cache = fa_cache_open(s.directory);
  unsetenv("FLASH_ATTENTION_CACHE_SIZE");
  for (int i = 0; i < 10; ++i) { /* of a good 1000 bytes each */
    fa_key key = key_of("kernel", i);
    CHECK(put_stamped(cache, FA_CACHE_REPLACE, i, 1, 104));
    entry_path(s.directory, &key, FA_CACHE_SCHEMA, path);
    make_older(path, 1000 - i);
    fa_key_free(&key);
  }
  CHECK(fa_path_join(foreign, s.directory, "notes.txt") && write_file(foreign, "x", 1));
  make_older(foreign, 100000);
  CHECK(fa_cache_bytes(cache) > 10000 && fa_cache_bytes(cache) < 12288);
  CHECK(get_stamped(cache, 0, &seed) == 1); /* the oldest, now the latest */
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 10, 1, 400));
  CHECK(fa_cache_bytes(cache) <= 12288);
  CHECK(get_stamped(cache, 10, &seed) == 1);
  CHECK(get_stamped(cache, 0, &seed) == 1);
  CHECK(get_stamped(cache, 9, &seed) == 1);
  CHECK(get_stamped(cache, 1, &seed) == 0);
  CHECK(get_stamped(cache, 2, &seed) == 0);
  CHECK(exists(foreign));
  fa_cache_close(cache);

  /* Whoever writes for long stays within the cap. */
  setenv("FLASH_ATTENTION_CACHE_SIZE", "100K", 1);
  cache = fa_cache_open(s.directory);
  unsetenv("FLASH_ATTENTION_CACHE_SIZE");
  uint64_t most = 0;
  for (int i = 0; i < 300; ++i) {
    CHECK(put_stamped(cache, FA_CACHE_REPLACE, 100 + i, 1, 104));
    uint64_t bytes = fa_cache_bytes(cache);
    most = bytes > most ? bytes : most;
  }
  CHECKF(most > 80 * 1024 && most <= 100 * 1024, "most=%llu", (unsigned long long)most);
  fa_cache_close(cache);
  scratch_remove(&s);
}

/* The time of the last use is not written on every hit, but once a minute. */
static void test_use_is_noted_once_a_minute(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  fa_key key = key_of("kernel", 1);
  char path[PATH_MAX];
  struct stat before = {0}, after = {0};
  uint64_t seed = 0;
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 10));
  entry_path(s.directory, &key, FA_CACHE_SCHEMA, path);
  make_older(path, 30);
  CHECK(stat(path, &before) == 0 && get_stamped(cache, 1, &seed) == 1 && stat(path, &after) == 0);
  CHECK(before.st_mtime == after.st_mtime);
  make_older(path, 90);
  CHECK(get_stamped(cache, 1, &seed) == 1 && stat(path, &after) == 0);
  CHECK(after.st_mtime >= time(NULL) - 5);
  fa_key_free(&key);
  fa_cache_close(cache);
  scratch_remove(&s);
}

static void too_large_body(void *argument) {
  const scratch *s = argument;
  uint64_t seed = 0;
  char reason[256];
  setenv("FLASH_ATTENTION_CACHE_SIZE", "1K", 1);
  fa_cache *cache = fa_cache_open(s->directory);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 50));
  CHECK(!put_stamped(cache, FA_CACHE_REPLACE, 2, 1, 500));
  CHECK(!put_stamped(cache, FA_CACHE_REPLACE, 2, 1, 500));
  CHECK(get_stamped(cache, 1, &seed) == 1); /* nothing is evicted for what does not fit anyway */
  fa_cache_close(cache);
  setenv("FLASH_ATTENTION_CACHE_SIZE", "0", 1);
  cache = fa_cache_open(s->directory);
  CHECK(!fa_cache_usable(cache, reason, sizeof reason) && strstr(reason, "is 0") != NULL);
  CHECK(!put_stamped(cache, FA_CACHE_REPLACE, 3, 1, 5));
  fa_cache_close(cache);
}
static void test_too_large(void) {
  scratch s = scratch_make();
  char text[4096];
  CHECK_NUMBER(lines_said(too_large_body, &s, text, sizeof text), 1);
  scratch_remove(&s);
}

/* Temporary files and lock files that the dead left behind go away; those of the living stay. */
static void test_left_behind(void) {
  scratch s = scratch_make();
  char old[PATH_MAX], young[PATH_MAX], second[PATH_MAX], first[PATH_MAX], lock[PATH_MAX];
  uint64_t seed = 0;
  fa_key key = key_of("kernel", 1);
  fa_cache *cache = fa_cache_open(s.directory);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 10));
  fa_cache_close(cache);
  entry_path(s.directory, &key, FA_CACHE_SCHEMA, first);
  fa_path_join(old, s.directory, ".tmp-old123");
  fa_path_join(young, s.directory, ".tmp-young1");
  fa_path_join(second, s.directory, ".tmp-second");
  fa_path_join(lock, s.directory, "locks");
  CHECK(write_file(old, "x", 1) && write_file(young, "y", 1) && link(first, second) == 0);
  CHECK(mkdir(lock, 0700) == 0);
  fa_path_join(lock, s.directory, "locks/kernel-99aa06d3014798d86001c324468d497f");
  CHECK(write_file(lock, "", 0));
  make_older(old, FA_STALE_SECONDS + 60);
  make_older(lock, 6 * FA_STALE_SECONDS + 60);
  cache = fa_cache_open(s.directory);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 2, 1, 10));
  CHECK(!exists(old) && exists(young) && !exists(second) && !exists(lock));
  CHECK(get_stamped(cache, 1, &seed) == 1);
  fa_key_free(&key);
  fa_cache_close(cache);
  scratch_remove(&s);
}

struct seen {
  int entries, valid, troubled;
  uint64_t bytes;
  char metadata[64];
};
static void see(const fa_cache_item *item, void *context) {
  struct seen *seen = context;
  seen->entries++;
  seen->valid += item->valid;
  seen->troubled += item->trouble[0] != '\0';
  seen->bytes += item->bytes;
  CHECK(strlen(item->hex) == 32 && strcmp(item->kind, "kernel") == 0);
  CHECK(item->last_used > 1600000000);
  if (item->metadata[0] != '\0')
    snprintf(seen->metadata, sizeof seen->metadata, "%s", item->metadata);
}

static void test_visit_and_clear(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  char path[PATH_MAX], other[PATH_MAX];
  uint64_t seed = 0;
  for (int i = 0; i < 5; ++i)
    CHECK(put_stamped(cache, FA_CACHE_REPLACE, i, 1, 100));
  fa_key key = key_of("kernel", 3), missing = key_of("kernel", 77);
  entry_path(s.directory, &key, FA_CACHE_SCHEMA, path);
  CHECK(truncate(path, 200) == 0);
  entry_path(s.directory, &missing, FA_CACHE_SCHEMA, path); /* a good entry under a name that is not its own */
  entry_path(s.directory, &key, FA_CACHE_SCHEMA, other);
  fa_key_free(&key);
  key = key_of("kernel", 1);
  entry_path(s.directory, &key, FA_CACHE_SCHEMA, other);
  CHECK(link(other, path) == 0);
  struct seen seen = {0};
  CHECK_NUMBER(fa_cache_visit(cache, see, &seen), 6);
  CHECK_NUMBER(seen.entries, 6);
  CHECK_NUMBER(seen.valid, 4);
  CHECK_NUMBER(seen.troubled, 2);
  CHECK_NUMBER(seen.bytes, fa_cache_bytes(cache));
  CHECK(strncmp(seen.metadata, "number=", 7) == 0);

  fa_cache_lock *lock = fa_cache_lock_key(cache, &missing, 0);
  CHECK(lock != NULL);
  CHECK_NUMBER(fa_cache_clear(cache), 6);
  char locks[PATH_MAX];
  fa_path_join(locks, s.directory, "locks");
  CHECK_NUMBER(count_names(locks, "kernel-"), 1); /* held: stays */
  fa_cache_unlock(lock);
  CHECK_NUMBER(count_names(locks, ""), 0);
  CHECK_NUMBER(fa_cache_bytes(cache), 0);
  CHECK(get_stamped(cache, 1, &seed) == 0);
  CHECK_NUMBER(fa_cache_clear(cache), 0);
  fa_key_free(&key);
  fa_key_free(&missing);
  fa_cache_close(cache);
  scratch_remove(&s);
}

int main(void) {
  RUN(test_eviction);
  RUN(test_use_is_noted_once_a_minute);
  RUN(test_too_large);
  RUN(test_left_behind);
  RUN(test_visit_and_clear);
  return check_summary();
}
