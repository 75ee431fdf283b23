/*
 * The result of an expansion, with the #line directives that lead each of its lines back to a template.
 *
 *     fa_output_begin_line(&output, file_name, line, false);   writes a #line or blank lines where needed
 *     ... fa_text_add(&output.text, ...) ...
 *     fa_output_end_line(&output);
 */
#ifndef FLASH_ATTENTION_TEMPLATE_OUTPUT_H
#define FLASH_ATTENTION_TEMPLATE_OUTPUT_H

#include "generator/text.h"

typedef struct fa_output {
  fa_text text; /* owned */
  /* What the compiler takes the next line for. Names are compared by address: one file, one name. */
  const char *mapped_file;
  size_t mapped_line; /* from 0 */
  size_t line_start;
  bool in_continued_line; /* the last line ends with a backslash */
  bool in_comment;        /* the last line ends inside of one */
} fa_output;

void fa_output_begin_line(fa_output *output, const char *file_name, size_t line, bool is_blank);
void fa_output_end_line(fa_output *output);

#endif
