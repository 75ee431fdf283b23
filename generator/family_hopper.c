/*
 * The Hopper family: wgmma, TMA and warp specialisation, for sm_90a. So far forward at 16 bits, for head dims that TMA
 * can copy rows of. What it does not own, on that target too, is the portable family's.
 *
 * A config is
 *   block_m      queries of a block of threads, 64 for each warpgroup that computes
 *   block_n      keys that are worked on at a time
 *   num_stages   tiles of K, and of V, that shared memory holds
 *   persistent   1: a block of threads takes one tile of queries after another, and loads ahead into the next; 0: one
 *                tile each, which the GPU hands out as blocks end: better where tiles are long and unequal
 */
#include "generator/family.h"

#include <stdio.h>
#include <string.h>

enum {
  SHARED_LIMIT = 227 * 1024, /* CUDA C++ Programming Guide, compute capability 9.0 */
  ROW_BYTES = 128,           /* of a row of a chunk of 64 columns */
  BARRIER_BYTES = 8,
};

typedef struct hopper_config {
  int block_m, block_n, num_stages, persistent;
} hopper_config;

static hopper_config read_config(const fa_config *config) {
  return (hopper_config){.block_m = fa_config_get(config, "block_m", 0),
                         .block_n = fa_config_get(config, "block_n", 0),
                         .num_stages = fa_config_get(config, "num_stages", 0),
                         .persistent = fa_config_get(config, "persistent", 0)};
}

static void write_config(hopper_config from, fa_config *config) {
  *config = (fa_config){.count = 4,
                        .item = {{"block_m", from.block_m},
                                 {"block_n", from.block_n},
                                 {"num_stages", from.num_stages},
                                 {"persistent", from.persistent}}};
}

static int count_consumers(hopper_config c) { return c.block_m / 64; }

/* As templates/hopper/shared.h lays it out. */
static int shared_bytes_with(const fa_problem *problem, hopper_config c, int query_stages) {
  int chunks_qk = ceil_div(problem->head_dim, 64), chunks_v = ceil_div(problem->head_dim_v, 64);
  int rows = query_stages * chunks_qk * c.block_m + c.num_stages * c.block_n * (chunks_qk + chunks_v);
  return rows * ROW_BYTES + (2 * query_stages + 4 * c.num_stages) * BARRIER_BYTES;
}

/* A second tile of queries is loaded while the first is worked on, where there is room and a next one. */
static int query_stages(const fa_problem *problem, hopper_config c) {
  return c.persistent && shared_bytes_with(problem, c, 2) <= SHARED_LIMIT ? 2 : 1;
}

static int shared_bytes(const fa_problem *problem, hopper_config c) {
  return shared_bytes_with(problem, c, query_stages(problem, c));
}

/* Registers of a thread: what setmaxnreg shares out of the 64 Ki of an SM, in warpgroups of 128 threads. */
static int consumer_registers(hopper_config c) { return count_consumers(c) == 3 ? 160 : 240; }
static int producer_registers(hopper_config c) { return count_consumers(c) == 3 ? 32 : 24; }

/* Those that hold sums of the output, scores, and weights at 16 bits. */
static int accumulators(const fa_problem *problem, hopper_config c) {
  return round_up(problem->head_dim_v, 8) / 2 + c.block_n / 2 + c.block_n / 4;
}

static bool owns(const fa_problem *problem) {
  return strcmp(problem->target, "cuda:sm_90a") == 0 && problem->op == FA_FORWARD && problem->dtype != FA_FP32 &&
         problem->head_dim % 8 == 0 && problem->head_dim_v % 8 == 0;
}

static const char *template_name(const fa_problem *problem) {
  (void)problem;
  return "hopper/forward.cu";
}

static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  (void)problem, (void)message, (void)message_size;
  return 0;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  hopper_config c = read_config(config);
  if (c.block_m != 128 && c.block_m != 192)
    snprintf(message, message_size, "block_m is %d; it must be 128 or 192", c.block_m);
  else if (c.block_n < 16 || c.block_n > 256 || c.block_n % 16 != 0)
    snprintf(message, message_size, "block_n is %d; it must be a multiple of 16 from 16 to 256", c.block_n);
  else if (c.num_stages < 1 || c.num_stages > 4)
    snprintf(message, message_size, "num_stages is %d; it must be 1 to 4", c.num_stages);
  else if (c.persistent != 0 && c.persistent != 1)
    snprintf(message, message_size, "persistent is %d; it must be 0 or 1", c.persistent);
  else if (shared_bytes(problem, c) > SHARED_LIMIT)
    snprintf(message, message_size,
             "block_m %d, block_n %d and num_stages %d need %d bytes of shared memory; Hopper has %d", c.block_m,
             c.block_n, c.num_stages, shared_bytes(problem, c), SHARED_LIMIT);
  else if (accumulators(problem, c) + 24 > consumer_registers(c))
    snprintf(message, message_size, "block_m %d and block_n %d need %d registers for sums; %d fit", c.block_m,
             c.block_n, accumulators(problem, c), consumer_registers(c) - 24);
  else
    return 0;
  return -1;
}

