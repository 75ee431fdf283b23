/*
 * The family of CPUs with AMX, whose tile unit multiplies bf16 at sixteen times the rate of FMAs: its configs, and the
 * arithmetic that templates/cpu/amx_*.c rely on.
 *
 * A config is
 *   block_m   queries of a task (forward) or of a step (backward): a multiple of 32
 *   block_n   keys that are packed and worked on at a time: a multiple of 32
 * A number of fp32 is split into three bf16, of fp16 into two; see templates/cpu/amx_tiles.h.
 */
#include "generator/family.h"

#include <stdio.h>
#include <string.h>

enum { TILE_BYTES = 1024, TILE_M = 32 };

static const char options[] = "-O2 -ffp-contract=fast -fno-math-errno -fno-trapping-math -mavx2 -mfma -mf16c -mavx512f "
                              "-mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512 -mamx-tile -mamx-bf16";

/* Backward in 16 bits with a head_dim of V's own needs delta from all keys (see templates/cpu/backward.c), which only
 * the other CPUs' kernels have. */
static bool uses_tiles(const fa_problem *problem) {
  return problem->op == FA_FORWARD || problem->dtype == FA_FP32 || problem->head_dim == problem->head_dim_v;
}

static int num_parts(const fa_problem *problem) {
  return problem->dtype == FA_FP32 ? 3 : problem->dtype == FA_FP16 ? 2 : 1;
}
static int num_products(const fa_problem *problem) {
  return problem->dtype == FA_FP32 ? 6 : problem->dtype == FA_FP16 ? 4 : 1;
}

static int block_m_of(const fa_config *config) { return fa_config_get(config, "block_m", 0); }
static int block_n_of(const fa_config *config) { return fa_config_get(config, "block_n", 0); }

static bool owns(const fa_problem *problem) { return strcmp(problem->target, "cpu:avx512_amx") == 0; }

static const char *template_name(const fa_problem *problem) {
  if (!uses_tiles(problem))
    return fa_family_cpu.template_name(problem);
  return problem->op == FA_FORWARD ? "cpu/amx_forward.c" : "cpu/amx_backward.c";
}

static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  (void)problem, (void)message, (void)message_size;
  return 0;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  if (!uses_tiles(problem))
    return fa_family_cpu.check_config(problem, config, message, message_size);
  static const char *const names[] = {"block_m", "block_n"};
  for (int i = 0; i < 2; i++) {
    int value = fa_config_get(config, names[i], 0);
    if (value < 32 || value > 1024 || value % 32) {
      snprintf(message, message_size, "%s is %d; it must be a multiple of 32, at most 1024", names[i], value);
      return -1;
    }
  }
  return 0;
}

static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  if (!uses_tiles(problem))
    return fa_family_cpu.candidates(problem, shape, configs);
  /* More queries to a block save packing keys; fewer make more tasks and fit the caches with long rows. */
  static const int forward_queries[] = {512, 256, 128, 64}, backward_queries[] = {128, 256, 64, 32};
  static const int keys[] = {128, 256, 64, 32};
  const int *queries = problem->op == FA_FORWARD ? forward_queries : backward_queries;
  int most_m = shape && shape->seqlen_q < 1024 ? round_up((int)shape->seqlen_q + (shape->seqlen_q < 1), 32) : 1024;
  int most_n = shape && shape->seqlen_k < 1024 ? round_up((int)shape->seqlen_k + (shape->seqlen_k < 1), 32) : 1024;
  int count = 0;
  for (int n = 0; n < 4; n++)
    for (int m = 0; m < 4; m++) {
      int block_m = queries[m] < most_m ? queries[m] : most_m, block_n = keys[n] < most_n ? keys[n] : most_n;
      bool known = false;
      for (int i = 0; i < count; i++)
        known = known || (configs[i].item[0].value == block_m && configs[i].item[1].value == block_n);
      if (!known && count < FA_MAX_CANDIDATES)
        configs[count++] = (fa_config){.count = 2, .item = {{"block_m", block_m}, {"block_n", block_n}}};
    }
  return count;
}

static size_t forward_scratch(const fa_problem *problem, size_t block_m, size_t block_n) {
  size_t parts = (size_t)num_parts(problem), dim = (size_t)problem->head_dim;
  size_t groups_qk = (dim + 31) / 32, tiles_v = ((size_t)problem->head_dim_v + 15) / 16;
  size_t tiles = block_m / 32 * groups_qk * parts * 2 + block_n / 32 * (2 * groups_qk + tiles_v + 2) * parts +
                 block_n / 32 * 8 + 8;
  size_t floats = (block_m + TILE_M) * ((tiles_v + 1) / 2 * 32) + block_m * 3 + dim * TILE_M;
  return tiles * TILE_BYTES + (floats * sizeof(float) + 63) / 64 * 64 + 256; /* 256: members are aligned */
}

