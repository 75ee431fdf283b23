/*
 * What the cache's tests share: scratch directories, keys, and payloads that can tell whether they are whole.
 */
#ifndef FLASH_ATTENTION_TESTS_CACHE_HELP_H
#define FLASH_ATTENTION_TESTS_CACHE_HELP_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "cache/cache.h"
#include "cache/internal.h"
#include "tests/c/check.h"

enum { NOBODY = 65534 }; /* the user that plays "somebody else", where the tests run as root */

typedef struct scratch {
  char base[64];            /* ours alone; removed at the end */
  char directory[PATH_MAX]; /* base + "/cache", which the cache makes */
} scratch;

static inline scratch scratch_make_in(const char *parent) {
  scratch s;
  snprintf(s.base, sizeof s.base, "%s/fa_cache_test_XXXXXX", parent);
  if (mkdtemp(s.base) == NULL) {
    perror("mkdtemp");
    _exit(2);
  }
  snprintf(s.directory, sizeof s.directory, "%s/cache", s.base);
  return s;
}

/* In memory where that is possible: thousands of fsync calls wait for no disk then. */
static inline scratch scratch_make(void) {
  return scratch_make_in(access("/dev/shm", W_OK | X_OK) == 0 ? "/dev/shm" : "/tmp");
}

static inline int scratch_remove_one(const char *path, const struct stat *status, int type, struct FTW *place) {
  (void)status, (void)type, (void)place;
  (void)remove(path);
  return 0;
}

static inline void scratch_remove(const scratch *s) { nftw(s->base, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static inline fa_key key_of(const char *kind, int number) {
  fa_key key;
  char text[32];
  snprintf(text, sizeof text, "%d", number);
  fa_key_begin(&key, kind, 1);
  fa_key_add_text(&key, "source", "some text\nof a kernel");
  fa_key_add_text(&key, "number", text);
  return key;
}

static inline void entry_path(const char *directory, const fa_key *key, unsigned schema, char path[PATH_MAX]) {
  char hex[33], name[FA_NAME_SIZE];
  fa_key_hex(key, hex);
  fa_entry_name(schema, key->kind, hex, name);
  fa_path_join(path, directory, name);
}

static inline bool exists(const char *path) {
  struct stat status;
  return lstat(path, &status) == 0;
}

/* How many names of `directory` begin with `prefix`? */
static inline int count_names(const char *directory, const char *prefix) {
  DIR *stream = opendir(directory);
  int count = 0;
  const struct dirent *item = NULL;
  if (stream == NULL)
    return 0;
  while ((item = readdir(stream)) != NULL)
    count += strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0 &&
             strncmp(item->d_name, prefix, strlen(prefix)) == 0;
  closedir(stream);
  return count;
}

static inline void make_older(const char *path, int seconds) {
  struct timespec times[2] = {{time(NULL) - seconds, 0}, {time(NULL) - seconds, 0}};
  CHECK(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) == 0);
}

static inline char *read_file(const char *path, size_t *length) {
  FILE *file = fopen(path, "rb");
  char *bytes = calloc(1, 1 << 20);
  *length = 0;
  if (file == NULL || bytes == NULL)
    return bytes;
  *length = fread(bytes, 1, 1 << 20, file);
  fclose(file);
  return bytes;
}

static inline bool write_file(const char *path, const char *bytes, size_t length) {
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  bool done = file >= 0 && write(file, bytes, length) == (ssize_t)length;
  close(file);
  return done;
}

/*
 * A payload that belongs to one key and one writer: number, seed, then what xorshift makes of the seed. The metadata
 * repeat both, so parts of two entries cannot pass for one.
 */
static inline uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static inline bool put_stamped(fa_cache *cache, fa_cache_mode mode, int number, uint64_t seed, size_t words) {
  uint64_t *payload = malloc((words + 2) * sizeof *payload);
  uint64_t state = seed * 2 + 1;
  char metadata[64];
  fa_key key = key_of("kernel", number);
  if (payload == NULL)
    _exit(2);
  payload[0] = (uint64_t)number;
  payload[1] = seed;
  for (size_t i = 0; i < words; ++i)
    payload[2 + i] = next_random(&state);
  snprintf(metadata, sizeof metadata, "number=%d\nseed=%llu\n", number, (unsigned long long)seed);
  bool stored = fa_cache_put(cache, &key, mode, metadata, payload, (words + 2) * sizeof *payload);
  free(payload);
  fa_key_free(&key);
  return stored;
}

/* 0: a miss; 1: a whole entry, *seed says whose; -1: a hit that is not what was stored. */
static inline int get_stamped(fa_cache *cache, int number, uint64_t *seed) {
  fa_entry entry;
  fa_key key = key_of("kernel", number);
  bool hit = fa_cache_get(cache, &key, &entry);
  fa_key_free(&key);
  if (!hit)
    return 0;
  const uint64_t *payload = entry.payload;
  size_t words = entry.payload_length / sizeof *payload;
  bool whole = words >= 2 && entry.payload_length % sizeof *payload == 0 && payload[0] == (uint64_t)number;
  if (whole) {
    char metadata[64];
    uint64_t state = payload[1] * 2 + 1;
    *seed = payload[1];
    snprintf(metadata, sizeof metadata, "number=%d\nseed=%llu\n", number, (unsigned long long)*seed);
    whole = strcmp(metadata, entry.metadata) == 0;
    for (size_t i = 2; whole && i < words; ++i)
      whole = payload[i] == next_random(&state);
  }
  fa_entry_free(&entry);
  return whole ? 1 : -1;
}

/* Everything that is said on stderr while body(argument) runs in a child; the number of lines, -1 if the child fails.
 */
static inline int lines_said(void (*body)(void *argument), void *argument, char *text, size_t size) {
  int failed = atomic_load(&check_counts->failed);
  FILE *said = tmpfile();
  if (said == NULL)
    return -1;
  pid_t child = fork();
  if (child == 0) {
    dup2(fileno(said), STDERR_FILENO);
    body(argument);
    _exit(0);
  }
  bool ended_well = check_ended_well(child);
  int lines = 0;
  rewind(said);
  size_t length = fread(text, 1, size - 1, said);
  text[length] = '\0';
  fclose(said);
  for (size_t i = 0; i < length; ++i)
    lines += text[i] == '\n';
  if (!ended_well || atomic_load(&check_counts->failed) != failed)
    fprintf(stderr, "%s", text);
  return ended_well ? lines : -1;
}

#endif
