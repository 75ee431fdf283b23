/*
 * Each system call of a get, a put and a lock fails in turn, with every errno that a disk, a network file system or
 * a limit gives; and the process dies before and after each of them. Whatever happens, a reader afterwards gets a
 * whole entry or a miss. Real full disks and limits are at the end.
 */
#define _GNU_SOURCE
#include "tests/c/cache_inject.h"

#include <sys/mount.h>
#include <sys/resource.h>

static int open_files(void) { return count_names("/proc/self/fd", ""); }

/* What a put meets: nothing, an older entry, a damaged one. */
enum before { NOTHING, AN_ENTRY, A_DAMAGED_ENTRY, BEFORE_COUNT };

static void prepare(const scratch *s, enum before before) {
  nftw(s->directory, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
  if (before == NOTHING)
    return;
  fa_cache *cache = fa_cache_open(s->directory);
  put_stamped(cache, FA_CACHE_REPLACE, 1, 100, 40);
  if (before == A_DAMAGED_ENTRY) {
    char path[PATH_MAX];
    fa_key key = key_of("kernel", 1);
    entry_path(s->directory, &key, FA_CACHE_SCHEMA, path);
    (void)truncate(path, 60);
    fa_key_free(&key);
  }
  fa_cache_close(cache);
}

/* Lock, get, put seed 200 if that missed or if the test says so, get, unlock: what a caller does. */
static bool whole_sequence(fa_cache *cache, fa_cache_mode mode) {
  uint64_t seed = 0;
  fa_key key = key_of("kernel", 1);
  fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0.01);
  CHECK(get_stamped(cache, 1, &seed) >= 0);
  bool stored = put_stamped(cache, mode, 1, 200, 40);
  int found = get_stamped(cache, 1, &seed);
  CHECK(found >= 0 && (found == 0 || seed == 100 || seed == 200));
  fa_cache_unlock(lock);
  fa_key_free(&key);
  return stored;
}

/* What must hold after any trouble, once it is over. */
static void check_aftermath(fa_cache *cache, enum before before, fa_cache_mode mode) {
  uint64_t seed = 0;
  int found = get_stamped(cache, 1, &seed);
  CHECK(found == 1 ? seed == 200 || (before == AN_ENTRY && seed == 100) : found == 0 && before != AN_ENTRY);
  CHECK(mode == FA_CACHE_REPLACE || before != AN_ENTRY || seed == 100); /* the first one stays */
  bool stored = put_stamped(cache, mode, 1, 201, 40); /* nothing that is left over stands in the way */
  CHECK(mode == FA_CACHE_REPLACE ? stored : stored == (found == 0));
  CHECK(get_stamped(cache, 1, &seed) == 1);
}

/* One run with one fault; false: the sequence has fewer calls than the fault wants. */
static bool run_with(const scratch *s, enum before before, fa_cache_mode mode, struct fault wanted) {
  prepare(s, before);
  fa_cache *cache = fa_cache_open(s->directory);
  int files = open_files();
  uint64_t seed = 0;
  fault = wanted;
  bool stored = whole_sequence(cache, mode);
  fault.on = false;
  CHECK_NUMBER(open_files(), files);
  CHECK(!stored || (get_stamped(cache, 1, &seed) == 1 && seed == 200)); /* true means stored */
  check_aftermath(cache, before, mode);
  fa_cache_close(cache);
  return fault.calls > wanted.at;
}

static void failing_body(void *argument) {
  static const int errors[] = {ENOSPC, EIO,   EROFS,      EACCES, ESTALE, EMFILE, ENOLCK,
                               EDQUOT, EPERM, EOPNOTSUPP, ENOSYS, EINVAL, ENOENT, EINTR};
  long injected = 0;
  for (int before = NOTHING; before < BEFORE_COUNT; ++before) {
    for (int mode = FA_CACHE_REPLACE; mode <= FA_CACHE_KEEP_FIRST; ++mode) {
      for (size_t i = 0; i < sizeof errors / sizeof errors[0]; ++i) {
        struct fault wanted = {.on = true, .error = errors[i], .effect = FAILS};
        for (wanted.at = 0; run_with(argument, before, mode, wanted); ++wanted.at)
          ++injected;
        if (errors[i] == EINTR)
          continue; /* whoever is interrupted for ever may go on for ever */
        wanted.effect = FAILS_FROM_THEN_ON;
        for (wanted.at = 0; run_with(argument, before, mode, wanted); ++wanted.at)
          ++injected;
        wanted.at = 0;
        for (int function = 0; function < FUNCTION_COUNT; ++function) { /* this one never works */
          wanted.only = FUNCTIONS[function];
          injected += run_with(argument, before, mode, wanted);
        }
      }
    }
  }
  CHECKF(injected > 3000, "%ld", injected);
}
static void test_each_call_fails(void) {
  scratch s = scratch_make();
  char text[8192];
  int lines = lines_said(failing_body, &s, text, sizeof text);
  CHECKF(lines > 2 && lines < 10, "%d lines:\n%s", lines, text); /* one per kind of trouble, after thousands of them */
  scratch_remove(&s);
}

