/*
 * Where NVRTC may be; see nvrtc.h.
 */
#define _GNU_SOURCE
#include "runtime/nvrtc.h"

#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct file_list {
  char **file;
  int count;
} file_list;

/* `folder` with `pattern` below it. What glob() takes for a pattern may stand in a folder's name: escaped it means
 * itself. False: that is too long. */
static bool join(char full[PATH_MAX], const char *folder, int folder_length, const char *pattern) {
  size_t used = 0;
  for (int i = 0; i < folder_length && used + 2 < PATH_MAX; i++) {
    if (strchr("*?[\\", folder[i]))
      full[used++] = '\\';
    full[used++] = folder[i];
  }
  return used + 2 < PATH_MAX && snprintf(full + used, PATH_MAX - used, "/%s", pattern) < (int)(PATH_MAX - used);
}

/* Highest version first: libnvrtc.so.13 before libnvrtc.so.12, nvidia/cu13 before nvidia/cu12. */
static void add_matches(file_list *list, const char *folder, int folder_length, const char *pattern) {
  char full[PATH_MAX];
  glob_t found;
  if (!join(full, folder, folder_length, pattern))
    return;
  if (glob(full, GLOB_NOSORT, NULL, &found) == 0) {
    for (size_t i = 1; i < found.gl_pathc; i++) /* a handful of them */
      for (size_t j = i; j > 0 && strverscmp(found.gl_pathv[j - 1], found.gl_pathv[j]) < 0; j--) {
        char *swap = found.gl_pathv[j];
        found.gl_pathv[j] = found.gl_pathv[j - 1];
        found.gl_pathv[j - 1] = swap;
      }
    for (size_t i = 0; i < found.gl_pathc && list->count < FA_MAX_NVRTC_FILES; i++) {
      list->file[list->count] = strdup(found.gl_pathv[i]);
      list->count += list->file[list->count] != NULL;
    }
  }
  globfree(&found);
}

int fa_nvrtc_list_files(const char *packages, const char *const homes[2], char *files[FA_MAX_NVRTC_FILES]) {
  /* NVIDIA's packages: cu13 of CUDA 13, cuda_nvrtc of CUDA 12. */
  static const char *const package_patterns[] = {"nvidia/cu[0-9]*/lib/libnvrtc.so.[0-9]*",
                                                 "nvidia/cuda_nvrtc/lib/libnvrtc.so.[0-9]*"};
  static const char *const home_patterns[] = {"lib64/libnvrtc.so.[0-9]*", "lib/libnvrtc.so.[0-9]*"};
  file_list list = {.file = files};
  for (const char *folder = packages ? packages : ""; *folder;) {
    int length = (int)strcspn(folder, ":");
    for (int i = 0; i < 2 && length > 0; i++)
      add_matches(&list, folder, length, package_patterns[i]);
    folder += length + (folder[length] == ':');
  }
  for (int home = 0; home < 2; home++)
    for (int i = 0; i < 2 && homes[home] && *homes[home]; i++)
      add_matches(&list, homes[home], (int)strlen(homes[home]), home_patterns[i]);
  return list.count;
}
