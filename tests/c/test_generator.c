/* From problem and config to source: what is refused and with which words, configs as text, and that every config
 * offered for a grid of problems is legal and renders, twice to the same bytes. */
#include "generator/generator.h"
#include "tests/c/template_help.h"

static const fa_problem plain = {.dtype = FA_FP32, .head_dim = 64, .head_dim_v = 64, .target = "cpu:avx2"};
static const fa_shape square = {2, 8, 8, 512, 512};
static fa_config configs[FA_MAX_CANDIDATES];
static char message[1024];

static bool same_config(const fa_config *a, const fa_config *b) {
  for (int i = 0; i < a->count && a->count == b->count; i++)
    if (strcmp(a->item[i].name, b->item[i].name) != 0 || a->item[i].value != b->item[i].value)
      return false;
  return a->count == b->count;
}

static void test_names(void) {
  CHECK_TEXT(fa_op_name(FA_FORWARD), "forward");
  CHECK_TEXT(fa_op_name(FA_BACKWARD), "backward");
  CHECK_TEXT(fa_dtype_name(FA_FP32), "fp32");
  CHECK_TEXT(fa_dtype_name(FA_FP16), "fp16");
  CHECK_TEXT(fa_dtype_name(FA_BF16), "bf16");
  CHECK(fa_dtype_size(FA_FP32) == 4 && fa_dtype_size(FA_FP16) == 2 && fa_dtype_size(FA_BF16) == 2);
}

/* Every function refuses a bad problem, in the same words. */
static void check_problem_refused(fa_problem problem, const char *expected) {
  fa_kernel kernel;
  CHECK(fa_problem_check(&problem, message, sizeof message) == -1);
  CHECK_TEXT(message, expected);
  CHECK(fa_candidates(&problem, NULL, configs, message, sizeof message) == -1);
  CHECK(fa_config_parse(&problem, "", &configs[0], message, sizeof message) == -1);
  configs[0].count = 0;
  CHECK(fa_describe(&problem, &configs[0], &kernel, message, sizeof message) == -1);
  CHECK(fa_render(&problem, &configs[0], FA_TEMPLATE_DIR, &kernel, message, sizeof message) == -1);
  CHECK_TEXT(message, expected);
  CHECK(kernel.source == NULL);
}

static void test_bad_problems(void) {
  fa_problem bad = plain;
  CHECK(fa_problem_check(&plain, message, sizeof message) == 0);
  bad.head_dim = 0;
  check_problem_refused(bad, "head_dim is 0; it must be 1 to 256");
  bad.head_dim = 257;
  check_problem_refused(bad, "head_dim is 257; it must be 1 to 256");
  bad = plain, bad.head_dim_v = -1;
  check_problem_refused(bad, "head_dim_v is -1; it must be 1 to 256");
  bad = plain, memcpy(&bad.op, &(int){7}, sizeof(int));
  check_problem_refused(bad, "op is 7; it must be forward (0) or backward (1)");
  bad = plain, memcpy(&bad.dtype, &(int){3}, sizeof(int));
  check_problem_refused(bad, "dtype is 3; it must be fp32 (0), fp16 (1) or bf16 (2)");
  bad = plain, memcpy(&bad.precision, &(int){2}, sizeof(int));
  check_problem_refused(bad, "precision is 2; it must be full (0) or reduced (1)");
  bad = plain, memset(bad.target, 'x', sizeof bad.target);
  check_problem_refused(bad, "target is longer than 31 characters");
  bad = plain, memcpy(bad.target, "tpu:v7", 7);
  CHECK(fa_problem_check(&bad, message, sizeof message) == -1);
  CHECK(strstr(message, "target is 'tpu:v7'; it must belong to a kernel family that is there: amx, cpu") == message);
  bad = plain, memcpy(bad.target, "cpu:z80", 8);
  CHECK(fa_problem_check(&bad, message, sizeof message) == -1);
  CHECK(strstr(message, "target is 'cpu:z80'; it must be ") == message);
}