struct death {
  const scratch *s;
  fa_cache_mode mode;
};
static void death_body(void *argument) {
  const struct death *death = argument;
  fa_cache *cache = fa_cache_open(death->s->directory);
  fault.on = true;
  whole_sequence(cache, death->mode);
}
static void deaths_body(void *argument) {
  (void)argument;
  scratch s = scratch_make();
  int deaths = 0;
  for (int effect = DIES_BEFORE; effect <= DIES_HALFWAY; ++effect) {
    for (int before = NOTHING; before < BEFORE_COUNT; ++before) {
      for (int mode = FA_CACHE_REPLACE; mode <= FA_CACHE_KEEP_FIRST; ++mode) {
        for (int at = 0;; ++at) {
          prepare(&s, before);
          struct death death = {&s, mode};
          int status = 0;
          fault = (struct fault){.at = at, .effect = effect};
          pid_t child = check_fork(death_body, &death);
          CHECK(waitpid(child, &status, 0) == child);
          if (!WIFSIGNALED(status))
            break;
          ++deaths;
          fa_cache *cache = fa_cache_open(s.directory);
          fa_key key = key_of("kernel", 1);
          fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0.0);
          CHECK(lock != NULL); /* it died with its holder */
          check_aftermath(cache, before, mode);
          fa_cache_unlock(lock);
          fa_key_free(&key);
          fa_cache_close(cache);
        }
      }
    }
  }
  CHECKF(deaths > 200, "%d", deaths);
  scratch_remove(&s);
}

static void test_death_at_each_call(void) {
  char text[4096];
  CHECK(lines_said(deaths_body, NULL, text, sizeof text) <= 1); /* the damaged entry that some of them found */
}

/* Network file systems: replaced while being read, and a link whose answer got lost; and file systems without links. */
static void test_network_file_systems(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  uint64_t seed = 0;
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 10));
  fault = (struct fault){.on = true, .at = 0, .error = ESTALE, .effect = FAILS, .only = "read"};
  CHECK(get_stamped(cache, 1, &seed) == 1); /* read again */
  fault = (struct fault){.on = true, .at = 0, .error = EEXIST, .effect = FAILS_THOUGH_DONE, .only = "link"};
  CHECK(put_stamped(cache, FA_CACHE_KEEP_FIRST, 2, 2, 10)); /* it is ours, whatever the server said */
  fault = (struct fault){.on = true, .at = 0, .error = EPERM, .effect = FAILS_FROM_THEN_ON, .only = "link"};
  CHECK(put_stamped(cache, FA_CACHE_KEEP_FIRST, 3, 3, 10));
  CHECK(!put_stamped(cache, FA_CACHE_KEEP_FIRST, 3, 4, 10));
  fault.on = false;
  CHECK(get_stamped(cache, 3, &seed) == 1 && seed == 3);
  /* Another process makes the same directory at the same moment. */
  nftw(s.directory, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
  fa_key key = key_of("kernel", 1);
  fault = (struct fault){.on = true, .at = 0, .error = EEXIST, .effect = FAILS_THOUGH_DONE, .only = "mkdir"};
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 10));
  fault = (struct fault){.on = true, .at = 0, .error = EEXIST, .effect = FAILS_THOUGH_DONE, .only = "mkdir"};
  fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0);
  CHECK(lock != NULL);
  fa_cache_unlock(lock);
  fault.on = false;
  fa_key_free(&key);
  CHECK_NUMBER(count_names(s.directory, ".tmp-"), 0);
  fa_cache_close(cache);
  scratch_remove(&s);
}

