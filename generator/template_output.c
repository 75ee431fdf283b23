/* The result of an expansion and its #line directives; see template_output.h. */
#include "generator/template_output.h"

enum { MAX_BLANK_LINES = 2 }; /* a gap up to this long is filled with blank lines rather than with a #line */

/* A line that is continued with a backslash can have neither a blank line nor a directive behind it, and in a comment
 * a directive is only text: there the numbers are left wrong and put right behind it. So they are for a blank line:
 * the directive looks better below it. */
void fa_output_begin_line(fa_output *output, const char *file_name, size_t line, bool is_blank) {
  bool same_file = file_name == output->mapped_file;
  bool is_right = same_file && line == output->mapped_line;
  if (!is_right && !is_blank && !output->in_continued_line && !output->in_comment) {
    if (same_file && line > output->mapped_line && line - output->mapped_line <= MAX_BLANK_LINES)
      fa_text_add(&output->text, "\n\n", line - output->mapped_line);
    else
      fa_text_print(&output->text, "#line %zu \"%s\"\n", line + 1, file_name);
    output->mapped_file = file_name;
    output->mapped_line = line;
  }
  output->line_start = output->text.length;
}

/* Is the place behind this line of C inside of a block comment? */
static bool ends_in_comment(const char *line, const char *end, bool in_comment) {
  char quote = '\0';
  for (; line < end; line++) {
    if (in_comment) {
      if (end - line >= 2 && line[0] == '*' && line[1] == '/') {
        in_comment = false;
        line++;
      }
    } else if (quote) {
      if (*line == '\\')
        line++;
      else if (*line == quote)
        quote = '\0';
    } else if (*line == '"' || *line == '\'') {
      quote = *line;
    } else if (end - line >= 2 && line[0] == '/' && line[1] == '/') {
      return false;
    } else if (end - line >= 2 && line[0] == '/' && line[1] == '*') {
      in_comment = true;
      line++;
    }
  }
  return in_comment;
}

void fa_output_end_line(fa_output *output) {
  fa_text *text = &output->text;
  if (text->failed || !text->data)
    return;
  const char *start = text->data + output->line_start, *end = text->data + text->length;
  output->in_comment = ends_in_comment(start, end, output->in_comment);
  output->in_continued_line = end > start && end[-1] == '\\';
  fa_text_add(text, "\n", 1);
  output->mapped_line++;
}
