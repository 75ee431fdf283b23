/*
 * The template engine; see template.h for the language. A template is expanded in one pass over its lines:
 * expand_lines copies text and handles directives until the block it was called for ends; blocks inside
 * recurse, and a loop runs over its lines once for each value. A part that is skipped is walked over in the
 * same way with `active` false, which looks at directive words only.
 */
#include "generator/template.h"

#include "generator/constants.h"
#include "generator/template_file.h"
#include "generator/template_output.h"
#include "generator/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  MAX_DEPTH = 64,       /* blocks and includes inside each other: bounds the stack */
  MAX_LINES = 1000000,  /* lines looked at: ends a runaway loop within a second */
  MAX_OUTPUT = 64 << 20 /* bytes */
};

/* Where the expansion is: one for the template and for each include being expanded. */
typedef struct frame {
  struct frame *parent;
  const fa_template_file *file;
  size_t line; /* from 0 */
} frame;

typedef enum stop { STOP_END_OF_FILE, STOP_ELIF, STOP_ELSE, STOP_END } stop;

typedef struct expander {
  const char *template_dir;
  fa_template_file *files;
  frame *at;
  fa_scope scope;
  int depth;
  size_t lines_seen;
  fa_output output;
  bool failed;
  char *message;
  size_t message_size;
} expander;

/* The first failure is the one that is told. */
static bool fail(expander *x, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool fail(expander *x, const char *format, ...) {
  if (x->failed)
    return false;
  x->failed = true;
  fa_text text = {0};
  fa_text_print(&text, "%s:%zu: ", x->at->file->name, x->at->line + 1);
  char reason[640];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reason, sizeof reason, format, arguments);
  va_end(arguments);
  fa_text_print(&text, "%s", reason);
  for (const frame *f = x->at->parent; f; f = f->parent)
    fa_text_print(&text, "%s%s:%zu%s", f == x->at->parent ? " (included from " : ", ", f->file->name, f->line + 1,
                  f->parent ? "" : ")");
  snprintf(x->message, x->message_size, "%s", text.failed ? "out of memory" : text.data);
  fa_text_free(&text);
  return false;
}

static bool define(expander *x, const char *name, size_t length, const fa_value *value, bool may_replace) {
  const char *reason = fa_scope_define(&x->scope, name, length, value, may_replace);
  return !reason || fail(x, "'%.*s': %s", (int)(length > 200 ? 200 : length), name, reason);
}

static fa_scanner scan(expander *x, const char *text, size_t length) {
  return (fa_scanner){.position = text, .end = text + length, .lookup = fa_scope_lookup, .context = &x->scope};
}

/* Nothing but blanks may follow a directive. */
static bool at_line_end(expander *x, fa_scanner *scanner) {
  fa_scan_blanks(scanner);
  if (scanner->position == scanner->end)
    return true;
  fa_scan_fail_here(scanner, "the end of the line");
  return fail(x, "%s", scanner->error);
}

/* Copies text with every ${EXPR} replaced. */
static bool substitute(expander *x, const char *text, size_t length, fa_text *result) {
  const char *end = text + length;
  for (;;) {
    const char *dollar = text;
    while ((dollar = memchr(dollar, '$', (size_t)(end - dollar))) && (dollar + 1 == end || dollar[1] != '{'))
      dollar++;
    fa_text_add(result, text, (size_t)((dollar ? dollar : end) - text));
    if (!dollar)
      return true;
    fa_scanner scanner = scan(x, dollar + 2, (size_t)(end - dollar) - 2);
    fa_value value;
    if (!fa_expression_read(&scanner, &value))
      return fail(x, "%s", scanner.error);
    if (!fa_scan_symbol(&scanner, "}")) {
      fa_scan_fail_here(&scanner, "'}'");
      return fail(x, "%s", scanner.error);
    }
    if (value.is_text)
      fa_text_add(result, value.text, value.length);
    else
      fa_text_print(result, "%lld", value.number);
    text = scanner.position;
  }
}

static bool copy_line(expander *x, const fa_template_line *line) {
  fa_output_begin_line(&x->output, x->at->file->name, x->at->line, line->length == 0);
  if (!substitute(x, line->text, line->length, &x->output.text))
    return false;
  fa_output_end_line(&x->output);
  if (x->output.text.failed)
    return fail(x, "out of memory");
  return x->output.text.length <= MAX_OUTPUT || fail(x, "the result is longer than %d bytes", MAX_OUTPUT);
}

static bool expand_lines(expander *x, bool active, stop *stopped);

