/* Reading a template file and cutting it into lines; see template_file.h. */
#include "generator/template_file.h"

#include "generator/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAME = 200, MAX_FILE = 8 << 20 };

/* A name stands in #line directives and must stay under the template directory on every machine. */
static bool is_good_name(const char *name, size_t length) {
  static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./";
  if (length == 0 || length > MAX_NAME || name[0] == '/')
    return false;
  for (size_t i = 0; i < length; i++)
    if (!name[i] || !strchr(allowed, name[i]) || (name[i] == '.' && i + 1 < length && name[i + 1] == '.'))
      return false;
  return true;
}

static bool read_all(const char *path, fa_text *data) {
  bool good = false;
  FILE *stream = fopen(path, "rbe");
  if (!stream)
    return false;
  char piece[16384];
  size_t length;
  while ((length = fread(piece, 1, sizeof piece, stream)) > 0 && data->length <= MAX_FILE)
    fa_text_add(data, piece, length);
  if (ferror(stream))
    goto done;
  errno = data->length > MAX_FILE ? EFBIG : ENOMEM;
  fa_text_add(data, "", 0); /* an empty file has text too */
  good = !data->failed && data->length <= MAX_FILE;
done:
  fclose(stream);
  return good;
}

static bool split(fa_template_file *file, size_t length) {
  size_t count = 0;
  const char *end = file->data + length, *stop;
  for (const char *p = file->data; p < end; p = stop + 1) {
    count++;
    if (!(stop = memchr(p, '\n', (size_t)(end - p))))
      break;
  }
  file->line = calloc(count + 1, sizeof *file->line);
  if (!file->line)
    return false;
  for (const char *p = file->data; file->num_lines < count; p = stop + 1) {
    if (!(stop = memchr(p, '\n', (size_t)(end - p))))
      stop = end;
    size_t line_length = (size_t)(stop - p);
    if (line_length && p[line_length - 1] == '\r')
      line_length--;
    file->line[file->num_lines++] = (fa_template_line){p, line_length};
  }
  return true;
}

fa_template_file *fa_template_file_read(const char *template_dir, const char *name, size_t name_length, char *message,
                                        size_t message_size) {
  fa_text path = {0}, data = {0};
  fa_template_file *file = NULL;
  if (!is_good_name(name, name_length)) {
    snprintf(message, message_size,
             "a template's name is letters, digits and _-./, relative to the template directory and without '..'");
    return NULL;
  }
  fa_text_print(&path, "%s/%.*s", template_dir, (int)name_length, name);
  if (path.failed)
    goto out_of_memory;
  if (!read_all(path.data, &data)) {
    snprintf(message, message_size, "template \"%.*s\" cannot be read from %s: %s", (int)name_length, name,
             template_dir, strerror(errno));
    goto done;
  }
  if (memchr(data.data, '\0', data.length)) {
    snprintf(message, message_size, "template \"%.*s\" is not text: it holds a NUL byte", (int)name_length, name);
    goto done;
  }
  file = calloc(1, sizeof *file);
  if (!file || !(file->name = strndup(name, name_length)))
    goto out_of_memory;
  file->data = data.data;
  data.data = NULL;
  if (split(file, data.length))
    goto done;
out_of_memory:
  snprintf(message, message_size, "out of memory");
  fa_template_file_free(file);
  file = NULL;
done:
  fa_text_free(&data);
  fa_text_free(&path);
  return file;
}

void fa_template_file_free(fa_template_file *file) {
  if (!file)
    return;
  free(file->name);
  free(file->data);
  free(file->line);
  free(file);
}
