/* The names that a template knows: the caller's constants and what the template defines itself. */
#ifndef FLASH_ATTENTION_CONSTANTS_H
#define FLASH_ATTENTION_CONSTANTS_H

#include "generator/expression.h"
#include "generator/template.h"

typedef struct fa_constant {
  char *name; /* owned */
  char *text; /* owned; NULL for a number */
  long long number;
  bool must_be_read; /* set, not just offered */
  bool was_read;     /* by the expansion going on */
} fa_constant;

/* A name defined in a template: a let, or a loop's variable. */
typedef struct fa_local {
  const char *name; /* borrowed from the template */
  size_t length;
  fa_value value;
} fa_local;

typedef struct fa_scope {
  fa_constants *constants;
  fa_local *local; /* owned, innermost last; freed with free() */
  size_t count, capacity;
  size_t block_start; /* locals from here on belong to the innermost block */
} fa_scope;

/* For fa_scanner: `scope` is an fa_scope. Marks a constant as read. */
bool fa_scope_lookup(void *scope, const char *name, size_t length, fa_value *value);

/* Returns NULL, or why not. A new value for a name of an outer block would be forgotten at the end of this one, which
 * nobody expects: refused. may_replace: a name of this block gets the new value, so that a file with lets can
 * be included twice. */
const char *fa_scope_define(fa_scope *scope, const char *name, size_t length, const fa_value *value, bool may_replace);

/* A block begins; what it returns goes to fa_scope_leave at the block's end. */
size_t fa_scope_enter(fa_scope *scope);
void fa_scope_leave(fa_scope *scope, size_t outer);

#endif