/* The lines of one block: its names end with it. */
static bool expand_block(expander *x, bool active, stop *stopped) {
  if (x->depth == MAX_DEPTH)
    return fail(x, "more than %d blocks and includes inside each other", MAX_DEPTH);
  size_t outer = fa_scope_enter(&x->scope);
  x->depth++;
  x->at->line++;
  bool expanded = expand_lines(x, active, stopped);
  x->depth--;
  fa_scope_leave(&x->scope, outer);
  return expanded;
}

static bool fail_unclosed(expander *x, const char *word, size_t opened) {
  x->at->line = opened;
  return fail(x, "this '%s' has no '//%% end'", word);
}

/* From the line of the `if` to the line of its `end`. */
static bool expand_if(expander *x, bool active, fa_scanner *scanner) {
  size_t opened = x->at->line;
  fa_scanner condition = *scanner;
  bool taken = false;
  for (stop kind = STOP_ELIF;;) {
    long long truth = 1;
    if (active && kind == STOP_ELIF) {
      condition.unneeded = taken; /* its names are still looked up, so that they count as read */
      if (!fa_expression_read_number(&condition, &truth))
        return fail(x, "%s", condition.error);
      if (!at_line_end(x, &condition))
        return false;
    }
    bool run = active && !taken && truth;
    taken |= run;
    stop previous = kind;
    if (!expand_block(x, run, &kind))
      return false;
    if (kind == STOP_END_OF_FILE)
      return fail_unclosed(x, "if", opened);
    if (kind == STOP_END)
      return true;
    if (previous == STOP_ELSE)
      return fail(x, "'%s' after 'else'", kind == STOP_ELSE ? "else" : "elif");
    const fa_template_line *line = &x->at->file->line[x->at->line];
    const char *word;
    condition = scan(x, line->text, line->length);
    fa_scan_symbol(&condition, "//%");
    fa_scan_name(&condition, &word);
  }
}

/* From the line of the `for` to the line of its `end`. */
static bool expand_for(expander *x, bool active, fa_scanner *scanner) {
  size_t opened = x->at->line, length = 0;
  const char *name = NULL, *word;
  long long first = 0, end = 0;
  if (active) {
    if ((length = fa_scan_name(scanner, &name)) == 0)
      fa_scan_fail_here(scanner, "the name of the loop's variable");
    else if (fa_scan_name(scanner, &word) != 2 || memcmp(word, "in", 2) != 0)
      fa_scan_fail(scanner, "'in' expected after the loop's variable");
    else if (fa_expression_read_number(scanner, &first) && !fa_scan_symbol(scanner, ".."))
      fa_scan_fail_here(scanner, "'..'");
    else if (!scanner->error[0])
      fa_expression_read_number(scanner, &end);
    if (scanner->error[0])
      return fail(x, "%s", scanner->error);
    if (!at_line_end(x, scanner))
      return false;
  }
  bool run = active && first < end;
  for (long long i = first;; i++) {
    stop kind = STOP_END_OF_FILE;
    size_t outer = fa_scope_enter(&x->scope);
    x->at->line = opened;
    if (run && !define(x, name, length, &(fa_value){.number = i}, false))
      return false;
    if (!expand_block(x, run, &kind))
      return false;
    fa_scope_leave(&x->scope, outer);
    if (kind == STOP_END_OF_FILE)
      return fail_unclosed(x, "for", opened);
    if (kind != STOP_END)
      return fail(x, "'%s' without 'if'", kind == STOP_ELSE ? "else" : "elif");
    if (!run || i + 1 >= end)
      return true;
  }
}

static bool expand_include(expander *x, fa_scanner *scanner) {
  fa_value name;
  char reason[512];
  if (!fa_expression_read_text(scanner, &name))
    return fail(x, "%s", scanner->error);
  if (!at_line_end(x, scanner))
    return false;
  fa_template_file *file = x->files;
  while (file && (strlen(file->name) != name.length || memcmp(file->name, name.text, name.length) != 0))
    file = file->next;
  if (!file) {
    if (!(file = fa_template_file_read(x->template_dir, name.text, name.length, reason, sizeof reason)))
      return fail(x, "%s", reason);
    file->next = x->files;
    x->files = file;
  }
  for (const frame *f = x->at; f; f = f->parent)
    if (f->file == file)
      return fail(x, "'%s' includes itself", file->name);
  if (x->depth == MAX_DEPTH)
    return fail(x, "more than %d blocks and includes inside each other", MAX_DEPTH);
  frame inside = {.parent = x->at, .file = file};
  stop kind = STOP_END_OF_FILE;
  x->at = &inside;
  x->depth++;
  bool expanded = expand_lines(x, true, &kind);
  if (expanded && kind != STOP_END_OF_FILE)
    expanded = fail(x, "'%s' closes nothing", kind == STOP_END ? "end" : kind == STOP_ELSE ? "else" : "elif");
  x->depth--;
  x->at = inside.parent;
  return expanded;
}

