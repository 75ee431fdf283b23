/*
 * Backward on Hopper (sm_90a) at 16 bits, where the same call is to give the same bits or a head dim is above 128: in
 * two passes, dK and dV by blocks of keys, dQ by tiles of queries. Neither adds to global memory. For head dims that
 * TMA can copy rows of.
 *
 * A config is
 *   block_m      queries of a step of dK's and dV's pass
 *   block_n      keys of a block of threads of that pass: 64 for each warpgroup that computes; above 128, 64 for all
 *   num_stages   tiles of Q, and of dO, in shared memory in that pass
 *   dq_block_n   keys that dQ's pass works on at a time; its tiles have 128 queries, 64 for each such warpgroup
 *   dq_stages    tiles of K in shared memory in dQ's pass; of V one less
 *   persistent   dQ's pass. 1: a block of threads takes one tile of queries after another; 0: one tile each
 */
#include "generator/family_hopper.h"

#include <stdio.h>
#include <string.h>

enum {
  BEGIN_THREADS = 256,        /* of a block of the first phase */
  CONSUMERS = 2,              /* warpgroups that compute, beside one that loads */
  TILE_ROWS = 64 * CONSUMERS, /* of K or V in dK's and dV's pass, of Q and dO in dQ's */
  THREADS = 128 * (CONSUMERS + 1),
  CONSUMER_REGISTERS = 240,
  PRODUCER_REGISTERS = 24,
  /* Of dK's and dV's pass above 128, a warpgroup each: loads, scores, dV, dK. A launch gives each thread 128. */
  WIDE_THREADS = 128 * 4,
  SCORE_REGISTERS = 152,
  SUM_REGISTERS = 168,
  OTHER_REGISTERS = 28, /* beside sums and operands */
  NARROW_DIM = 128,     /* up to which a warpgroup holds all columns of dK and dV of 64 keys */
};

typedef struct two_pass_config {
  int block_m, block_n, num_stages, dq_block_n, dq_stages, persistent;
} two_pass_config;

static two_pass_config read_config(const fa_config *config) {
  return (two_pass_config){.block_m = fa_config_get(config, "block_m", 0),
                           .block_n = fa_config_get(config, "block_n", 0),
                           .num_stages = fa_config_get(config, "num_stages", 0),
                           .dq_block_n = fa_config_get(config, "dq_block_n", 0),
                           .dq_stages = fa_config_get(config, "dq_stages", 0),
                           .persistent = fa_config_get(config, "persistent", 0)};
}

static void write_config(two_pass_config from, fa_config *config) {
  *config = (fa_config){.count = 6,
                        .item = {{"block_m", from.block_m},
                                 {"block_n", from.block_n},
                                 {"num_stages", from.num_stages},
                                 {"dq_block_n", from.dq_block_n},
                                 {"dq_stages", from.dq_stages},
                                 {"persistent", from.persistent}}};
}

static bool is_wide(const fa_problem *problem) {
  return problem->head_dim > NARROW_DIM || problem->head_dim_v > NARROW_DIM;
}

/* Up to head dim 128 as templates/hopper/backward_shared.h lays it out. */
static int keys_shared(const fa_problem *problem, two_pass_config c) {
  if (is_wide(problem))
    return roles_shared(problem, c.block_m, c.block_n, c.num_stages, 1);
  int rows = (c.block_n + c.num_stages * c.block_m) * (chunks_qk(problem) + chunks_v(problem));
  return rows * ROW_BYTES + c.num_stages * c.block_m * STATS_BYTES + (1 + 4 * c.num_stages) * BARRIER_BYTES;
}

/* As templates/hopper/backward_queries.h lays it out. */
static int queries_shared(const fa_problem *problem, two_pass_config c) {
  const int key_rows = TILE_ROWS + c.dq_stages * c.dq_block_n, value_rows = key_rows - c.dq_block_n;
  return (key_rows * chunks_qk(problem) + value_rows * chunks_v(problem)) * ROW_BYTES +
         (3 + 2 * c.dq_stages + 2 * (c.dq_stages - 1)) * BARRIER_BYTES;
}

/* Registers of dQ's pass: sums of dQ, scores, d_weights, and d_scores at 16 bits. */
static int queries_accumulators(const fa_problem *problem, two_pass_config c) {
  return round_up(problem->head_dim, 8) / 2 + c.dq_block_n / 2 * 2 + c.dq_block_n / 4;
}

