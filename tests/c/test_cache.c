/* Keys, entries and their files, damage of every kind, and settings. */
#define _GNU_SOURCE
#include "tests/c/cache_help.h"

static void test_key_text_is_unambiguous(void) {
  fa_key a, b;
  char hex_a[33], hex_b[33];
  fa_key_begin(&a, "kernel", 1);
  fa_key_add_text(&a, "ab", "c");
  fa_key_begin(&b, "kernel", 1);
  fa_key_add_text(&b, "a", "bc");
  fa_key_hex(&a, hex_a);
  fa_key_hex(&b, hex_b);
  CHECK(strcmp(hex_a, hex_b) != 0);
  CHECK(strlen(hex_a) == 32 && strspn(hex_a, "0123456789abcdef") == 32);
  CHECK(a.length == strlen("4:kind,6:kernel,6:schema,1:1,2:ab,1:c,") &&
        memcmp(a.text, "4:kind,6:kernel,6:schema,1:1,2:ab,1:c,", a.length) == 0);
  fa_key_free(&a);
  fa_key_free(&b);

  /* Binary data, empty data. */
  fa_key_begin(&a, "kernel", 1);
  fa_key_add(&a, "data", "x\0y", 3);
  fa_key_add(&a, "none", NULL, 0);
  CHECK(!a.failed && memcmp(a.text + a.length - 22, "4:data,3:x\0y,4:none,0:,", 22) != 0); /* one longer */
  CHECK(memcmp(a.text + a.length - 23, "4:data,3:x\0y,4:none,0:,", 23) == 0);
  fa_key_free(&a);

  /* The hash is the published XXH3-128, the same on every machine: of no bytes, from xxHash's own test vectors. */
  char hex[33];
  fa_hash_hex(fa_hash_of("", 0), hex);
  CHECK_TEXT(hex, "99aa06d3014798d86001c324468d497f");
}

static void test_bad_keys_never_hit(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  const char *kinds[] = {"", "../kernel", "Kernel", "a kind that is far too long", "a/b", "a-b"};
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; ++i) {
    fa_key key;
    fa_entry entry;
    fa_key_begin(&key, kinds[i], 1);
    CHECK(key.failed);
    CHECK(!fa_cache_put(cache, &key, FA_CACHE_REPLACE, "", "x", 1));
    CHECK(!fa_cache_get(cache, &key, &entry));
    CHECK(fa_cache_lock_key(cache, &key, 0) == NULL);
    CHECK(!fa_cache_get_by_hex(cache, kinds[i], "99aa06d3014798d86001c324468d497f", &entry));
    fa_key_free(&key);
  }
  fa_entry entry;
  CHECK(!fa_cache_get_by_hex(cache, "kernel", "99aa", &entry));
  CHECK(!fa_cache_get_by_hex(cache, "kernel", "../../../../../../../etc/passwd0", &entry));
  fa_cache_close(cache);
  scratch_remove(&s);
}

