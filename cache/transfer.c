/*
 * Entries from one cache to another, as the bytes of their files. What comes from outside is trusted with nothing: its
 * name must be the one that its own key makes, every byte is checked as on a get, and it is published as on a put.
 *
 * Checksums find damage, not malice: a kernel is code, and who makes an entry makes its checksums too. So a person
 * decides whose entries to take.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/internal.h"

/* NULL and a view, or what is wrong with an entry of this name. */
static const char *check(const fa_cache *cache, const char *name, const unsigned char *bytes, size_t length,
                         char kind[16], fa_view *view) {
  char hex[33], found[33], canonical[FA_NAME_SIZE];
  unsigned schema = 0;
  if (!fa_entry_name_parse(name, kind, hex, &schema))
    return "not named as entries are";
  if (schema != cache->schema)
    return "of another version of the cache";
  fa_entry_name(schema, kind, hex, canonical);
  if (strcmp(name, canonical) != 0)
    return "not named as entries are";
  if (length > FA_ENTRY_LIMIT)
    return "of a size that no entry has";
  const char *wrong = fa_entry_parse(cache->schema, bytes, length, view);
  if (wrong != NULL)
    return wrong;
  fa_hash_hex(fa_hash_of(view->key, view->key_length), found);
  if (strcmp(found, hex) != 0 || !fa_key_text_has_kind(view->key, view->key_length, kind))
    return "the entry of another key";
  return NULL;
}

bool fa_cache_export(fa_cache *cache, const char *kind, const char *hex, char name[FA_NAME_SIZE], void **bytes,
                     size_t *length) {
  char directory[PATH_MAX], path[PATH_MAX], found[16];
  unsigned char *read = NULL;
  fa_view view;
  struct stat status;
  const char *wrong = NULL;
  *bytes = NULL;
  if (!fa_key_kind_valid(kind) || strlen(hex) != 32 || strspn(hex, "0123456789abcdef") != 32 ||
      !fa_directory_ready(cache, false, directory))
    return false;
  fa_entry_name(cache->schema, kind, hex, name);
  if (!fa_path_join(path, directory, name) ||
      fa_entry_read(path, cache->schema, false, &read, &view, &status, &wrong) != 0)
    return false;
  if (check(cache, name, read, (size_t)status.st_size, found, &view) != NULL) {
    free(read);
    return false;
  }
  *bytes = read;
  *length = (size_t)status.st_size;
  return true;
}

static bool is_there(const fa_cache *cache, const char *name, const fa_view *wanted) {
  char directory[PATH_MAX], path[PATH_MAX];
  unsigned char *bytes = NULL;
  fa_view view;
  struct stat status;
  const char *wrong = NULL;
  if (!fa_directory_ready(cache, false, directory) || !fa_path_join(path, directory, name) ||
      fa_entry_read(path, cache->schema, false, &bytes, &view, &status, &wrong) != 0)
    return false;
  bool same = view.key_length == wanted->key_length && memcmp(view.key, wanted->key, view.key_length) == 0;
  free(bytes);
  return same;
}

fa_cache_import_result fa_cache_import(fa_cache *cache, const char *name, const void *bytes, size_t length, bool store,
                                       const char **wrong) {
  char kind[16];
  fa_view view;
  *wrong = check(cache, name, bytes, length, kind, &view);
  if (*wrong != NULL)
    return FA_CACHE_IMPORT_REFUSED;
  if (is_there(cache, name, &view))
    return FA_CACHE_IMPORT_PRESENT;
  if (!store)
    return FA_CACHE_IMPORT_ABSENT;
  /* Only read from here on; the view lives as long as `bytes`. */
  fa_key key = {.text = (char *)view.key, .length = view.key_length};
  memcpy(key.kind, kind, sizeof key.kind);
  size_t head_length = length - view.payload_length;
  if (fa_store(cache, &key, FA_CACHE_KEEP_FIRST, bytes, head_length, view.payload, view.payload_length))
    return FA_CACHE_IMPORT_STORED;
  if (is_there(cache, name, &view)) /* another process was first */
    return FA_CACHE_IMPORT_PRESENT;
  *wrong = "not stored: the cache is full, switched off or cannot be written";
  return FA_CACHE_IMPORT_FAILED;
}
