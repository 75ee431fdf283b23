/* Configs as text: "block_m=64,block_n=128"; see generator.h. */
#include "generator/generator.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fa_config_get(const fa_config *config, const char *name, int missing) {
  for (int i = 0; i < config->count; i++)
    if (strcmp(config->item[i].name, name) == 0)
      return config->item[i].value;
  return missing;
}

int fa_config_format(const fa_config *config, char *text, size_t text_size) {
  size_t used = 0;
  if (text_size == 0)
    return -1;
  text[0] = '\0';
  for (int i = 0; i < config->count; i++) {
    int length =
        snprintf(text + used, text_size - used, "%s%s=%d", i ? "," : "", config->item[i].name, config->item[i].value);
    if (length < 0 || (size_t)length >= text_size - used)
      return -1;
    used += (size_t)length;
  }
  return 0;
}

static const char *skip_blanks(const char *text) { return text + strspn(text, " \t\n"); }

/* One "name=value" of the text; returns where it ends, or NULL with a message. */
static const char *parse_item(const char *text, fa_config *config, bool *was_set, char *message, size_t message_size) {
  size_t length = strcspn(text, "=, \t\n");
  int printed = (int)(length > 60 ? 60 : length), i = 0;
  const char *digits = skip_blanks(text + length);
  if (length == 0 || *digits != '=') {
    snprintf(message, message_size, "config is written name=value,name=value, but here it has '%.60s'", text);
    return NULL;
  }
  while (i < config->count &&
         (strlen(config->item[i].name) != length || memcmp(config->item[i].name, text, length) != 0))
    i++;
  if (i == config->count) {
    char known[512];
    if (fa_config_format(config, known, sizeof known) != 0)
      known[0] = '\0';
    snprintf(message, message_size, "config has no item '%.*s'; it must be one of those here: %s", printed, text,
             known);
    return NULL;
  }
  if (was_set[i]) {
    snprintf(message, message_size, "config gives '%s' twice", config->item[i].name);
    return NULL;
  }
  digits = skip_blanks(digits + 1);
  char *end;
  errno = 0;
  long value = strtol(digits, &end, 10);
  const char *next = skip_blanks(end);
  if (end == digits || errno == ERANGE || value < INT_MIN || value > INT_MAX || (*next != ',' && *next != '\0')) {
    snprintf(message, message_size, "config item '%s' is '%.*s'; it must be an integer", config->item[i].name,
             (int)strcspn(digits, ",") > 60 ? 60 : (int)strcspn(digits, ","), digits);
    return NULL;
  }
  config->item[i].value = (int)value;
  was_set[i] = true;
  return next;
}

int fa_config_parse(const fa_problem *problem, const char *text, fa_config *config, char *message,
                    size_t message_size) {
  fa_config *candidates = malloc(FA_MAX_CANDIDATES * sizeof *candidates);
  bool was_set[FA_MAX_CONFIG_ITEMS] = {false};
  int status = -1;
  if (!candidates) {
    snprintf(message, message_size, "out of memory");
    return -1;
  }
  if (fa_candidates(problem, NULL, candidates, message, message_size) < 1)
    goto done;
  *config = candidates[0];
  for (const char *next = skip_blanks(text); *next;) {
    next = parse_item(next, config, was_set, message, message_size);
    if (!next)
      goto done;
    if (*next == ',' && !*(next = skip_blanks(next + 1))) {
      snprintf(message, message_size, "config ends with a comma");
      goto done;
    }
  }
  status = fa_config_check(problem, config, message, message_size);
done:
  free(candidates);
  return status;
}
