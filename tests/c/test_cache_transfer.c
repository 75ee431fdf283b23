/* Entries leave one cache as bytes and arrive in another; what is not exactly one of them does not arrive. */
#define _GNU_SOURCE
#include "tests/c/cache_help.h"

enum { PAYLOAD = 3000 };

typedef struct carried {
  char name[FA_NAME_SIZE];
  unsigned char *bytes;
  size_t length;
} carried;

static bool carry(fa_cache *cache, int number, carried *entry) {
  fa_key key = key_of("kernel", number);
  char hex[33];
  void *bytes = NULL;
  fa_key_hex(&key, hex);
  bool found = fa_cache_export(cache, "kernel", hex, entry->name, &bytes, &entry->length);
  entry->bytes = bytes;
  fa_key_free(&key);
  return found;
}

static void test_round_trip(void) {
  scratch from = scratch_make(), to = scratch_make();
  fa_cache *source = fa_cache_open(from.directory), *target = fa_cache_open(to.directory);
  carried entry = {0};
  const char *wrong = "untouched";
  uint64_t seed = 0;
  CHECK(!carry(source, 1, &entry) && entry.bytes == NULL);
  CHECK(put_stamped(source, FA_CACHE_REPLACE, 1, 7, PAYLOAD));
  CHECK(carry(source, 1, &entry));
  CHECK_NUMBER(fa_cache_import(target, entry.name, entry.bytes, entry.length, false, &wrong), FA_CACHE_IMPORT_ABSENT);
  CHECK(!exists(to.directory)); /* a look writes nothing */
  CHECK_NUMBER(fa_cache_import(target, entry.name, entry.bytes, entry.length, true, &wrong), FA_CACHE_IMPORT_STORED);
  CHECK(wrong == NULL);
  CHECK(get_stamped(target, 1, &seed) == 1 && seed == 7);
  CHECK_NUMBER(fa_cache_import(target, entry.name, entry.bytes, entry.length, true, &wrong), FA_CACHE_IMPORT_PRESENT);

  /* The same file, byte for byte, and private. */
  char path[PATH_MAX];
  struct stat status;
  fa_path_join(path, to.directory, entry.name);
  CHECK(stat(path, &status) == 0 && (status.st_mode & 0777) == 0600 && (size_t)status.st_size == entry.length);
  CHECK_NUMBER(count_names(to.directory, ".tmp-"), 0);
  free(entry.bytes);
  fa_cache_close(source);
  fa_cache_close(target);
  scratch_remove(&from);
  scratch_remove(&to);
}

/* What is there stays, whatever comes under its key; what is damaged there is replaced. */
static void test_first_stays_and_damage_goes(void) {
  scratch from = scratch_make(), to = scratch_make();
  fa_cache *source = fa_cache_open(from.directory), *target = fa_cache_open(to.directory);
  carried entry = {0};
  const char *wrong = NULL;
  uint64_t seed = 0;
  CHECK(put_stamped(source, FA_CACHE_REPLACE, 1, 7, PAYLOAD) && put_stamped(target, FA_CACHE_REPLACE, 1, 8, PAYLOAD));
  CHECK(carry(source, 1, &entry));
  CHECK_NUMBER(fa_cache_import(target, entry.name, entry.bytes, entry.length, true, &wrong), FA_CACHE_IMPORT_PRESENT);
  CHECK(get_stamped(target, 1, &seed) == 1 && seed == 8);
  char path[PATH_MAX];
  fa_path_join(path, to.directory, entry.name);
  CHECK(truncate(path, 100) == 0);
  CHECK_NUMBER(fa_cache_import(target, entry.name, entry.bytes, entry.length, true, &wrong), FA_CACHE_IMPORT_STORED);
  CHECK(get_stamped(target, 1, &seed) == 1 && seed == 7);
  free(entry.bytes);
  fa_cache_close(source);
  fa_cache_close(target);
  scratch_remove(&from);
  scratch_remove(&to);
}

