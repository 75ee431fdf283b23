/*
 * Show the source where a compiler complains. #line directives make it name a template's file and line, so
 * the same directives are followed here to find the generated line that it means.
 */
#define _GNU_SOURCE
#include "runtime/runtime.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 3 };

/* "cpu/forward.c:12:5: error: ..." (GCC, Clang) or "cuda/forward.cu(12): error: ..." (NVRTC): where what the line says
 * begins; NULL if that is no error. The word alone may be a warning's, or of the source line that a compiler shows. */
static const char *said_error(const char *line, size_t length) {
  static const char *const marks[] = {": error", ": fatal error", ": catastrophic error", "ptxas error", "ptxas fatal"};
  for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
    const char *found = memmem(line, length, marks[i], strlen(marks[i]));
    if (found && (found == line || found[-1] != ' ') && !memmem(line, (size_t)(found - line), "warning", 7))
      return found;
  }
  return NULL;
}

static const char *next_line(const char *line) {
  line += strcspn(line, "\n");
  return *line ? line + 1 : line;
}

const char *fa_first_error(const char *log) {
  for (const char *line = log; *line; line = next_line(line))
    if (said_error(line, strcspn(line, "\n")))
      return line;
  return log;
}

static bool find_error(const char *log, char *file, size_t file_size, int *number) {
  for (const char *line = log; *line; line = next_line(line)) {
    const char *error = said_error(line, strcspn(line, "\n"));
    if (!error)
      continue;
    for (const char *c = line + 1; c < error; c++) {
      if ((*c == ':' || *c == '(') && isdigit((unsigned char)c[1])) {
        *number = atoi(c + 1);
        return snprintf(file, file_size, "%.*s", (int)(c - line), line) < (int)file_size;
      }
    }
  }
  return false;
}

void fa_quote_source(const char *source, const char *log, char *text, size_t size) {
  char wanted_file[512];
  int wanted = 0;
  if (!find_error(log, wanted_file, sizeof wanted_file, &wanted))
    return;

  char file[512] = "";
  int mapped = 1, number = 1, found = 0;
  for (const char *line = source; *line && !found; number++) {
    size_t length = strcspn(line, "\n");
    int directive = 0;
    char name[512];
    if (sscanf(line, "#line %d \"%511[^\"\n]\"", &directive, name) == 2) {
      snprintf(file, sizeof file, "%s", name);
      mapped = directive;
    } else {
      /* Before the first #line the compiler uses the name of the file it was given, whatever that was. */
      if (mapped == wanted && (!*file || strcmp(file, wanted_file) == 0))
        found = number;
      mapped++;
    }
    line += length + (line[length] == '\n');
  }
  if (!found)
    return;

  fa_append(text, size, "generated source around %s:%d:\n", wanted_file, wanted);
  number = 1;
  for (const char *line = source; *line && number <= found + CONTEXT; number++) {
    size_t length = strcspn(line, "\n");
    if (number >= found - CONTEXT)
      fa_append(text, size, "%c%5d | %.*s\n", number == found ? '>' : ' ', number, (int)(length < 200 ? length : 200),
                line);
    line += length + (line[length] == '\n');
  }
}
