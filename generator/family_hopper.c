/*
 * The Hopper family: wgmma, TMA and warp specialisation, for sm_90a. At 16 bits, for head dims that TMA can copy rows
 * of: forward, and backward up to 128 where no fixed order of sums is asked for (else it is
 * family_hopper_two_pass.c's). Forward in fp32, of any head dim, where lower precision is allowed: one product of
 * operands that a first phase rounds to 16 bits.
 *
 * A config is
 *   block_m      queries of a block of threads; in forward 64 for each warpgroup that computes
 *   block_n      keys that are worked on at a time (forward), or keys of a block of threads (backward)
 *   num_stages   tiles of K, and of V, that shared memory holds (forward); of Q, and of dO (backward)
 *   persistent   1: a block of threads takes one tile of queries (forward) or keys (backward) after another, and loads
 *                ahead into the next; 0: one tile each, which the GPU hands out as blocks end
 */
#include "generator/family_hopper.h"

#include <stdio.h>
#include <string.h>

enum {
  EDGE_THREADS = 256, /* of a block of the phases before and after the main one */
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

/* Warpgroups of forward that compute, beside one that loads. */
static int count_consumers(hopper_config c) { return c.block_m / 64; }

/* Backward, with head dims up to 64: its four warpgroups are one for dQ and loads, two for scores, one for both other
 * gradients. Above: one for dQ and loads, one for scores, one for either gradient. */
enum { BACKWARD_THREADS = 128 * 4, NARROW_DIM = 64 };
static bool is_narrow(const fa_problem *problem) {
  return problem->head_dim <= NARROW_DIM && problem->head_dim_v <= NARROW_DIM;
}

/* One product in fp32: K and V come from the workspace without tensor maps, and consumers round Q for themselves. */
static bool rounds_inputs(const fa_problem *problem) { return problem->dtype == FA_FP32; }

/* As templates/hopper/forward_shared.h lays it out. */
static int forward_shared_with(const fa_problem *problem, hopper_config c, int query_stages) {
  int rows = query_stages * chunks_qk(problem) * c.block_m +
             c.num_stages * c.block_n * (chunks_qk(problem) + chunks_v(problem));
  int query_barriers = rounds_inputs(problem) ? 0 : 2 * query_stages;
  return rows * ROW_BYTES + (query_barriers + 4 * c.num_stages) * BARRIER_BYTES;
}

/* A second tile of queries is loaded while the first is worked on, where there is room and a next one. */
static int query_stages(const fa_problem *problem, hopper_config c) {
  return c.persistent && !rounds_inputs(problem) && forward_shared_with(problem, c, 2) <= SHARED_LIMIT ? 2 : 1;
}

/* Backward: with narrow heads there is room, also of registers, to load K and V of the next tile ahead. */
static int key_stages(const fa_problem *problem, hopper_config c) { return is_narrow(problem) && c.persistent ? 2 : 1; }

static int shared_bytes(const fa_problem *problem, hopper_config c) {
  return problem->op == FA_FORWARD ? forward_shared_with(problem, c, query_stages(problem, c))
                                   : roles_shared(problem, c.block_m, c.block_n, c.num_stages, key_stages(problem, c));
}

/* Registers of a thread: what setmaxnreg shares out of the 64 Ki of an SM, in warpgroups of 128 threads. Four
 * warpgroups have 128 each at the launch. */
static int consumer_registers(hopper_config c) { return count_consumers(c) == 3 ? 160 : 240; }
static int producer_registers(hopper_config c) { return count_consumers(c) == 3 ? 32 : 24; }

/* Of backward, by role, at most 512 together. Sums are those of 128 keys: of narrow heads both gradients', in one
 * warpgroup, else either gradient's, a register for each column. At head dim 128 dQ takes fewer, and scores more. */
static int sum_registers(const fa_problem *problem) {
  const int dim = problem->head_dim > problem->head_dim_v ? problem->head_dim : problem->head_dim_v;
  const int sums = is_narrow(problem) ? 128 : dim;
  return sums > 104 ? sums + 32 : 136;
}
static int score_registers(const fa_problem *problem) {
  if (is_narrow(problem))
    return 128;
  return problem->head_dim > 120 ? 120 : 112;
}
static int dq_registers(const fa_problem *problem) {
  const int rest = 512 - score_registers(problem) - 2 * sum_registers(problem);
  return is_narrow(problem) || rest > 96 ? 96 : rest;
}

/* Registers of forward that hold sums of the output, scores, and weights at 16 bits. */
static int accumulators(const fa_problem *problem, hopper_config c) {
  return round_up(problem->head_dim_v, 8) / 2 + c.block_n / 2 + c.block_n / 4;
}

/* Sums of dK or dV of 128 keys take 128 registers at head dim 128. */
static bool owns_backward(const fa_problem *problem) {
  return !problem->deterministic && problem->head_dim <= 128 && problem->head_dim_v <= 128;
}

static bool owns(const fa_problem *problem) {
  if (strcmp(problem->target, "cuda:sm_90a") != 0)
    return false;
  if (problem->dtype == FA_FP32)
    return problem->op == FA_FORWARD && problem->precision == FA_PRECISION_REDUCED;
  return problem->head_dim % 8 == 0 && problem->head_dim_v % 8 == 0 &&
         (problem->op == FA_FORWARD || owns_backward(problem));
}

static bool needs_tensor_maps(const fa_problem *problem) { return !rounds_inputs(problem); }

static const char *template_name(const fa_problem *problem) {
  return problem->op == FA_FORWARD ? "hopper/forward.cu" : "hopper/backward.cu";
}

static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  (void)problem, (void)message, (void)message_size;
  return 0;
}