static bool expand_let(expander *x, fa_scanner *scanner) {
  const char *name;
  fa_value value;
  size_t length = fa_scan_name(scanner, &name);
  if (length == 0)
    fa_scan_fail_here(scanner, "a name");
  else if (!fa_scan_symbol(scanner, "="))
    fa_scan_fail_here(scanner, "'='");
  else
    fa_expression_read(scanner, &value);
  if (scanner->error[0])
    return fail(x, "%s", scanner->error);
  return at_line_end(x, scanner) && define(x, name, length, &value, true);
}

static bool expand_error(expander *x, fa_scanner *scanner) {
  fa_value value;
  fa_text text = {0};
  if (!fa_expression_read_text(scanner, &value))
    return fail(x, "%s", scanner->error);
  if (at_line_end(x, scanner) && substitute(x, value.text, value.length, &text))
    fail(x, "%s", text.data ? text.data : "");
  fa_text_free(&text);
  return false;
}

/* Handles a directive that does not end a block; *stopped tells of one that does. */
static bool expand_directive(expander *x, bool active, fa_scanner *scanner, stop *stopped) {
  static const char *const words[] = {"end", "else", "elif", "if", "for", "include", "let", "error"};
  enum { END, ELSE, ELIF, IF, FOR, INCLUDE, LET, ERROR, NUM_WORDS };
  const char *word = NULL;
  size_t length = fa_scan_name(scanner, &word);
  int found = 0;
  while (found < NUM_WORDS && (strlen(words[found]) != length || memcmp(words[found], word, length) != 0))
    found++;
  *stopped = STOP_END_OF_FILE;
  switch (found) {
  case END:
  case ELSE:
    *stopped = found == END ? STOP_END : STOP_ELSE;
    return at_line_end(x, scanner);
  case ELIF:
    *stopped = STOP_ELIF;
    return true;
  case IF:
    return expand_if(x, active, scanner);
  case FOR:
    return expand_for(x, active, scanner);
  case INCLUDE:
    return !active || expand_include(x, scanner);
  case LET:
    return !active || expand_let(x, scanner);
  case ERROR:
    return !active || expand_error(x, scanner);
  default:
    return fail(x, "unknown directive '%.*s'; there are if, elif, else, end, for, include, let, error and #",
                (int)(length > 40 ? 40 : length), length ? word : "");
  }
}

/* From the current line to the end of the file or a directive that ends a block, which becomes the current line. */
static bool expand_lines(expander *x, bool active, stop *stopped) {
  for (; x->at->line < x->at->file->num_lines; x->at->line++) {
    const fa_template_line *line = &x->at->file->line[x->at->line];
    fa_scanner scanner = scan(x, line->text, line->length);
    *stopped = STOP_END_OF_FILE;
    if (++x->lines_seen > MAX_LINES)
      return fail(x, "more than %d lines were expanded: a loop runs too long", MAX_LINES);
    if (!fa_scan_symbol(&scanner, "//%")) {
      if (active && !copy_line(x, line))
        return false;
    } else if (scanner.position == scanner.end || *scanner.position != '#') {
      if (!expand_directive(x, active, &scanner, stopped))
        return false;
      if (*stopped != STOP_END_OF_FILE)
        return true;
    }
  }
  *stopped = STOP_END_OF_FILE;
  return true;
}

char *fa_template_expand(const char *template_dir, const char *name, fa_constants *constants, char *message,
                         size_t message_size) {
  expander x = {.template_dir = template_dir,
                .scope = {.constants = constants},
                .message = message,
                .message_size = message_size};
  for (size_t i = 0; i < constants->count; i++)
    constants->item[i].was_read = false;
  x.files = fa_template_file_read(template_dir, name, strlen(name), message, message_size);
  if (!x.files)
    return NULL;
  frame top = {.file = x.files};
  stop kind = STOP_END_OF_FILE;
  x.at = &top;
  fa_text_add(&x.output.text, "", 0);
  if (expand_lines(&x, true, &kind) && kind != STOP_END_OF_FILE)
    fail(&x, "'%s' closes nothing", kind == STOP_END ? "end" : kind == STOP_ELSE ? "else" : "elif");
  for (size_t i = 0; i < constants->count && !x.failed; i++)
    if (constants->item[i].must_be_read && !constants->item[i].was_read) {
      x.failed = true;
      snprintf(message, message_size, "%s: constant '%s' was set but no template reads it", name,
               constants->item[i].name);
    }
  if (!x.failed && x.output.text.failed)
    fail(&x, "out of memory");
  while (x.files) {
    fa_template_file *next = x.files->next;
    fa_template_file_free(x.files);
    x.files = next;
  }
  free(x.scope.local);
  if (x.failed)
    fa_text_free(&x.output.text);
  return x.output.text.data;
}
