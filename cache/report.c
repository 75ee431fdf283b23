/* Visit, clear and count, for the command line. Damaged entries are reported, not warned about. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/internal.h"

/* 1: `directory` and `scan` are filled; 0: there is no directory, so nothing in it; -1: it cannot be used. */
static int list(fa_cache *cache, char directory[PATH_MAX], fa_scan *scan) {
  char reason[FA_REASON_SIZE];
  if (cache->directory == NULL)
    return -1;
  switch (fa_directory_check(cache->directory, directory, reason)) {
  case FA_DIRECTORY_GOOD:
    return fa_scan_directory(directory, scan) ? 1 : -1;
  case FA_DIRECTORY_MISSING:
    return 0;
  case FA_DIRECTORY_REFUSED:
    break;
  }
  return -1;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const fa_file *)a)->name, ((const fa_file *)b)->name);
}

static void visit_file(const fa_cache *cache, const char *directory, const fa_file *file,
                       void (*visit)(const fa_cache_item *item, void *context), void *context) {
  char path[PATH_MAX], trouble[256] = "", found[33];
  char *metadata = NULL;
  unsigned char *bytes = NULL;
  unsigned schema = 0;
  fa_cache_item item = {.bytes = file->bytes, .last_used = file->last_used / 1000000000};
  if (!fa_entry_name_parse(file->name, item.kind, item.hex, &schema) || !fa_path_join(path, directory, file->name))
    return;
  if (schema != cache->schema) {
    item.valid = true;
    snprintf(trouble, sizeof trouble, "of another version (schema %u), not checked", schema);
  } else {
    fa_view view;
    struct stat status;
    const char *wrong = NULL;
    int error = fa_entry_read(path, schema, false, &bytes, &view, &status, &wrong);
    if (error == 0) {
      fa_hash_hex(fa_hash_of(view.key, view.key_length), found);
      item.valid = strcmp(found, item.hex) == 0 && fa_key_text_has_kind(view.key, view.key_length, item.kind);
      if (!item.valid)
        snprintf(trouble, sizeof trouble, "the entry of another key");
      metadata = malloc(view.metadata_length + 1);
      if (metadata != NULL) {
        memcpy(metadata, view.metadata, view.metadata_length);
        metadata[view.metadata_length] = '\0';
      }
    } else {
      snprintf(trouble, sizeof trouble, "%s", wrong[0] != '\0' ? wrong : strerror(error));
    }
  }
  item.metadata = metadata == NULL ? "" : metadata;
  item.trouble = trouble;
  visit(&item, context);
  free(metadata);
  free(bytes);
}

int fa_cache_visit(fa_cache *cache, void (*visit)(const fa_cache_item *item, void *context), void *context) {
  char directory[PATH_MAX];
  fa_scan scan;
  int found = list(cache, directory, &scan);
  if (found <= 0)
    return found;
  if (scan.count > 0)
    qsort(scan.files, scan.count, sizeof *scan.files, by_name);
  for (size_t i = 0; i < scan.count; ++i)
    visit_file(cache, directory, &scan.files[i], visit, context);
  free(scan.files);
  return (int)scan.count;
}

int fa_cache_clear(fa_cache *cache) {
  char directory[PATH_MAX], path[PATH_MAX];
  fa_scan scan;
  int found = list(cache, directory, &scan); /* listing removes stale temporary files */
  if (found <= 0)
    return found;
  int removed = 0;
  bool failed = false;
  for (size_t i = 0; i < scan.count; ++i) {
    if (fa_path_join(path, directory, scan.files[i].name) && unlink(path) == 0)
      ++removed;
    else
      failed = failed || access(path, F_OK) == 0;
  }
  free(scan.files);
  fa_locks_sweep(directory, 0);
  return failed ? -1 : removed;
}

uint64_t fa_cache_bytes(fa_cache *cache) {
  char directory[PATH_MAX];
  fa_scan scan;
  if (list(cache, directory, &scan) <= 0)
    return 0;
  free(scan.files);
  return scan.bytes;
}
