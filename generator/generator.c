/* From a problem and a config to source text: see generator.h. What depends on the hardware is the family's. */
#include "generator/generator.h"

#include "generator/family.h"
#include "generator/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const fa_family *const families[] = {&fa_family_amx,         &fa_family_cpu,         &fa_family_hopper,
                                            &fa_family_hopper_fp32, &fa_family_hopper_wide, &fa_family_cuda};
enum { NUM_FAMILIES = sizeof families / sizeof families[0] };

const char *fa_op_name(fa_op op) { return op == FA_FORWARD ? "forward" : op == FA_BACKWARD ? "backward" : "?"; }

const char *fa_dtype_name(fa_dtype dtype) {
  return dtype == FA_FP32 ? "fp32" : dtype == FA_FP16 ? "fp16" : dtype == FA_BF16 ? "bf16" : "?";
}

size_t fa_dtype_size(fa_dtype dtype) { return dtype == FA_FP32 ? 4 : 2; }

/* For 16-bit types the switch means nothing, so it must not make another kernel. */
static const char *precision_name(const fa_problem *problem) {
  return problem->dtype == FA_FP32 && problem->precision == FA_PRECISION_REDUCED ? "reduced" : "full";
}

const fa_family *fa_family_of_tests;

static const fa_family *find_family(const fa_problem *problem) {
  if (fa_family_of_tests && fa_family_of_tests->owns(problem))
    return fa_family_of_tests;
  for (int i = 0; i < NUM_FAMILIES; i++)
    if (families[i]->owns(problem))
      return families[i];
  return NULL;
}

static int fail(char *message, size_t message_size, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int fail(char *message, size_t message_size, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, message_size, format, arguments);
  va_end(arguments);
  return -1;
}

int fa_problem_check(const fa_problem *problem, char *message, size_t message_size) {
  if (problem->op != FA_FORWARD && problem->op != FA_BACKWARD)
    return fail(message, message_size, "op is %d; it must be forward (0) or backward (1)", (int)problem->op);
  if (problem->dtype != FA_FP32 && problem->dtype != FA_FP16 && problem->dtype != FA_BF16)
    return fail(message, message_size, "dtype is %d; it must be fp32 (0), fp16 (1) or bf16 (2)", (int)problem->dtype);
  if (problem->precision != FA_PRECISION_FULL && problem->precision != FA_PRECISION_REDUCED)
    return fail(message, message_size, "precision is %d; it must be full (0) or reduced (1)", (int)problem->precision);
  if (problem->head_dim < 1 || problem->head_dim > FA_MAX_HEAD_DIM)
    return fail(message, message_size, "head_dim is %d; it must be 1 to %d", problem->head_dim, FA_MAX_HEAD_DIM);
  if (problem->head_dim_v < 1 || problem->head_dim_v > FA_MAX_HEAD_DIM)
    return fail(message, message_size, "head_dim_v is %d; it must be 1 to %d", problem->head_dim_v, FA_MAX_HEAD_DIM);
  if (!memchr(problem->target, '\0', sizeof problem->target))
    return fail(message, message_size, "target is longer than %d characters", FA_TARGET_LENGTH - 1);
  const fa_family *family = find_family(problem);
  if (family)
    return family->check_problem(problem, message, message_size);
  fa_text names = {0};
  for (int i = 0; i < NUM_FAMILIES; i++)
    fa_text_print(&names, "%s%s", i ? ", " : "", families[i]->name);
  fail(message, message_size, "target is '%s'; it must belong to a kernel family that is there: %s", problem->target,
       names.data ? names.data : "");
  fa_text_free(&names);
  return -1;
}

void fa_problem_normalize(fa_problem *problem) {
  const fa_family *family = find_family(problem);
  unsigned variants = family && family->variants ? family->variants(problem) : 0;
  if (problem->dtype != FA_FP32 || !(variants & FA_VARIANT_REDUCED))
    problem->precision = FA_PRECISION_FULL;
  problem->deterministic = problem->deterministic && (variants & FA_VARIANT_DETERMINISTIC);
}

bool fa_needs_tensor_maps(const fa_problem *problem) {
  const fa_family *family = find_family(problem);
  return family && family->needs_tensor_maps && family->needs_tensor_maps(problem);
}

int fa_candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs, char *message,
                  size_t message_size) {
  if (fa_problem_check(problem, message, message_size) != 0)
    return -1;
  const fa_family *family = find_family(problem);
  const int listed = family->candidates(problem, shape, configs);
  int count = 0;
  for (int i = 0; i < listed && listed <= FA_MAX_CANDIDATES; i++) {
    configs[count] = configs[i];
    count += family->check_config(problem, &configs[count], message, message_size) == 0;
  }
  if (count < 1)
    return fail(message, message_size, "no config of target '%s' fits head_dim %d and head_dim_v %d", problem->target,
                problem->head_dim, problem->head_dim_v);
  return count;
}

