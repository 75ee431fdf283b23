/*
 * What lies in the directory, and room for more: entries of every schema count towards the size cap, and those not
 * used for longest go first. Removing an entry cannot harm a reader: it has the file open, or misses.
 *
 * Files whose names are not of our making are neither counted nor touched.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cache/internal.h"

static int64_t nanoseconds(struct timespec time) { return (int64_t)time.tv_sec * 1000000000 + (int64_t)time.tv_nsec; }

static bool add_file(fa_scan *scan, const char *name, const struct stat *status) {
  if (scan->count == scan->capacity) {
    size_t capacity = 2 * scan->capacity + 64;
    fa_file *files = realloc(scan->files, capacity * sizeof *files);
    if (files == NULL)
      return false;
    scan->files = files;
    scan->capacity = capacity;
  }
  fa_file *file = &scan->files[scan->count++];
  memset(file, 0, sizeof *file);
  memcpy(file->name, name, strlen(name)); /* fits: fa_entry_name_parse has looked */
  file->bytes = (uint64_t)status->st_size;
  file->last_used = nanoseconds(status->st_mtim);
  scan->bytes += file->bytes;
  return true;
}

/* A second name (FA_CACHE_KEEP_FIRST died between link and unlink) is no use to anybody; else it takes age. */
static bool stale(const struct stat *status, int64_t now) {
  return status->st_nlink > 1 || now - (int64_t)status->st_mtime > FA_STALE_SECONDS;
}

bool fa_scan_directory(const char *directory, fa_scan *scan) {
  memset(scan, 0, sizeof *scan);
  DIR *stream = opendir(directory);
  if (stream == NULL)
    return false;
  int64_t now = (int64_t)time(NULL);
  const struct dirent *item = NULL;
  bool complete = true;
  while (complete && (item = readdir(stream)) != NULL) {
    struct stat status;
    bool temporary = strncmp(item->d_name, ".tmp-", 5) == 0;
    if (!temporary && !fa_entry_name_parse(item->d_name, NULL, NULL, NULL))
      continue;
    if (fstatat(dirfd(stream), item->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode))
      continue;
    if (!temporary)
      complete = add_file(scan, item->d_name, &status);
    else if (!stale(&status, now) || unlinkat(dirfd(stream), item->d_name, 0) != 0)
      scan->bytes += (uint64_t)status.st_size;
  }
  closedir(stream);
  if (!complete) {
    free(scan->files);
    memset(scan, 0, sizeof *scan);
    errno = ENOMEM;
  }
  return complete;
}

static int by_last_use(const void *a, const void *b) {
  const fa_file *first = a, *second = b;
  return (first->last_used > second->last_used) - (first->last_used < second->last_used);
}

/* false: it stays, because somebody used or replaced it since the scan. */
static bool evict(const char *directory, const fa_file *file) {
  char path[PATH_MAX];
  struct stat status;
  if (!fa_path_join(path, directory, file->name))
    return false;
  if (lstat(path, &status) != 0)
    return errno == ENOENT; /* another process makes room, too */
  return nanoseconds(status.st_mtim) == file->last_used && unlink(path) == 0;
}

/*
 * Looking at the whole directory costs a system call per entry, so it is done on the first put of a process and then
 * again only after this process has written a sixteenth of what was still free. With n processes writing at
 * once the directory may thus exceed the cap by n/16 of the room that was left: a cap on disk use needs no more.
 */
void fa_make_room(fa_cache *cache, const char *directory, uint64_t incoming) {
  if (atomic_fetch_sub(&cache->headroom, (long long)incoming) >= (long long)incoming)
    return;
  fa_scan scan;
  if (!fa_scan_directory(directory, &scan))
    return; /* the write that follows will say what is wrong, if anything is */
  fa_locks_sweep(directory, 6 * FA_STALE_SECONDS);
  if (scan.count > 0 && scan.bytes + incoming > cache->size_cap) {
    /* Down to 7/8 of the cap, so that a full cache does not pay for this on every put. */
    uint64_t target = cache->size_cap - cache->size_cap / 8;
    qsort(scan.files, scan.count, sizeof *scan.files, by_last_use);
    for (size_t i = 0; i < scan.count && scan.bytes + incoming > target; ++i) {
      if (evict(directory, &scan.files[i]))
        scan.bytes -= scan.files[i].bytes;
    }
  }
  uint64_t used = scan.bytes + incoming;
  uint64_t left = used < cache->size_cap ? cache->size_cap - used : 0;
  atomic_store(&cache->headroom, (long long)(left / 16));
  free(scan.files);
}
