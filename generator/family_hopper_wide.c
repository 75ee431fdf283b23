/*
 * dK and dV of backward on Hopper (sm_90a) at 16 bits where a head dim is above 128: the pass over the queries of a
 * pair of passes. dQ, the other pass's, is not computed.
 *
 * A config is
 *   block_m      queries of a step
 *   block_n      keys of a block of threads
 *   num_stages   tiles of Q, and of dO, that shared memory holds
 */
#include "generator/family.h"

#include <stdio.h>
#include <string.h>

enum {
  SHARED_LIMIT = 227 * 1024, /* CUDA C++ Programming Guide, compute capability 9.0 */
  CHUNK_BYTES = 64 * 128,    /* 64 rows of 64 columns */
  BARRIER_BYTES = 8,
  STATS_BYTES = 16, /* of a query row: struct row_stats of templates/cuda/workspace.h */
  BEGIN_THREADS = 256,
  THREADS = 3 * 128, /* of the main phase: a producer, two warpgroups that compute */
  CONSUMER_REGISTERS = 240,
  PRODUCER_REGISTERS = 24,
};

typedef struct wide_config {
  int block_m, block_n, num_stages;
} wide_config;

static wide_config read_config(const fa_config *config) {
  return (wide_config){.block_m = fa_config_get(config, "block_m", 0),
                       .block_n = fa_config_get(config, "block_n", 0),
                       .num_stages = fa_config_get(config, "num_stages", 0)};
}

static int chunks(const fa_problem *problem) {
  return ceil_div(problem->head_dim, 64) + ceil_div(problem->head_dim_v, 64);
}

/* As templates/hopper/backward_wide_shared.h lays it out: a stage also has weights, d_scores and five barriers. */
static int shared_bytes(const fa_problem *problem, wide_config c) {
  const int stage = (chunks(problem) + 2) * CHUNK_BYTES + 64 * STATS_BYTES + 5 * BARRIER_BYTES;
  return chunks(problem) * CHUNK_BYTES + c.num_stages * stage + BARRIER_BYTES;
}

/* Both gradients have two chunks of columns at least: each warpgroup has 128 of one. */
static bool owns(const fa_problem *problem) {
  const int d = problem->head_dim, dv = problem->head_dim_v;
  return strcmp(problem->target, "cuda:sm_90a") == 0 && problem->op == FA_BACKWARD && problem->dtype != FA_FP32 &&
         d % 8 == 0 && dv % 8 == 0 && d > 64 && dv > 64 && (d > 128 || dv > 128);
}

static bool needs_tensor_maps(const fa_problem *problem) {
  (void)problem;
  return true;
}

static const char *template_name(const fa_problem *problem) {
  (void)problem;
  return "hopper/backward_wide.cu";
}

static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  (void)problem, (void)message, (void)message_size;
  return 0;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  wide_config c = read_config(config);
  if (c.block_m != 64 || c.block_n != 64)
    snprintf(message, message_size, "block_m is %d and block_n %d; they must be 64", c.block_m, c.block_n);
  else if (c.num_stages < 2 || c.num_stages > 4) /* one for the step of each warpgroup */
    snprintf(message, message_size, "num_stages is %d; it must be 2 to 4", c.num_stages);
  else if (shared_bytes(problem, c) > SHARED_LIMIT)
    snprintf(message, message_size, "num_stages %d needs %d bytes of shared memory; Hopper has %d", c.num_stages,
             shared_bytes(problem, c), SHARED_LIMIT);
  else
    return 0;
  return -1;
}

/* Three stages where they fit. */
static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  (void)problem, (void)shape;
  for (int i = 0; i < 2; i++)
    configs[i] = (fa_config){.count = 3, .item = {{"block_m", 64}, {"block_n", 64}, {"num_stages", 3 - i}}};
  return 2;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  wide_config c = read_config(config);
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "--std=c++17");
  kernel->num_phases = 2;
  kernel->phase[0] = (fa_phase){.entry = "begin_queries", .block_size = BEGIN_THREADS};
  kernel->phase[1] =
      (fa_phase){.entry = "backward_keys", .block_size = THREADS, .shared_bytes = (size_t)shared_bytes(problem, c)};
  kernel->num_maps = 4;
  kernel->map[0] = (fa_tensor_map){FA_MAP_QUERY, problem->head_dim, c.block_m};
  kernel->map[1] = (fa_tensor_map){FA_MAP_KEY, problem->head_dim, c.block_n};
  kernel->map[2] = (fa_tensor_map){FA_MAP_VALUE, problem->head_dim_v, c.block_n};
  kernel->map[3] = (fa_tensor_map){FA_MAP_GRAD_OUTPUT, problem->head_dim_v, c.block_m};
}

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  wide_config c = read_config(config);
  return fa_constants_offer_text(constants, "dtype_16", problem->dtype == FA_BF16 ? "bf16" : "fp16") |
         fa_constants_offer_int(constants, "dim_qk", round_up(problem->head_dim, 16)) |
         fa_constants_offer_int(constants, "dim_v", round_up(problem->head_dim_v, 16)) |
         fa_constants_offer_int(constants, "consumer_registers", CONSUMER_REGISTERS) |
         fa_constants_offer_int(constants, "producer_registers", PRODUCER_REGISTERS) |
         fa_constants_offer_int(constants, "vector_reduce", 0) | fa_constants_offer_int(constants, "ordered", 0) |
         fa_constants_offer_int(constants, "log2_sums", 1) |
         fa_constants_offer_int(constants, "begin_threads", BEGIN_THREADS) |
         fa_constants_offer_int(constants, "keys_shared_bytes", shared_bytes(problem, c));
}

static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  wide_config c = read_config(config);
  const int64_t query_tiles = shape->batch * shape->heads_q * ceil_div64(shape->seqlen_q, c.block_m);
  plan->num_splits = 1;
  plan->num_phases = 2;
  plan->grid[0] = query_tiles;
  plan->grid[1] = shape->batch * shape->heads_kv * ceil_div64(shape->seqlen_k, c.block_n);
  /* As templates/cuda/workspace.h lays it out. */
  plan->workspace_bytes =
      (size_t)(query_tiles * c.block_m) * (size_t)(STATS_BYTES + 4 * round_up(problem->head_dim, 16));
}

const fa_family fa_family_hopper_wide = {
    .name = "hopper_wide",
    .owns = owns,
    .needs_tensor_maps = needs_tensor_maps,
    .template_name = template_name,
    .check_problem = check_problem,
    .candidates = candidates,
    .check_config = check_config,
    .describe = describe,
    .constants = constants,
    .plan = plan,
};