static void test_config_text(void) {
  fa_config config, again;
  char text[256], other[512];
  CHECK(fa_candidates(&plain, NULL, configs, message, sizeof message) >= 1);
  CHECK(fa_config_parse(&plain, "", &config, message, sizeof message) == 0);
  CHECK(same_config(&config, &configs[0])); /* nothing said: the best guess */
  CHECK(fa_config_format(&config, text, sizeof text) == 0);
  CHECK(fa_config_parse(&plain, text, &again, message, sizeof message) == 0);
  CHECK(same_config(&config, &again));
  for (size_t size = 0; size <= strlen(text); size++)
    CHECK(fa_config_format(&config, other, size) == -1);
  CHECK(fa_config_format(&config, other, strlen(text) + 1) == 0);
  CHECK_TEXT(other, text);
  /* In any order, with blanks. */
  other[0] = '\0';
  for (int i = config.count; i-- > 0;)
    snprintf(other + strlen(other), sizeof other - strlen(other), " %s = %d %s", config.item[i].name,
             config.item[i].value, i ? "," : "");
  CHECK(fa_config_parse(&plain, other, &again, message, sizeof message) == 0);
  CHECK(same_config(&config, &again));
  CHECK(fa_config_get(&config, "block_m", -5) == config.item[1].value);
  CHECK(fa_config_get(&config, "nothing", -5) == -5);
}

