/*
 * Where the templates are, and a digest of all of them: a tuning record holds for the templates that it was
 * found with and for no others.
 */
#define _GNU_SOURCE
#include "runtime/runtime.h"

#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#ifndef FA_TEMPLATE_DIR
#define FA_TEMPLATE_DIR "templates"
#endif

static char directory[PATH_MAX];
static char digest[33];
static bool have_digest;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool is_directory(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static void find_directory(void) {
  static const char anchor;
  Dl_info library;
  if (dladdr(&anchor, &library) && library.dli_fname) {
    const char *slash = strrchr(library.dli_fname, '/');
    int length = slash ? (int)(slash - library.dli_fname) + 1 : 0;
    int written = snprintf(directory, sizeof directory, "%.*stemplates", length, library.dli_fname);
    if (slash && written < (int)sizeof directory && is_directory(directory))
      return;
  }
  snprintf(directory, sizeof directory, "%s", FA_TEMPLATE_DIR);
}

const char *fa_template_dir(void) {
  pthread_once(&once, find_directory);
  return directory;
}

fa_status fa_set_template_dir(const char *new_directory) {
  if (!new_directory || !is_directory(new_directory) || strlen(new_directory) >= sizeof directory)
    return FA_INVALID_VALUE;
  pthread_once(&once, find_directory);
  fa_lock();
  snprintf(directory, sizeof directory, "%s", new_directory);
  have_digest = false;
  fa_unlock();
  return FA_OK;
}

static void add_file(fa_key *key, const char *path, const char *name) {
  FILE *file = fopen(path, "re");
  if (!file)
    return;
  size_t length = 0, capacity = 0;
  char *text = NULL;
  for (;;) {
    if (length == capacity) {
      capacity = capacity ? 2 * capacity : 65536;
      char *larger = realloc(text, capacity);
      if (!larger) {
        key->failed = true;
        break;
      }
      text = larger;
    }
    size_t got = fread(text + length, 1, capacity - length, file);
    if (got == 0)
      break;
    length += got;
  }
  fclose(file);
  fa_key_add(key, name, text, length);
  free(text);
}

/* Sorted by name, so that the order in which a file system lists its files does not matter. */
static void add_directory(fa_key *key, const char *path, const char *prefix, int depth) {
  struct dirent **names = NULL;
  int count = scandir(path, &names, NULL, alphasort);
  for (int i = 0; i < count; i++) {
    const char *name = names[i]->d_name;
    char child[PATH_MAX], label[PATH_MAX];
    bool fits = snprintf(child, sizeof child, "%s/%s", path, name) < (int)sizeof child &&
                snprintf(label, sizeof label, "%s%s", prefix, name) < (int)sizeof label;
    if (fits && name[0] != '.') {
      if (!is_directory(child)) {
        add_file(key, child, label);
      } else if (depth < 4) {
        fa_append(label, sizeof label, "/");
        add_directory(key, child, label, depth + 1);
      }
    }
    free(names[i]);
  }
  free(names);
}

const char *fa_templates_digest(void) {
  const char *path = fa_template_dir();
  fa_lock();
  bool known = have_digest;
  fa_unlock();
  if (known)
    return digest;
  char computed[33] = "";
  fa_key key;
  fa_key_begin(&key, "templates", 1);
  add_directory(&key, path, "", 0);
  if (!key.failed)
    fa_key_hex(&key, computed);
  fa_key_free(&key);
  fa_lock();
  memcpy(digest, computed, sizeof digest); /* two threads at once write the same */
  have_digest = true;
  fa_unlock();
  return digest;
}
