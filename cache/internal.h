/*
 * What the files of cache/ share and nobody else sees. From the bottom up:
 *   hash.c       XXH3-128
 *   key.c        key text
 *   warn.c       one line on stderr per kind of trouble
 *   entry.c      bytes of an entry <-> key, metadata, payload
 *   place.c      which directory, how large
 *   directory.c  whether that directory can be trusted; making it
 *   publish.c    a temporary file becomes an entry
 *   lock.c       one holder per key
 *   scan.c       what lies in the directory; room for new entries (least recently used goes first)
 *   store.c      open, get, put
 *   transfer.c   entries from one cache to another
 *   report.c     visit, clear, bytes: for the command line
 */
#ifndef FLASH_ATTENTION_CACHE_INTERNAL_H
#define FLASH_ATTENTION_CACHE_INTERNAL_H

#include <limits.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "cache/cache.h"

enum {
  FA_CACHE_SCHEMA = 1,     /* of the entry file; other schemas have other file names and lie beside ours */
  FA_ENTRY_LIMIT = 1 << 30 /* larger files are no entries: a damaged length must not make us allocate it */
};

struct fa_cache {
  char *directory;          /* absolute; NULL where there is none */
  const char *no_directory; /* then: why */
  uint64_t size_cap;
  unsigned schema;       /* FA_CACHE_SCHEMA; a field so that tests can play another version */
  atomic_llong headroom; /* bytes this process may write before it has to look at the whole directory again */
};

/* hash.c */
typedef struct fa_hash {
  unsigned char bytes[16]; /* canonical (big endian), the same on every machine */
} fa_hash;
fa_hash fa_hash_of(const void *data, size_t length);
void fa_hash_hex(fa_hash hash, char hex[33]);

/* key.c: does the text of a key begin with this kind? */
bool fa_key_text_has_kind(const char *text, size_t length, const char *kind);
bool fa_key_kind_valid(const char *kind);

/* warn.c: says each kind of trouble once per process; keeps errno. */
typedef enum fa_trouble {
  FA_TROUBLE_NO_PLACE,
  FA_TROUBLE_REFUSED,
  FA_TROUBLE_READ,
  FA_TROUBLE_DAMAGED,
  FA_TROUBLE_FULL,
  FA_TROUBLE_WRITE,
  FA_TROUBLE_LOCK,
  FA_TROUBLE_SETTING,
  FA_TROUBLE_TOO_LARGE,
  FA_TROUBLE_MEMORY
} fa_trouble;
__attribute__((format(printf, 2, 3))) void fa_warn_once(fa_trouble trouble, const char *format, ...);
/* A failed write, by errno: the disk is full, or something else. */
void fa_warn_write(const char *what, const char *path);

/* entry.c */
typedef struct fa_view { /* points into the bytes of the file */
  const char *key, *metadata;
  const unsigned char *payload;
  size_t key_length, metadata_length, payload_length;
} fa_view;
/* malloc'ed: everything before the payload. NULL: out of memory. */
unsigned char *fa_entry_head(unsigned schema, const fa_key *key, const char *metadata, const void *payload,
                             size_t payload_length, size_t *head_length);
/* NULL and a view, or what is wrong with these bytes. Every byte of a good entry has been checked. */
const char *fa_entry_parse(unsigned schema, const unsigned char *bytes, size_t length, fa_view *view);
/* Read and check one file; touch: mark a good one as used.
 * 0 and bytes (64-byte aligned, the caller frees them), or an errno; EBADMSG: see *wrong. */
int fa_entry_read(const char *path, unsigned schema, bool touch, unsigned char **bytes, fa_view *view,
                  struct stat *status, const char **wrong);
void fa_entry_name(unsigned schema, const char *kind, const char *hex, char name[FA_NAME_SIZE]);
/* Is this a file name of an entry, of any schema? kind and hex may be NULL. */
bool fa_entry_name_parse(const char *name, char kind[16], char hex[33], unsigned *schema);

/* place.c */
void fa_place_find(fa_cache *cache, const char *directory);

/* directory.c: `path` gets the directory without symlinks, or with FA_DIRECTORY_MISSING its first missing part. */
typedef enum fa_directory_state { FA_DIRECTORY_GOOD, FA_DIRECTORY_MISSING, FA_DIRECTORY_REFUSED } fa_directory_state;
enum { FA_REASON_SIZE = PATH_MAX + 256 };
fa_directory_state fa_directory_check(const char *directory, char path[PATH_MAX], char reason[FA_REASON_SIZE]);
/* For get (make = false) and put (make = true): true and the path, or false, having warned. */
bool fa_directory_ready(const fa_cache *cache, bool make, char path[PATH_MAX]);
/* directory + "/" + name; false where that does not fit. */
bool fa_path_join(char path[PATH_MAX], const char *directory, const char *name);

/* publish.c */
bool fa_publish(const fa_cache *cache, const char *directory, const char *name, const fa_key *key, fa_cache_mode mode,
                const void *head, size_t head_length, const void *payload, size_t payload_length);

/* store.c: what put does once there are bytes: `head` is that of fa_entry_head for this key and payload. Only the text
 * and kind of the key are read. */
bool fa_store(fa_cache *cache, const fa_key *key, fa_cache_mode mode, const void *head, size_t head_length,
              const void *payload, size_t payload_length);

/* lock.c: a lock by the name of its file; and removal of lock files that nobody holds. */
fa_cache_lock *fa_lock_named(const char *directory, const char *name, double seconds);
void fa_locks_sweep(const char *directory, int64_t older_than_seconds);

/* scan.c */
typedef struct fa_file {
  char name[FA_NAME_SIZE];
  uint64_t bytes;
  int64_t last_used; /* nanoseconds since 1970 */
} fa_file;
typedef struct fa_scan {
  fa_file *files; /* the caller frees them */
  size_t count, capacity;
  uint64_t bytes; /* entries and temporary files */
} fa_scan;
enum { FA_STALE_SECONDS = 600 }; /* a temporary file this old has no writer any more */
/* List entries; remove temporary files that were left behind. false: the directory cannot be read. */
bool fa_scan_directory(const char *directory, fa_scan *scan);
void fa_make_room(fa_cache *cache, const char *directory, uint64_t incoming);

#endif
