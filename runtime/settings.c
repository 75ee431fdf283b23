/*
 * State of the process that everything shares: environment variables (read once, at the first call), the
 * cache, counters, and what is written to stderr.
 */
#define _GNU_SOURCE
#include "runtime/runtime.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct fa_counters fa_counters;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static fa_settings settings;
static fa_cache *cache;

static bool is_rank_zero(const char *name) {
  const char *rank = getenv(name);
  return !rank || !*rank || strcmp(rank, "0") == 0;
}

static bool read_autotune(const char *text, fa_autotune *autotune) {
  static const char *const names[] = {
      [FA_TUNE_NONE] = "0", [FA_TUNE_SOME] = "1", [FA_TUNE_ALL] = "max", [FA_TUNE_PINNED] = "pinned"};
  for (int i = 0; i < 4; i++)
    if (strcmp(text, names[i]) == 0) {
      *autotune = (fa_autotune)i;
      return true;
    }
  return false;
}

static void read_environment(void) {
  const char *autotune = getenv("FLASH_ATTENTION_AUTOTUNE");
  settings.autotune = FA_TUNE_SOME;
  if (autotune && *autotune && !read_autotune(autotune, &settings.autotune))
    fa_warn("FLASH_ATTENTION_AUTOTUNE is '%s'; it must be 0, 1, max or pinned. Going on with 1.", autotune);
  const char *verbose = getenv("FLASH_ATTENTION_VERBOSE");
  settings.verbose = verbose && *verbose && strcmp(verbose, "0") != 0;
  settings.show_progress =
      !settings.verbose && isatty(STDERR_FILENO) && is_rank_zero("RANK") && is_rank_zero("LOCAL_RANK");
  cache = fa_cache_open(NULL);
}

const fa_settings *fa_get_settings(void) {
  pthread_once(&once, read_environment);
  return &settings;
}

fa_status fa_set_autotune(const char *autotune, char *message) {
  fa_autotune wanted;
  if (!read_autotune(autotune, &wanted))
    return fa_fail(FA_INVALID_VALUE, message, "autotune is '%s'; it must be 0, 1, max or pinned", autotune);
  pthread_once(&once, read_environment);
  settings.autotune = wanted;
  settings.only_such_records = true;
  fa_table_forget();
  return FA_OK;
}

fa_cache *fa_shared_cache(void) {
  pthread_once(&once, read_environment);
  return cache;
}

/* One write for a line, so that the lines of several processes do not mix. */
static void write_line(const char *format, va_list arguments) {
  char line[2048] = "flash_attention: ";
  size_t start = strlen(line);
  vsnprintf(line + start, sizeof line - start - 1, format, arguments);
  size_t length = strlen(line);
  line[length++] = '\n';
  ssize_t written = write(STDERR_FILENO, line, length);
  (void)written; /* nowhere left to complain */
}

void fa_say(const char *format, ...) {
  if (!fa_get_settings()->verbose)
    return;
  va_list arguments;
  va_start(arguments, format);
  write_line(format, arguments);
  va_end(arguments);
}

void fa_warn(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  write_line(format, arguments);
  va_end(arguments);
}

void fa_progress_show(fa_progress *progress, const char *format, ...) {
  if (!fa_get_settings()->show_progress || fa_seconds() - progress->started < 0.5)
    return;
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  fprintf(stderr, "\r\033[Kflash_attention: %s", line);
  fflush(stderr);
  atomic_store(&progress->shown, true);
}

void fa_progress_end(fa_progress *progress) {
  if (!atomic_load(&progress->shown))
    return;
  fprintf(stderr, "\r\033[K");
  fflush(stderr);
}

fa_status fa_fail(fa_status status, char *message, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, FA_MESSAGE_SIZE, format, arguments);
  va_end(arguments);
  return status;
}

void fa_append(char *text, size_t size, const char *format, ...) {
  size_t used = strlen(text);
  if (used + 1 >= size)
    return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, size - used, format, arguments);
  va_end(arguments);
}

double fa_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int fa_online_cores(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
  long cores = sysconf(_SC_NPROCESSORS_ONLN); /* more than 1024 of them: the set is too small */
  return cores > 0 ? (int)cores : 1;
}
