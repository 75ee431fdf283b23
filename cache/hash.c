/* XXH3-128, the only place that includes xxHash. */
#define XXH_INLINE_ALL
#include "third_party/xxhash.h"

#include <string.h>

#include "cache/internal.h"

fa_hash fa_hash_of(const void *data, size_t length) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, length));
  fa_hash hash;
  memcpy(hash.bytes, canonical.digest, sizeof hash.bytes);
  return hash;
}

void fa_hash_hex(fa_hash hash, char hex[33]) {
  static const char digits[] = "0123456789abcdef";
  for (int i = 0; i < 16; ++i) {
    hex[2 * i] = digits[hash.bytes[i] >> 4];
    hex[2 * i + 1] = digits[hash.bytes[i] & 15];
  }
  hex[32] = '\0';
}
