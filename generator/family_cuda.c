/*
 * The portable CUDA family: mma.sync, ldmatrix and cp.async, for GPUs from sm_80 on. The space of its configs, and the
 * arithmetic that templates/cuda relies on.
 */
#include "generator/family_cuda.h"
#include "generator/family.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int architecture_of(const char *target) { return (int)strtol(target + strlen("cuda:sm_"), NULL, 10); }

/* Bytes of shared memory that a block of threads may ask for (CUDA C++ Programming Guide, compute capabilities). */
static int shared_limit(const char *target) {
  switch (architecture_of(target)) {
  case 80:
  case 87:
    return 163 * 1024;
  case 90:
  case 100:
  case 103:
  case 110:
    return 227 * 1024;
  default:
    return 99 * 1024;
  }
}

static cuda_config read_config(const fa_config *config) {
  return (cuda_config){
      .block_m = fa_config_get(config, "block_m", 0),
      .block_n = fa_config_get(config, "block_n", 0),
      .num_warps = fa_config_get(config, "num_warps", 0),
      .num_stages = fa_config_get(config, "num_stages", 0),
      .warp_keys = fa_config_get(config, "warp_keys", 16),
      .split_blocks = fa_config_get(config, "split_blocks", 0),
      .direct = fa_config_get(config, "direct", 0),
  };
}

static void add_item(fa_config *config, const char *name, int value) {
  config->item[config->count].name = name;
  config->item[config->count++].value = value;
}

static void write_config(const fa_problem *problem, cuda_config from, fa_config *config) {
  *config = (fa_config){0};
  add_item(config, "block_m", from.block_m);
  add_item(config, "block_n", from.block_n);
  add_item(config, "num_warps", from.num_warps);
  add_item(config, "num_stages", from.num_stages);
  if (problem->op == FA_BACKWARD)
    add_item(config, "warp_keys", from.warp_keys);
  else
    add_item(config, "split_blocks", from.split_blocks);
  if (problem->op == FA_FORWARD && problem->dtype == FA_FP32)
    add_item(config, "direct", from.direct);
}

/* What a problem's tiles look like: head dims rounded up to what mma takes. */
typedef struct tiles {
  int dim_qk, dim_v, parts;
} tiles;

static tiles tiles_of(const fa_problem *problem) {
  tiles t = {.dim_qk = round_up(problem->head_dim, 16), .dim_v = round_up(problem->head_dim_v, 16)};
  t.parts = problem->dtype == FA_FP32 ? 2 : 1;
  return t;
}

static int forward_shared(const fa_problem *problem, cuda_config c) {
  tiles t = tiles_of(problem);
  int elements = c.block_m * t.dim_qk + c.num_stages * c.block_n * (t.dim_qk + t.dim_v);
  return elements * t.parts * 2 + (problem->dtype == FA_FP32 ? c.block_m * 4 : 0) +
         (c.direct ? 2 * c.num_warps * 4 : 0);
}

/* Warps that share warp_keys keys in backward. */
static int count_d_splits(cuda_config c) { return c.num_warps * c.warp_keys / c.block_n; }

static int backward_shared(const fa_problem *problem, cuda_config c) {
  tiles t = tiles_of(problem);
  /* With three stages of queries, scores have two: see backward.cu. */
  int score_stages = c.num_stages > 2 ? 2 : 1, groups = score_stages * c.block_n / c.warp_keys;
  int score_tiles = score_stages * (count_d_splits(c) > 1 ? 2 : 1);
  int elements = (c.block_n + c.num_stages * c.block_m) * (t.dim_qk + t.dim_v) + score_tiles * c.block_n * c.block_m;
  int factors = problem->dtype == FA_FP32 ? 2 * c.num_stages + groups + c.num_warps : 0;
  return c.num_stages * c.block_m * 16 + elements * t.parts * 2 + round_up(factors * 4, 16);
}

/* Tiles of 8 columns of a gradient that a warp of backward sums. Two warps share columns evenly; more than two share
 * pairs of tiles. */
static int count_column_tiles(int head_dim, int d_splits) {
  const int tiles = ceil_div(head_dim, 8), pairs = ceil_div(tiles, 2);
  return d_splits < 2 ? tiles : d_splits == 2 ? pairs : 2 * ceil_div(pairs, d_splits);
}

