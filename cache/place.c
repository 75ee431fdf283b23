/* Where the cache is and how large it may become, from the environment. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/internal.h"

static const uint64_t DEFAULT_SIZE_CAP = UINT64_C(1) << 30;

/* secure_getenv: a program that runs with more rights than its caller must not be led anywhere by the caller. */
static const char *setting(const char *name) {
  const char *value = secure_getenv(name);
  return value != NULL && value[0] != '\0' ? value : NULL;
}

/* "100", "64M", "2G"; false if it is none of these or does not fit. */
static bool parse_size(const char *text, uint64_t *size) {
  char *end = NULL;
  errno = 0;
  unsigned long long number = strtoull(text, &end, 10);
  if (errno != 0 || end == text || text[0] < '0' || text[0] > '9')
    return false;
  int shift = 0;
  switch (*end) {
  case 'k':
  case 'K':
    shift = 10;
    break;
  case 'm':
  case 'M':
    shift = 20;
    break;
  case 'g':
  case 'G':
    shift = 30;
    break;
  default:
    break;
  }
  if (shift != 0)
    ++end;
  if (*end != '\0' || number > (UINT64_C(1) << 62) >> shift)
    return false;
  *size = (uint64_t)number << shift;
  return true;
}

static char *join(const char *first, const char *second) {
  char *text = NULL;
  return asprintf(&text, "%s/%s", first, second) < 0 ? NULL : text;
}

/* A relative directory means the one below today's working directory, whatever chdir does later. */
static char *absolute(const char *directory) {
  if (directory[0] == '/')
    return strdup(directory);
  char here[PATH_MAX];
  return getcwd(here, sizeof here) == NULL ? NULL : join(here, directory);
}

void fa_place_find(fa_cache *cache, const char *directory) {
  const char *chosen = directory != NULL && directory[0] != '\0' ? directory : setting("FLASH_ATTENTION_CACHE_DIR");
  const char *base = setting("XDG_CACHE_HOME");
  const char *home = setting("HOME");
  if (chosen != NULL)
    cache->directory = absolute(chosen);
  else if (base != NULL && base[0] == '/') /* the XDG specification: a relative one is to be ignored */
    cache->directory = join(base, "flash_attention");
  else if (home != NULL && home[0] == '/')
    cache->directory = join(home, ".cache/flash_attention");
  else
    cache->no_directory = "no directory to keep anything in: HOME is not set (set HOME or FLASH_ATTENTION_CACHE_DIR)";
  if (cache->directory == NULL && cache->no_directory == NULL)
    cache->no_directory = "no directory to keep anything in: out of memory, or no working directory";

  cache->size_cap = DEFAULT_SIZE_CAP;
  const char *size = setting("FLASH_ATTENTION_CACHE_SIZE");
  if (size != NULL && !parse_size(size, &cache->size_cap))
    fa_warn_once(FA_TROUBLE_SETTING, "FLASH_ATTENTION_CACHE_SIZE=%.100s is no size (like 500M or 2G); 1G is used",
                 size);
}
