/*
 * Templates and sources that are no attention: for tests of what kernels are made of, and for whoever writes a
 * template.
 */
#define _GNU_SOURCE
#include "generator/template.h"
#include "runtime/runtime.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* "value" as a number where it is one, else as text. */
static int set(fa_constants *constants, const char *name, const char *value) {
  char *end;
  errno = 0;
  long long number = strtoll(value, &end, 10);
  if (end != value && !*end && !errno)
    return fa_constants_set_int(constants, name, number);
  return fa_constants_set_text(constants, name, value);
}

/* "name=value,name=value"; `text` is written into. */
static fa_status read_constants(char *text, fa_constants *constants, char *message) {
  char *rest = NULL;
  for (char *item = strtok_r(text, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
    char *value = strchr(item, '=');
    if (!value || value == item)
      return fa_fail(FA_INVALID_VALUE, message, "constants are written name=value,name=value, but here it has '%.60s'",
                     item);
    *value++ = 0;
    if (set(constants, item, value) != 0)
      return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  }
  return FA_OK;
}

fa_status fa_expand(const char *name, const char *constants, char **text, char *message) {
  fa_constants known = {0};
  char *copy = strdup(constants ? constants : "");
  *text = NULL;
  fa_status status = copy ? read_constants(copy, &known, message) : fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  if (status == FA_OK) {
    *text = fa_template_expand(fa_template_dir(), name, &known, message, FA_MESSAGE_SIZE);
    status = *text ? FA_OK : FA_FAILED;
  }
  fa_constants_free(&known);
  free(copy);
  return status;
}

fa_status fa_compile_source(const char *target, const char *options, const char *source, fa_compiled *compiled,
                            char *message) {
  fa_problem problem = {.op = FA_FORWARD};
  fa_kernel kernel = {0};
  memset(compiled, 0, sizeof *compiled);
  const fa_target *ops = fa_find_target(target);
  if (!ops)
    return fa_fail(FA_INVALID_VALUE, message, "target is '%.60s'; it must be cuda:sm_90a, cpu:avx2 or the like",
                   target);
  if (strlen(target) >= sizeof problem.target || strlen(options) >= sizeof kernel.compile_options)
    return fa_fail(FA_INVALID_VALUE, message, "target or compile options are too long: '%.60s', '%.60s'", target,
                   options);
  strcpy(problem.target, target);
  strcpy(kernel.compile_options, options);
  if (!(kernel.source = strdup(source)))
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  kernel.source_length = strlen(source);
  fa_status status = ops->compile(&problem, &kernel, compiled, message);
  fa_kernel_free(&kernel);
  return status;
}