/* The same of V's columns; in forward each warp has all of the output's, in fp32 in pairs. */
static int count_value_tiles(const fa_problem *problem, cuda_config c) {
  if (problem->op == FA_BACKWARD)
    return count_column_tiles(problem->head_dim_v, count_d_splits(c));
  return problem->dtype == FA_FP32 ? tiles_of(problem).dim_v / 8 : count_column_tiles(problem->head_dim_v, 1);
}

/* Registers of a thread that hold sums: of the output, and of the scores. fp32 keeps the scores' two parts, and needs
 * some 20 registers more for parts of other operands. */
static int forward_accumulators(const fa_problem *problem, cuda_config c) {
  const int parts = tiles_of(problem).parts;
  return c.block_m / (16 * c.num_warps) * (8 * count_value_tiles(problem, c) + parts * c.block_n) / 2 +
         20 * (parts - 1);
}

/* Of dK and dV, of weights and of d_scores; the last two also as left operands, in fp32 in two parts, for which those
 * of 16 keys leave room. */
static int backward_accumulators(const fa_problem *problem, cuda_config c) {
  const int splits = count_d_splits(c), key_tiles = c.warp_keys / 16, scores = c.block_m / splits;
  const int columns = count_column_tiles(problem->head_dim, splits) + count_value_tiles(problem, c);
  return key_tiles * (4 * columns + scores) + (key_tiles - 1) * (tiles_of(problem).parts - 1) * scores;
}

static int shared_bytes(const fa_problem *problem, cuda_config c) {
  return problem->op == FA_FORWARD ? forward_shared(problem, c) : backward_shared(problem, c);
}

static bool owns(const fa_problem *problem) { return strncmp(problem->target, "cuda:sm_", 8) == 0; }

static const char *template_name(const fa_problem *problem) {
  return problem->op == FA_FORWARD ? "cuda/forward.cu" : "cuda/backward.cu";
}

/* One name for each architecture. A suffix says that code runs nowhere else, which only Hopper's kernels need; what has
 * none of those is portable there, too. 200: no architecture is near it, and a slip of the hand is. */
static int check_problem(const fa_problem *problem, char *message, size_t message_size) {
  const char *number = problem->target + strlen("cuda:sm_");
  char *end;
  long architecture = *number >= '1' && *number <= '9' ? strtol(number, &end, 10) : 0;
  if (architecture >= 80 && architecture < 200 && (!*end || (architecture == 90 && strcmp(end, "a") == 0)))
    return 0;
  snprintf(message, message_size,
           "target is '%s'; it must be cuda:sm_90a, or cuda:sm_ and a number from 80 to 199 without a suffix",
           problem->target);
  return -1;
}

static int check_range(const char *name, int value, int least, int most, int multiple, char *message,
                       size_t message_size) {
  if (value >= least && value <= most && value % multiple == 0)
    return 0;
  char of[32] = "";
  if (multiple > 1)
    snprintf(of, sizeof of, "a multiple of %d from ", multiple);
  snprintf(message, message_size, "%s is %d; it must be %s%d %s %d", name, value, of, least,
           most - least == 1 ? "or" : "to", most);
  return -1;
}

/* Do tiles have columns that tensors have not? */
static bool has_tails(const fa_problem *problem) {
  return problem->head_dim % 16 != 0 || problem->head_dim_v % 16 != 0;
}

/* Parts of the keys are weighed by a block of threads, one each; a part has keys enough to be worth that. */
enum { COMBINE_THREADS = 128, MOST_SPLIT_BLOCKS = 4096 };

static int64_t count_splits(const fa_problem *problem, cuda_config c, const fa_shape *shape, int64_t query_tiles) {
  const int64_t keys = fa_cuda_seen_keys(problem, shape);
  int64_t splits = query_tiles > 0 ? c.split_blocks / query_tiles : 1;
  splits = splits < keys / LEAST_SPLIT_KEYS ? splits : keys / LEAST_SPLIT_KEYS;
  splits = splits < COMBINE_THREADS ? splits : COMBINE_THREADS;
  return splits > 1 ? splits : 1;
}

