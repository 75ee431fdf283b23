/*
 * The steps of a call one at a time, for the command line and for tests: configs, source, compiled image.
 */
#include "runtime/runtime.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void fa_free(void *memory) { free(memory); }

/* "" or NULL: the best guess; "k=v,...": that with some items changed. */
static fa_status choose_config(const fa_problem *problem, const char *text, fa_config *config, char *message) {
  if (fa_problem_check(problem, message, FA_MESSAGE_SIZE) != 0)
    return FA_INVALID_VALUE;
  if (text && *text)
    return fa_config_parse(problem, text, config, message, FA_MESSAGE_SIZE) == 0 ? FA_OK : FA_INVALID_VALUE;
  fa_config *all = calloc(FA_MAX_CANDIDATES, sizeof *all);
  if (!all)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  fa_status status = FA_FAILED;
  if (fa_candidates(problem, NULL, all, message, FA_MESSAGE_SIZE) > 0) {
    *config = all[0];
    status = FA_OK;
  }
  free(all);
  return status;
}

static fa_status render(const fa_problem *problem, const char *text, fa_config *config, fa_kernel *kernel,
                        char *message) {
  fa_problem normal = *problem;
  fa_problem_normalize(&normal);
  fa_status status = choose_config(&normal, text, config, message);
  if (status == FA_OK && fa_render(&normal, config, fa_template_dir(), kernel, message, FA_MESSAGE_SIZE) != 0)
    status = FA_FAILED;
  return status;
}

fa_status fa_source(const fa_problem *problem, const char *config, char **source, char *config_used,
                    size_t config_used_size, char *message) {
  fa_config chosen;
  fa_kernel kernel = {0};
  *source = NULL;
  fa_status status = render(problem, config, &chosen, &kernel, message);
  if (status != FA_OK)
    return status;
  if (config_used)
    fa_config_format(&chosen, config_used, config_used_size);
  *source = kernel.source; /* moved */
  kernel.source = NULL;
  fa_kernel_free(&kernel);
  return FA_OK;
}

fa_status fa_plan_text(const fa_problem *problem, const char *config, const fa_shape *shape, char **text,
                       char *message) {
  enum { SIZE = 1024 };
  fa_config chosen;
  fa_kernel kernel;
  fa_plan plan;
  *text = NULL;
  fa_status status = choose_config(problem, config, &chosen, message);
  if (status != FA_OK)
    return status;
  if (fa_describe(problem, &chosen, &kernel, message, FA_MESSAGE_SIZE) != 0)
    return FA_INVALID_VALUE;
  if (fa_plan_call(problem, &chosen, shape, &plan) != 0)
    return fa_fail(FA_INVALID_VALUE, message, "no plan for such a shape");
  *text = calloc(1, SIZE);
  if (!*text)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  fa_append(*text, SIZE, "num_splits %d\nworkspace_bytes %zu\nscratch_bytes %zu\n", plan.num_splits,
            plan.workspace_bytes, plan.scratch_bytes);
  for (int i = 0; i < plan.num_phases; i++)
    fa_append(*text, SIZE, "phase %s %d %zu %" PRId64 " %d\n", kernel.phase[i].entry, kernel.phase[i].block_size,
              kernel.phase[i].shared_bytes, plan.grid[i], kernel.phase[i].persistent);
  static const char *const mapped[] = {
      [FA_MAP_QUERY] = "query", [FA_MAP_KEY] = "key", [FA_MAP_VALUE] = "value", [FA_MAP_GRAD_OUTPUT] = "grad_output"};
  for (int i = 0; i < kernel.num_maps; i++)
    fa_append(*text, SIZE, "map %s %d %d\n", mapped[kernel.map[i].tensor], kernel.map[i].cols, kernel.map[i].rows);
  return FA_OK;
}

fa_status fa_compile(const fa_problem *problem, const char *config, fa_compiled *compiled, char *message) {
  fa_config chosen;
  fa_kernel kernel = {0};
  memset(compiled, 0, sizeof *compiled);
  fa_status status = render(problem, config, &chosen, &kernel, message);
  if (status != FA_OK)
    return status;
  const fa_target *ops = fa_find_target(problem->target);
  if (ops) {
    fa_count(&fa_counters.compilations);
    status = ops->compile(problem, &kernel, compiled, message);
    if (status != FA_OK)
      fa_count(&fa_counters.compile_failures);
  } else {
    status = fa_fail(FA_UNSUPPORTED, message, "target '%s' has no compiler yet", problem->target);
  }
  fa_kernel_free(&kernel);
  return status;
}

fa_status fa_list_configs(const fa_problem *problem, char **text, char *message) {
  *text = NULL;
  if (fa_problem_check(problem, message, FA_MESSAGE_SIZE) != 0)
    return FA_INVALID_VALUE;
  const size_t size = (size_t)FA_MAX_CANDIDATES * 256;
  fa_config *all = calloc(FA_MAX_CANDIDATES, sizeof *all);
  char *lines = calloc(1, size);
  int count = -1;
  if (all && lines)
    count = fa_candidates(problem, NULL, all, message, FA_MESSAGE_SIZE);
  else
    fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  for (int i = 0; i < count; i++) {
    char config[255];
    fa_config_format(&all[i], config, sizeof config);
    fa_append(lines, size, "%s\n", config);
  }
  free(all);
  if (count < 0) {
    free(lines);
    return all && lines ? FA_FAILED : FA_OUT_OF_MEMORY;
  }
  *text = lines;
  return FA_OK;
}
