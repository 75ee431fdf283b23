/*
 * A growing, always NUL-terminated piece of text. Start from {0}; after a failed allocation `failed` is true,
 * everything added later is dropped, and data may be shorter than what was added.
 */
#ifndef FLASH_ATTENTION_TEXT_H
#define FLASH_ATTENTION_TEXT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct fa_text {
  char *data; /* owned; NULL as long as nothing was added */
  size_t length, capacity;
  bool failed;
} fa_text;

void fa_text_add(fa_text *text, const char *data, size_t length);
void fa_text_print(fa_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fa_text_free(fa_text *text);

#endif
