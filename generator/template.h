/*
 * The template language: text with line directives and ${name} substitutions, expanded against a set of
 * named constants. docs/templates.md is its manual.
 *
 *     fa_constants constants = {0};
 *     fa_constants_set_int(&constants, "block_m", 64);
 *     fa_constants_set_text(&constants, "dtype", "fp32");
 *     char *text = fa_template_expand(template_dir, "cpu/forward.c", &constants, message, sizeof message);
 *     fa_constants_free(&constants);
 *
 * Directives, each alone on its line (leading blanks allowed):
 *     //% if EXPR / //% elif EXPR / //% else / //% end
 *     //% for NAME in EXPR .. EXPR          half open: 0 .. 3 gives 0 1 2; the bounds are expressions
 *     //% end
 *     //% include "path/relative/to/template_dir"
 *     //% let NAME = EXPR                   a constant from here to the end of the enclosing block
 *     //% error "text"
 *     //%# a comment that is not copied
 * EXPR: integers, names, text literals "..", + - * / % == != < <= > >= && || ! ( ) and the functions
 * min(a, b), max(a, b), ceil_div(a, b), round_up(a, b). Text compares with == and != only.
 * In any other line ${EXPR} is replaced by its value.
 *
 * An error is reported as "cpu/forward.c:12: what is wrong"; these are errors: an unknown name, an unclosed
 * or unopened block, an unknown directive, a constant that the caller set and no line read (set with
 * fa_constants_set_*), division by zero, an include that is missing or includes itself.
 *
 * #line directives (`#line 12 "cpu/forward.c"`) map the result back to the templates; one is written only where the
 * numbering jumps.
 */
#ifndef FLASH_ATTENTION_TEMPLATE_H
#define FLASH_ATTENTION_TEMPLATE_H

#include <stddef.h>

typedef struct fa_constants {
  struct fa_constant *item; /* owned */
  size_t count, capacity;
} fa_constants;

/* Set or replace. Return 0, or -1 out of memory. Names and text are copied. */
int fa_constants_set_int(fa_constants *constants, const char *name, long long value);
int fa_constants_set_text(fa_constants *constants, const char *name, const char *value);
/* The same, but a template need not read it. */
int fa_constants_offer_int(fa_constants *constants, const char *name, long long value);
int fa_constants_offer_text(fa_constants *constants, const char *name, const char *value);
void fa_constants_free(fa_constants *constants);

/* Expand one template. Returns malloc'ed, NUL-terminated text that the caller frees, or NULL with the reason
 * in message. */
char *fa_template_expand(const char *template_dir, const char *name, fa_constants *constants, char *message,
                         size_t message_size);

#endif