static void test_bad_configs(void) {
  fa_config config;
  static const struct {
    const char *text, *expected;
  } bad[] = {
      {"block_m", "config is written name=value,name=value, but here it has 'block_m'"},
      {"=3", "config is written name=value,name=value, but here it has '=3'"},
      {",", "config is written name=value,name=value, but here it has ','"},
      {"block_m=64,,block_n=64", "config is written name=value,name=value, but here it has ',block_n=64'"},
      {"block_m=64,", "config ends with a comma"},
      {"block_m=64,block_m=64", "config gives 'block_m' twice"},
      {"block_m=", "config item 'block_m' is ''; it must be an integer"},
      {"block_m=x", "config item 'block_m' is 'x'; it must be an integer"},
      {"block_m=64x", "config item 'block_m' is '64x'; it must be an integer"},
      {"block_m=64 64", "config item 'block_m' is '64 64'; it must be an integer"},
      {"block_m=99999999999", "config item 'block_m' is '99999999999'; it must be an integer"},
      {"block_m=9999999999999999999999", "config item 'block_m' is '9999999999999999999999'; it must be an integer"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    CHECK(fa_config_parse(&plain, bad[i].text, &config, message, sizeof message) == -1);
    CHECK_TEXT(message, bad[i].expected);
  }
  CHECK(fa_config_parse(&plain, "speed=11", &config, message, sizeof message) == -1);
  CHECK(strstr(message, "config has no item 'speed'; it must be one of those here: ") == message);
  CHECK(strstr(message, "block_m=") != NULL);
  /* Values that the family refuses, and an array that is none. */
  CHECK(fa_config_parse(&plain, "block_m=-64", &config, message, sizeof message) == -1);
  CHECK(strstr(message, "block_m is -64; it must be ") == message);
  config.count = FA_MAX_CONFIG_ITEMS + 1;
  CHECK(fa_config_check(&plain, &config, message, sizeof message) == -1);
  CHECK_TEXT(message, "config has 17 items; it must have 0 to 16");
}

/* What a template may read, and that an item of the config that it does not read is an error. */
static void test_constants_of_a_template(void) {
  char text[1024] = "${op} ${dtype} ${precision} ${head_dim} ${head_dim_v} ${causal} ${target}\n", expected[512];
  fa_problem problem = {.dtype = FA_FP16,
                        .precision = FA_PRECISION_REDUCED,
                        .head_dim = 80,
                        .head_dim_v = 1,
                        .is_causal = true,
                        .target = "cpu:avx2"};
  fa_kernel kernel;
  CHECK(fa_candidates(&problem, &square, configs, message, sizeof message) >= 1);
  write_template("cpu/forward.c", text);
  CHECK(fa_render(&problem, &configs[0], test_dir, &kernel, message, sizeof message) == -1);
  CHECK(kernel.source == NULL);
  snprintf(expected, sizeof expected, "cpu/forward.c: constant '%s' was set but no template reads it",
           configs[0].item[0].name);
  CHECK_TEXT(message, expected);
  snprintf(expected, sizeof expected, "#line 1 \"cpu/forward.c\"\nforward fp16 full 80 1 1 cpu:avx2\n");
  for (int i = 0; i < configs[0].count; i++) {
    snprintf(text + strlen(text), sizeof text - strlen(text), "${%s}\n", configs[0].item[i].name);
    snprintf(expected + strlen(expected), sizeof expected - strlen(expected), "%d\n", configs[0].item[i].value);
  }
  write_template("cpu/forward.c", text);
  if (CHECK(fa_render(&problem, &configs[0], test_dir, &kernel, message, sizeof message) == 0)) {
    char *end = strstr(kernel.source, " */\n");
    CHECK_TEXT(end ? end + 4 : "no header", expected);
    CHECK(strncmp(kernel.source, "/*\n * Attention, forward:", 25) == 0);
  }
  fa_kernel_free(&kernel);
  problem.dtype = FA_FP32;
  if (CHECK(fa_render(&problem, &configs[0], test_dir, &kernel, message, sizeof message) == 0))
    CHECK(strstr(kernel.source, "forward fp32 reduced 80 1 1 cpu:avx2\n") != NULL);
  fa_kernel_free(&kernel);
  CHECK(fa_render(&problem, &configs[0], "/nowhere", &kernel, message, sizeof message) == -1);
  CHECK_TEXT(message, "template \"cpu/forward.c\" cannot be read from /nowhere: No such file or directory");
}

/* One config of a problem. */
static void check_kernel(const fa_problem *problem, const fa_config *config) {
  char text[256];
  fa_kernel kernel, again, described;
  fa_config parsed;
  if (!CHECK(fa_config_check(problem, config, message, sizeof message) == 0) ||
      !CHECK(fa_config_format(config, text, sizeof text) == 0) ||
      !CHECK(fa_config_parse(problem, text, &parsed, message, sizeof message) == 0) ||
      !CHECK(fa_describe(problem, config, &described, message, sizeof message) == 0)) {
    printf("  %s\n", message);
    return;
  }
  int rendered = fa_render(problem, config, FA_TEMPLATE_DIR, &kernel, message, sizeof message);
  CHECKF(rendered == 0, "%s, head_dim %d and %d, %s: %s", problem->target, problem->head_dim, problem->head_dim_v, text,
         message);
  if (rendered != 0)
    return;
  if (CHECK(fa_render(problem, &parsed, FA_TEMPLATE_DIR "/.", &again, message, sizeof message) == 0)) {
    CHECK(kernel.source_length == strlen(kernel.source));
    CHECK(strcmp(kernel.source, again.source) == 0); /* wherever the templates lie */
    CHECK(strstr(kernel.source, "${") == NULL && strstr(kernel.source, "//%") == NULL);
  }
  CHECK(kernel.num_phases >= 1 && kernel.num_phases == described.num_phases && kernel.compile_options[0] != '\0');
  CHECK(described.source == NULL && strcmp(kernel.compile_options, described.compile_options) == 0);
  for (int i = 0; i < kernel.num_phases; i++) {
    CHECK_TEXT(kernel.phase[i].entry, described.phase[i].entry);
    snprintf(text, sizeof text, "%s(const ", kernel.phase[i].entry);
    CHECK(strstr(kernel.source, text) != NULL);
  }
  fa_kernel_free(&kernel);
  fa_kernel_free(&again);
}

static void check_problem(const fa_problem *problem, int most_rendered) {
  static const fa_shape shapes[] = {{2, 8, 8, 512, 512}, {1, 1, 1, 1, 1}, {1, 4, 2, 1, 5000}, {0, 0, 0, 0, 0}};
  static fa_config found[FA_MAX_CANDIDATES];
  for (size_t s = 0; s <= sizeof shapes / sizeof shapes[0]; s++) {
    const fa_shape *shape = s ? &shapes[s - 1] : NULL;
    int count = fa_candidates(problem, shape, found, message, sizeof message);
    if (!CHECK(count >= 1 && count <= FA_MAX_CANDIDATES))
      continue;
    for (int i = 0; i < count; i++) {
      CHECKF(fa_config_check(problem, &found[i], message, sizeof message) == 0, "%s", message);
      for (int j = 0; j < i; j++)
        if (same_config(&found[i], &found[j]))
          CHECKF(false, "candidates %d and %d are the same", i, j);
      if (s <= 1 && i * most_rendered % count < most_rendered)
        check_kernel(problem, &found[i]);
    }
  }
}

static void test_grid(void) {
  static const char *const targets[] = {"cpu:avx2", "cpu:avx512", "cpu:avx512_bf16", "cpu:avx512_amx",
                                        "cpu:neon", "cuda:sm_80", "cuda:sm_90a"};
  static const int head_dims[][2] = {{64, 64}, {128, 128}, {1, 1}, {80, 80}, {64, 33}, {7, 256}, {256, 256}};
  for (int op = 0; op < 2; op++)
    for (int dtype = 0; dtype < 3; dtype++)
      for (size_t t = 0; t < sizeof targets / sizeof targets[0]; t++)
        for (size_t d = 0; d < sizeof head_dims / sizeof head_dims[0]; d++) {
          fa_problem problem = {.op = (fa_op)op,
                                .dtype = (fa_dtype)dtype,
                                .head_dim = head_dims[d][0],
                                .head_dim_v = head_dims[d][1],
                                .is_causal = d % 2 == (size_t)op};
          snprintf(problem.target, sizeof problem.target, "%s", targets[t]);
          problem.precision = dtype == 0 && d == 1 ? FA_PRECISION_REDUCED : FA_PRECISION_FULL;
          check_problem(&problem, d == 0 ? 3 : 1);
          problem.deterministic = op == FA_BACKWARD && d < 2;
          if (problem.deterministic)
            check_problem(&problem, 1);
        }
}

/* What the first candidate for forward in this shape launches. */
static fa_plan plan_for(fa_problem *problem, fa_shape shape) {
  fa_plan plan = {0};
  CHECKF(fa_candidates(problem, &shape, configs, message, sizeof message) >= 1, "%s", message);
  CHECK(fa_plan_call(problem, &configs[0], &shape, &plan) == 0);
  return plan;
}

/* On a GPU keys are split where tiles of queries would leave it empty, and nowhere else; what the last phase adds, and
 * where, fits what it has threads and workspace for. */
static void test_keys_in_parts(void) {
  fa_problem problem = {.op = FA_FORWARD, .dtype = FA_BF16, .head_dim = 128, .head_dim_v = 80, .target = "cuda:sm_80"};
  fa_plan one = plan_for(&problem, (fa_shape){1, 1, 1, 1, 32768});
  CHECK(one.num_splits == 128 && one.grid[0] == 128); /* 256 keys each, and no more parts than threads that add them */
  CHECK(one.num_phases == 2 && one.grid[1] == 1 && one.workspace_bytes == 128 * (80 * 4 + 16));
  fa_plan some = plan_for(&problem, (fa_shape){2, 16, 4, 3, 32768});
  CHECK(some.num_splits == 16 && some.grid[0] == 512 && some.grid[1] == 96); /* 512 blocks; a row each */
  fa_plan short_keys = plan_for(&problem, (fa_shape){1, 1, 1, 1, 511});
  CHECK(short_keys.num_splits == 1 && short_keys.grid[1] == 0 && short_keys.workspace_bytes == 0);
  fa_plan many_heads = plan_for(&problem, (fa_shape){64, 32, 32, 1, 32768});
  CHECK(many_heads.num_splits == 1 && many_heads.grid[0] == 2048 && many_heads.workspace_bytes == 0);
  fa_plan many_queries = plan_for(&problem, (fa_shape){1, 16, 16, 16384, 16384});
  CHECK(many_queries.num_phases == 1 && many_queries.num_splits == 1);
  problem.is_causal = true; /* a query sees no keys behind it */
  fa_plan causal = plan_for(&problem, (fa_shape){1, 1, 1, 1100, 32768});
  CHECK(causal.num_splits == 4 && causal.grid[0] == 4 * 18 && causal.grid[1] == 1100);
  fa_plan hidden = plan_for(&problem, (fa_shape){1, 1, 1, 1, 32768});
  CHECK(hidden.num_splits == 1);
  /* fp32: where queries or keys are few, no phase splits K and V into parts of 16 bits. */
  problem.is_causal = false;
  problem.dtype = FA_FP32;
  fa_plan full = plan_for(&problem, (fa_shape){1, 1, 1, 1, 1024});
  CHECK(full.num_phases == 2 && full.num_splits == 4 && full.workspace_bytes == 4 * (80 * 4 + 16));
  fa_plan tiny = plan_for(&problem, (fa_shape){1, 1, 1, 1, 1});
  CHECK(tiny.num_splits == 1 && tiny.grid[0] == 1 && tiny.grid[1] == 0 && tiny.workspace_bytes == 0);
}

/* The best guess for short sequences on Hopper in fp32: what computes with fewest keys that are not there. */
static void test_short_keys(void) {
  fa_problem problem = {.op = FA_FORWARD, .head_dim = 64, .head_dim_v = 64, .target = "cuda:sm_90a"};
  static const int64_t expected[][2] = {{5, 128}, {128, 128}, {512, 128}, {1024, 128}, {2048, 192}, {16384, 192}};
  for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
    const fa_shape shape = {1, 16, 16, 1024, expected[i][0]};
    CHECKF(fa_candidates(&problem, &shape, configs, message, sizeof message) == 3, "%s", message);
    CHECK_NUMBER(fa_config_get(&configs[0], "block_n", 0), expected[i][1]);
  }
  CHECK(fa_candidates(&problem, NULL, configs, message, sizeof message) == 3);
  CHECK_NUMBER(fa_config_get(&configs[0], "block_n", 0), 192);
}

