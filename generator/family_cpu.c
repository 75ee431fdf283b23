/*
 * The CPU family: its instruction sets, the space of its configs, and the arithmetic that templates/cpu relies on.
 *
 * A config is
 *   tile_vectors   vectors of queries whose sums stay in registers; the rows beside them follow
 *   block_m        queries of a task (forward) or of a step (backward): a multiple of a tile
 *   block_n        keys that are packed and worked on at a time
 *   bf16_dot       (bf16 on cpu:avx512_bf16 only) products by vdpbf16ps; without it they are fp32 FMAs, which are
 *                  the faster on processors whose vdpbf16ps runs at a quarter of the FMA's rate (Intel's, measured),
 * and half as fast where both have the same (AMD's)
 */
#include "generator/family.h"

#include <stdio.h>
#include <string.h>

typedef struct instruction_set {
  const char *target, *name, *options;
  int lanes;     /* floats in a vector */
  int registers; /* vectors that a function may hold */
} instruction_set;

#define COMMON_OPTIONS "-O2 -ffp-contract=fast -fno-math-errno -fno-trapping-math"
#define AVX2_OPTIONS " -mavx2 -mfma -mf16c"
#define AVX512_OPTIONS AVX2_OPTIONS " -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512"

static const instruction_set instruction_sets[] = {
    {"cpu:avx2", "avx2", COMMON_OPTIONS AVX2_OPTIONS, 8, 16},
    {"cpu:avx512", "avx512", COMMON_OPTIONS AVX512_OPTIONS, 16, 32},
    {"cpu:avx512_bf16", "avx512_bf16", COMMON_OPTIONS AVX512_OPTIONS " -mavx512bf16", 16, 32},
    {"cpu:avx512_amx", "avx512_amx", COMMON_OPTIONS AVX512_OPTIONS " -mamx-tile -mamx-bf16", 16, 32}, /* backward */
    {"cpu:neon", "neon", COMMON_OPTIONS, 4, 32},
};
enum { NUM_INSTRUCTION_SETS = sizeof instruction_sets / sizeof instruction_sets[0] };

static const instruction_set *find_instruction_set(const char *target) {
  for (int i = 0; i < NUM_INSTRUCTION_SETS; i++)
    if (strcmp(instruction_sets[i].target, target) == 0)
      return &instruction_sets[i];
  return NULL;
}

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows of a register tile beside `vectors` vectors: the sums, one row of b and one broadcast element fit. More than 14
 * gain nothing. */
static int tile_rows(const instruction_set *isa, int vectors) {
  int rows = (isa->registers - vectors - 1) / vectors;
  return rows < 14 ? rows : 14;
}

/* `total` rows in tiles as equal as can be. */
static int balanced_rows(const instruction_set *isa, int vectors, int total) {
  return ceil_div(total, ceil_div(total, tile_rows(isa, vectors)));
}

/* Vectors of a register tile whose lanes are the columns of a head: equal groups of at most a quarter of what fits. */
static int gradient_vectors(const instruction_set *isa, int head_dim) {
  int vectors = ceil_div(head_dim, isa->lanes), most = isa->registers == 32 ? 4 : 2;
  return ceil_div(vectors, ceil_div(vectors, most));
}

static bool has_dot(const fa_problem *problem) {
  return problem->dtype == FA_BF16 && strcmp(problem->target, "cpu:avx512_bf16") == 0;
}

typedef struct cpu_config {
  int tile_vectors, block_m, block_n, bf16_dot;
} cpu_config;

static cpu_config read_config(const fa_config *config) {
  return (cpu_config){
      .tile_vectors = fa_config_get(config, "tile_vectors", 0),
      .block_m = fa_config_get(config, "block_m", 0),
      .block_n = fa_config_get(config, "block_n", 0),
      .bf16_dot = fa_config_get(config, "bf16_dot", 0),
  };
}

static void write_config(const fa_problem *problem, cpu_config from, fa_config *config) {
  *config = (fa_config){
      .count = 3, .item = {{"tile_vectors", from.tile_vectors}, {"block_m", from.block_m}, {"block_n", from.block_n}}};
  if (has_dot(problem)) {
    config->item[3].name = "bf16_dot";
    config->item[3].value = from.bf16_dot;
    config->count = 4;
  }
}