static int check_forward(const fa_problem *problem, hopper_config c, char *message, size_t message_size) {
  if (c.block_m != 128 && c.block_m != 192)
    snprintf(message, message_size, "block_m is %d; it must be 128 or 192", c.block_m);
  else if (c.block_n < 16 || c.block_n > 256 || c.block_n % 16 != 0)
    snprintf(message, message_size, "block_n is %d; it must be a multiple of 16 from 16 to 256", c.block_n);
  else if (accumulators(problem, c) + 24 > consumer_registers(c))
    snprintf(message, message_size, "block_m %d and block_n %d need %d registers for sums; %d fit", c.block_m,
             c.block_n, accumulators(problem, c), consumer_registers(c) - 24);
  else
    return 0;
  return -1;
}

static int check_backward(const fa_problem *problem, hopper_config c, char *message, size_t message_size) {
  (void)problem;
  if (c.block_n != 128)
    snprintf(message, message_size, "block_n is %d; it must be 128", c.block_n);
  else if (c.block_m != 64)
    snprintf(message, message_size, "block_m is %d; it must be 64", c.block_m);
  else
    return 0;
  return -1;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  hopper_config c = read_config(config);
  if ((problem->op == FA_FORWARD ? check_forward : check_backward)(problem, c, message, message_size) != 0)
    return -1;
  const int least = problem->op == FA_FORWARD ? 1 : 2; /* backward: Q of a step whose dK is under way, and the next */
  if (c.persistent != 0 && c.persistent != 1)
    snprintf(message, message_size, "persistent is %d; it must be 0 or 1", c.persistent);
  else if (c.num_stages < least || c.num_stages > 4)
    snprintf(message, message_size, "num_stages is %d; it must be %d to 4", c.num_stages, least);
  else if (shared_bytes(problem, c) > SHARED_LIMIT)
    snprintf(message, message_size,
             "block_m %d, block_n %d and num_stages %d need %d bytes of shared memory; Hopper has %d", c.block_m,
             c.block_n, c.num_stages, shared_bytes(problem, c), SHARED_LIMIT);
  else
    return 0;
  return -1;
}

/* What to try, best guess first, by the larger head dim; those that do not fit are left out. A block_m of 0 ends a
 * list. */
typedef struct choices {
  int dim;
  hopper_config list[7];
} choices;
static const choices forward_lists[] = {
    {64, {{192, 128, 2, 1}, {128, 128, 2, 1}, {128, 192, 2, 1}, {192, 128, 2, 0}, {128, 64, 3, 1}, {128, 80, 2, 1}}},
    {128, {{128, 128, 2, 1}, {128, 176, 2, 1}, {128, 128, 2, 0}, {128, 64, 3, 1}, {128, 80, 2, 1}}},
    {192, {{128, 112, 2, 1}, {128, 96, 2, 1}, {128, 112, 2, 0}, {128, 80, 2, 1}, {128, 64, 2, 1}}},
    {FA_MAX_HEAD_DIM, {{128, 64, 2, 1}, {128, 80, 2, 1}, {128, 64, 2, 0}, {128, 80, 2, 0}, {128, 48, 2, 1}}},
};
/* One tile of keys after another pays where tiles have few steps (H200, bf16, d 64: 1.13 to 1.26 times as fast at
 * S 512, 1.00 to 1.04 at 4096). With many the GPU hands tiles out better: causal, S 16384, 0.98 to 0.99, and 0.95 to
 * 0.96 at d 128. */
static const choices backward_lists[] = {
    {64, {{64, 128, 3, 1}, {64, 128, 4, 1}, {64, 128, 3, 0}, {64, 128, 4, 0}}},
    {128, {{64, 128, 3, 0}, {64, 128, 3, 1}, {64, 128, 2, 0}}},
};

/* With a causal mask and few keys, 192 queries see too many that they do not look at (H100, bf16, d 64, S 512: 151
 * TFLOP/s; 128 queries: 214). */
enum { SHORT_CAUSAL = 2048 };

/* So few keys that they are one block, of 64 or 80: 77 are usual, of a text that images attend to. */
enum { FEW_KEYS = 80 };

/* Does it come before the others? */
static bool is_likely(const fa_problem *problem, const fa_shape *shape, hopper_config c) {
  if (!shape || problem->op == FA_BACKWARD)
    return true;
  if (shape->seqlen_k <= FEW_KEYS)
    return c.block_n >= shape->seqlen_k && c.block_n <= FEW_KEYS;
  return !problem->is_causal || shape->seqlen_q > SHORT_CAUSAL || c.block_m == 128;
}

