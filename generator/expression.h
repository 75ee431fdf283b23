/*
 * Expressions of the template language: integers of 64 bits and text, with C's operators and precedence.
 *
 *     fa_scanner scanner = {.position = text, .end = text + length, .lookup = lookup, .context = context};
 *     fa_value value;
 *     if (!fa_expression_read(&scanner, &value)) ... scanner.error says what is wrong ...
 *
 * Reading stops behind the expression; the caller looks at what follows. Every name is looked up, also on the
 * side of && or || that does not matter; but that side cannot fail otherwise, so `n != 0 && 8 % n == 0` works.
 */
#ifndef FLASH_ATTENTION_EXPRESSION_H
#define FLASH_ATTENTION_EXPRESSION_H

#include <stdbool.h>
#include <stddef.h>

typedef struct fa_value {
  bool is_text;
  long long number;
  const char *text; /* borrowed: from the scanned text or from a constant; not NUL-terminated */
  size_t length;
} fa_value;

typedef struct fa_scanner {
  const char *position, *end;
  bool (*lookup)(void *context, const char *name, size_t length, fa_value *value); /* false: unknown */
  void *context;
  int unneeded; /* above 0: the result does not matter, so only syntax and names can be wrong */
  int depth;
  char error[256];
} fa_scanner;

bool fa_expression_read(fa_scanner *scanner, fa_value *value);
/* The same, and the result must be a number / a text. */
bool fa_expression_read_number(fa_scanner *scanner, long long *number);
bool fa_expression_read_text(fa_scanner *scanner, fa_value *text);

/* Pieces of a directive around its expressions. */
void fa_scan_blanks(fa_scanner *scanner);
size_t fa_scan_name(fa_scanner *scanner, const char **name);    /* length, 0 if there is no name here */
bool fa_scan_symbol(fa_scanner *scanner, const char *symbol);   /* skips it if it is next */
bool fa_scan_fail(fa_scanner *scanner, const char *format, ...) /* sets error unless set; returns false */
    __attribute__((format(printf, 2, 3)));
/* "unexpected 'x'" for what is next, or "... ends too early". */
bool fa_scan_fail_here(fa_scanner *scanner, const char *expected);

#endif
