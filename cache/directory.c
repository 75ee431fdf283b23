/*
 * Whether nobody but this user and root can change what the cache directory holds.
 *
 * Checksums find accidents, not attacks: whoever may write an entry can write its checksum too, and a kernel
 * from the cache is run. So the directory must belong to this user or root and be writable by nobody else, and the
 * same holds for everything the path leads through, symlinks included, as who can rename a parent can put another
 * directory in its place. A parent that everybody may write in is fine if it is sticky (/tmp): there
 * nobody can rename what is ours.
 *
 * The walk is done again for every get and put, a few lstat calls each: nothing is remembered that could become stale,
 * and a forked child has nothing to repair.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cache/internal.h"

enum { MAX_STEPS = 4096 }; /* of a walk; symlinks that go round in circles take more */

bool fa_path_join(char path[PATH_MAX], const char *directory, const char *name) {
  int length = snprintf(path, PATH_MAX, "%s/%s", strcmp(directory, "/") == 0 ? "" : directory, name);
  return length > 0 && length < PATH_MAX;
}

static bool owner_trusted(const struct stat *status, const char *path, char reason[FA_REASON_SIZE]) {
  if (status->st_uid == geteuid() || status->st_uid == 0)
    return true;
  snprintf(reason, FA_REASON_SIZE, "%s belongs to user %u, who is neither this user (%u) nor root", path,
           (unsigned)status->st_uid, (unsigned)geteuid());
  return false;
}

static bool mode_trusted(const struct stat *status, bool sticky_is_enough, const char *path,
                         char reason[FA_REASON_SIZE]) {
  if ((status->st_mode & (S_IWGRP | S_IWOTH)) == 0)
    return true;
  if (sticky_is_enough && (status->st_mode & S_ISVTX) != 0)
    return true;
  snprintf(reason, FA_REASON_SIZE, "%s can be written by %s (mode %04o): chmod go-w, or choose another directory", path,
           (status->st_mode & S_IWOTH) != 0 ? "everybody" : "its group", (unsigned)status->st_mode & 07777U);
  return false;
}

static void drop_last(char path[PATH_MAX]) {
  char *slash = strrchr(path, '/');
  slash[slash == path ? 1 : 0] = '\0';
}

/* `rest` becomes target + "/" + rest; false if that does not fit. */
static bool prepend(char rest[PATH_MAX], const char *target, size_t target_length) {
  size_t rest_length = strlen(rest);
  if (target_length + 1 + rest_length >= PATH_MAX)
    return false;
  memmove(rest + target_length + 1, rest, rest_length + 1);
  memcpy(rest, target, target_length);
  rest[target_length] = '/';
  return true;
}

fa_directory_state fa_directory_check(const char *directory, char path[PATH_MAX], char reason[FA_REASON_SIZE]) {
  char rest[PATH_MAX]; /* what is still to be walked; all of `path` has been checked */
  struct stat status;
  reason[0] = '\0';
  if (directory[0] != '/' || strlen(directory) >= PATH_MAX) {
    snprintf(reason, FA_REASON_SIZE, "the path of the directory is too long or not absolute");
    return FA_DIRECTORY_REFUSED;
  }
  memcpy(path, "/", 2);
  memcpy(rest, directory, strlen(directory) + 1);
  if (lstat(path, &status) != 0)
    goto failed;
  if (!owner_trusted(&status, path, reason) || !mode_trusted(&status, true, path, reason))
    return FA_DIRECTORY_REFUSED;
  for (int step = 0; step < MAX_STEPS; ++step) {
    char *part = rest + strspn(rest, "/");
    size_t length = strcspn(part, "/");
    if (length == 0) { /* the end; after "." or ".." `status` is not that of `path` */
      if (lstat(path, &status) != 0 || faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) != 0)
        goto failed;
      return mode_trusted(&status, false, path, reason) ? FA_DIRECTORY_GOOD : FA_DIRECTORY_REFUSED;
    }
    char name[NAME_MAX + 1];
    if (length > NAME_MAX) {
      errno = ENAMETOOLONG;
      goto failed;
    }
    memcpy(name, part, length);
    name[length] = '\0';
    memmove(rest, part + length, strlen(part + length) + 1);
    if (strcmp(name, ".") == 0)
      continue;
    if (strcmp(name, "..") == 0) { /* `path` holds no symlinks, so this is really its parent */
      drop_last(path);
      continue;
    }
    char parent[PATH_MAX];
    memcpy(parent, path, strlen(path) + 1);
    if (!fa_path_join(path, parent, name)) {
      errno = ENAMETOOLONG;
      goto failed;
    }
    if (lstat(path, &status) != 0) {
      if (errno == ENOENT)
        return FA_DIRECTORY_MISSING;
      goto failed;
    }
    if (!owner_trusted(&status, path, reason))
      return FA_DIRECTORY_REFUSED;
    if (S_ISLNK(status.st_mode)) {
      char target[PATH_MAX];
      ssize_t target_length = readlink(path, target, sizeof target);
      if (target_length < 0)
        goto failed;
      if (target_length == 0 || !prepend(rest, target, (size_t)target_length)) {
        errno = ELOOP;
        goto failed;
      }
      memcpy(path, target[0] == '/' ? "/" : parent, target[0] == '/' ? 2 : strlen(parent) + 1);
      continue;
    }
    if (!S_ISDIR(status.st_mode)) {
      errno = ENOTDIR;
      goto failed;
    }
    if (!mode_trusted(&status, true, path, reason))
      return FA_DIRECTORY_REFUSED;
  }
  errno = ELOOP;
failed:
  snprintf(reason, FA_REASON_SIZE, "%s: %s", path, strerror(errno));
  return FA_DIRECTORY_REFUSED;
}

bool fa_directory_ready(const fa_cache *cache, bool make, char path[PATH_MAX]) {
  if (cache->directory == NULL) {
    fa_warn_once(FA_TROUBLE_NO_PLACE, "%s; going on without", cache->no_directory);
    return false;
  }
  char reason[FA_REASON_SIZE];
  for (int step = 0; step < MAX_STEPS; ++step) {
    switch (fa_directory_check(cache->directory, path, reason)) {
    case FA_DIRECTORY_GOOD:
      return true;
    case FA_DIRECTORY_REFUSED:
      fa_warn_once(FA_TROUBLE_REFUSED, "%s is not used: %s; going on without", cache->directory, reason);
      return false;
    case FA_DIRECTORY_MISSING:
      break;
    }
    if (!make)
      return false; /* nothing was ever stored: a plain miss */
    /* Another process may be making it at the same moment; the walk then goes on from there. */
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
      fa_warn_write("make the directory", path);
      return false;
    }
  }
  return false;
}