/* Both passes read a tensor through one map. Rows of its boxes: a divisor of the rows of both passes' tiles. */
static int common_divisor(int a, int b) { return b == 0 ? a : common_divisor(b, a % b); }
static int query_box(two_pass_config c) { return common_divisor(TILE_ROWS, c.block_m); }
static int key_box(two_pass_config c) { return common_divisor(c.block_n, c.dq_block_n); }

static bool owns(const fa_problem *problem) {
  return strcmp(problem->target, "cuda:sm_90a") == 0 && problem->op == FA_BACKWARD && problem->dtype != FA_FP32 &&
         problem->head_dim % 8 == 0 && problem->head_dim_v % 8 == 0 && (is_wide(problem) || problem->deterministic);
}

static bool needs_tensor_maps(const fa_problem *problem) {
  (void)problem;
  return true;
}

static const char *template_name(const fa_problem *problem) {
  (void)problem;
  return "hopper/backward_two_pass.cu";
}

static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  (void)problem, (void)message, (void)message_size;
  return 0;
}

static int check_keys(const fa_problem *problem, two_pass_config c, char *message, size_t message_size) {
  const int block_n = is_wide(problem) ? 64 : TILE_ROWS;
  const bool has_narrow_steps = problem->head_dim <= 64 && problem->head_dim_v <= 64;
  if (c.block_n != block_n)
    snprintf(message, message_size, "block_n is %d; with these head dims it must be %d", c.block_n, block_n);
  else if (c.block_m != 64 && (c.block_m != 96 || !has_narrow_steps))
    snprintf(message, message_size, "block_m is %d; it must be 64, or 96 with head dims up to 64", c.block_m);
  else if (c.num_stages < 2 || c.num_stages > 4) /* Q of the last step, whose dK is under way, and the next */
    snprintf(message, message_size, "num_stages is %d; it must be 2 to 4", c.num_stages);
  else if (keys_shared(problem, c) > SHARED_LIMIT)
    snprintf(message, message_size, "block_m %d and num_stages %d need %d bytes of shared memory; Hopper has %d",
             c.block_m, c.num_stages, keys_shared(problem, c), SHARED_LIMIT);
  else
    return 0;
  return -1;
}

static int check_queries(const fa_problem *problem, two_pass_config c, char *message, size_t message_size) {
  if (c.dq_block_n < 16 || c.dq_block_n > 256 || c.dq_block_n % 16 != 0)
    snprintf(message, message_size, "dq_block_n is %d; it must be a multiple of 16 from 16 to 256", c.dq_block_n);
  else if (c.dq_stages < 2 || c.dq_stages > 5) /* K of the last block, whose dQ is under way, and the next */
    snprintf(message, message_size, "dq_stages is %d; it must be 2 to 5", c.dq_stages);
  else if (c.persistent != 0 && c.persistent != 1)
    snprintf(message, message_size, "persistent is %d; it must be 0 or 1", c.persistent);
  else if (queries_accumulators(problem, c) + OTHER_REGISTERS > CONSUMER_REGISTERS)
    snprintf(message, message_size, "dq_block_n %d needs %d registers for sums; %d fit", c.dq_block_n,
             queries_accumulators(problem, c), CONSUMER_REGISTERS - OTHER_REGISTERS);
  else if (queries_shared(problem, c) > SHARED_LIMIT)
    snprintf(message, message_size, "dq_block_n %d and dq_stages %d need %d bytes of shared memory; Hopper has %d",
             c.dq_block_n, c.dq_stages, queries_shared(problem, c), SHARED_LIMIT);
  else
    return 0;
  return -1;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  two_pass_config c = read_config(config);
  if (check_keys(problem, c, message, message_size) != 0)
    return -1;
  return check_queries(problem, c, message, message_size);
}

/* What to try, best guess first, by the larger head dim. A block_m of 0 ends a list. */
typedef struct choices {
  int dim;
  two_pass_config list[5];
} choices;
static const choices lists[] = {
    {64, {{96, 128, 3, 128, 3, 1}, {96, 128, 3, 128, 3, 0}, {64, 128, 3, 128, 2, 1}}},
    {NARROW_DIM, {{64, 128, 3, 96, 3, 1}, {64, 128, 3, 96, 3, 0}, {64, 128, 2, 112, 2, 1}}},
    {192, {{64, 64, 3, 64, 3, 1}, {64, 64, 2, 64, 3, 1}, {64, 64, 2, 64, 3, 0}}},
    {FA_MAX_HEAD_DIM, {{64, 64, 2, 64, 2, 1}, {64, 64, 2, 48, 2, 0}}},
};

