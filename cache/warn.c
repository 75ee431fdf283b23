/* Trouble is said once per kind and process, in one line on stderr, and is never more than that. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cache/internal.h"

void fa_warn_once(fa_trouble trouble, const char *format, ...) {
  static atomic_uint said;
  unsigned bit = 1U << trouble;
  if (atomic_fetch_or(&said, bit) & bit)
    return;
  int saved_errno = errno;
  char text[PATH_MAX + 512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(stderr, "flash_attention: cache: %s\n", text); /* one call, so that lines of many processes do not mix */
  errno = saved_errno;
}

void fa_warn_write(const char *what, const char *path) {
  if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
    fa_warn_once(FA_TROUBLE_FULL, "no room to %s %s (%s); going on without storing", what, path, strerror(errno));
  else
    fa_warn_once(FA_TROUBLE_WRITE, "cannot %s %s (%s); going on without storing", what, path, strerror(errno));
}