static void test_damage_and_foreign_names_are_refused(void) {
  scratch from = scratch_make(), to = scratch_make();
  fa_cache *source = fa_cache_open(from.directory), *target = fa_cache_open(to.directory);
  carried entry = {0}, other = {0};
  const char *wrong = NULL;
  CHECK(put_stamped(source, FA_CACHE_REPLACE, 1, 7, 40) && put_stamped(source, FA_CACHE_REPLACE, 2, 7, 40));
  CHECK(carry(source, 1, &entry) && carry(source, 2, &other));
  int accepted = 0;
  for (size_t bit = 0; bit < 8 * entry.length; ++bit) {
    entry.bytes[bit / 8] ^= (unsigned char)(1U << bit % 8);
    accepted += fa_cache_import(target, entry.name, entry.bytes, entry.length, true, &wrong) != FA_CACHE_IMPORT_REFUSED;
    entry.bytes[bit / 8] ^= (unsigned char)(1U << bit % 8);
  }
  for (size_t length = 0; length < entry.length; ++length)
    accepted += fa_cache_import(target, entry.name, entry.bytes, length, true, &wrong) != FA_CACHE_IMPORT_REFUSED;
  char again[FA_NAME_SIZE + 16], up[FA_NAME_SIZE + 16], renamed[FA_NAME_SIZE + 16];
  snprintf(up, sizeof up, "../%s", entry.name);
  snprintf(again, sizeof again, "%.*s01", (int)strlen(entry.name) - 1, entry.name); /* .fa01 */
  snprintf(renamed, sizeof renamed, "tuning%s", strchr(entry.name, '-'));
  const char *const names[] = {up, again, renamed, other.name, "", "/etc/passwd", "locks/x", ".tmp-abcdef"};
  for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
    wrong = NULL;
    accepted += fa_cache_import(target, names[i], entry.bytes, entry.length, true, &wrong) != FA_CACHE_IMPORT_REFUSED;
    CHECK(wrong != NULL);
  }
  CHECK_NUMBER(accepted, 0);
  CHECK(!exists(to.directory));
  CHECK_NUMBER(count_names(to.base, ""), 0);

  /* A damaged entry does not leave, either. */
  char path[PATH_MAX];
  carried damaged = {0};
  fa_path_join(path, from.directory, entry.name);
  CHECK(truncate(path, 100) == 0);
  CHECK(!carry(source, 1, &damaged));
  free(entry.bytes);
  free(other.bytes);
  fa_cache_close(source);
  fa_cache_close(target);
  scratch_remove(&from);
  scratch_remove(&to);
}

/* A cache that keeps nothing says so. */
static void test_what_cannot_be_stored_is_said(void) {
  scratch from = scratch_make(), to = scratch_make();
  fa_cache *source = fa_cache_open(from.directory);
  carried entry = {0};
  const char *wrong = NULL;
  CHECK(put_stamped(source, FA_CACHE_REPLACE, 1, 7, PAYLOAD) && carry(source, 1, &entry));
  setenv("FLASH_ATTENTION_CACHE_SIZE", "0", 1);
  fa_cache *target = fa_cache_open(to.directory);
  unsetenv("FLASH_ATTENTION_CACHE_SIZE");
  CHECK_NUMBER(fa_cache_import(target, entry.name, entry.bytes, entry.length, true, &wrong), FA_CACHE_IMPORT_FAILED);
  CHECK(wrong != NULL);
  free(entry.bytes);
  fa_cache_close(source);
  fa_cache_close(target);
  scratch_remove(&from);
  scratch_remove(&to);
}

int main(void) {
  RUN(test_round_trip);
  RUN(test_first_stays_and_damage_goes);
  RUN(test_damage_and_foreign_names_are_refused);
  RUN(test_what_cannot_be_stored_is_said);
  return check_summary();
}
