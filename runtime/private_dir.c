/*
 * Directories for a moment: where a compiler writes and, without memfd, where a kernel is loaded from.
 */
#define _GNU_SOURCE
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int fa_private_dir_make(char *path, size_t size) {
  const char *const places[] = {getenv("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm",
                                fa_cache_directory(fa_shared_cache())};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    if (!places[i] || places[i][0] != '/')
      continue;
    /* mkdtemp makes it 0700, under a name that nobody could have made before. */
    if (snprintf(path, size, "%s/flash_attention.XXXXXX", places[i]) < (int)size && mkdtemp(path))
      return 0;
  }
  return -1;
}

void fa_private_dir_remove(const char *path) {
  DIR *directory = opendir(path);
  if (directory) {
    for (struct dirent *entry; (entry = readdir(directory));)
      if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
        unlinkat(dirfd(directory), entry->d_name, 0);
    closedir(directory);
  }
  rmdir(path);
}
