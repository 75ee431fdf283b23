/*
 * Which directories are used and which are refused, and that everything wrong with one is a miss and one line on
 * stderr. Run as root these tests also play other users; otherwise they say what they skip.
 */
#define _GNU_SOURCE
#include "tests/c/cache_help.h"

#include <grp.h>

static bool become_nobody(void) {
  return setgroups(0, NULL) == 0 && setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0;
}

struct use {
  const char *directory;
  const char *reason; /* a part of what must be said; NULL: it works */
  bool as_nobody;
};

static void use_body(void *argument) {
  const struct use *use = argument;
  char reason[FA_REASON_SIZE] = "";
  bool works = use->reason == NULL;
  uint64_t seed = 0;
  if (use->as_nobody && !CHECK(become_nobody()))
    return;
  fa_cache *cache = fa_cache_open(use->directory);
  CHECK(fa_cache_usable(cache, reason, sizeof reason) == works);
  CHECKF(works ? reason[0] == '\0' : strstr(reason, use->reason) != NULL, "reason=%s", reason);
  for (int i = 0; i < 3; ++i) {
    fa_key key = key_of("kernel", i);
    fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 0);
    CHECK((lock != NULL) == works);
    fa_cache_unlock(lock);
    CHECK(put_stamped(cache, i == 0 ? FA_CACHE_KEEP_FIRST : FA_CACHE_REPLACE, i, 7, 10) == works);
    CHECK(get_stamped(cache, i, &seed) == works);
    fa_key_free(&key);
  }
  int cleared = fa_cache_clear(cache);
  CHECK(works ? cleared == 3 : cleared <= 0);
  fa_cache_close(cache);
}

/* In a child, use the directory for everything. said NULL: it works, silently; else it is one warning with that text.
 */
static void expect_use(struct use use) {
  char text[8192] = "";
  int before = atomic_load(&check_counts->failed);
  CHECK_NUMBER(lines_said(use_body, &use, text, sizeof text), use.reason == NULL ? 0 : 1);
  CHECK(use.reason == NULL || strstr(text, use.reason) != NULL);
  if (atomic_load(&check_counts->failed) != before)
    fprintf(stderr, "  in %s, said: %s\n", use.directory, text);
}
static void expect(const char *directory, const char *reason) { expect_use((struct use){directory, reason, false}); }
static void expect_as_nobody(const char *directory, const char *reason) {
  expect_use((struct use){directory, reason, true});
}

static void make_directory(const char *path, mode_t mode) { CHECK(mkdir(path, mode) == 0 && chmod(path, mode) == 0); }

/* base + "/" + name, in one of several buffers so that a call can hold two. */
static const char *in(const scratch *s, const char *name) {
  static char buffers[4][PATH_MAX];
  static int next;
  char *buffer = buffers[next++ % 4];
  snprintf(buffer, PATH_MAX, "%s/%s", s->base, name);
  return buffer;
}