/* What to try, best guess first, by the larger head dim and the mask; those that do not fit are left out. A block_m of
 * 0 ends a list. With a causal mask tiles are unequal, and who hands them out counts. */
typedef struct choices {
  int dim;
  hopper_config full[9], causal[9];
} choices;
static const choices lists[] = {
    {64,
     {{192, 128, 2, 1}, {128, 192, 2, 1}, {128, 128, 2, 1}, {192, 128, 2, 0}, {128, 192, 2, 0}, {128, 64, 3, 1}},
     {{192, 128, 2, 0}, {192, 128, 2, 1}, {128, 128, 2, 1}, {128, 192, 2, 0}, {128, 128, 2, 0}, {128, 64, 3, 1}}},
    {128,
     {{128, 128, 2, 1}, {128, 176, 2, 1}, {128, 128, 2, 0}, {128, 96, 2, 1}, {192, 80, 2, 1}, {128, 64, 3, 1}},
     {{128, 128, 2, 0}, {128, 128, 2, 1}, {128, 176, 2, 0}, {128, 96, 2, 1}, {192, 80, 2, 1}, {128, 96, 2, 0}}},
    {192,
     {{128, 112, 2, 1}, {128, 96, 2, 1}, {128, 112, 2, 0}, {128, 80, 2, 1}, {128, 64, 2, 1}},
     {{128, 112, 2, 0}, {128, 96, 2, 0}, {128, 112, 2, 1}, {128, 80, 2, 1}, {128, 64, 2, 1}}},
    {FA_MAX_HEAD_DIM,
     {{128, 80, 2, 1}, {128, 64, 2, 1}, {128, 80, 2, 0}, {128, 48, 2, 1}},
     {{128, 80, 2, 0}, {128, 64, 2, 0}, {128, 80, 2, 1}, {128, 64, 2, 1}, {128, 48, 2, 1}}},
};

static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  (void)shape;
  const int dim = problem->head_dim > problem->head_dim_v ? problem->head_dim : problem->head_dim_v;
  const choices *of = lists;
  while (of->dim < dim)
    of++;
  const hopper_config *list = problem->is_causal ? of->causal : of->full;
  int count = 0;
  for (; list[count].block_m; count++)
    write_config(list[count], &configs[count]);
  return count;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  hopper_config c = read_config(config);
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "--std=c++17");
  kernel->num_phases = 1;
  kernel->phase[0] = (fa_phase){.entry = "forward",
                                .block_size = 128 * (count_consumers(c) + 1),
                                .shared_bytes = (size_t)shared_bytes(problem, c),
                                .persistent = c.persistent != 0};
  kernel->num_maps = 3;
  kernel->map[0] = (fa_tensor_map){FA_MAP_QUERY, problem->head_dim, c.block_m};
  kernel->map[1] = (fa_tensor_map){FA_MAP_KEY, problem->head_dim, c.block_n};
  kernel->map[2] = (fa_tensor_map){FA_MAP_VALUE, problem->head_dim_v, c.block_n};
}

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  hopper_config c = read_config(config);
  return fa_constants_offer_text(constants, "dtype_16", problem->dtype == FA_BF16 ? "bf16" : "fp16") |
         fa_constants_offer_int(constants, "consumer_registers", consumer_registers(c)) |
         fa_constants_offer_int(constants, "producer_registers", producer_registers(c)) |
         fa_constants_offer_int(constants, "max_of_three", 1) |
         fa_constants_offer_int(constants, "query_stages", query_stages(problem, c)) |
         fa_constants_offer_int(constants, "persistent", c.persistent) |
         fa_constants_offer_int(constants, "shared_bytes", shared_bytes(problem, c));
}

static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  (void)problem;
  hopper_config c = read_config(config);
  plan->num_splits = 1;
  plan->num_phases = 1;
  plan->grid[0] = shape->batch * shape->heads_q * ceil_div64(shape->seqlen_q, c.block_m);
}

const fa_family fa_family_hopper = {
    .name = "hopper",
    .owns = owns,
    .needs_tensor_maps = true,
    .template_name = template_name,
    .check_problem = check_problem,
    .candidates = candidates,
    .check_config = check_config,
    .describe = describe,
    .constants = constants,
    .plan = plan,
};