static void test_round_trip(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  char reason[256];
  CHECK_TEXT(fa_cache_directory(cache), s.directory);
  CHECK(fa_cache_usable(cache, reason, sizeof reason) && reason[0] == '\0');
  CHECK(!exists(s.directory)); /* looking makes nothing */
  CHECK_NUMBER(fa_cache_visit(cache, NULL, NULL), 0);
  static const size_t lengths[] = {0, 1, 63, 64, 65, 1000, 300000};
  char *payload = malloc(300000);
  for (size_t i = 0; i < 300000; ++i)
    payload[i] = (char)(i * 31 + i / 256);
  for (int i = 0; i < 7; ++i) {
    fa_key key = key_of("kernel", i), tuning = key_of("tuning", i);
    fa_entry entry;
    char hex[33], path[PATH_MAX];
    CHECK(!fa_cache_get(cache, &key, &entry) && entry.payload == NULL);
    CHECK(fa_cache_put(cache, &key, FA_CACHE_REPLACE, i == 0 ? NULL : "name=value\nä=ö\n", payload, lengths[i]));
    CHECK(!fa_cache_get(cache, &tuning, &entry)); /* same fields, another kind */
    if (CHECK(fa_cache_get(cache, &key, &entry))) {
      CHECK_NUMBER(entry.payload_length, lengths[i]);
      CHECK(memcmp(entry.payload, payload, lengths[i]) == 0);
      CHECK((uintptr_t)entry.payload % 64 == 0);
      CHECK_TEXT(entry.metadata, i == 0 ? "" : "name=value\nä=ö\n");
    }
    fa_entry_free(&entry);
    CHECK(entry.payload == NULL && entry.metadata == NULL);
    fa_key_hex(&key, hex);
    CHECK(fa_cache_get_by_hex(cache, "kernel", hex, &entry) && entry.payload_length == lengths[i]);
    fa_entry_free(&entry);
    CHECK(!fa_cache_get_by_hex(cache, "tuning", hex, &entry));
    struct stat status;
    entry_path(s.directory, &key, FA_CACHE_SCHEMA, path);
    CHECK(stat(path, &status) == 0 && (status.st_mode & 07777) == 0600);
    CHECK(stat(s.directory, &status) == 0 && (status.st_mode & 07777) == 0700);
    fa_key_free(&key);
    fa_key_free(&tuning);
  }
  CHECK_NUMBER(count_names(s.directory, ".tmp-"), 0);
  free(payload);
  fa_cache_close(cache);
  scratch_remove(&s);
}

/* The directory is made with all its parents, whatever the umask; and made again when somebody removes it. */
static void test_directory_is_made(void) {
  scratch s = scratch_make();
  char deep[PATH_MAX];
  struct stat status;
  uint64_t seed = 0;
  snprintf(deep, sizeof deep, "%s/a/b//c/./d", s.base);
  mode_t before = umask(0);
  fa_cache *cache = fa_cache_open(deep);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 5, 10));
  umask(before);
  CHECK(stat(deep, &status) == 0 && (status.st_mode & 07777) == 0700);
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 5);
  nftw(deep, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
  CHECK(get_stamped(cache, 1, &seed) == 0);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 6, 10));
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 6);
  fa_cache_close(cache);
  scratch_remove(&s);
}

static void test_modes(void) {
  scratch s = scratch_make();
  fa_cache *cache = fa_cache_open(s.directory);
  char path[PATH_MAX];
  uint64_t seed = 0;
  fa_key key = key_of("kernel", 1);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 10, 100));
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 11, 100));
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 11);
  CHECK(!put_stamped(cache, FA_CACHE_KEEP_FIRST, 1, 12, 100));
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 11);
  CHECK(put_stamped(cache, FA_CACHE_KEEP_FIRST, 2, 13, 100));
  CHECK(!put_stamped(cache, FA_CACHE_KEEP_FIRST, 2, 14, 100));
  CHECK(get_stamped(cache, 2, &seed) == 1 && seed == 13);
  CHECK_NUMBER(count_names(s.directory, ".tmp-"), 0);

  /* A damaged first entry is nobody's: the next one takes its place, or the key would miss for ever. */
  entry_path(s.directory, &key, FA_CACHE_SCHEMA, path);
  CHECK(truncate(path, 30) == 0);
  CHECK(put_stamped(cache, FA_CACHE_KEEP_FIRST, 1, 15, 100));
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 15);
  CHECK_NUMBER(count_names(s.directory, ".tmp-"), 0);
  fa_key_free(&key);
  fa_cache_close(cache);
  scratch_remove(&s);
}

