/*
 * Each system call of a get, a put and a lock fails in turn, with every errno that a disk, a network file system or
 * a limit gives; and the process dies before and after each of them. Whatever happens, a reader afterwards gets a
 * whole entry or a miss. Real full disks and limits are at the end.
 *
 * This program defines the system calls' functions itself; the cache, linked into it, calls these.
 */
#define _GNU_SOURCE
#include "tests/c/cache_help.h"

#include <stdarg.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>

enum fault_effect { FAILS, FAILS_FROM_THEN_ON, DIES_BEFORE, DIES_AFTER, DIES_HALFWAY, FAILS_THOUGH_DONE };

static struct fault {
  bool on;
  int at, calls; /* the call with this number, counted from 0, is hit */
  int error;
  enum fault_effect effect;
  const char *only; /* NULL: every function counts */
} fault;

static void die(void) { kill(getpid(), SIGKILL); }

static bool hit(const char *function) {
  if (!fault.on || (fault.only != NULL && strcmp(fault.only, function) != 0))
    return false;
  int call = fault.calls++;
  return call == fault.at || (fault.effect == FAILS_FROM_THEN_ON && call > fault.at);
}

/* Do `call` (an expression whose value is -1 on failure) as the fault wants it. */
#define WITH_FAULT(function, call)                                                                                     \
  do {                                                                                                                 \
    bool is_hit = hit(function);                                                                                       \
    if (is_hit && fault.effect == DIES_BEFORE)                                                                         \
      die();                                                                                                           \
    if (is_hit && (fault.effect == FAILS || fault.effect == FAILS_FROM_THEN_ON)) {                                     \
      errno = fault.error;                                                                                             \
      return -1;                                                                                                       \
    }                                                                                                                  \
    long result = (call);                                                                                              \
    if (is_hit && (fault.effect == DIES_AFTER || fault.effect == DIES_HALFWAY))                                        \
      die();                                                                                                           \
    if (is_hit && fault.effect == FAILS_THOUGH_DONE) {                                                                 \
      errno = fault.error;                                                                                             \
      return -1;                                                                                                       \
    }                                                                                                                  \
    return result;                                                                                                     \
  } while (0)

ssize_t read(int file, void *bytes, size_t length) { WITH_FAULT("read", syscall(SYS_read, file, bytes, length)); }
ssize_t write(int file, const void *bytes, size_t length) {
  if (fault.on && fault.effect == DIES_HALFWAY && fault.calls == fault.at)
    length /= 2;
  WITH_FAULT("write", syscall(SYS_write, file, bytes, length));
}
int fsync(int file) { WITH_FAULT("fsync", (int)syscall(SYS_fsync, file)); }
int link(const char *from, const char *to) {
  WITH_FAULT("link", (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int rename(const char *from, const char *to) {
  WITH_FAULT("rename", (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int unlink(const char *path) { WITH_FAULT("unlink", (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0)); }
int mkdir(const char *path, mode_t mode) { WITH_FAULT("mkdir", (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode)); }
int flock(int file, int operation) { WITH_FAULT("flock", (int)syscall(SYS_flock, file, operation)); }
int close(int file) {
  if (hit("close")) { /* a failing close closes, too */
    if (fault.effect == DIES_BEFORE || fault.effect == DIES_AFTER || fault.effect == DIES_HALFWAY)
      die();
    syscall(SYS_close, file);
    errno = fault.error;
    return -1;
  }
  return (int)syscall(SYS_close, file);
}
int open(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  WITH_FAULT("open", (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
static long make_temporary(char *path, int flags) {
  static unsigned number;
  long file = -1;
  do {
    char digits[16];
    snprintf(digits, sizeof digits, "%06u", ++number % 1000000);
    memcpy(path + strlen(path) - 6, digits, 6);
    file = syscall(SYS_openat, AT_FDCWD, path, flags | O_RDWR | O_CREAT | O_EXCL, 0600);
  } while (file < 0 && errno == EEXIST);
  return file;
}
int mkostemp(char *path, int flags) { WITH_FAULT("mkostemp", (int)make_temporary(path, flags)); }

static const char *const FUNCTIONS[] = {"read",  "write", "fsync", "link", "rename",  "unlink",
                                        "mkdir", "flock", "close", "open", "mkostemp"};
enum { FUNCTION_COUNT = sizeof FUNCTIONS / sizeof FUNCTIONS[0] };

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
static void check_aftermath(const scratch *s, fa_cache *cache, enum before before, fa_cache_mode mode) {
  uint64_t seed = 0;
  int found = get_stamped(cache, 1, &seed);
  CHECK(found == 1 ? seed == 200 || (before == AN_ENTRY && seed == 100) : found == 0 && before != AN_ENTRY);
  CHECK(mode == FA_CACHE_REPLACE || before != AN_ENTRY || seed == 100); /* the first one stays */
  bool stored = put_stamped(cache, mode, 1, 201, 40); /* nothing that is left over stands in the way */
  CHECK(mode == FA_CACHE_REPLACE ? stored : stored == (found == 0));
  CHECK(get_stamped(cache, 1, &seed) == 1);
  (void)s;
}

static void failing_body(void *argument) {
  const scratch *s = argument;
  static const int errors[] = {ENOSPC, EIO,    EROFS, EACCES,     ESTALE, EMFILE, EINTR,
                               ENOLCK, EDQUOT, EPERM, EOPNOTSUPP, ENOSYS, EINVAL, ENOENT};
  long injected = 0;
  for (size_t error = 0; error < sizeof errors / sizeof errors[0]; ++error) {
    for (int effect = FAILS; effect <= FAILS_FROM_THEN_ON; ++effect) {
      for (int before = NOTHING; before < BEFORE_COUNT; ++before) {
        for (int mode = FA_CACHE_REPLACE; mode <= FA_CACHE_KEEP_FIRST; ++mode) {
          for (int at = 0;; ++at) {
            if (errors[error] == EINTR && effect == FAILS_FROM_THEN_ON)
              break; /* whoever is interrupted for ever may go on for ever */
            prepare(s, before);
            fa_cache *cache = fa_cache_open(s->directory);
            int files = open_files();
            fault = (struct fault){.on = true, .at = at, .error = errors[error], .effect = effect};
            bool stored = whole_sequence(cache, mode);
            fault.on = false;
            CHECK_NUMBER(open_files(), files);
            uint64_t seed = 0;
            CHECK(!stored || (get_stamped(cache, 1, &seed) == 1 && seed == 200)); /* true means stored */
            check_aftermath(s, cache, before, mode);
            fa_cache_close(cache);
            if (fault.calls <= at)
              break; /* the sequence has no more calls */
            ++injected;
          }
        }
      }
    }
  }
  CHECK(injected > 2000);
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
          check_aftermath(&s, cache, before, mode);
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
  CHECK_NUMBER(count_names(s.directory, ".tmp-"), 0);
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
  RUN(test_a_hit_is_cheap);
  RUN(test_synchronised_before_named);
  RUN(test_full_disk);
  RUN(test_file_size_limit);
  return check_summary();
}