int fa_config_check(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  if (fa_problem_check(problem, message, message_size) != 0)
    return -1;
  if (config->count < 0 || config->count > FA_MAX_CONFIG_ITEMS)
    return fail(message, message_size, "config has %d items; it must have 0 to %d", config->count, FA_MAX_CONFIG_ITEMS);
  return find_family(problem)->check_config(problem, config, message, message_size);
}

int fa_describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel, char *message,
                size_t message_size) {
  *kernel = (fa_kernel){0};
  if (fa_config_check(problem, config, message, message_size) != 0)
    return -1;
  find_family(problem)->describe(problem, config, kernel);
  return 0;
}

int fa_plan_call(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  *plan = (fa_plan){0};
  const fa_family *family = find_family(problem);
  if (!family || shape->batch < 0 || shape->heads_q < 0 || shape->heads_kv < 0 || shape->seqlen_q < 0 ||
      shape->seqlen_k < 0)
    return -1;
  family->plan(problem, config, shape, plan);
  return 0;
}

/* What every template may read, the config's items, and what the family adds. An item of the config that no
 * template reads is an error, because two configs would give one kernel; a family whose kernel rightly ignores an item
 * offers it again. */
static int set_constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  int failed = fa_constants_offer_text(constants, "op", fa_op_name(problem->op)) |
               fa_constants_offer_text(constants, "dtype", fa_dtype_name(problem->dtype)) |
               fa_constants_offer_text(constants, "precision", precision_name(problem)) |
               fa_constants_offer_text(constants, "target", problem->target) |
               fa_constants_offer_int(constants, "head_dim", problem->head_dim) |
               fa_constants_offer_int(constants, "head_dim_v", problem->head_dim_v) |
               fa_constants_offer_int(constants, "causal", problem->is_causal) |
               fa_constants_offer_int(constants, "deterministic", problem->deterministic);
  for (int i = 0; i < config->count; i++)
    failed |= fa_constants_set_int(constants, config->item[i].name, config->item[i].value);
  return failed || find_family(problem)->constants(problem, config, constants) ? -1 : 0;
}

static void print_header(fa_text *text, const fa_problem *problem, const fa_config *config, const fa_kernel *kernel,
                         const char *template_name) {
  bool reduced = strcmp(precision_name(problem), "reduced") == 0;
  fa_text_print(text, "/*\n * Attention, %s: a kernel for exactly\n", fa_op_name(problem->op));
  fa_text_print(text, " *   target    %s\n", problem->target);
  fa_text_print(text, " *   dtype     %s%s\n", fa_dtype_name(problem->dtype),
                reduced ? ", lower precision in the products allowed" : "");
  fa_text_print(text, " *   head_dim  %d of query and key, %d of value and output\n", problem->head_dim,
                problem->head_dim_v);
  fa_text_print(text, " *   mask      %s\n", problem->is_causal ? "causal: query i sees keys 0 to i" : "none");
  if (problem->deterministic)
    fa_text_print(text, " *   sums      in a fixed order: the same call gives the same bits\n");
  fa_text_print(text, " * with the config\n *   ");
  for (int i = 0; i < config->count; i++)
    fa_text_print(text, "%s%s=%d", i ? "," : "", config->item[i].name, config->item[i].value);
  fa_text_print(text, "%s\n * compiled with\n *   %s\n", config->count ? "" : "nothing to choose",
                kernel->compile_options);
  fa_text_print(text, " * A call runs:");
  for (int i = 0; i < kernel->num_phases; i++)
    fa_text_print(text, "%s %s", i ? ", then" : "", kernel->phase[i].entry);
  fa_text_print(
      text,
      "\n *\n * Generated from templates/%s, where each #line leads: change it there.\n"
      " * The cache knows the compiled kernel by this text, these options, the target and the compiler.\n */\n",
      template_name);
}

int fa_render(const fa_problem *problem, const fa_config *config, const char *template_dir, fa_kernel *kernel,
              char *message, size_t message_size) {
  fa_constants constants = {0};
  fa_text text = {0};
  char *body = NULL;
  int status = -1;
  if (fa_describe(problem, config, kernel, message, message_size) != 0)
    return -1;
  const char *template_name = find_family(problem)->template_name(problem);
  if (set_constants(problem, config, &constants) != 0) {
    fail(message, message_size, "out of memory");
    goto done;
  }
  body = fa_template_expand(template_dir, template_name, &constants, message, message_size);
  if (!body)
    goto done;
  print_header(&text, problem, config, kernel, template_name);
  fa_text_add(&text, body, strlen(body));
  if (text.failed) {
    fail(message, message_size, "out of memory");
    goto done;
  }
  kernel->source = text.data;
  kernel->source_length = text.length;
  text.data = NULL;
  status = 0;
done:
  free(body);
  fa_text_free(&text);
  fa_constants_free(&constants);
  if (status != 0)
    fa_kernel_free(kernel);
  return status;
}

void fa_kernel_free(fa_kernel *kernel) {
  free(kernel->source);
  *kernel = (fa_kernel){0};
}
