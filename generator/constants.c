/* The names that a template knows; see template.h for the caller's constants and constants.h for the rest. */
#include "generator/constants.h"

#include <stdlib.h>
#include <string.h>

static fa_constant *find_constant(const fa_constants *constants, const char *name, size_t length) {
  for (size_t i = 0; i < constants->count; i++)
    if (strlen(constants->item[i].name) == length && memcmp(constants->item[i].name, name, length) == 0)
      return &constants->item[i];
  return NULL;
}

/* Takes ownership of `text`. */
static int set(fa_constants *constants, const char *name, char *text, long long number, bool must_be_read) {
  fa_constant *constant = find_constant(constants, name, strlen(name));
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

static fa_local *find_local(const fa_scope *scope, const char *name, size_t length) {
  for (size_t i = scope->count; i-- > 0;)
    if (scope->local[i].length == length && !memcmp(scope->local[i].name, name, length))
      return &scope->local[i];
  return NULL;
}

bool fa_scope_lookup(void *context, const char *name, size_t length, fa_value *value) {
  fa_scope *scope = context;
  const fa_local *local = find_local(scope, name, length);
  if (local) {
    *value = local->value;
    return true;
  }
  fa_constant *constant = find_constant(scope->constants, name, length);
  if (!constant)
    return false;
  constant->was_read = true;
  *value = (fa_value){.is_text = constant->text != NULL,
                      .number = constant->number,
                      .text = constant->text,
                      .length = constant->text ? strlen(constant->text) : 0};
  return true;
}

const char *fa_scope_define(fa_scope *scope, const char *name, size_t length, const fa_value *value, bool may_replace) {
  fa_local *old = find_local(scope, name, length);
  if (may_replace && old && (size_t)(old - scope->local) >= scope->block_start) {
    old->value = *value;
    return NULL;
  }
  if (old)
    return "the name is taken in a block around this one";
  if (find_constant(scope->constants, name, length))
    return "the name is taken by a constant of the generator";
  if (scope->count == scope->capacity) {
    size_t capacity = scope->capacity ? 2 * scope->capacity : 32;
    fa_local *local = realloc(scope->local, capacity * sizeof *local);
    if (!local)
      return "out of memory";
    scope->local = local;
    scope->capacity = capacity;
  }
  scope->local[scope->count++] = (fa_local){name, length, *value};
  return NULL;
}

size_t fa_scope_enter(fa_scope *scope) {
  size_t outer = scope->block_start;
  scope->block_start = scope->count;
  return outer;
}

/* The locals of this block are those from its start on. */
void fa_scope_leave(fa_scope *scope, size_t outer) {
  scope->count = scope->block_start;
  scope->block_start = outer;
}