static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  (void)shape;
  const int dim = problem->head_dim > problem->head_dim_v ? problem->head_dim : problem->head_dim_v;
  const choices *of = lists;
  while (of->dim < dim)
    of++;
  int count = 0;
  for (; of->list[count].block_m; count++)
    write_config(of->list[count], &configs[count]);
  return count;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  two_pass_config c = read_config(config);
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "--std=c++17");
  set_phase(kernel, "begin_queries", BEGIN_THREADS, 0, false);
  set_phase(kernel, "backward_keys", is_wide(problem) ? WIDE_THREADS : THREADS, keys_shared(problem, c), false);
  set_phase(kernel, "backward_queries", THREADS, queries_shared(problem, c), c.persistent != 0);
  kernel->num_maps = 4;
  kernel->map[0] = (fa_tensor_map){FA_MAP_QUERY, problem->head_dim, query_box(c)};
  kernel->map[1] = (fa_tensor_map){FA_MAP_KEY, problem->head_dim, key_box(c)};
  kernel->map[2] = (fa_tensor_map){FA_MAP_VALUE, problem->head_dim_v, key_box(c)};
  kernel->map[3] = (fa_tensor_map){FA_MAP_GRAD_OUTPUT, problem->head_dim_v, query_box(c)};
}

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  two_pass_config c = read_config(config);
  return fa_constants_offer_text(constants, "dtype_16", problem->dtype == FA_BF16 ? "bf16" : "fp16") |
         fa_constants_offer_int(constants, "wide", is_wide(problem)) |
         fa_constants_offer_int(constants, "dim_qk", round_up(problem->head_dim, 16)) |
         fa_constants_offer_int(constants, "dim_v", round_up(problem->head_dim_v, 16)) |
         fa_constants_offer_int(constants, "consumer_registers", CONSUMER_REGISTERS) |
         fa_constants_offer_int(constants, "producer_registers", PRODUCER_REGISTERS) |
         fa_constants_offer_int(constants, "wide_threads", WIDE_THREADS) |
         fa_constants_offer_int(constants, "score_registers", SCORE_REGISTERS) |
         fa_constants_offer_int(constants, "sum_registers", SUM_REGISTERS) |
         fa_constants_offer_int(constants, "max_of_three", 1) | fa_constants_offer_int(constants, "vector_reduce", 1) |
         fa_constants_offer_int(constants, "ordered", 0) | fa_constants_offer_int(constants, "dq_sums", 0) |
         fa_constants_offer_int(constants, "log2_sums", 1) |
         fa_constants_offer_int(constants, "query_box", query_box(c)) |
         fa_constants_offer_int(constants, "key_box", key_box(c)) |
         fa_constants_offer_int(constants, "begin_threads", BEGIN_THREADS) |
         fa_constants_offer_int(constants, "shared_bytes", keys_shared(problem, c)) |
         fa_constants_offer_int(constants, "dq_shared_bytes", queries_shared(problem, c));
}

static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  two_pass_config c = read_config(config);
  const int64_t heads = shape->batch * shape->heads_q, steps = heads * ceil_div64(shape->seqlen_q, c.block_m);
  (void)problem;
  plan->num_splits = 1;
  plan->grid[plan->num_phases++] = steps;
  plan->grid[plan->num_phases++] = shape->batch * shape->heads_kv * ceil_div64(shape->seqlen_k, c.block_n);
  plan->grid[plan->num_phases++] = heads * ceil_div64(shape->seqlen_q, TILE_ROWS);
  plan->workspace_bytes = (size_t)(steps * c.block_m * STATS_BYTES); /* as templates/cuda/workspace.h lays it out */
}

/* Above 128, too, where all of this family's kernels give the same bits: a call that TMA cannot serve, or an NVRTC that
 * does not know sm_90a, takes the portable family's kernel of the same problem, and there are two of those. */
static unsigned variants(const fa_problem *problem) {
  (void)problem;
  return FA_VARIANT_DETERMINISTIC;
}

const fa_family fa_family_hopper_two_pass = {
    .name = "hopper_two_pass",
    .owns = owns,
    .needs_tensor_maps = needs_tensor_maps,
    .template_name = template_name,
    .check_problem = check_problem,
    .variants = variants,
    .candidates = candidates,
    .check_config = check_config,
    .describe = describe,
    .constants = constants,
    .plan = plan,
};