static int check_forward(const fa_problem *problem, cuda_config c, char *message, size_t message_size) {
  /* fp32 sums at most 64 keys in a tensor core, which truncates. */
  int most_keys = problem->dtype == FA_FP32 ? 64 : 256;
  if (check_range("block_m", c.block_m, 16 * c.num_warps, 256, 16 * c.num_warps, message, message_size) != 0 ||
      check_range("block_n", c.block_n, 16, most_keys, 16, message, message_size) != 0 ||
      check_range("split_blocks", c.split_blocks, 0, MOST_SPLIT_BLOCKS, 1, message, message_size) != 0 ||
      check_range("direct", c.direct, 0, 1, 1, message, message_size) != 0)
    return -1;
  if (c.direct && c.num_stages > 1) {
    snprintf(message, message_size, "num_stages is %d; with direct=1 it must be 1", c.num_stages);
    return -1;
  }
  if (problem->dtype == FA_FP32 && c.block_n == 48) { /* its sums are of 16, 32 or 64 keys */
    snprintf(message, message_size, "block_n is 48; for fp32 it must be 16, 32 or 64");
    return -1;
  }
  /* A second stage needs addresses of its own; so do columns that a tile has and a tensor has not, and the function
   * that loads rows of an odd number of elements. */
  const bool is_odd = problem->head_dim % 2 != 0 || problem->head_dim_v % 2 != 0;
  const bool is_fp32 = problem->dtype == FA_FP32;
  const int most = !is_fp32 && is_odd ? 160 : c.num_stages > 1 ? 176 : has_tails(problem) ? 192 : 200;
  if (forward_accumulators(problem, c) <= most)
    return 0;
  snprintf(message, message_size, "block_m %d and block_n %d with num_warps %d need %d registers for sums; %d fit",
           c.block_m, c.block_n, c.num_warps, forward_accumulators(problem, c), most);
  return -1;
}

static int check_backward(const fa_problem *problem, cuda_config c, char *message, size_t message_size) {
  const int keys = c.num_warps * c.warp_keys;
  if (check_range("warp_keys", c.warp_keys, 16, 32, 16, message, message_size) != 0 ||
      check_range("block_n", c.block_n, c.warp_keys, keys, c.warp_keys, message, message_size) != 0)
    return -1;
  if (keys % c.block_n || count_d_splits(c) > 4) {
    snprintf(message, message_size, "block_n is %d; num_warps * warp_keys = %d must be 1 to 4 times as many", c.block_n,
             keys);
    return -1;
  }
  if (check_range("block_m", c.block_m, 16, 128, count_d_splits(c) > 2 ? 32 : 16, message, message_size) != 0)
    return -1;
  int row_tiles = c.block_m / 16, rows = row_tiles % 2 == 0 && c.num_warps > 1 ? 2 : 1, row_warps = row_tiles / rows;
  row_warps = row_warps < c.num_warps ? row_warps : c.num_warps;
  if (c.num_warps % row_warps || row_tiles % (rows * row_warps)) {
    snprintf(message, message_size, "block_m is %d; its 16-row tiles must spread evenly over %d warps", c.block_m,
             c.num_warps);
    return -1;
  }
  if (problem->dtype == FA_FP32 && c.block_m / count_d_splits(c) > 32) {
    snprintf(message, message_size, "block_m is %d; for fp32 it must be at most 32 for each warp that shares keys",
             c.block_m);
    return -1;
  }
  /* fp32 has two parts of each operand beside them; then columns that a tile has and a tensor has not. At 16 bits those
   * cost addresses, too: at d 72, four warps with keys of their own spilled 28 bytes, two warps 16. Two warps with 32
   * keys each have fewest addresses: at d 80 they spill 60 bytes on sm_80, up to 8 on sm_90. */
  const bool own_keys = count_d_splits(c) == 1, tails = has_tails(problem);
  const bool few_addresses = own_keys && !tails && c.num_warps <= 2 && c.warp_keys == 32 && c.num_stages <= 2;
  const int most_16 = own_keys && tails && c.num_warps > 2 ? 200 : few_addresses ? 224 : 208;
  const int most = problem->dtype != FA_FP32 ? most_16 : tails && c.warp_keys == 32 ? 144 : 176;
  if (backward_accumulators(problem, c) <= most)
    return 0;
  snprintf(message, message_size, "block_m %d and block_n %d with num_warps %d need %d registers for sums; %d fit",
           c.block_m, c.block_n, c.num_warps, backward_accumulators(problem, c), most);
  return -1;
}