static bool owns(const fa_problem *problem) { return strncmp(problem->target, "cpu:", 4) == 0; }

static const char *template_name(const fa_problem *problem) {
  return problem->op == FA_FORWARD ? "cpu/forward.c" : "cpu/backward.c";
}

static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  if (find_instruction_set(problem->target))
    return 0;
  snprintf(message, message_size,
           "target is '%s'; it must be cpu:avx2, cpu:avx512, cpu:avx512_bf16, cpu:avx512_amx or cpu:neon",
           problem->target);
  return -1;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  const instruction_set *isa = find_instruction_set(problem->target);
  cpu_config c = read_config(config);
  if (c.tile_vectors < 1 || c.tile_vectors > isa->registers / 4) {
    snprintf(message, message_size, "tile_vectors is %d; it must be 1 to %d", c.tile_vectors, isa->registers / 4);
    return -1;
  }
  int tile_m = c.tile_vectors * isa->lanes;
  if (c.block_m < tile_m || c.block_m > 1024 || c.block_m % tile_m) {
    snprintf(message, message_size, "block_m is %d; it must be a multiple of tile_vectors * %d = %d, at most 1024",
             c.block_m, isa->lanes, tile_m);
    return -1;
  }
  int step = round_up(tile_rows(isa, c.tile_vectors), 2);
  if (tile_rows(isa, c.tile_vectors) % 2)
    step = 2 * tile_rows(isa, c.tile_vectors);
  if (c.block_n < step || c.block_n > 1024 || c.block_n % step) {
    snprintf(message, message_size, "block_n is %d; with tile_vectors %d it must be a multiple of %d, at most 1024",
             c.block_n, c.tile_vectors, step);
    return -1;
  }
  if (c.bf16_dot < 0 || c.bf16_dot > 1) {
    snprintf(message, message_size, "bf16_dot is %d; it must be 0 or 1", c.bf16_dot);
    return -1;
  }
  return 0;
}

/* Keys of a block: about `wanted`, in whole register tiles and whole pairs. */
static int fit_block_n(const instruction_set *isa, int tile_vectors, int wanted) {
  int rows = tile_rows(isa, tile_vectors);
  return round_up(wanted, rows % 2 ? 2 * rows : rows);
}

typedef struct config_list {
  const fa_problem *problem;
  const instruction_set *isa;
  int q_vectors, seqlen_k; /* more than the shape has is of no use */
  fa_config *config;
  int count;
} config_list;

/* Add a config of about these sizes, with and without bf16_dot where there is a choice, unless it is there. */
static void add_config(config_list *list, int tile_vectors, int queries, int keys) {
  const instruction_set *isa = list->isa;
  tile_vectors = tile_vectors < list->q_vectors ? tile_vectors : list->q_vectors;
  int tile_m = tile_vectors * isa->lanes;
  int block_m = (int)min64(round_up(queries, tile_m), round_up(list->q_vectors * isa->lanes, tile_m));
  int block_n = (int)min64(fit_block_n(isa, tile_vectors, keys), fit_block_n(isa, tile_vectors, list->seqlen_k));
  for (int dot = 0; dot <= has_dot(list->problem); dot++) {
    fa_config config;
    write_config(list->problem, (cpu_config){tile_vectors, block_m, block_n, dot}, &config);
    bool known = false;
    for (int i = 0; i < list->count && !known; i++) {
      known = true;
      for (int item = 0; item < config.count; item++)
        known = known && config.item[item].value == list->config[i].item[item].value;
    }
    if (!known && list->count < FA_MAX_CANDIDATES)
      list->config[list->count++] = config;
  }
}

