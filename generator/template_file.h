/* Reading a template file and cutting it into lines. */
#ifndef FLASH_ATTENTION_TEMPLATE_FILE_H
#define FLASH_ATTENTION_TEMPLATE_FILE_H

#include <stddef.h>

typedef struct fa_template_line {
  const char *text; /* without its line end, CRLF included; not NUL-terminated */
  size_t length;
} fa_template_line;

typedef struct fa_template_file {
  struct fa_template_file *next;
  char *name; /* as included: "cpu/forward.c" */
  char *data;
  fa_template_line *line;
  size_t num_lines;
} fa_template_file;

/* NULL with one sentence in `message` if there is no such template or it cannot be one. */
fa_template_file *fa_template_file_read(const char *template_dir, const char *name, size_t name_length, char *message,
                                        size_t message_size);
void fa_template_file_free(fa_template_file *file);

#endif