static int check_config(const fa_problem *problem, const fa_config *config, char *message, size_t message_size) {
  cuda_config c = read_config(config);
  if (c.num_warps != 1 && c.num_warps != 2 && c.num_warps != 4 && c.num_warps != 8) {
    snprintf(message, message_size, "num_warps is %d; it must be 1, 2, 4 or 8", c.num_warps);
    return -1;
  }
  if (check_range("num_stages", c.num_stages, 1, 4, 1, message, message_size) != 0 ||
      (problem->op == FA_FORWARD ? check_forward : check_backward)(problem, c, message, message_size) != 0)
    return -1;
  int bytes = shared_bytes(problem, c), limit = shared_limit(problem->target);
  if (bytes <= limit)
    return 0;
  snprintf(message, message_size, "block_m %d, block_n %d and num_stages %d need %d bytes of shared memory; %s has %d",
           c.block_m, c.block_n, c.num_stages, bytes, problem->target, limit);
  return -1;
}

static int candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  cuda_config list[FA_MAX_CANDIDATES];
  const int count = fa_cuda_candidates(problem, shape, list);
  for (int i = 0; i < count; i++)
    write_config(problem, list[i], &configs[i]);
  return count;
}

enum { SPLIT_THREADS = 256, BEGIN_THREADS = 256, END_THREADS = 256 };

static void set_phase(fa_kernel *kernel, const char *entry, int block_size, int shared_bytes) {
  fa_phase *phase = &kernel->phase[kernel->num_phases++];
  snprintf(phase->entry, sizeof phase->entry, "%s", entry);
  phase->block_size = block_size;
  phase->shared_bytes = (size_t)shared_bytes;
}

static void describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  cuda_config c = read_config(config);
  bool split = problem->dtype == FA_FP32, backward = problem->op == FA_BACKWARD;
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "--std=c++17");
  if (backward)
    set_phase(kernel, "begin_queries", BEGIN_THREADS, 0);
  if (split && !c.direct)
    set_phase(kernel, "split_keys", SPLIT_THREADS, 0);
  set_phase(kernel, backward ? "backward" : "forward", c.num_warps * 32, shared_bytes(problem, c));
  if (backward)
    set_phase(kernel, "end_queries", END_THREADS, 0);
  if (c.split_blocks)
    set_phase(kernel, "combine_splits", COMBINE_THREADS, 0);
}

/* Are the parts of dQ added in a fixed order? In fp32 that costs next to nothing. */
static bool is_ordered(const fa_problem *problem) { return problem->dtype == FA_FP32 || problem->deterministic; }

/* Does forward of this target sum scores as templates/hopper/forward_fp32.cu does? Backward must, too. */
static bool follows_hopper(const fa_problem *problem) {
  return problem->op == FA_BACKWARD && problem->dtype == FA_FP32 && strcmp(problem->target, "cuda:sm_90a") == 0;
}

static unsigned variants(const fa_problem *problem) {
  return problem->op == FA_BACKWARD && problem->dtype != FA_FP32 ? FA_VARIANT_DETERMINISTIC : 0;
}

/* Bytes that rows of `dim` 16-bit elements can be copied in. */
static int load_bytes(int dim) { return dim % 8 == 0 ? 16 : dim % 4 == 0 ? 8 : dim % 2 == 0 ? 4 : 2; }