/* An entry under the name of another key (as a hash collision would be) is a miss, and is replaced. */
static void other_key_body(void *argument) {
  const scratch *s = argument;
  fa_cache *cache = fa_cache_open(s->directory);
  fa_key one = key_of("kernel", 1), two = key_of("kernel", 2);
  char path_one[PATH_MAX], path_two[PATH_MAX], hex[33];
  uint64_t seed = 0;
  fa_entry entry;
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 10));
  entry_path(s->directory, &one, FA_CACHE_SCHEMA, path_one);
  entry_path(s->directory, &two, FA_CACHE_SCHEMA, path_two);
  CHECK(link(path_one, path_two) == 0);
  CHECK(get_stamped(cache, 2, &seed) == 0);
  fa_key_hex(&two, hex);
  CHECK(!fa_cache_get_by_hex(cache, "kernel", hex, &entry));
  CHECK(put_stamped(cache, FA_CACHE_KEEP_FIRST, 2, 2, 10));
  CHECK(get_stamped(cache, 2, &seed) == 1 && seed == 2);
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 1);
  fa_key_free(&one);
  fa_key_free(&two);
  fa_cache_close(cache);
}
static void test_other_key_is_a_miss(void) {
  scratch s = scratch_make();
  char text[4096];
  CHECK_NUMBER(lines_said(other_key_body, &s, text, sizeof text), 1);
  CHECK(strstr(text, "another key") != NULL);
  scratch_remove(&s);
}

/* Every bit of an entry flipped, every cut length, bytes too many, and things that are no files. */
static void damage_body(void *argument) {
  const scratch *s = argument;
  fa_cache *cache = fa_cache_open(s->directory);
  fa_key key = key_of("kernel", 1);
  fa_entry entry;
  char path[PATH_MAX];
  size_t length = 0;
  CHECK(fa_cache_put(cache, &key, FA_CACHE_REPLACE, "entry=f\n", "payload bytes, a few of them", 28));
  entry_path(s->directory, &key, FA_CACHE_SCHEMA, path);
  char *bytes = read_file(path, &length);
  CHECK(length > 150 && length < 300);
  int wrong_hits = 0;
  for (size_t i = 0; i < length; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] ^= (char)(1 << bit);
      write_file(path, bytes, length);
      wrong_hits += fa_cache_get(cache, &key, &entry);
      fa_entry_free(&entry);
      bytes[i] ^= (char)(1 << bit);
    }
  }
  CHECK_NUMBER(wrong_hits, 0);
  for (size_t cut = 0; cut < length; ++cut) {
    write_file(path, bytes, cut);
    wrong_hits += fa_cache_get(cache, &key, &entry);
    fa_entry_free(&entry);
  }
  CHECK_NUMBER(wrong_hits, 0);
  bytes[length] = 0;
  write_file(path, bytes, length + 1);
  CHECK(!fa_cache_get(cache, &key, &entry));
  CHECK(truncate(path, (off_t)1 << 40) == 0); /* nothing of this size is ever allocated */
  CHECK(!fa_cache_get(cache, &key, &entry));
  write_file(path, bytes, length);
  CHECK(chmod(path, 0620) == 0);
  CHECK(!fa_cache_get(cache, &key, &entry));
  unlink(path);
  CHECK(mkfifo(path, 0600) == 0);
  CHECK(!fa_cache_get(cache, &key, &entry)); /* and does not wait for a writer */
  unlink(path);
  CHECK(symlink("/etc/passwd", path) == 0);
  CHECK(!fa_cache_get(cache, &key, &entry));
  unlink(path);
  write_file(path, bytes, length);
  CHECK(fa_cache_get(cache, &key, &entry)); /* it was the damage, nothing else */
  fa_entry_free(&entry);
  free(bytes);
  fa_key_free(&key);
  fa_cache_close(cache);
}
static void test_damage_is_a_miss(void) {
  scratch s = scratch_make();
  char text[4096];
  CHECK_NUMBER(lines_said(damage_body, &s, text, sizeof text), 2); /* damaged, and (the symlink) unreadable */
  CHECK(strstr(text, "going on as if it were not there") != NULL);
  scratch_remove(&s);
}