static void test_modes_of_the_directory(void) {
  scratch s = scratch_make();
  static const struct {
    mode_t mode;
    const char *reason;
  } cases[] = {
      {0700, NULL},           {0755, NULL},           {02750, NULL},           {0770, "by its group"},
      {0702, "by everybody"}, {0777, "by everybody"}, {01777, "by everybody"}, /* sticky does not help the directory
                                                                                  itself: strangers can add entries */
      {01770, "by its group"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    char name[32];
    snprintf(name, sizeof name, "mode%o", (unsigned)cases[i].mode);
    make_directory(in(&s, name), cases[i].mode);
    expect(in(&s, name), cases[i].reason);
  }
  scratch_remove(&s);
}

/* A directory is as safe as the least safe one above it; /tmp is safe because it is sticky. */
static void test_parents(void) {
  scratch s = scratch_make();
  make_directory(in(&s, "open"), 0777);
  make_directory(in(&s, "open/ours"), 0700);
  make_directory(in(&s, "open/ours/deep"), 0700);
  expect(in(&s, "open/ours/deep"), "/open can be written by everybody");
  expect(in(&s, "open/new"), "/open can be written by everybody");
  CHECK(!exists(in(&s, "open/new")));
  make_directory(in(&s, "group"), 0770);
  make_directory(in(&s, "group/ours"), 0700);
  expect(in(&s, "group/ours"), "/group can be written by its group");
  make_directory(in(&s, "sticky"), 01777);
  make_directory(in(&s, "sticky/ours"), 0700);
  expect(in(&s, "sticky/ours"), NULL);
  expect(in(&s, "sticky/new"), NULL);
  expect(in(&s, "sticky/ours/../../sticky/./ours//"), NULL);
  scratch_remove(&s);
}

static void test_symlinks(void) {
  scratch s = scratch_make();
  make_directory(in(&s, "real"), 0700);
  make_directory(in(&s, "open"), 0777);
  make_directory(in(&s, "open/inner"), 0700);
  make_directory(in(&s, "sticky"), 01777);
  CHECK(symlink(in(&s, "real"), in(&s, "absolute")) == 0);
  CHECK(symlink("real", in(&s, "relative")) == 0);
  CHECK(symlink("../real/../relative", in(&s, "sticky/ours")) == 0);
  CHECK(symlink("absent/deep", in(&s, "dangling")) == 0);
  CHECK(symlink("loop2", in(&s, "loop1")) == 0 && symlink("loop1", in(&s, "loop2")) == 0);
  CHECK(symlink("../real", in(&s, "open/link")) == 0);
  CHECK(symlink("open/inner", in(&s, "into")) == 0);
  expect(in(&s, "absolute"), NULL);
  expect(in(&s, "relative"), NULL);
  expect(in(&s, "relative/sub"), NULL);
  expect(in(&s, "sticky/ours"), NULL);
  expect(in(&s, "dangling"), NULL); /* what it names is made */
  CHECK(exists(in(&s, "absent/deep")));
  expect(in(&s, "loop1"), strerror(ELOOP));
  expect(in(&s, "open/link"), "/open can be written by everybody"); /* others can point it elsewhere */
  expect(in(&s, "into"), "/open can be written by everybody");      /* it leads through where others can write */
  scratch_remove(&s);
}

static void test_no_directory_at_all(void) {
  scratch s = scratch_make();
  CHECK(write_file(in(&s, "file"), "x", 1));
  expect(in(&s, "file"), strerror(ENOTDIR));
  expect(in(&s, "file/below"), strerror(ENOTDIR));
  char deep[PATH_MAX];
  memset(deep, 'x', sizeof deep - 1);
  deep[0] = '/';
  deep[sizeof deep - 1] = '\0';
  expect(deep, strerror(ENAMETOOLONG));
  unsetenv("HOME");
  unsetenv("XDG_CACHE_HOME");
  unsetenv("FLASH_ATTENTION_CACHE_DIR");
  expect(NULL, "HOME is not set");
  setenv("HOME", in(&s, "file"), 1);
  expect(NULL, strerror(ENOTDIR));
  setenv("HOME", in(&s, "home"), 1); /* is made, as it is ours to make */
  expect(NULL, NULL);
  scratch_remove(&s);
}

/* An entry in our directory that another user owns is not believed. */
static void their_entry_body(void *argument) {
  const scratch *s = argument;
  char path[PATH_MAX];
  uint64_t seed = 0;
  fa_cache *cache = fa_cache_open(s->directory);
  fa_key key = key_of("kernel", 1);
  entry_path(s->directory, &key, FA_CACHE_SCHEMA, path);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 1, 10) && get_stamped(cache, 1, &seed) == 1);
  CHECK(chown(path, NOBODY, NOBODY) == 0);
  CHECK(get_stamped(cache, 1, &seed) == 0);
  fa_key_free(&key);
  fa_cache_close(cache);
}
static void test_other_owners(void) {
  if (geteuid() != 0) {
    SKIP("only root can make a directory that belongs to another user");
    return;
  }
  scratch s = scratch_make();
  CHECK(chmod(s.base, 0755) == 0);
  make_directory(in(&s, "theirs"), 0755);
  make_directory(in(&s, "theirs/ours"), 0755);
  make_directory(in(&s, "ours"), 0700);
  make_directory(in(&s, "sticky"), 01777);
  make_directory(in(&s, "sticky/theirs"), 0755);
  CHECK(symlink("../ours", in(&s, "sticky/link")) == 0);
  CHECK(chown(in(&s, "theirs"), NOBODY, NOBODY) == 0);
  CHECK(chown(in(&s, "sticky/theirs"), NOBODY, NOBODY) == 0);
  CHECK(lchown(in(&s, "sticky/link"), NOBODY, NOBODY) == 0);
  expect(in(&s, "theirs"), "belongs to user 65534");
  expect(in(&s, "theirs/ours"), "/theirs belongs to user 65534");
  expect(in(&s, "sticky/theirs"), "belongs to user 65534");
  expect(in(&s, "sticky/link"), "/link belongs to user 65534");
  expect_as_nobody(in(&s, "theirs"), NULL); /* for them it is their own */
  expect_as_nobody(in(&s, "ours"), strerror(EACCES));
  expect_as_nobody(in(&s, "absent"), strerror(EACCES)); /* cannot be made below root's directory */

  char text[8192];
  scratch entries = s;
  snprintf(entries.directory, sizeof entries.directory, "%s", in(&s, "ours"));
  CHECK_NUMBER(lines_said(their_entry_body, &entries, text, sizeof text), 1);
  scratch_remove(&s);
}

