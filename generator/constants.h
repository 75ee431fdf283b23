/* What fa_constants holds inside; only the template engine looks here. */
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

/* NULL if there is none. */
fa_constant *fa_constants_find(const fa_constants *constants, const char *name, size_t length);

#endif