/* Lengths in a header that has a right checksum but lies: sums must not wrap around. */
static void test_lying_headers(void) {
  fa_key key = key_of("kernel", 1);
  size_t head_length = 0;
  unsigned char *head = fa_entry_head(1, &key, "m", "payload", 7, &head_length);
  unsigned char *bytes = malloc(head_length + 7);
  fa_view view;
  memcpy(bytes, head, head_length);
  memcpy(bytes + head_length, "payload", 7);
  CHECK(fa_entry_parse(1, bytes, head_length + 7, &view) == NULL);
  CHECK(fa_entry_parse(2, bytes, head_length + 7, &view) != NULL);
  for (size_t at = 12; at < 32; ++at) {
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff};
    for (size_t i = 0; i < sizeof values; ++i) {
      unsigned char saved = bytes[at];
      bytes[at] = values[i];
      CHECK(values[i] == saved || fa_entry_parse(1, bytes, head_length + 7, &view) != NULL);
      bytes[at] = saved;
    }
  }
  free(head);
  free(bytes);
  fa_key_free(&key);
}

/* Directory and size from the environment, in the documented order. */
static void place_body(void *argument) {
  (void)argument;
  static const struct {
    const char *own, *xdg, *home, *expected;
  } cases[] = {
      {"/a/b", "/x", "/h", "/a/b"},
      {NULL, "/x", "/h", "/x/flash_attention"},
      {"", "/x", "/h", "/x/flash_attention"},
      {NULL, "relative", "/h", "/h/.cache/flash_attention"},
      {NULL, NULL, "/h", "/h/.cache/flash_attention"},
      {NULL, "", "/h", "/h/.cache/flash_attention"},
      {NULL, NULL, NULL, ""},
      {NULL, NULL, "", ""},
      {"here", NULL, NULL, "/usr/here"},
  };
  CHECK(chdir("/usr") == 0);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    const char *names[] = {"FLASH_ATTENTION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"};
    const char *values[] = {cases[i].own, cases[i].xdg, cases[i].home};
    for (int j = 0; j < 3; ++j)
      (void)(values[j] == NULL ? unsetenv(names[j]) : setenv(names[j], values[j], 1));
    fa_cache *cache = fa_cache_open(NULL);
    CHECK_TEXT(fa_cache_directory(cache), cases[i].expected);
    fa_cache_close(cache);
    cache = fa_cache_open("/given");
    CHECK_TEXT(fa_cache_directory(cache), "/given");
    fa_cache_close(cache);
  }
  static const struct {
    const char *text;
    uint64_t expected;
  } sizes[] = {{"0", 0},
               {"100", 100},
               {"3K", 3 << 10},
               {"5m", 5 << 20},
               {"2G", 2ULL << 30},
               {"", 1 << 30},
               {"-1", 1 << 30},
               {"2T", 1 << 30},
               {"1 G", 1 << 30},
               {"G", 1 << 30},
               {"1GB", 1 << 30},
               {"+3", 1 << 30},
               {" 3", 1 << 30},
               {"99999999999999999999", 1 << 30},
               {"9999999999999G", 1 << 30}};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
    setenv("FLASH_ATTENTION_CACHE_SIZE", sizes[i].text, 1);
    fa_cache *cache = fa_cache_open("/given");
    CHECK_NUMBER(cache->size_cap, sizes[i].expected);
    fa_cache_close(cache);
  }
}
static void test_place(void) {
  char text[4096];
  CHECK_NUMBER(lines_said(place_body, NULL, text, sizeof text), 1);
  CHECK(strstr(text, "FLASH_ATTENTION_CACHE_SIZE=-1 is no size") != NULL);
}

int main(void) {
  RUN(test_key_text_is_unambiguous);
  RUN(test_bad_keys_never_hit);
  RUN(test_round_trip);
  RUN(test_directory_is_made);
  RUN(test_modes);
  RUN(test_other_key_is_a_miss);
  RUN(test_damage_is_a_miss);
  RUN(test_lying_headers);
  RUN(test_place);
  return check_summary();
}
