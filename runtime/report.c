/*
 * What there is and what has happened: versions, devices, statistics, and the cache entry by entry: hex, kind, bytes,
 * last use, 1 (valid) or 0, text.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef FA_VERSION
#define FA_VERSION "unknown"
#endif

enum { INFO_SIZE = 16384 };

fa_status fa_info(char **text) {
  *text = calloc(1, INFO_SIZE);
  if (!*text)
    return FA_OUT_OF_MEMORY;
  char message[FA_MESSAGE_SIZE], target[FA_TARGET_LENGTH];
  fa_append(*text, INFO_SIZE, "version: %s\ntemplates: %s\ntemplates digest: %s\n", FA_VERSION, fa_template_dir(),
            fa_templates_digest());
  for (int i = 0; fa_target_at(i); i++) {
    const fa_target *ops = fa_target_at(i);
    if (fa_device_target(ops->type, 0, target, message) == FA_OK)
      fa_append(*text, INFO_SIZE, "%s target: %s\n", ops->name, target);
    else
      fa_append(*text, INFO_SIZE, "%s target: none; %s\n", ops->name, message);
    ops->info(*text, INFO_SIZE);
  }
  fa_cache *cache = fa_shared_cache();
  bool usable = fa_cache_usable(cache, message, sizeof message);
  fa_append(*text, INFO_SIZE, "cache: %s\ncache bytes: %" PRIu64 "\ncache usable: %s%s\n", fa_cache_directory(cache),
            fa_cache_bytes(cache), usable ? "yes" : "no; ", usable ? "" : message);
  return FA_OK;
}

void fa_get_statistics(fa_statistics *statistics) {
  *statistics = (fa_statistics){.compilations = fa_counters.compilations,
                                .compile_failures = fa_counters.compile_failures,
                                .tunings = fa_counters.tunings,
                                .cache_hits = fa_counters.cache_hits,
                                .cache_misses = fa_counters.cache_misses,
                                .kernels_loaded = fa_counters.kernels_loaded,
                                .launches = fa_counters.launches,
                                .unrecorded = fa_counters.unrecorded};
}

const char *fa_cache_path(void) { return fa_cache_directory(fa_shared_cache()); }

/* Text that grows; NULL once there is no memory. */
typedef struct growing {
  char *text;
  size_t length, capacity;
  bool failed;
} growing;

static void add_item(const fa_cache_item *item, void *context) {
  growing *report = context;
  const char *metadata = item->metadata ? item->metadata : "";
  size_t needed = strlen(metadata) + strlen(item->trouble ? item->trouble : "") + 128;
  if (report->length + needed > report->capacity && !report->failed) {
    size_t capacity = 2 * (report->length + needed);
    char *larger = realloc(report->text, capacity);
    report->failed = !larger;
    if (larger) {
      report->text = larger;
      report->capacity = capacity;
    }
  }
  if (report->failed)
    return;
  char *line = report->text + report->length;
  int length = snprintf(line, needed, "%s %s %" PRIu64 " %" PRId64 " %s ", item->hex, item->kind, item->bytes,
                        item->last_used, item->valid ? "1" : "0");
  const char *trouble = item->trouble ? item->trouble : "";
  length += snprintf(line + length, needed - (size_t)length, "%s", *trouble ? trouble : metadata);
  /* One entry, one line: the lines of its metadata are joined by "; ". */
  while (length > 0 && line[length - 1] == '\n')
    length--;
  for (int i = 0; i < length; i++)
    if (line[i] == '\n')
      line[i] = ';';
  line[length++] = '\n';
  line[length] = 0;
  report->length += (size_t)length;
}

fa_status fa_cache_report(bool verify, char **text, char *message) {
  growing report = {.capacity = 4096, .text = calloc(1, 4096)};
  *text = NULL;
  (void)verify; /* the cache reads and checks each entry that it lists anyway */
  if (!report.text)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  if (fa_cache_visit(fa_shared_cache(), add_item, &report) < 0 || report.failed) {
    free(report.text);
    return fa_fail(FA_FAILED, message, "the cache %s cannot be listed", fa_cache_path());
  }
  *text = report.text;
  return FA_OK;
}

fa_status fa_cache_export_entry(const char *kind, const char *hex, char name[64], void **bytes, size_t *length,
                                char *message) {
  if (fa_cache_export(fa_shared_cache(), kind, hex, name, bytes, length))
    return FA_OK;
  return fa_fail(FA_FAILED, message, "the cache %s has no intact entry %s-%s", fa_cache_path(), kind, hex);
}

fa_status fa_cache_import_entry(const char *name, const void *bytes, size_t length, bool store, int *result,
                                char *message) {
  const char *wrong = NULL;
  *result = (int)fa_cache_import(fa_shared_cache(), name, bytes, length, store, &wrong);
  return wrong ? fa_fail(FA_FAILED, message, "%s", wrong) : FA_OK;
}

fa_status fa_cache_remove_all(int64_t *removed, char *message) {
  int count = fa_cache_clear(fa_shared_cache());
  if (count < 0)
    return fa_fail(FA_FAILED, message, "the cache %s cannot be cleared", fa_cache_path());
  *removed = count;
  return FA_OK;
}