/* A cache that may only be read (filled by root, for another user; else our own without the right to write): hits, no
 * stores, one line. */
static void read_only_body(void *argument) {
  const scratch *s = argument;
  char reason[FA_REASON_SIZE];
  uint64_t seed = 0;
  CHECK(geteuid() != 0 || become_nobody());
  fa_cache *cache = fa_cache_open(s->directory);
  fa_key key = key_of("kernel", 3);
  CHECK(!fa_cache_usable(cache, reason, sizeof reason) && strstr(reason, strerror(EACCES)) != NULL);
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 9);
  CHECK(get_stamped(cache, 3, &seed) == 0);
  double before = (double)time(NULL);
  CHECK(fa_cache_lock_key(cache, &key, 30) == NULL); /* at once: waiting could not help */
  CHECK((double)time(NULL) - before < 10);
  CHECK(!put_stamped(cache, FA_CACHE_REPLACE, 3, 1, 10));
  CHECK(!put_stamped(cache, FA_CACHE_KEEP_FIRST, 1, 1, 10));
  CHECK(get_stamped(cache, 1, &seed) == 1 && seed == 9);
  CHECK(fa_cache_clear(cache) == -1);
  fa_key_free(&key);
  fa_cache_close(cache);
}
static void test_read_only(void) {
  scratch s = scratch_make();
  char path[PATH_MAX], text[8192];
  fa_cache *cache = fa_cache_open(s.directory);
  fa_key key = key_of("kernel", 1);
  CHECK(put_stamped(cache, FA_CACHE_REPLACE, 1, 9, 10));
  entry_path(s.directory, &key, FA_CACHE_SCHEMA, path);
  CHECK(chmod(s.base, 0755) == 0 && chmod(path, 0644) == 0);
  CHECK(chmod(s.directory, geteuid() == 0 ? 0755 : 0500) == 0);
  make_older(path, 1000);
  CHECK_NUMBER(lines_said(read_only_body, &s, text, sizeof text), 1);
  CHECKF(strstr(text, "going on without storing") != NULL, "%s", text);
  CHECK(chmod(s.directory, 0700) == 0);
  fa_key_free(&key);
  fa_cache_close(cache);
  scratch_remove(&s);
}

int main(void) {
  RUN(test_modes_of_the_directory);
  RUN(test_parents);
  RUN(test_symlinks);
  RUN(test_no_directory_at_all);
  RUN(test_other_owners);
  RUN(test_read_only);
  return check_summary();
}