/* Two who find the same damaged entry in the way of FA_CACHE_KEEP_FIRST: the slower must not replace the faster's. */
struct repair {
  const scratch *s;
  atomic_int *won;
};
static void repair_body(void *argument) {
  struct repair *repair = argument;
  fa_cache *cache = fa_cache_open(repair->s->directory);
  fault = (struct fault){.on = true, .at = 0, .effect = IS_SLOW, .only = "rename"};
  atomic_fetch_add(repair->won, put_stamped(cache, FA_CACHE_KEEP_FIRST, 1, 1, 10));
}
static void test_one_repairs(void) {
  scratch s = scratch_make();
  atomic_int *won = mmap(NULL, sizeof *won, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct repair repair = {&s, won};
  prepare(&s, A_DAMAGED_ENTRY);
  pid_t one = check_fork(repair_body, &repair), two = check_fork(repair_body, &repair);
  CHECK(check_ended_well(one) && check_ended_well(two));
  CHECK_NUMBER(atomic_load(won), 1);
  munmap(won, sizeof *won);
  scratch_remove(&s);
}

/* Disks and signals may cut any transfer short; that is no error. */
static void test_short_transfers(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  for (size_t piece = 1; piece < 40; piece += 6) {
    uint64_t seed = 0;
    fault = (struct fault){.on = true, .at = -1, .piece = piece};
    CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, piece, 30));
    CHECK(get_stamped(cache, 1, &seed) == 1 && seed == piece);
    fault.on = false;
    CHECK(get_stamped(cache, 1, &seed) == 1 && seed == piece);
  }
  fa_cache_close(cache);
  scratch_remove(&s);
}

/* Who uses an entry that is about to be evicted saves it. */
static char saved_path[PATH_MAX];
static void use_it_now(const char *path) {
  if (strcmp(path, saved_path) == 0)
    CHECK(utimensat(AT_FDCWD, path, NULL, 0) == 0);
}
static void test_used_while_evicting(void) {
  scratch s = scratch_make();
  setenv("FLASH_ATTENTION_CACHE_SIZE", "10K", 1);
  fa_cache *cache = fa_cache_open(s.directory);
  unsetenv("FLASH_ATTENTION_CACHE_SIZE");
  uint64_t seed = 0;
  for (int number = 0; number < 4; ++number) {
    fa_key key = key_of("kernel", number);
    CHECK(put_stamped(cache, FA_CACHE_REPLACE, number, 1, 200));
    entry_path(s.directory, &key, FA_CACHE_SCHEMA, saved_path);
    make_older(saved_path, 100 + number); /* so the last one, which saved_path names, is the oldest */
    fa_key_free(&key);
  }
  at_lstat = use_it_now;
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 4, 1, 500));
  at_lstat = NULL;
  CHECK(get_stamped(cache, 3, &seed) == 1);
  CHECK(get_stamped(cache, 2, &seed) == 0);
  fa_cache_close(cache);
  scratch_remove(&s);
}

/* A hit is one open and one read, whatever else is in the directory; a miss is one open. */
static void test_a_hit_is_cheap(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  for (int i = 0; i < 50; ++i)
    CHECK(put_stamped(cache, FA_CACHE_REPLACE, i, 1, 20000));
  for (int number = 49; number <= 50; ++number) {
    uint64_t seed = 0;
    int calls[FUNCTION_COUNT];
    for (int i = 0; i < FUNCTION_COUNT; ++i) {
      fault = (struct fault){.on = true, .at = -1, .only = FUNCTIONS[i]};
      CHECK(get_stamped(cache, number, &seed) == (number < 50));
      calls[i] = fault.calls;
    }
    fault.on = false;
    CHECK_NUMBER(calls[0], number < 50 ? 1 : 0);
    CHECK_NUMBER(calls[9], 1);
    CHECK_NUMBER(calls[1] + calls[2] + calls[3] + calls[4] + calls[5] + calls[6] + calls[7] + calls[10], 0);
  }
  fa_cache_close(cache);
  scratch_remove(&s);
}

