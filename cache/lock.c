/*
 * One holder per key, with flock: the kernel drops the lock when its holder dies, however that happens.
 *
 * Each acquisition opens the file anew, because flock belongs to an open file description: so threads of one process
 * exclude each other like processes do. Each key has a lock file of its own (a shared set of files would let two
 * keys of one caller wait for each other), removed by its holder, so that they do not pile up. Removal has the
 * well-known race: somebody opened the file before it was removed and locks it afterwards, while a third one
 * locks a new file of the same name. So a lock counts only if the locked file still has its name.
 *
 * A forked child inherits the open file, and with it the lock, which would then outlive a parent that is killed: the
 * child closes what its parent has open here.
 *
 * The lock saves work and nothing else: entries are right without it, so any trouble here means "go on without".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "cache/internal.h"

struct fa_cache_lock {
  int file;     /* -1: not open, as all are in a forked child */
  pid_t holder; /* a forked child has a copy of this, but does not hold the lock */
  char path[PATH_MAX];
  struct fa_cache_lock *next; /* in the list of all that this process has open */
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* of the list, and of `file` of those in it */
static fa_cache_lock *open_locks;
static pthread_once_t watch_forks_once = PTHREAD_ONCE_INIT;

static void before_fork(void) { pthread_mutex_lock(&mutex); }

static void after_fork_in_parent(void) { pthread_mutex_unlock(&mutex); }

static void after_fork_in_child(void) {
  for (fa_cache_lock *lock = open_locks; lock; lock = lock->next) {
    if (lock->file >= 0)
      close(lock->file);
    lock->file = -1;
  }
  open_locks = NULL;
  pthread_mutex_unlock(&mutex);
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

static void enlist(fa_cache_lock *lock) {
  pthread_once(&watch_forks_once, watch_forks);
  pthread_mutex_lock(&mutex);
  lock->next = open_locks;
  open_locks = lock;
  pthread_mutex_unlock(&mutex);
}

static void close_file(fa_cache_lock *lock) {
  pthread_mutex_lock(&mutex);
  if (lock->file >= 0)
    close(lock->file);
  lock->file = -1;
  pthread_mutex_unlock(&mutex);
}

static void discard(fa_cache_lock *lock) {
  pthread_mutex_lock(&mutex);
  if (lock->file >= 0)
    close(lock->file);
  fa_cache_lock **at = &open_locks;
  while (*at && *at != lock)
    at = &(*at)->next;
  if (*at)
    *at = lock->next;
  pthread_mutex_unlock(&mutex);
  free(lock);
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool has_name(int file, const char *path) {
  struct stat locked, named;
  return fstat(file, &locked) == 0 && lstat(path, &named) == 0 && locked.st_dev == named.st_dev &&
         locked.st_ino == named.st_ino;
}

/* O_RDWR: over NFS an exclusive lock needs a file that is open for writing. */
static bool open_file(fa_cache_lock *lock, const char *locks) {
  int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  pthread_mutex_lock(&mutex);
  lock->file = open(lock->path, flags, 0600);
  if (lock->file < 0 && errno == ENOENT && (mkdir(locks, 0700) == 0 || errno == EEXIST))
    lock->file = open(lock->path, flags, 0600);
  const int error = errno;
  pthread_mutex_unlock(&mutex);
  errno = error; /* for the message */
  return lock->file >= 0;
}

fa_cache_lock *fa_lock_named(const char *directory, const char *name, double seconds) {
  char locks[PATH_MAX];
  fa_cache_lock *lock = malloc(sizeof *lock);
  if (lock == NULL)
    return NULL;
  if (!fa_path_join(locks, directory, "locks") || !fa_path_join(lock->path, locks, name)) {
    free(lock);
    return NULL;
  }
  double deadline = seconds_now() + seconds;
  long pause = 500 * 1000L; /* nanoseconds; doubles up to 16 ms, as flock itself knows no time bound */
  lock->holder = getpid();
  lock->file = -1;
  enlist(lock);
  for (;;) {
    if (lock->file < 0 && !open_file(lock, locks)) {
      fa_warn_write("lock", lock->path);
      break;
    }
    if (flock(lock->file, LOCK_EX | LOCK_NB) == 0) {
      if (has_name(lock->file, lock->path))
        return lock;
      close_file(lock); /* its last holder removed it: take the new one, if there is time */
    } else if (errno != EWOULDBLOCK && errno != EINTR) {
      fa_warn_once(FA_TROUBLE_LOCK, "%s cannot be locked (%s); the same work may be done more than once", lock->path,
                   strerror(errno));
      break;
    }
    if (!(seconds_now() < deadline)) /* a NaN ends it, too */
      break;
    struct timespec span = {0, pause};
    nanosleep(&span, NULL);
    pause = pause < 8 * 1000 * 1000L ? 2 * pause : pause;
  }
  discard(lock);
  return NULL;
}

fa_cache_lock *fa_cache_lock_key(fa_cache *cache, const fa_key *key, double seconds) {
  char directory[PATH_MAX], hex[33], name[FA_NAME_SIZE];
  if (key->failed || !fa_directory_ready(cache, true, directory))
    return NULL;
  fa_key_hex(key, hex);
  snprintf(name, sizeof name, "%s-%s", key->kind, hex);
  return fa_lock_named(directory, name, seconds);
}

void fa_cache_unlock(fa_cache_lock *lock) {
  if (lock == NULL)
    return;
  if (lock->holder == getpid()) {
    /* Remove, then release; and only what is ours: the name may have been cleared away and be another's by now. */
    if (has_name(lock->file, lock->path))
      (void)unlink(lock->path);
    /* Not only close(): a child that was not forked by fork() may have the file open, too. */
    (void)flock(lock->file, LOCK_UN);
  }
  discard(lock);
}

void fa_locks_sweep(const char *directory, int64_t older_than_seconds) {
  char locks[PATH_MAX], path[PATH_MAX];
  if (!fa_path_join(locks, directory, "locks"))
    return;
  DIR *stream = opendir(locks);
  if (stream == NULL)
    return;
  int64_t now = (int64_t)time(NULL);
  const struct dirent *item = NULL;
  while ((item = readdir(stream)) != NULL) {
    struct stat status;
    if (item->d_name[0] == '.' || !fa_path_join(path, locks, item->d_name) || lstat(path, &status) != 0 ||
        !S_ISREG(status.st_mode) || now - (int64_t)status.st_mtime < older_than_seconds)
      continue;
    int file = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0)
      continue;
    if (flock(file, LOCK_EX | LOCK_NB) == 0 && has_name(file, path))
      (void)unlink(path);
    close(file);
  }
  closedir(stream);
}