static int constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  cuda_config c = read_config(config);
  tiles t = tiles_of(problem);
  return fa_constants_offer_text(constants, "dtype_16", problem->dtype == FA_BF16 ? "bf16" : "fp16") |
         fa_constants_offer_int(constants, "dim_qk", t.dim_qk) | fa_constants_offer_int(constants, "dim_v", t.dim_v) |
         fa_constants_offer_int(constants, "load_bytes_qk", load_bytes(problem->head_dim)) |
         fa_constants_offer_int(constants, "load_bytes_v", load_bytes(problem->head_dim_v)) |
         fa_constants_offer_int(constants, "split_threads", SPLIT_THREADS) |
         fa_constants_offer_int(constants, "sum_keys", architecture_of(problem->target) == 90 ? 64 : 32) |
         fa_constants_offer_int(constants, "begin_threads", BEGIN_THREADS) |
         fa_constants_offer_int(constants, "end_threads", END_THREADS) |
         fa_constants_offer_int(constants, "combine_threads", COMBINE_THREADS) |
         fa_constants_offer_int(constants, "max_of_three", architecture_of(problem->target) == 90) |
         fa_constants_offer_int(constants, "d_splits", count_d_splits(c)) |
         fa_constants_offer_int(constants, "tiles_qk", count_column_tiles(problem->head_dim, count_d_splits(c))) |
         fa_constants_offer_int(constants, "tiles_v", count_value_tiles(problem, c)) |
         fa_constants_offer_int(constants, "warp_keys", c.warp_keys) |
         fa_constants_offer_int(constants, "direct", c.direct) |
         fa_constants_offer_int(constants, "ordered", is_ordered(problem)) |
         fa_constants_offer_int(constants, "dq_sums", 1) |
         fa_constants_offer_int(constants, "log2_sums", 0) | /* takes registers that it has not */
         fa_constants_offer_int(constants, "sums_like_hopper", follows_hopper(problem)) |
         fa_constants_offer_int(constants, "vector_reduce", architecture_of(problem->target) >= 90) |
         fa_constants_offer_int(constants, "min_blocks", c.num_warps <= 4 ? 2 : 1) |
         fa_constants_offer_int(constants, "shared_bytes", shared_bytes(problem, c));
}

static size_t round_up_256(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* As templates/cuda/split_keys.h, forward_splits.h and workspace.h lay it out. */
static void plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  cuda_config c = read_config(config);
  tiles t = tiles_of(problem);
  bool split = problem->dtype == FA_FP32, backward = problem->op == FA_BACKWARD;
  int64_t query_tiles = shape->batch * shape->heads_q * ceil_div64(shape->seqlen_q, c.block_m);
  int64_t key_tiles = shape->batch * shape->heads_kv * ceil_div64(shape->seqlen_k, c.block_n);
  size_t bytes = 0;
  plan->num_splits = (int)count_splits(problem, c, shape, query_tiles);
  if (backward)
    plan->grid[plan->num_phases++] = query_tiles;
  if (split && !c.direct) {
    plan->grid[plan->num_phases++] = key_tiles;
    bytes = round_up_256((size_t)key_tiles * (size_t)(2 * c.block_n * (t.dim_qk + t.dim_v) * 2 + 8));
  }
  plan->grid[plan->num_phases++] = backward ? key_tiles : query_tiles * plan->num_splits;
  if (backward) {
    plan->grid[plan->num_phases++] = query_tiles;
    size_t rows = (size_t)query_tiles * (size_t)c.block_m;
    bytes += rows * (16 + 4 * (size_t)t.dim_qk) + round_up_256((size_t)query_tiles * (size_t)c.num_warps * 4);
    if (split)
      bytes += rows * (size_t)(2 * (t.dim_qk + t.dim_v) * 2) + (size_t)query_tiles * 8;
  }
  if (c.split_blocks) {
    const int64_t rows = shape->batch * shape->heads_q * shape->seqlen_q;
    plan->grid[plan->num_phases++] = plan->num_splits > 1 ? rows : 0;
    bytes += plan->num_splits > 1 ? (size_t)(plan->num_splits * rows) * (size_t)(4 * t.dim_v + 16) : 0;
  }
  plan->workspace_bytes = bytes;
}

const fa_family fa_family_cuda = {
    .name = "cuda",
    .owns = owns,
    .template_name = template_name,
    .check_problem = check_problem,
    .variants = variants,
    .candidates = candidates,
    .check_config = check_config,
    .describe = describe,
    .constants = constants,
    .plan = plan,
};
