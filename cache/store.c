/* Open, get and put: the order of steps; each step is in a file of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cache/internal.h"

/* What fa_cache_open gives when there is no memory for anything else. */
static fa_cache no_memory = {.no_directory = "no directory to keep anything in: out of memory"};

fa_cache *fa_cache_open(const char *directory) {
  fa_cache *cache = calloc(1, sizeof *cache);
  if (cache == NULL)
    return &no_memory;
  cache->schema = FA_CACHE_SCHEMA;
  atomic_init(&cache->headroom, 0);
  fa_place_find(cache, directory);
  return cache;
}

void fa_cache_close(fa_cache *cache) {
  if (cache == NULL || cache == &no_memory)
    return;
  free(cache->directory);
  free(cache);
}

const char *fa_cache_directory(const fa_cache *cache) { return cache->directory == NULL ? "" : cache->directory; }

bool fa_cache_usable(fa_cache *cache, char *reason, size_t reason_size) {
  char path[PATH_MAX], text[FA_REASON_SIZE] = "";
  const char *why = text;
  bool usable = false;
  if (cache->directory == NULL) {
    why = cache->no_directory;
  } else if (cache->size_cap == 0) {
    why = "FLASH_ATTENTION_CACHE_SIZE is 0";
  } else {
    fa_directory_state state = fa_directory_check(cache->directory, path, text);
    if (state == FA_DIRECTORY_MISSING) { /* to be made in the last part that exists */
      char *slash = strrchr(path, '/');
      slash[slash == path ? 1 : 0] = '\0';
    }
    usable = state != FA_DIRECTORY_REFUSED && faccessat(AT_FDCWD, path, W_OK | X_OK, AT_EACCESS) == 0;
    if (!usable && state != FA_DIRECTORY_REFUSED)
      snprintf(text, sizeof text, "%s cannot be written: %s", path, strerror(errno));
  }
  if (reason_size > 0)
    snprintf(reason, reason_size, "%s", usable ? "" : why);
  return usable;
}

/* What the caller looks for: a key in full, or (key NULL) a kind and a hash. */
static bool is_wanted(const fa_view *view, const fa_key *key, const char *kind, const char *hex) {
  if (key != NULL)
    return view->key_length == key->length && memcmp(view->key, key->text, key->length) == 0;
  char found[33];
  fa_hash_hex(fa_hash_of(view->key, view->key_length), found);
  return memcmp(found, hex, 32) == 0 && fa_key_text_has_kind(view->key, view->key_length, kind);
}

static bool get(const fa_cache *cache, const fa_key *key, const char *kind, const char *hex, fa_entry *entry) {
  char directory[PATH_MAX], path[PATH_MAX], name[FA_NAME_SIZE];
  memset(entry, 0, sizeof *entry);
  fa_entry_name(cache->schema, kind, hex, name);
  if (!fa_directory_ready(cache, false, directory) || !fa_path_join(path, directory, name))
    return false;

  unsigned char *bytes = NULL;
  fa_view view;
  struct stat status;
  const char *wrong = NULL;
  int error = fa_entry_read(path, cache->schema, true, &bytes, &view, &status, &wrong);
  if (error == ESTALE) /* NFS: replaced on another machine since we opened it; the new one is as good */
    error = fa_entry_read(path, cache->schema, true, &bytes, &view, &status, &wrong);
  if (error == 0 && !is_wanted(&view, key, kind, hex)) {
    error = EBADMSG;
    wrong = "the entry of another key";
  }
  if (error == 0) {
    entry->metadata = malloc(view.metadata_length + 1);
    error = entry->metadata == NULL ? ENOMEM : 0;
  }
  if (error == 0) {
    memcpy(entry->metadata, view.metadata, view.metadata_length);
    entry->metadata[view.metadata_length] = '\0';
    entry->payload_length = view.payload_length;
    memmove(bytes, view.payload, view.payload_length); /* to the aligned start of the memory that it was read into */
    entry->payload = bytes;
    return true;
  }
  free(bytes);
  if (error == EBADMSG)
    fa_warn_once(FA_TROUBLE_DAMAGED, "%s is %s; going on as if it were not there", path, wrong);
  else if (error == ENOMEM)
    fa_warn_once(FA_TROUBLE_MEMORY, "no memory to read %s; going on as if it were not there", path);
  else if (error != ENOENT)
    fa_warn_once(FA_TROUBLE_READ, "cannot read %s (%s); going on as if it were not there", path, strerror(error));
  return false;
}

bool fa_cache_get(fa_cache *cache, const fa_key *key, fa_entry *entry) {
  char hex[33];
  memset(entry, 0, sizeof *entry);
  if (key->failed)
    return false;
  fa_key_hex(key, hex);
  return get(cache, key, key->kind, hex, entry);
}

bool fa_cache_get_by_hex(fa_cache *cache, const char *kind, const char *hex, fa_entry *entry) {
  memset(entry, 0, sizeof *entry);
  if (!fa_key_kind_valid(kind) || strlen(hex) != 32 || strspn(hex, "0123456789abcdef") != 32)
    return false;
  return get(cache, NULL, kind, hex, entry);
}

void fa_entry_free(fa_entry *entry) {
  free(entry->payload);
  free(entry->metadata);
  memset(entry, 0, sizeof *entry);
}

/* Whether an entry of this size may be stored at all; false, having said why. */
static bool size_allowed(const fa_cache *cache, uint64_t length) {
  if (cache->size_cap == 0) /* switched off by the user, who needs no reminder */
    return false;
  if (length > cache->size_cap || length > FA_ENTRY_LIMIT) {
    fa_warn_once(FA_TROUBLE_TOO_LARGE, "an entry of %llu bytes is larger than the cache may be; it is not stored",
                 (unsigned long long)length);
    return false;
  }
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && length > limit.rlim_cur) {
    errno = EFBIG; /* to write and see would kill the process with SIGXFSZ */
    fa_warn_write("write into", fa_cache_directory(cache));
    return false;
  }
  return true;
}

bool fa_store(fa_cache *cache, const fa_key *key, fa_cache_mode mode, const void *head, size_t head_length,
              const void *payload, size_t payload_length) {
  char directory[PATH_MAX], name[FA_NAME_SIZE], hex[33];
  uint64_t length = (uint64_t)head_length + payload_length;
  if (!fa_directory_ready(cache, true, directory) || !size_allowed(cache, length))
    return false;
  fa_key_hex(key, hex);
  fa_entry_name(cache->schema, key->kind, hex, name);
  fa_make_room(cache, directory, length);
  return fa_publish(cache, directory, name, key, mode, head, head_length, payload, payload_length);
}

bool fa_cache_put(fa_cache *cache, const fa_key *key, fa_cache_mode mode, const char *metadata, const void *payload,
                  size_t payload_length) {
  if (metadata == NULL)
    metadata = "";
  if (key->failed || payload_length > FA_ENTRY_LIMIT || strlen(metadata) > FA_ENTRY_LIMIT)
    return false;
  size_t head_length = 0;
  unsigned char *head = fa_entry_head(cache->schema, key, metadata, payload, payload_length, &head_length);
  if (head == NULL) {
    fa_warn_once(FA_TROUBLE_MEMORY, "no memory to store an entry");
    return false;
  }
  bool stored = fa_store(cache, key, mode, head, head_length, payload, payload_length);
  free(head);
  return stored;
}