static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  const int dim = problem->head_dim > problem->head_dim_v ? problem->head_dim : problem->head_dim_v;
  const choices *of = problem->op == FA_FORWARD ? forward_lists : backward_lists;
  while (of->dim < dim)
    of++;
  int count = 0;
  for (int likely = 1; likely >= 0; likely--)
    for (const hopper_config *c = of->list; c->block_m; c++)
      if (is_likely(problem, shape, *c) == likely)
        write_config(*c, &configs[count++]);
  return count;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  hopper_config c = read_config(config);
  const bool backward = problem->op == FA_BACKWARD;
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "--std=c++17");
  if (backward)
    set_phase(kernel, "begin_queries", EDGE_THREADS, 0, false);
  if (rounds_inputs(problem))
    set_phase(kernel, "split_operands", EDGE_THREADS, 0, false);
  set_phase(kernel, backward ? "backward" : "forward", backward ? BACKWARD_THREADS : 128 * (count_consumers(c) + 1),
            shared_bytes(problem, c), c.persistent != 0);
  if (backward)
    set_phase(kernel, "end_queries", EDGE_THREADS, 0, false);
  if (!needs_tensor_maps(problem))
    return;
  kernel->num_maps = backward ? 4 : 3;
  kernel->map[0] = (fa_tensor_map){FA_MAP_QUERY, problem->head_dim, c.block_m};
  kernel->map[1] = (fa_tensor_map){FA_MAP_KEY, problem->head_dim, c.block_n};
  kernel->map[2] = (fa_tensor_map){FA_MAP_VALUE, problem->head_dim_v, c.block_n};
  kernel->map[3] = (fa_tensor_map){FA_MAP_GRAD_OUTPUT, problem->head_dim_v, c.block_m};
}

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  hopper_config c = read_config(config);
  return fa_constants_offer_text(constants, "dtype_16", problem->dtype == FA_BF16 ? "bf16" : "fp16") |
         fa_constants_offer_int(constants, "dim_qk", round_up(problem->head_dim, 16)) |
         fa_constants_offer_int(constants, "dim_v", round_up(problem->head_dim_v, 16)) |
         fa_constants_offer_int(constants, "consumer_registers", consumer_registers(c)) |
         fa_constants_offer_int(constants, "producer_registers", producer_registers(c)) |
         fa_constants_offer_int(constants, "main_threads", BACKWARD_THREADS) |
         fa_constants_offer_int(constants, "scorers", is_narrow(problem) ? 2 : 1) |
         fa_constants_offer_int(constants, "dq_registers", dq_registers(problem)) |
         fa_constants_offer_int(constants, "score_registers", score_registers(problem)) |
         fa_constants_offer_int(constants, "sum_registers", sum_registers(problem)) |
         fa_constants_offer_int(constants, "max_of_three", 1) | fa_constants_offer_int(constants, "vector_reduce", 1) |
         fa_constants_offer_int(constants, "ordered", 0) | fa_constants_offer_int(constants, "dq_sums", 1) |
         fa_constants_offer_int(constants, "log2_sums", 1) |
         fa_constants_offer_int(constants, "query_stages", query_stages(problem, c)) |
         fa_constants_offer_int(constants, "key_stages", key_stages(problem, c)) |
         fa_constants_offer_int(constants, "begin_threads", EDGE_THREADS) |
         fa_constants_offer_int(constants, "end_threads", EDGE_THREADS) |
         fa_constants_offer_int(constants, "split_threads", EDGE_THREADS) |
         fa_constants_offer_int(constants, "persistent", c.persistent) |
         fa_constants_offer_int(constants, "shared_bytes", shared_bytes(problem, c));
}

static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  hopper_config c = read_config(config);
  const int64_t query_tiles = shape->batch * shape->heads_q * ceil_div64(shape->seqlen_q, c.block_m);
  const int64_t key_tiles = shape->batch * shape->heads_kv * ceil_div64(shape->seqlen_k, c.block_n);
  plan->num_splits = 1;
  if (rounds_inputs(problem)) { /* the workspace is as templates/hopper/forward_fp32_split.h lays it out */
    plan->grid[plan->num_phases++] = 2 * key_tiles;
    plan->workspace_bytes =
        (size_t)(key_tiles * (c.block_n * (chunks_qk(problem) + chunks_v(problem)) * ROW_BYTES + 8));
  }
  plan->grid[plan->num_phases++] = query_tiles;
  if (problem->op == FA_FORWARD)
    return;
  plan->grid[plan->num_phases++] = key_tiles;
  plan->grid[plan->num_phases++] = query_tiles;
  /* As templates/cuda/workspace.h lays it out; nobody waits for turns. */
  plan->workspace_bytes =
      (size_t)(query_tiles * c.block_m) * (size_t)(STATS_BYTES + 4 * round_up(problem->head_dim, 16));
}

static unsigned variants(const fa_problem *problem) {
  return problem->op == FA_BACKWARD ? FA_VARIANT_DETERMINISTIC : rounds_inputs(problem) ? FA_VARIANT_REDUCED : 0;
}

const fa_family fa_family_hopper = {
    .name = "hopper",
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
