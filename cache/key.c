/*
 * Keys. The text is a row of netstrings, name and value in turn:
 *     4:kind,6:kernel,6:schema,1:1,6:source,1234:...,
 * Because every part says its length, no two different rows of fields have the same text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/internal.h"

static void append(fa_key *key, const void *data, size_t length) {
  if (key->failed)
    return;
  if (length > FA_ENTRY_LIMIT || key->length + length > FA_ENTRY_LIMIT) {
    key->failed = true;
    return;
  }
  if (key->length + length > key->capacity) {
    size_t capacity = 2 * (key->length + length) + 256;
    char *text = realloc(key->text, capacity);
    if (text == NULL) {
      key->failed = true;
      return;
    }
    key->text = text;
    key->capacity = capacity;
  }
  if (length > 0)
    memcpy(key->text + key->length, data, length);
  key->length += length;
}

static void append_netstring(fa_key *key, const void *data, size_t length) {
  char prefix[32];
  int prefix_length = snprintf(prefix, sizeof prefix, "%zu:", length);
  append(key, prefix, (size_t)prefix_length);
  append(key, data, length);
  append(key, ",", 1);
}

/* Kinds are part of file names. */
bool fa_key_kind_valid(const char *kind) {
  size_t length = strlen(kind);
  return length > 0 && length < sizeof((fa_key *)NULL)->kind &&
         strspn(kind, "abcdefghijklmnopqrstuvwxyz0123456789_") == length;
}

void fa_key_begin(fa_key *key, const char *kind, int schema) {
  memset(key, 0, sizeof *key);
  if (!fa_key_kind_valid(kind)) {
    key->failed = true;
    return;
  }
  memcpy(key->kind, kind, strlen(kind) + 1);
  fa_key_add_text(key, "kind", kind);
  char text[16];
  snprintf(text, sizeof text, "%d", schema);
  fa_key_add_text(key, "schema", text);
}

void fa_key_add(fa_key *key, const char *name, const void *data, size_t length) {
  append_netstring(key, name, strlen(name));
  append_netstring(key, data, length);
}

void fa_key_add_text(fa_key *key, const char *name, const char *text) { fa_key_add(key, name, text, strlen(text)); }

void fa_key_hex(const fa_key *key, char hex[33]) {
  if (key->failed) { /* such a key is never looked up, so any text does */
    memset(hex, '0', 32);
    hex[32] = '\0';
    return;
  }
  fa_hash_hex(fa_hash_of(key->text, key->length), hex);
}

void fa_key_free(fa_key *key) {
  free(key->text);
  memset(key, 0, sizeof *key);
  key->failed = true; /* a freed key never hits either */
}

bool fa_key_text_has_kind(const char *text, size_t length, const char *kind) {
  char prefix[64];
  int prefix_length = snprintf(prefix, sizeof prefix, "4:kind,%zu:%s,", strlen(kind), kind);
  return prefix_length > 0 && (size_t)prefix_length < sizeof prefix && length >= (size_t)prefix_length &&
         memcmp(text, prefix, (size_t)prefix_length) == 0;
}
