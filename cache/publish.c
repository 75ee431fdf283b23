/*
 * A temporary file in the same directory becomes an entry in one step, whole and on the disk, or not at all.
 *
 * A reader opens the name before or after that step: it sees no file, the old one or the new one. A writer that
 * dies leaves a temporary file, which scan.c removes once it is old.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/internal.h"

static bool write_all(int file, const void *data, size_t length) {
  const char *bytes = data;
  while (length > 0) {
    ssize_t count = write(file, bytes, length);
    if (count < 0 && errno == EINTR)
      continue;
    if (count < 0)
      return false;
    if (count == 0) {
      errno = ENOSPC;
      return false;
    }
    bytes += count;
    length -= (size_t)count;
  }
  return true;
}

/* So that the new name survives a power cut. Where a directory cannot be synchronised, nothing better is known. */
static void sync_directory(const char *directory) {
  int file = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0)
    return;
  (void)fsync(file);
  close(file);
}

enum found { GOOD_ENTRY, BAD_ENTRY, NO_ENTRY, CANNOT_TELL };

/* What has this name? CANNOT_TELL: errno says why. */
static enum found find_entry(const fa_cache *cache, const char *path, const fa_key *key) {
  unsigned char *bytes = NULL;
  fa_view view;
  struct stat status;
  const char *wrong = NULL;
  int error = fa_entry_read(path, cache->schema, false, &bytes, &view, &status, &wrong);
  if (error != 0) {
    errno = error;
    if (error == ENOENT)
      return NO_ENTRY;
    return error == EBADMSG || error == ELOOP ? BAD_ENTRY : CANNOT_TELL;
  }
  bool same = view.key_length == key->length && memcmp(view.key, key->text, key->length) == 0;
  free(bytes);
  return same ? GOOD_ENTRY : BAD_ENTRY;
}

/*
 * Give the file its final name unless a good entry has it. 1: ours; 0: another was first; -1: errno.
 *
 * link() decides atomically. What it finds in its way may be damaged, though, and must be replaced, or the key would
 * miss for ever: then, and on file systems without links, the decision is made under a lock that everybody takes
 * for this (not the key's lock: our caller may be holding that one).
 */
static int publish_first(const fa_cache *cache, const char *directory, const char *temporary, const char *path,
                         const fa_key *key) {
  if (link(temporary, path) == 0)
    return 1;
  int error = errno;
  struct stat status;
  if (lstat(temporary, &status) == 0 && status.st_nlink == 2) /* NFS: it was done, only the answer got lost */
    return 1;
  /* EPERM and the others: no links here. Anything else (no space, no permission) renaming would not heal. */
  if (error != EEXIST && error != EPERM && error != ENOSYS && error != EOPNOTSUPP && error != EMLINK) {
    errno = error;
    return -1;
  }
  if (error == EEXIST && find_entry(cache, path, key) == GOOD_ENTRY)
    return 0;
  fa_cache_lock *lock = fa_lock_named(directory, "keep_first", 5.0);
  int result = -1;
  switch (find_entry(cache, path, key)) {
  case GOOD_ENTRY:
    result = 0;
    break;
  case BAD_ENTRY:
    result = rename(temporary, path) == 0 ? 1 : -1;
    break;
  case NO_ENTRY: /* evicted meanwhile, or no links here */
    if ((error == EEXIST ? link(temporary, path) : rename(temporary, path)) == 0)
      result = 1;
    else if (errno == EEXIST)
      result = 0;
    break;
  case CANNOT_TELL:
    break;
  }
  error = errno;
  fa_cache_unlock(lock);
  errno = error;
  return result;
}

bool fa_publish(const fa_cache *cache, const char *directory, const char *name, const fa_key *key, fa_cache_mode mode,
                const void *head, size_t head_length, const void *payload, size_t payload_length) {
  char path[PATH_MAX], temporary[PATH_MAX];
  if (!fa_path_join(path, directory, name) || !fa_path_join(temporary, directory, ".tmp-XXXXXX")) {
    errno = ENAMETOOLONG;
    fa_warn_write("write into", directory);
    return false;
  }
  int file = mkostemp(temporary, O_CLOEXEC); /* 0600 and ours alone, on every machine that shares the disk */
  if (file < 0) {
    fa_warn_write("write into", directory);
    return false;
  }
  bool written = write_all(file, head, head_length) && write_all(file, payload, payload_length) && fsync(file) == 0;
  int error = errno;
  if (close(file) != 0 && written) { /* some network file systems report a full disk only here */
    written = false;
    error = errno;
  }
  int result = -1;
  if (written) {
    if (mode == FA_CACHE_KEEP_FIRST)
      result = publish_first(cache, directory, temporary, path, key);
    else
      result = rename(temporary, path) == 0 ? 1 : -1;
    error = errno;
  }
  if (result != 1 || mode == FA_CACHE_KEEP_FIRST)
    (void)unlink(temporary);
  if (result == 1)
    sync_directory(directory);
  if (result < 0) {
    errno = error;
    fa_warn_write("write", path);
  }
  return result == 1;
}