static void test_plans(void) {
  fa_problem problem = plain;
  fa_plan plan, again;
  for (int op = 0; op < 2; op++) {
    problem.op = (fa_op)op;
    CHECK(fa_candidates(&problem, &square, configs, message, sizeof message) >= 1);
    CHECK(fa_plan_call(&problem, &configs[0], &square, &plan) == 0);
    CHECK(plan.num_phases >= 1 && plan.num_phases <= FA_MAX_PHASES && plan.num_splits >= 1 && plan.grid[0] >= 1);
    CHECK(fa_plan_call(&problem, &configs[0], &square, &again) == 0);
    CHECK(plan.num_phases == again.num_phases && plan.num_splits == again.num_splits);
    CHECK(plan.workspace_bytes == again.workspace_bytes && plan.scratch_bytes == again.scratch_bytes);
    for (int field = 0; field < 5; field++) {
      int64_t sizes[5] = {2, 8, 8, 512, 512};
      sizes[field] = -1;
      fa_shape shape = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
      CHECK(fa_plan_call(&problem, &configs[0], &shape, &plan) == -1);
    }
    /* An empty batch has nothing to do. */
    CHECK(fa_plan_call(&problem, &configs[0], &(fa_shape){0, 8, 8, 512, 512}, &plan) == 0);
    CHECK(plan.grid[0] == 0);
    /* More batch·heads than 16 bits. */
    CHECK(fa_plan_call(&problem, &configs[0], &(fa_shape){1000, 100, 100, 64, 64}, &plan) == 0);
    CHECK(plan.grid[0] >= 100000);
  }
  memcpy(problem.target, "tpu:v7", 7);
  CHECK(fa_plan_call(&problem, &configs[0], &square, &plan) == -1);
}

int main(void) {
  make_test_dir();
  RUN(test_names);
  RUN(test_bad_problems);
  RUN(test_config_text);
  RUN(test_bad_configs);
  RUN(test_constants_of_a_template);
  RUN(test_grid);
  RUN(test_keys_in_parts);
  RUN(test_short_keys);
  RUN(test_plans);
  remove_test_dir();
  return check_summary();
}