static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  const instruction_set *isa = find_instruction_set(problem->target);
  int seqlen_q = shape ? (int)min64(shape->seqlen_q, 4096) : 4096;
  int seqlen_k = shape ? (int)min64(shape->seqlen_k, 4096) : 4096;
  config_list list = {
      .problem = problem,
      .isa = isa,
      .q_vectors = seqlen_q < 1 ? 1 : ceil_div(seqlen_q, isa->lanes),
      .seqlen_k = seqlen_k < 1 ? 1 : seqlen_k,
      .config = configs,
  };
  /* fp32 sums at most about 96 keys in one chain of additions: the rounding error of a longer one would show. */
  static const int keys_16[] = {128, 64, 256, 32}, keys_32[] = {64, 96, 48, 32};
  const int *keys = problem->dtype == FA_FP32 ? keys_32 : keys_16;
  /* More queries to a block save packing keys; fewer make more tasks and fit the caches with long rows. */
  static const int queries[] = {256, 512, 128, 64};
  static const int wide[] = {4, 2, 3, 6, 1}, narrow[] = {2, 3, 1, 4}; /* by the number of registers */
  const int *tiles = isa->registers == 32 ? wide : narrow;
  int num_tiles = isa->registers == 32 ? 5 : 4;
  bool is_long = seqlen_q >= 2048 && problem->op == FA_FORWARD; /* backward keeps five such blocks in the cache */
  add_config(&list, tiles[0], is_long ? 512 : 256, keys[0]);
  add_config(&list, tiles[0], is_long ? 256 : 128, keys[0]);
  add_config(&list, tiles[1], 256, keys[1]);
  for (int n = 0; n < 4; n++)
    for (int m = 0; m < 4; m++)
      for (int tile = 0; tile < num_tiles; tile++)
        add_config(&list, tiles[tile], queries[m], keys[n]);
  return list.count;
}

static size_t forward_scratch(const fa_problem *problem, const instruction_set *isa, cpu_config c) {
  size_t ld_qk = (size_t)round_up(problem->head_dim, isa->lanes),
         ld_v = (size_t)round_up(problem->head_dim_v, isa->lanes);
  size_t block_m = (size_t)c.block_m, block_n = (size_t)c.block_n, tile_m = (size_t)c.tile_vectors * (size_t)isa->lanes;
  size_t floats = block_m * (size_t)(problem->head_dim + problem->head_dim_v + 3) +
                  block_n * (ld_qk + ld_v + (size_t)isa->lanes + tile_m);
  return (floats * sizeof(float) + 63) / 64 * 64;
}

/* The last panel of rows may reach up to 16 beyond block_n. */
static size_t backward_scratch(const fa_problem *problem, const instruction_set *isa, cpu_config c) {
  size_t ld_qk = (size_t)round_up(problem->head_dim, isa->lanes),
         ld_v = (size_t)round_up(problem->head_dim_v, isa->lanes);
  size_t block_m = (size_t)c.block_m, block_n = (size_t)c.block_n, tile_m = (size_t)c.tile_vectors * (size_t)isa->lanes;
  size_t floats = block_m * ((size_t)(2 * problem->head_dim + problem->head_dim_v + 4) + ld_qk + ld_v) +
                  block_n * (2 * ld_qk + ld_v + tile_m) + (block_n + 16) * (2 * tile_m + ld_qk + ld_v) +
                  (size_t)problem->head_dim_v * tile_m;
  return (floats * sizeof(float) + 63) / 64 * 64;
}

static size_t scratch_bytes(const fa_problem *problem, const instruction_set *isa, cpu_config c) {
  return problem->op == FA_FORWARD ? forward_scratch(problem, isa, c) : backward_scratch(problem, isa, c);
}

/* Does backward begin with a phase that computes delta from all keys? See templates/cpu/backward.c. */
static bool has_exact_delta(const fa_problem *problem) {
  return problem->op == FA_BACKWARD && problem->dtype != FA_FP32 && problem->head_dim != problem->head_dim_v;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  static const char *const forward[] = {"forward"}, *const backward[] = {"backward_delta", "backward", "backward_sum"};
  (void)config;
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "%s",
           find_instruction_set(problem->target)->options);
  const char *const *entries = problem->op == FA_FORWARD ? forward : has_exact_delta(problem) ? backward : backward + 1;
  const int num_phases = problem->op == FA_FORWARD ? 1 : has_exact_delta(problem) ? 3 : 2;
  kernel->num_phases = num_phases;
  for (int i = 0; i < num_phases; i++) {
    kernel->phase[i].block_size = 1;
    snprintf(kernel->phase[i].entry, FA_ENTRY_LENGTH, "%s", entries[i]);
  }
}

/* Columns of Q and K whose products are summed by themselves; 0: all of them. At least two sums: with one chain of 16
 * columns, the errors of the largest scores made those of an output 6 % larger (root mean square, 8192 keys). */