/* The order that makes a put safe: everything is on the disk before the name is. */
static void synchronised_body(void *argument) {
  (void)argument;
  scratch s = scratch_make();
  for (int mode = FA_CACHE_REPLACE; mode <= FA_CACHE_KEEP_FIRST; ++mode) {
    prepare(&s, NOTHING);
    fa_cache *cache = fa_cache_open(s.directory);
    uint64_t seed = 0;
    fault = (struct fault){.on = true, .at = 0, .error = EIO, .effect = FAILS, .only = "fsync"};
    CHECK(!put_stamped(cache, mode, 1, 1, 10)); /* the file's fsync is the first, and its failure counts */
    CHECK(get_stamped(cache, 1, &seed) == 0);
    fault = (struct fault){.on = true, .at = 0, .error = EIO, .effect = FAILS_FROM_THEN_ON, .only = "close"};
    CHECK(!put_stamped(cache, mode, 1, 1, 10)); /* where some network file systems say it */
    CHECK(get_stamped(cache, 1, &seed) == 0);
    fault = (struct fault){.on = true, .at = 99, .effect = FAILS, .only = "fsync"};
    CHECK(put_stamped(cache, mode, 1, 1, 10));
    CHECK_NUMBER(fault.calls, 2); /* the file, and afterwards the directory */
    fault.on = false;
    fa_cache_close(cache);
  }
  scratch_remove(&s);
}

static void test_synchronised_before_named(void) {
  char text[4096];
  CHECK_NUMBER(lines_said(synchronised_body, NULL, text, sizeof text), 1);
}

/* Really no room: first a hit that stays a hit, then stores that fail, then room again. */
static void fill_until_full(const char *directory) {
  fa_cache *cache = fa_cache_open(directory);
  uint64_t seed = 0;
  int stored = 0, failed = 0;
  for (int i = 0; i < 60; ++i) {
    bool done = put_stamped(cache, i % 2 == 0 ? FA_CACHE_REPLACE : FA_CACHE_KEEP_FIRST, i, (uint64_t)i, 1000);
    CHECK(get_stamped(cache, i, &seed) == (done ? 1 : 0));
    stored += done;
    failed += !done;
  }
  CHECKF(stored > 5 && failed > 5, "%d stored, %d failed", stored, failed);
  CHECK(get_stamped(cache, 0, &seed) == 1 && seed == 0);
  CHECK_NUMBER(count_names(directory, ".tmp-"), 0);
  CHECK_NUMBER(fa_cache_clear(cache), stored);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 1000));
  fa_cache_close(cache);
}
static void full_disk_body(void *argument) { fill_until_full(argument); }

static void test_full_disk(void) {
  scratch s = scratch_make();
  CHECK(mkdir(s.directory, 0700) == 0);
  /* noexec: nothing is ever run from the cache, so it must not matter. */
  if (mount("tmpfs", s.directory, "tmpfs", MS_NOEXEC | MS_NOSUID | MS_NODEV, "size=256k,mode=0700") != 0) {
    SKIP("no small tmpfs can be mounted here (that takes root)");
  } else {
    char text[4096];
    CHECK_NUMBER(lines_said(full_disk_body, s.directory, text, sizeof text), 1);
    CHECKF(strstr(text, strerror(ENOSPC)) != NULL, "%s", text);
    CHECK(umount(s.directory) == 0);
  }
  scratch_remove(&s);
}

/* A limit on the size of files: a smaller entry is stored, a larger one is not, and no SIGXFSZ ends the process. */
static void file_limit_body(void *argument) {
  const scratch *s = argument;
  uint64_t seed = 0;
  struct rlimit limit = {4000, 4000};
  fa_cache *cache = fa_cache_open(s->directory);
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 400));
  CHECK(!put_stamped(cache, FA_CACHE_REPLACE, 2, 1, 600));
  CHECK(!put_stamped(cache, FA_CACHE_KEEP_FIRST, 2, 1, 600));
  CHECK(get_stamped(cache, 1, &seed) == 1);
  CHECK(get_stamped(cache, 2, &seed) == 0);
  CHECK_NUMBER(count_names(s->directory, ".tmp-"), 0);
  fa_cache_close(cache);
}
static void test_file_size_limit(void) {
  scratch s = scratch_make();
  char text[4096];
  CHECK_NUMBER(lines_said(file_limit_body, &s, text, sizeof text), 1);
  scratch_remove(&s);
}

int main(void) {
  RUN(test_each_call_fails);
  RUN(test_death_at_each_call);
  RUN(test_network_file_systems);
  RUN(test_one_repairs);
  RUN(test_short_transfers);
  RUN(test_used_while_evicting);
  RUN(test_a_hit_is_cheap);
  RUN(test_synchronised_before_named);
  RUN(test_full_disk);
  RUN(test_file_size_limit);
  return check_summary();
}
