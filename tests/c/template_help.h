/* For the tests of the template language: templates in a directory that is removed at the end. */
#ifndef FLASH_ATTENTION_TESTS_TEMPLATE_HELP_H
#define FLASH_ATTENTION_TESTS_TEMPLATE_HELP_H

#include "generator/template.h"
#include "tests/c/check.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef FA_TEMPLATE_DIR
#define FA_TEMPLATE_DIR "templates" /* run from the repository's root */
#endif

static char test_dir[64];
static char test_message[4096];

static inline void make_test_dir(void) {
  char path[128];
  snprintf(test_dir, sizeof test_dir, "/tmp/flash_attention_test_XXXXXX");
  CHECK(mkdtemp(test_dir) != NULL);
  snprintf(path, sizeof path, "%s/cpu", test_dir);
  CHECK(mkdir(path, 0700) == 0);
}

/* Everything under the directory, and itself. */
static inline void remove_tree(const char *path) {
  char inside[512];
  DIR *directory = opendir(path);
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
      continue;
    snprintf(inside, sizeof inside, "%.300s/%.100s", path, entry->d_name);
    if (unlink(inside) != 0)
      remove_tree(inside);
  }
  if (directory)
    closedir(directory);
  rmdir(path);
}

static inline void remove_test_dir(void) { remove_tree(test_dir); }

static inline void write_bytes(const char *name, const char *data, size_t length) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", test_dir, name);
  FILE *stream = fopen(path, "wb");
  CHECK(stream != NULL);
  if (!stream)
    return;
  CHECK(fwrite(data, 1, length, stream) == length);
  CHECK(fclose(stream) == 0);
}

static inline void write_template(const char *name, const char *text) { write_bytes(name, text, strlen(text)); }

/* Expands main.c with `constants` or with none; the caller frees the result. */
static inline char *expand(fa_constants *constants) {
  fa_constants none = {0};
  test_message[0] = '\0';
  return fa_template_expand(test_dir, "main.c", constants ? constants : &none, test_message, sizeof test_message);
}

/* The result without its #line directives and blank lines. */
static inline char *expand_words(fa_constants *constants) {
  char *text = expand(constants), *out = text;
  if (!text)
    return NULL;
  for (char *line = text; *line;) {
    char *end = strchr(line, '\n');
    size_t length = end ? (size_t)(end - line) + 1 : strlen(line);
    char *next = line + length;
    if (strncmp(line, "#line ", 6) != 0 && *line != '\n') {
      memmove(out, line, length);
      out += length;
    }
    line = next;
  }
  *out = '\0';
  return text;
}

/* Checks that main.c, being `text`, gives the lines `expected`. */
#define CHECK_EXPANDS(constants, text, expected)                                                                       \
  do {                                                                                                                 \
    write_template("main.c", (text));                                                                                  \
    char *result_ = expand_words(constants);                                                                           \
    CHECKF(result_ &&strcmp(result_, (expected)) == 0, "got: %.900s", result_ ? result_ : test_message);               \
    free(result_);                                                                                                     \
  } while (0)

/* Checks that main.c, being `text`, fails with exactly this message. */
#define CHECK_REFUSED(constants, text, expected)                                                                       \
  do {                                                                                                                 \
    write_template("main.c", (text));                                                                                  \
    char *result_ = expand(constants);                                                                                 \
    CHECKF(!result_ && strcmp(test_message, (expected)) == 0, "got: %.900s", result_ ? result_ : test_message);        \
    free(result_);                                                                                                     \
  } while (0)

#endif