static size_t backward_scratch(const fa_problem *problem, size_t block_m, size_t block_n) {
  size_t parts = (size_t)num_parts(problem), dim = (size_t)problem->head_dim, dim_v = (size_t)problem->head_dim_v;
  size_t groups_qk = (dim + 31) / 32, groups_v = (dim_v + 31) / 32, tiles_m = block_m / 32, groups = block_n / 32;
  size_t tiles = tiles_m * 4 * parts * (groups_qk + groups_v) + 2 * groups_v * parts +
                 groups * parts * (4 * groups_qk + 2 * groups_v) + 12 + tiles_m * parts * (4 + 2 * groups);
  size_t floats = block_m * (groups_qk * 32 + 4) + (dim > dim_v ? dim : dim_v) * TILE_M;
  return tiles * TILE_BYTES + (floats * sizeof(float) + 63) / 64 * 64 + 256;
}

static size_t scratch_bytes(const fa_problem *problem, const fa_config *config) {
  size_t block_m = (size_t)block_m_of(config), block_n = (size_t)block_n_of(config);
  return (problem->op == FA_FORWARD ? forward_scratch : backward_scratch)(problem, block_m, block_n) / 64 * 64;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  if (!uses_tiles(problem)) {
    fa_family_cpu.describe(problem, config, kernel);
    return;
  }
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "%s", options);
  kernel->num_phases = problem->op == FA_FORWARD ? 1 : 2;
  kernel->phase[0].block_size = kernel->phase[1].block_size = 1;
  snprintf(kernel->phase[0].entry, FA_ENTRY_LENGTH, "%s", fa_op_name(problem->op));
  snprintf(kernel->phase[1].entry, FA_ENTRY_LENGTH, problem->op == FA_FORWARD ? "" : "backward_sum");
}

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  if (!uses_tiles(problem))
    return fa_family_cpu.constants(problem, config, constants);
  return fa_constants_offer_text(constants, "isa", "avx512_amx") | fa_constants_offer_int(constants, "lanes", 16) |
         fa_constants_offer_int(constants, "dot", 0) | fa_constants_offer_int(constants, "parts", num_parts(problem)) |
         fa_constants_offer_int(constants, "products", num_products(problem)) |
         fa_constants_offer_int(constants, "scratch_bytes", (long long)scratch_bytes(problem, config));
}

/* As in family_cpu.c: enough tasks for 16 threads, at least 512 keys each, at most 8; never by the number of threads.
 */
static int count_splits(const fa_shape *shape) {
  int64_t heads = shape->batch * shape->heads_kv, splits = heads > 0 ? (16 + heads - 1) / heads : 1;
  splits = splits < 8 ? splits : 8;
  splits = splits < shape->seqlen_k / 512 ? splits : shape->seqlen_k / 512;
  return splits < 1 ? 1 : (int)splits;
}

static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  if (!uses_tiles(problem)) {
    fa_family_cpu.plan(problem, config, shape, plan);
    return;
  }
  int64_t query_blocks = (shape->seqlen_q + block_m_of(config) - 1) / block_m_of(config);
  int64_t tasks = shape->batch * shape->heads_q * query_blocks;
  plan->num_splits = 1;
  plan->scratch_bytes = scratch_bytes(problem, config);
  if (problem->op == FA_FORWARD) {
    plan->num_phases = 1;
    plan->grid[0] = tasks;
    return;
  }
  int64_t columns_qk = round_up(problem->head_dim, 32), columns_v = round_up(problem->head_dim_v, 32);
  plan->num_splits = count_splits(shape);
  plan->num_phases = 2;
  plan->grid[0] = shape->batch * shape->heads_kv * plan->num_splits;
  plan->grid[1] = plan->num_splits > 1 ? tasks : 0;
  plan->workspace_bytes = sizeof(float) * (size_t)(plan->num_splits * plan->grid[1] * block_m_of(config) * columns_qk);
  /* The sums of dK and dV for the keys of one split. */
  int64_t blocks = (shape->seqlen_k + block_n_of(config) - 1) / block_n_of(config);
  int64_t split_keys = (blocks + plan->num_splits - 1) / plan->num_splits * block_n_of(config);
  plan->scratch_bytes += sizeof(float) * (size_t)(split_keys * (columns_qk + columns_v));
}

const fa_family fa_family_amx = {
    .name = "amx",
    .owns = owns,
    .template_name = template_name,
    .check_problem = check_problem,
    .candidates = candidates,
    .check_config = check_config,
    .describe = describe,
    .constants = constants,
    .plan = plan,
};
