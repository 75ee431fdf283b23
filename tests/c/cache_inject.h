/*
 * System calls that fail, stall or kill the process on demand: a program that includes this defines their functions
 * itself, and the cache, linked into it, calls these. Include it once per program; _GNU_SOURCE must be defined.
 */
#ifndef FLASH_ATTENTION_TESTS_CACHE_INJECT_H
#define FLASH_ATTENTION_TESTS_CACHE_INJECT_H

#include <stdarg.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include "tests/c/cache_help.h"

enum fault_effect { FAILS, FAILS_FROM_THEN_ON, DIES_BEFORE, DIES_AFTER, DIES_HALFWAY, FAILS_THOUGH_DONE, IS_SLOW };

static struct fault {
  bool on;
  int at, calls; /* the call with this number, counted from 0, is hit */
  int error;
  enum fault_effect effect;
  const char *only; /* NULL: every function counts */
  size_t piece;     /* unless 0: no read or write moves more bytes at once */
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
    if (is_hit && fault.effect == IS_SLOW)                                                                             \
      nanosleep(&(struct timespec){0, 100 * 1000 * 1000}, NULL);                                                       \
    long result = (call);                                                                                              \
    if (is_hit && (fault.effect == DIES_AFTER || fault.effect == DIES_HALFWAY))                                        \
      die();                                                                                                           \
    if (is_hit && fault.effect == FAILS_THOUGH_DONE) {                                                                 \
      errno = fault.error;                                                                                             \
      return -1;                                                                                                       \
    }                                                                                                                  \
    return result;                                                                                                     \
  } while (0)

ssize_t read(int file, void *bytes, size_t length) {
  if (fault.on && fault.piece != 0 && length > fault.piece)
    length = fault.piece;
  WITH_FAULT("read", syscall(SYS_read, file, bytes, length));
}
ssize_t write(int file, const void *bytes, size_t length) {
  if (fault.on && fault.effect == DIES_HALFWAY && fault.calls == fault.at)
    length /= 2;
  if (fault.on && fault.piece != 0 && length > fault.piece)
    length = fault.piece;
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

/* Not a fault, but a moment: eviction looks at a file with lstat right before it removes it. */
static void (*at_lstat)(const char *path);
int lstat(const char *path, struct stat *status) {
  if (at_lstat != NULL)
    at_lstat(path);
  return fstatat(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}

#endif
