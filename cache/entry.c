/*
 * The file of an entry. Numbers are little endian, nothing is padded:
 *
 *     offset  bytes
 *          0      8  magic "FAcache\n"
 *          8      4  schema of this layout
 *         12      4  length of the metadata, m
 *         16      8  length of the key text, k
 *         24      8  length of the payload, p
 *         32     16  XXH3-128 of the payload
 *         48      k  key text, in full
 *       48+k      m  metadata
 *     48+k+m     16  XXH3-128 of everything above
 *     64+k+m      p  payload; the file ends here
 *
 * So every byte is covered by one of the two checksums, and a file that is too short or too long is seen.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cache/internal.h"

enum { HEADER = 48, CHECKSUM = 16, ALIGNMENT = 64 };
static const char MAGIC[8] = {'F', 'A', 'c', 'a', 'c', 'h', 'e', '\n'};

static void store_number(unsigned char *at, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i)
    at[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t load_number(const unsigned char *at, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i)
    value |= (uint64_t)at[i] << (8 * i);
  return value;
}

unsigned char *fa_entry_head(unsigned schema, const fa_key *key, const char *metadata, const void *payload,
                             size_t payload_length, size_t *head_length) {
  size_t metadata_length = strlen(metadata);
  size_t length = HEADER + key->length + metadata_length + CHECKSUM;
  unsigned char *head = malloc(length);
  if (head == NULL)
    return NULL;
  memcpy(head, MAGIC, sizeof MAGIC);
  store_number(head + 8, schema, 4);
  store_number(head + 12, metadata_length, 4);
  store_number(head + 16, key->length, 8);
  store_number(head + 24, payload_length, 8);
  memcpy(head + 32, fa_hash_of(payload, payload_length).bytes, CHECKSUM);
  memcpy(head + HEADER, key->text, key->length);
  /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): its length is stored, not a NUL */
  memcpy(head + HEADER + key->length, metadata, metadata_length);
  size_t covered = length - CHECKSUM;
  memcpy(head + covered, fa_hash_of(head, covered).bytes, CHECKSUM);
  *head_length = length;
  return head;
}

const char *fa_entry_parse(unsigned schema, const unsigned char *bytes, size_t length, fa_view *view) {
  if (length < HEADER + CHECKSUM)
    return "too short for an entry";
  if (memcmp(bytes, MAGIC, sizeof MAGIC) != 0)
    return "not an entry of this cache";
  if (load_number(bytes + 8, 4) != schema)
    return "of another schema";
  uint64_t metadata_length = load_number(bytes + 12, 4);
  uint64_t key_length = load_number(bytes + 16, 8);
  uint64_t payload_length = load_number(bytes + 24, 8);
  /* Each against what is left, so that no sum can wrap around. */
  uint64_t left = length - HEADER - CHECKSUM;
  if (key_length > left || metadata_length > left - key_length || payload_length != left - key_length - metadata_length)
    return "not of the length that its header says";
  size_t covered = HEADER + (size_t)key_length + (size_t)metadata_length;
  if (memcmp(bytes + covered, fa_hash_of(bytes, covered).bytes, CHECKSUM) != 0)
    return "damaged in its header, key or metadata";
  const unsigned char *payload = bytes + covered + CHECKSUM;
  if (memcmp(bytes + 32, fa_hash_of(payload, (size_t)payload_length).bytes, CHECKSUM) != 0)
    return "damaged in its payload";
  view->key = (const char *)bytes + HEADER;
  view->key_length = (size_t)key_length;
  view->metadata = view->key + key_length;
  view->metadata_length = (size_t)metadata_length;
  view->payload = payload;
  view->payload_length = (size_t)payload_length;
  return NULL;
}

static bool read_all(int file, unsigned char *bytes, size_t length) {
  size_t done = 0;
  while (done < length) {
    ssize_t count = read(file, bytes + done, length - done);
    if (count < 0 && errno == EINTR)
      continue;
    if (count < 0)
      return false;
    if (count == 0) { /* shorter than fstat said: somebody cuts it right now */
      errno = EBADMSG;
      return false;
    }
    done += (size_t)count;
  }
  return true;
}

/* The time of the last use is the modification time, as access times are switched off on many disks. Once a minute
 * is enough for "least recently used" and keeps hits from writing. That it fails, on a read-only disk, is fine. */
static void mark_used(int file, const struct stat *status) {
  int64_t age = (int64_t)time(NULL) - (int64_t)status->st_mtime;
  if (age > 60 || age < -60)
    (void)futimens(file, NULL);
}

int fa_entry_read(const char *path, unsigned schema, bool touch, unsigned char **bytes, fa_view *view,
                  struct stat *status, const char **wrong) {
  *bytes = NULL;
  *wrong = "";
  int error = 0;
  /* O_NONBLOCK: a FIFO in the place of an entry must not stop us. */
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  if (file < 0)
    return errno;
  if (fstat(file, status) != 0) {
    error = errno;
    goto done;
  }
  error = EBADMSG;
  if (!S_ISREG(status->st_mode)) {
    *wrong = "not a regular file";
    goto done;
  }
  if ((status->st_uid != geteuid() && status->st_uid != 0) || (status->st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    *wrong = "owned by, or open for writing to, somebody else";
    goto done;
  }
  if (status->st_size < HEADER + CHECKSUM || status->st_size > FA_ENTRY_LIMIT) {
    *wrong = "of a size that no entry has";
    goto done;
  }
  size_t length = (size_t)status->st_size;
  *bytes = aligned_alloc(ALIGNMENT, (length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  if (*bytes == NULL) {
    error = ENOMEM;
    goto done;
  }
  if (!read_all(file, *bytes, length)) {
    error = errno;
    *wrong = "shorter than its size";
    goto done;
  }
  *wrong = fa_entry_parse(schema, *bytes, length, view);
  if (*wrong != NULL)
    goto done;
  *wrong = "";
  error = 0;
  if (touch)
    mark_used(file, status);
done:
  close(file);
  if (error != 0) {
    free(*bytes);
    *bytes = NULL;
  }
  return error;
}

void fa_entry_name(unsigned schema, const char *kind, const char *hex, char name[FA_NAME_SIZE]) {
  snprintf(name, FA_NAME_SIZE, "%.15s-%.32s.fa%u", kind, hex, schema);
}

bool fa_entry_name_parse(const char *name, char kind[16], char hex[33], unsigned *schema) {
  const char *dash = strchr(name, '-');
  if (dash == NULL || dash - name >= 16 || strlen(name) >= FA_NAME_SIZE || strspn(dash + 1, "0123456789abcdef") != 32 ||
      strncmp(dash + 33, ".fa", 3) != 0)
    return false;
  char found_kind[16];
  memcpy(found_kind, name, (size_t)(dash - name));
  found_kind[dash - name] = '\0';
  const char *number = dash + 36;
  size_t digits = strspn(number, "0123456789");
  if (!fa_key_kind_valid(found_kind) || digits == 0 || digits > 9 || number[digits] != '\0')
    return false;
  if (kind != NULL)
    memcpy(kind, found_kind, sizeof found_kind);
  if (hex != NULL) {
    memcpy(hex, dash + 1, 32);
    hex[32] = '\0';
  }
  if (schema != NULL)
    *schema = (unsigned)strtoul(number, NULL, 10);
  return true;
}
