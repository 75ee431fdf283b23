/*
 * Forward in fp32 on Hopper (sm_90a): three products of fp16 parts by wgmma. A first phase splits Q, K and V into the
 * workspace, so that any strides, alignment and head dim will do; tiles are copied from there in bulk, without tensor
 * maps. Backward in fp32 is the portable family's, whose row statistics these are.
 *
 * A config is
 *   block_m      queries of a block of threads, 64 for each warpgroup that computes
 *   block_n      keys that are worked on at a time
 *   num_stages   panels in shared memory: 64 columns of K or V of a block of keys
 *   turns        of a warpgroup at issuing products, for each block of keys: 2, Q K^T and P V; 1, both together, which
 *                needs panels for both
 *   persistent   1: a block of threads takes one tile of queries after another; 0: one tile each
 */
#include "generator/family_hopper.h"

#include <stdio.h>
#include <string.h>

enum {
  PANEL_ROW_BYTES = 256, /* of 64 columns: high and low parts */
  MAX_STAGES = 16,
  SPLIT_THREADS = 256,
  SUM_KEYS = 64, /* whose terms tensor cores sum at most: they truncate */
};

typedef struct fp32_config {
  int block_m, block_n, num_stages, turns, persistent;
} fp32_config;

static fp32_config read_config(const fa_config *config) {
  return (fp32_config){.block_m = fa_config_get(config, "block_m", 0),
                       .block_n = fa_config_get(config, "block_n", 0),
                       .num_stages = fa_config_get(config, "num_stages", 0),
                       .turns = fa_config_get(config, "turns", 0),
                       .persistent = fa_config_get(config, "persistent", 0)};
}

static void write_config(fp32_config from, fa_config *config) {
  *config = (fa_config){.count = 5,
                        .item = {{"block_m", from.block_m},
                                 {"block_n", from.block_n},
                                 {"num_stages", from.num_stages},
                                 {"turns", from.turns},
                                 {"persistent", from.persistent}}};
}

/* Columns of V's chunks, all alike: products of different widths would need registers of their own. */
static int width_v(const fa_problem *problem) { return round_up(ceil_div(problem->head_dim_v, chunks_v(problem)), 8); }

/* As templates/hopper/forward_fp32_shared.h lays it out. */
static int shared_bytes(const fa_problem *problem, fp32_config c) {
  int rows = chunks_qk(problem) * c.block_m + c.num_stages * c.block_n;
  return rows * PANEL_ROW_BYTES + (2 + 2 * c.num_stages) * BARRIER_BYTES;
}

/* Blocks of keys are summed in equal parts. */
static int sum_keys(fp32_config c) { return c.block_n / ceil_div(c.block_n, SUM_KEYS); }

enum { CONSUMER_REGISTERS = 240, PRODUCER_REGISTERS = 24, OTHER_REGISTERS = 40 };

/* Registers that sums of the output and of scores (later the weights' parts) take, and beside them the sums of another
 * chunk of Q K^T, or those of P V, 64 columns of one piece or two. */
static int accumulators(const fa_problem *problem, fp32_config c, int pieces) {
  const int scores = chunks_qk(problem) > 1 ? c.block_n / 2 : 0;
  return chunks_v(problem) * width_v(problem) / 2 + c.block_n / 2 + (scores > 32 * pieces ? scores : 32 * pieces);
}

static bool fits(const fa_problem *problem, fp32_config c, int pieces) {
  return accumulators(problem, c, pieces) + OTHER_REGISTERS <= CONSUMER_REGISTERS;
}

/* Pieces of P V under way at once: two where there are registers and pieces. */
static int pieces_at_once(const fa_problem *problem, fp32_config c) {
  const int pieces = chunks_v(problem) * c.block_n / sum_keys(c);
  return pieces > 1 && fits(problem, c, 2) && problem->head_dim_v <= 128 ? 2 : 1;
}

static bool owns(const fa_problem *problem) {
  return strcmp(problem->target, "cuda:sm_90a") == 0 && problem->dtype == FA_FP32 && problem->op == FA_FORWARD;
}

static const char *template_name(const fa_problem *problem) {
  (void)problem;
  return "hopper/forward_fp32.cu";
}

static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  (void)problem, (void)message, (void)message_size;
  return 0;
}

