/*
 * Which command compiles C here: $CC with its arguments, else the first of cc, gcc and clang on PATH.
 */
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void fa_command_free(fa_command *command) {
  for (int i = 0; i < command->count; i++)
    free(command->word[i]);
  memset(command, 0, sizeof *command);
}

static int add_word(fa_command *command, const char *word) {
  if (command->count == FA_MAX_COMMAND_WORDS)
    return -1;
  command->word[command->count] = strdup(word);
  if (!command->word[command->count])
    return -1;
  command->word[++command->count] = NULL;
  return 0;
}

int fa_split_words(const char *text, fa_command *command) {
  memset(command, 0, sizeof *command);
  char word[PATH_MAX];
  size_t length = 0;
  bool inside = false; /* a word has begun; it may still be empty, as '' is */
  char quote = 0;
  for (const char *c = text;; c++) {
    bool blank = *c == ' ' || *c == '\t' || *c == '\n';
    if (!*c && quote)
      break;
    if (!quote && (!*c || blank)) {
      word[length] = 0;
      if (inside && add_word(command, word) != 0)
        break;
      inside = false;
      length = 0;
      if (!*c)
        return 0;
      continue;
    }
    inside = true;
    if (quote && *c == quote) {
      quote = 0;
      continue;
    }
    if (!quote && (*c == '\'' || *c == '"')) {
      quote = *c;
      continue;
    }
    /* Between double quotes a backslash escapes only what would be special there. */
    if (*c == '\\' && quote != '\'' && c[1] && (!quote || strchr("\"\\$`", c[1])))
      c++;
    if (length + 1 == sizeof word)
      break;
    word[length++] = *c;
  }
  fa_command_free(command);
  return -1;
}

static bool is_program(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISREG(info.st_mode) && access(path, X_OK) == 0;
}

static bool find_on_path(const char *name, char path[PATH_MAX]) {
  if (strchr(name, '/'))
    return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX && is_program(path);
  const char *search = getenv("PATH");
  if (!search)
    search = "/usr/local/bin:/usr/bin:/bin";
  while (*search) {
    size_t length = strcspn(search, ":");
    if (length > 0 && snprintf(path, PATH_MAX, "%.*s/%s", (int)length, search, name) < PATH_MAX && is_program(path))
      return true;
    search += length + (search[length] == ':');
  }
  return false;
}

static int replace_word(fa_command *command, const char *path) {
  char *copy = strdup(path);
  if (!copy)
    return -1;
  free(command->word[0]);
  command->word[0] = copy;
  return 0;
}

fa_status fa_find_cpu_compiler(fa_command *command, char *message) {
  static const char *const names[] = {"cc", "gcc", "clang"};
  static const char advice[] = "install a C compiler (Debian, Ubuntu: apt-get install gcc; Fedora: dnf install gcc; "
                               "conda: conda install -c conda-forge gcc) or set CC to one";
  char path[PATH_MAX];
  const char *cc = getenv("CC");
  if (cc && cc[strspn(cc, " \t\n")]) {
    if (fa_split_words(cc, command) != 0)
      return fa_fail(FA_NO_COMPILER, message, "CC is '%s', which does not split into words; %s", cc, advice);
    if (command->count > 0 && find_on_path(command->word[0], path) && replace_word(command, path) == 0)
      return FA_OK;
    fa_fail(FA_NO_COMPILER, message, "CC is '%s', but there is no program '%s'; %s", cc,
            command->count > 0 ? command->word[0] : "", advice);
    fa_command_free(command);
    return FA_NO_COMPILER;
  }
  memset(command, 0, sizeof *command);
  for (int i = 0; i < 3; i++)
    if (find_on_path(names[i], path) && add_word(command, path) == 0)
      return FA_OK;
  return fa_fail(FA_NO_COMPILER, message,
                 "attention kernels are compiled on this machine, and none of cc, gcc and clang is on PATH; %s",
                 advice);
}
