/*
 * A crash-safe store of small files on disk, shared by processes and, over a network, by machines.
 *
 * Guarantee to readers: fa_cache_get returns exactly what one fa_cache_put wrote under exactly this key, or
 * says "miss". Never part of an entry, never a neighbour's, never damaged bytes. Anything wrong with the
 * directory, the disk or an entry is a miss (or a put that does nothing), with one warning per kind of trouble and
 * process. Nothing here calls exit or abort, and nothing here knows CUDA.
 *
 * Calling sequence:
 *     fa_cache *cache = fa_cache_open(NULL);               never NULL; check fa_cache_usable
 *     fa_key key; fa_key_begin(&key, "kernel", SCHEMA); fa_key_add(&key, "source", text, length); ...
 *     if (!fa_cache_get(cache, &key, &entry)) {
 *       fa_cache_lock *lock = fa_cache_lock_key(cache, &key, 60.0);
 *       if (!fa_cache_get(cache, &key, &entry)) { make it; fa_cache_put(cache, &key, FA_CACHE_REPLACE, ...); }
 *       fa_cache_unlock(lock);
 *     }
 *     fa_entry_free(&entry); fa_key_free(&key);
 *
 * All functions may be called from any thread at once on one fa_cache. docs/cache.md states each promise and
 * the test that holds it.
 */
#ifndef FLASH_ATTENTION_CACHE_H
#define FLASH_ATTENTION_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fa_cache fa_cache;
typedef struct fa_cache_lock fa_cache_lock;

/* A key: named fields, each length-prefixed, in the order in which they were added. Owned by the caller. */
typedef struct fa_key {
  char *text; /* the length-prefixed fields */
  size_t length, capacity;
  bool failed;   /* out of memory: such a key never hits and never stores */
  char kind[16]; /* first field: "kernel", "tuning" */
} fa_key;

void fa_key_begin(fa_key *key, const char *kind, int schema);
void fa_key_add(fa_key *key, const char *name, const void *data, size_t length);
void fa_key_add_text(fa_key *key, const char *name, const char *text);
void fa_key_hex(const fa_key *key, char hex[33]); /* XXH3-128 of text, 32 hex digits and a NUL */
void fa_key_free(fa_key *key);

typedef struct fa_entry {
  void *payload; /* owned, 64-byte aligned */
  size_t payload_length;
  char *metadata; /* owned, NUL-terminated text given to put (one "name=value" a line by custom) */
} fa_entry;

/* directory NULL: $FLASH_ATTENTION_CACHE_DIR, else $XDG_CACHE_HOME/flash_attention, else ~/.cache/flash_attention.
 * The directory is made (0700) on the first put or lock. Size cap: $FLASH_ATTENTION_CACHE_SIZE bytes (suffix K, M, G
 * allowed), default 1 GiB. */
fa_cache *fa_cache_open(const char *directory);
void fa_cache_close(fa_cache *cache);
const char *fa_cache_directory(const fa_cache *cache); /* "" where there is none */
/* Can entries be kept? If not, `reason` says why in one sentence. */
bool fa_cache_usable(fa_cache *cache, char *reason, size_t reason_size);

/* true and an entry that the caller frees, or false: a miss. A hit marks the entry as used. */
bool fa_cache_get(fa_cache *cache, const fa_key *key, fa_entry *entry);
/* The same by fa_key_hex of a key that is not at hand any more: the stored key must hash to hex and be of this kind. */
bool fa_cache_get_by_hex(fa_cache *cache, const char *kind, const char *hex, fa_entry *entry);
void fa_entry_free(fa_entry *entry);

/* REPLACE: the last writer wins (entries of one key are equal by construction). KEEP_FIRST: the first published entry
 * stays; returns false if it was not ours. */
typedef enum fa_cache_mode { FA_CACHE_REPLACE, FA_CACHE_KEEP_FIRST } fa_cache_mode;
bool fa_cache_put(fa_cache *cache, const fa_key *key, fa_cache_mode mode, const char *metadata, const void *payload,
                  size_t payload_length);

/* An entry on its way to another cache: the file as it is, checked. `bytes` is malloc'ed and `name` is that of its
 * file; false: there is no good entry of this kind and fa_key_hex. */
enum { FA_NAME_SIZE = 64 }; /* "<kind>-<32 hex digits>.fa<schema>" and a NUL */
bool fa_cache_export(fa_cache *cache, const char *kind, const char *hex, char name[FA_NAME_SIZE], void **bytes,
                     size_t *length);
/* And its arrival: checked to the last byte, its name too, which nothing else is looked up by; then published as
 * FA_CACHE_KEEP_FIRST. store false: only say what would happen. `wrong` says why REFUSED and FAILED. */
typedef enum fa_cache_import_result {
  FA_CACHE_IMPORT_STORED,
  FA_CACHE_IMPORT_PRESENT, /* a good entry of this key is there, and stays */
  FA_CACHE_IMPORT_ABSENT,  /* good and not there (store false) */
  FA_CACHE_IMPORT_REFUSED, /* damaged, of another version, or no entry at all */
  FA_CACHE_IMPORT_FAILED   /* good, but it could not be written */
} fa_cache_import_result;
fa_cache_import_result fa_cache_import(fa_cache *cache, const char *name, const void *bytes, size_t length, bool store,
                                       const char **wrong);

/* At most one holder per key among all processes and threads, for speed only: NULL after `seconds`, or where
 * locks do not work, and the caller goes on without. Dies with its holder. */
fa_cache_lock *fa_cache_lock_key(fa_cache *cache, const fa_key *key, double seconds);
void fa_cache_unlock(fa_cache_lock *lock); /* NULL is allowed */

/* For the command line: visit every entry; verify reads and checks each one. */
typedef struct fa_cache_item {
  char hex[33];
  char kind[16];
  const char *metadata;
  uint64_t bytes;    /* of the file */
  int64_t last_used; /* seconds since 1970 */
  bool valid; /* an entry of another version cannot be checked and counts as valid; trouble then names its schema */
  const char *trouble; /* what is wrong with it, or "" */
} fa_cache_item;
int fa_cache_visit(fa_cache *cache, void (*visit)(const fa_cache_item *item, void *context), void *context);
int fa_cache_clear(
    fa_cache *cache); /* removes entries, locks and stale temp files; returns entries removed, -1 on error */
uint64_t fa_cache_bytes(fa_cache *cache);

#endif
