/*
 * Tuning records: which config is best for a problem, a shape bucket and a kind of device, and which compiled
 * kernel that is. A record is an entry of the cache whose payload is lines of text:
 *
 *     target=cpu:avx512
 *     config=block_m=64,block_n=128
 *     kernel=0123456789abcdef0123456789abcdef
 *     (then, for people, the time of each candidate)
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RECORD_SCHEMA = 2 };

/* What the templates' digest does not cover: the C code that makes sources and plans. Set by the build. */
#ifndef FA_SOURCE_DIGEST
#define FA_SOURCE_DIGEST ""
#endif

void fa_describe_problem(const fa_problem *problem, char *text, size_t size) {
  snprintf(text, size, "%s %s%s head_dim=%d head_dim_v=%d%s%s %s", fa_op_name(problem->op),
           fa_dtype_name(problem->dtype), problem->precision == FA_PRECISION_REDUCED ? " reduced" : "",
           problem->head_dim, problem->head_dim_v, problem->is_causal ? " causal" : "",
           problem->deterministic ? " deterministic" : "", problem->target);
}

void fa_record_key(fa_key *key, const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                   fa_autotune searched) {
  static const char *const names[] = {"best guess", "some candidates", "all candidates"};
  char problem_text[160], bucket_text[160];
  fa_describe_problem(problem, problem_text, sizeof problem_text);
  snprintf(bucket_text, sizeof bucket_text, "batch=%lld heads_q=%lld heads_kv=%lld seqlen_q=%lld seqlen_k=%lld",
           (long long)bucket->batch, (long long)bucket->heads_q, (long long)bucket->heads_kv,
           (long long)bucket->seqlen_q, (long long)bucket->seqlen_k);
  fa_key_begin(key, "tuning", RECORD_SCHEMA);
  fa_key_add_text(key, "problem", problem_text);
  fa_key_add_text(key, "bucket", bucket_text);
  fa_key_add_text(key, "device", device->kind);
  fa_key_add_text(key, "searched", names[searched]);
  fa_key_add_text(key, "templates", fa_templates_digest());
  fa_key_add_text(key, "generator", FA_SOURCE_DIGEST);
}

/* Copy the value of a "name=value" line; false if there is none or it is too long. */
static bool read_line(const char *text, size_t length, const char *name, char *value, size_t value_size) {
  size_t name_length = strlen(name);
  const char *end = text + length;
  for (const char *line = text; line < end;) {
    const char *newline = memchr(line, '\n', (size_t)(end - line));
    const char *line_end = newline ? newline : end;
    if ((size_t)(line_end - line) > name_length && memcmp(line, name, name_length) == 0 && line[name_length] == '=') {
      const char *start = line + name_length + 1;
      size_t value_length = (size_t)(line_end - start);
      if (value_length >= value_size)
        return false;
      memcpy(value, start, value_length);
      value[value_length] = 0;
      return true;
    }
    line = line_end + 1;
  }
  return false;
}

bool fa_record_get(const fa_key *key, fa_record *record) {
  fa_entry entry;
  if (!fa_cache_get(fa_shared_cache(), key, &entry))
    return false;
  const char *text = entry.payload;
  size_t length = entry.payload_length;
  bool complete = read_line(text, length, "target", record->target, sizeof record->target) &&
                  read_line(text, length, "config", record->config, sizeof record->config) &&
                  read_line(text, length, "kernel", record->kernel_hex, sizeof record->kernel_hex) &&
                  strlen(record->kernel_hex) == sizeof record->kernel_hex - 1;
  fa_entry_free(&entry);
  return complete;
}

bool fa_record_put(const fa_key *key, const fa_problem *problem, fa_cache_mode mode, const fa_record *record,
                   const char *notes) {
  size_t size = strlen(notes) + sizeof *record + 64;
  char *payload = malloc(size);
  if (!payload)
    return true; /* no disk, no race */
  snprintf(payload, size, "target=%s\nconfig=%s\nkernel=%s\n%s", record->target, record->config, record->kernel_hex,
           notes);
  char problem_text[160], metadata[512];
  fa_describe_problem(problem, problem_text, sizeof problem_text);
  snprintf(metadata, sizeof metadata, "problem=%s\nconfig=%s\n", problem_text, record->config);
  bool ours = fa_cache_put(fa_shared_cache(), key, mode, metadata, payload, strlen(payload));
  free(payload);
  return ours;
}