/* Panels that must be in shared memory at once: those of a turn, as another warpgroup uses them after it. */
static int least_stages(const fa_problem *problem, fp32_config c) {
  const int qk = chunks_qk(problem), v = chunks_v(problem);
  return c.turns == 1 ? qk + v : qk > v ? qk : v;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  fp32_config c = read_config(config);
  if (c.block_m != 128)
    snprintf(message, message_size, "block_m is %d; it must be 128", c.block_m);
  else if (c.block_n < 16 || c.block_n > 192 || c.block_n % (16 * ceil_div(c.block_n, SUM_KEYS)) != 0)
    snprintf(message, message_size, "block_n is %d; it must be 16, 32, 48, 64, 96, 128, 144 or 192", c.block_n);
  else if (c.turns != 1 && c.turns != 2)
    snprintf(message, message_size, "turns is %d; it must be 1 or 2", c.turns);
  else if (c.num_stages < least_stages(problem, c) || c.num_stages > MAX_STAGES)
    snprintf(message, message_size, "num_stages is %d; with turns %d it must be %d to %d", c.num_stages, c.turns,
             least_stages(problem, c), MAX_STAGES);
  else if (c.persistent != 0 && c.persistent != 1)
    snprintf(message, message_size, "persistent is %d; it must be 0 or 1", c.persistent);
  else if (!fits(problem, c, 1))
    snprintf(message, message_size, "block_n %d needs %d registers for sums; %d fit", c.block_n,
             accumulators(problem, c, 1), CONSUMER_REGISTERS - OTHER_REGISTERS);
  else if (shared_bytes(problem, c) > SHARED_LIMIT)
    snprintf(message, message_size, "block_n %d and num_stages %d need %d bytes of shared memory; Hopper has %d",
             c.block_n, c.num_stages, shared_bytes(problem, c), SHARED_LIMIT);
  else
    return 0;
  return -1;
}

/* What to try, best guess first, by the larger head dim. A block_m of 0 ends a list. */
typedef struct choices {
  int dim;
  fp32_config list[4];
} choices;
static const choices lists[] = {
    {64, {{128, 192, 4, 1, 0}, {128, 128, 6, 1, 0}, {128, 128, 6, 1, 1}}},
    {128, {{128, 128, 5, 2, 0}, {128, 128, 5, 2, 1}, {128, 96, 6, 2, 0}}},
    {192, {{128, 96, 5, 2, 0}, {128, 96, 5, 2, 1}}},
    {FA_MAX_HEAD_DIM, {{128, 64, 6, 2, 0}, {128, 64, 6, 2, 1}}},
};

/* Keys that are computed with: whole blocks. */
static int64_t padded_keys(const fa_shape *shape, fp32_config c) {
  return ceil_div64(shape->seqlen_k, c.block_n) * c.block_n;
}

/* Of short sequences, large blocks leave more of the last one empty than they gain elsewhere: those with least of it,
 * or nearly so, go first. */
static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  const int dim = problem->head_dim > problem->head_dim_v ? problem->head_dim : problem->head_dim_v;
  const choices *of = lists;
  while (of->dim < dim)
    of++;
  int64_t least = INT64_MAX;
  for (const fp32_config *c = of->list; c->block_m && shape; c++)
    if (padded_keys(shape, *c) < least)
      least = padded_keys(shape, *c);
  int count = 0;
  for (int fits_well = 1; fits_well >= 0; fits_well--)
    for (const fp32_config *c = of->list; c->block_m; c++)
      if ((!shape || padded_keys(shape, *c) <= least + least / 16) == fits_well)
        write_config(*c, &configs[count++]);
  return count;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  fp32_config c = read_config(config);
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "--std=c++17");
  set_phase(kernel, "split_operands", SPLIT_THREADS, 0, false);
  set_phase(kernel, "forward", 128 * (c.block_m / 64 + 1), shared_bytes(problem, c), c.persistent != 0);
}

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  fp32_config c = read_config(config);
  return fa_constants_offer_text(constants, "dtype_16", "fp16") |
         fa_constants_offer_int(constants, "consumer_registers", CONSUMER_REGISTERS) |
         fa_constants_offer_int(constants, "producer_registers", PRODUCER_REGISTERS) |
         fa_constants_offer_int(constants, "split_threads", SPLIT_THREADS) |
         fa_constants_offer_int(constants, "width_v", width_v(problem)) |
         fa_constants_offer_int(constants, "sum_keys", sum_keys(c)) |
         fa_constants_offer_int(constants, "pieces_at_once", pieces_at_once(problem, c)) |
         fa_constants_offer_int(constants, "max_of_three", 1) |
         fa_constants_offer_int(constants, "persistent", c.persistent) |
         fa_constants_offer_int(constants, "shared_bytes", shared_bytes(problem, c));
}

/* The workspace is as templates/hopper/forward_fp32_split.h lays it out. */
static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  fp32_config c = read_config(config);
  const int64_t query_tiles = shape->batch * shape->heads_q * ceil_div64(shape->seqlen_q, c.block_m);
  const int64_t key_tiles = shape->batch * shape->heads_kv * ceil_div64(shape->seqlen_k, c.block_n);
  const int64_t key_bytes = (int64_t)c.block_n * (chunks_qk(problem) + chunks_v(problem)) * PANEL_ROW_BYTES + 8;
  const int64_t query_bytes = (int64_t)c.block_m * (chunks_qk(problem) * PANEL_ROW_BYTES + 4);
  plan->num_splits = 1;
  plan->num_phases = 2;
  plan->grid[0] = 2 * key_tiles + query_tiles;
  plan->grid[1] = query_tiles;
  plan->workspace_bytes = (size_t)(key_tiles * key_bytes + query_tiles * query_bytes);
}

const fa_family fa_family_hopper_fp32 = {
    .name = "hopper_fp32",
    .owns = owns,
    .template_name = template_name,
    .check_problem = check_problem,
    .candidates = candidates,
    .check_config = check_config,
    .describe = describe,
    .constants = constants,
    .plan = plan,
};