static int score_chunk(const fa_problem *problem) {
  if (problem->dtype == FA_BF16)
    return 0;
  return problem->head_dim > 32 ? 32 : ceil_div(problem->head_dim, 2);
}

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  const instruction_set *isa = find_instruction_set(problem->target);
  cpu_config c = read_config(config);
  int vectors_qk = gradient_vectors(isa, problem->head_dim), vectors_v = gradient_vectors(isa, problem->head_dim_v);
  return fa_constants_offer_text(constants, "isa", isa->name) | fa_constants_offer_int(constants, "lanes", isa->lanes) |
         fa_constants_offer_int(constants, "bf16_dot", c.bf16_dot) |
         fa_constants_offer_int(constants, "key_rows", tile_rows(isa, c.tile_vectors)) |
         fa_constants_offer_int(constants, "query_rows", balanced_rows(isa, c.tile_vectors, problem->head_dim)) |
         fa_constants_offer_int(constants, "value_rows", balanced_rows(isa, c.tile_vectors, problem->head_dim_v)) |
         fa_constants_offer_int(constants, "gradient_vectors_qk", vectors_qk) |
         fa_constants_offer_int(constants, "gradient_vectors_v", vectors_v) |
         fa_constants_offer_int(constants, "gradient_rows_qk", tile_rows(isa, vectors_qk)) |
         fa_constants_offer_int(constants, "gradient_rows_v", tile_rows(isa, vectors_v)) |
         fa_constants_offer_int(constants, "score_chunk", score_chunk(problem)) |
         fa_constants_offer_int(constants, "exact_delta", has_exact_delta(problem)) |
         fa_constants_offer_int(constants, "scratch_bytes", (long long)scratch_bytes(problem, isa, c));
}

/* Parts that backward splits the keys into where there are few heads: enough tasks for 16 threads, at least
 * 512 keys each, at most 8 (each costs a float copy of dQ and packs the queries once more). Never by the number of
 * threads: results must not depend on it. */
static int count_splits(const fa_shape *shape) {
  int64_t heads = shape->batch * shape->heads_kv;
  int64_t splits = heads > 0 ? (16 + heads - 1) / heads : 1;
  splits = min64(min64(splits, 8), shape->seqlen_k / 512);
  return splits < 1 ? 1 : (int)splits;
}

static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  const instruction_set *isa = find_instruction_set(problem->target);
  cpu_config c = read_config(config);
  int64_t query_blocks = (shape->seqlen_q + c.block_m - 1) / c.block_m;
  plan->num_splits = 1;
  plan->scratch_bytes = scratch_bytes(problem, isa, c);
  if (problem->op == FA_FORWARD) {
    plan->num_phases = 1;
    plan->grid[0] = shape->batch * shape->heads_q * query_blocks;
    return;
  }
  plan->num_splits = count_splits(shape);
  int64_t tasks = shape->batch * shape->heads_q * query_blocks, block_floats = (int64_t)c.block_m * problem->head_dim;
  int64_t workspace_blocks = plan->num_splits > 1 ? plan->num_splits * tasks : 0;
  if (has_exact_delta(problem)) {
    plan->grid[plan->num_phases++] = tasks;
    workspace_blocks += (shape->batch * shape->heads_q * shape->seqlen_q + block_floats - 1) / block_floats;
  }
  plan->grid[plan->num_phases++] = shape->batch * shape->heads_kv * plan->num_splits;
  plan->grid[plan->num_phases++] = plan->num_splits > 1 ? tasks : 0;
  plan->workspace_bytes = sizeof(float) * (size_t)(workspace_blocks * block_floats);
  /* The sums of dK and dV for the keys of one split. */
  int64_t blocks = (shape->seqlen_k + c.block_n - 1) / c.block_n;
  int64_t split_keys = (blocks + plan->num_splits - 1) / plan->num_splits * c.block_n;
  int64_t columns = round_up(problem->head_dim, isa->lanes) + round_up(problem->head_dim_v, isa->lanes);
  plan->scratch_bytes += sizeof(float) * (size_t)(split_keys * columns);
}

const fa_family fa_family_cpu = {
    .name = "cpu",
    .owns = owns,
    .template_name = template_name,
    .check_problem = check_problem,
    .candidates = candidates,
    .check_config = check_config,
    .describe = describe,
    .constants = constants,
    .plan = plan,
};
