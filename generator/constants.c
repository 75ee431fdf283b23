/* The constants that a caller gives to a template; see template.h. */
#include "generator/constants.h"

#include <stdlib.h>
#include <string.h>

fa_constant *fa_constants_find(const fa_constants *constants, const char *name, size_t length) {
  for (size_t i = 0; i < constants->count; i++)
    if (strlen(constants->item[i].name) == length && memcmp(constants->item[i].name, name, length) == 0)
      return &constants->item[i];
  return NULL;
}

/* Takes ownership of `text`. */
static int set(fa_constants *constants, const char *name, char *text, long long number, bool must_be_read) {
  fa_constant *constant = fa_constants_find(constants, name, strlen(name));
  if (!constant) {
    if (constants->count == constants->capacity) {
      size_t capacity = constants->capacity ? 2 * constants->capacity : 16;
      fa_constant *item = realloc(constants->item, capacity * sizeof *item);
      if (!item)
        goto out_of_memory;
      constants->item = item;
      constants->capacity = capacity;
    }
    char *copy = strdup(name);
    if (!copy)
      goto out_of_memory;
    constant = &constants->item[constants->count++];
    *constant = (fa_constant){.name = copy};
  }
  free(constant->text);
  constant->text = text;
  constant->number = number;
  constant->must_be_read = must_be_read;
  return 0;
out_of_memory:
  free(text);
  return -1;
}

static int set_text(fa_constants *constants, const char *name, const char *value, bool must_be_read) {
  char *text = strdup(value);
  return text ? set(constants, name, text, 0, must_be_read) : -1;
}

int fa_constants_set_int(fa_constants *constants, const char *name, long long value) {
  return set(constants, name, NULL, value, true);
}

int fa_constants_set_text(fa_constants *constants, const char *name, const char *value) {
  return set_text(constants, name, value, true);
}

int fa_constants_offer_int(fa_constants *constants, const char *name, long long value) {
  return set(constants, name, NULL, value, false);
}

int fa_constants_offer_text(fa_constants *constants, const char *name, const char *value) {
  return set_text(constants, name, value, false);
}

void fa_constants_free(fa_constants *constants) {
  for (size_t i = 0; i < constants->count; i++) {
    free(constants->item[i].name);
    free(constants->item[i].text);
  }
  free(constants->item);
  *constants = (fa_constants){0};
}
