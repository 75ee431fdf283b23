/*
 * Which configs of the portable CUDA family the tuner is offered.
 */
#include "generator/family_cuda.h"

#include "generator/family.h"

#include <stddef.h>

/* Best guess first. A block_m of 0 ends a list. */
typedef struct cuda_tiling {
  int block_m, block_n, num_warps, num_stages, warp_keys;
} cuda_tiling;
static const cuda_tiling forward_16[] = {{128, 128, 4, 1, 0}, {128, 64, 4, 1, 0}, {64, 64, 4, 1, 0},
                                         {128, 64, 8, 1, 0},  {64, 128, 4, 1, 0}, {128, 128, 8, 1, 0},
                                         {128, 96, 4, 1, 0},  {128, 64, 4, 2, 0}, {128, 32, 4, 1, 0},
                                         {128, 64, 8, 2, 0},  {128, 32, 8, 1, 0}, {64, 64, 4, 2, 0},
                                         {64, 32, 4, 1, 0},   {64, 32, 4, 2, 0},  {32, 64, 2, 1, 0},
                                         {16, 64, 1, 2, 0},   {64, 16, 4, 1, 0},  {0}};
static const cuda_tiling forward_32[] = {{64, 64, 4, 1, 0}, {128, 64, 8, 1, 0}, {64, 64, 4, 2, 0},  {128, 32, 8, 1, 0},
                                         {64, 32, 4, 1, 0}, {64, 32, 4, 2, 0},  {128, 64, 8, 2, 0}, {32, 32, 2, 1, 0},
                                         {64, 16, 4, 1, 0}, {32, 16, 2, 1, 0},  {16, 16, 1, 1, 0},  {0}};

/* Where queries are few, and bandwidth is all there is: many small blocks of threads. Of 17 to 64 queries, only where
 * keys are many: else products count. */
static const cuda_tiling few_16[] = {{32, 64, 2, 1, 0}, {16, 64, 1, 2, 0}, {64, 128, 4, 1, 0}, {0}};
static const cuda_tiling few_32[] = {{32, 32, 2, 1, 0}, {16, 32, 1, 1, 0}, {64, 32, 4, 1, 0}, {0}};
/* Where their tiles are, too. */
static const cuda_tiling split_any[] = {{64, 64, 4, 1, 0}, {64, 64, 4, 2, 0}, {0}};
enum { FEW_QUERIES = 16, ONE_TILE = 64, FEW_TILES = 128, MANY_KEYS = 4 * LEAST_SPLIT_KEYS, SPLIT_BLOCKS = 512 };

static const cuda_tiling backward_16[] = {
    {32, 128, 4, 2, 32}, {32, 64, 2, 2, 32}, {32, 128, 4, 3, 32}, {64, 128, 8, 3, 32},
    {64, 128, 8, 2, 32}, {64, 64, 4, 2, 32}, {64, 64, 4, 1, 32},  {32, 64, 4, 2, 32},
    {64, 64, 8, 3, 32},  {64, 64, 8, 2, 32}, {64, 64, 8, 1, 32},  {64, 128, 8, 1, 32},
    {32, 128, 4, 1, 32}, {64, 64, 4, 3, 32}, {64, 64, 4, 2, 16},  {64, 64, 4, 1, 16},
    {64, 64, 8, 2, 16},  {64, 64, 8, 1, 16}, {32, 64, 8, 1, 16},  {32, 32, 4, 2, 16},
    {32, 32, 4, 1, 16},  {16, 32, 4, 1, 16}, {16, 16, 2, 1, 16},  {0}};
static const cuda_tiling backward_32[] = {{64, 128, 8, 1, 32},
                                          {32, 64, 4, 1, 32},
                                          {32, 128, 8, 2, 32},
                                          {32, 128, 8, 1, 16},
                                          {32, 64, 8, 1, 16},
                                          {32, 64, 4, 1, 16},
                                          {32, 32, 8, 1, 16},
                                          {32, 32, 4, 1, 16},
                                          {16, 64, 4, 2, 16},
                                          {16, 32, 4, 1, 16},
                                          {16, 32, 2, 1, 16},
                                          {16, 16, 2, 1, 16},
                                          {0}};

/* At most FEW_QUERIES: a tile of them is as narrow as it can be, and leaves room for several blocks of threads. */
static const cuda_tiling few_backward_16[] = {{16, 64, 4, 1, 16}, {16, 64, 4, 1, 32}, {16, 32, 2, 1, 32}, {0}};

static int append(const cuda_tiling *from, int split_blocks, int direct, cuda_config *list, int count) {
  for (; from->block_m; from++)
    list[count++] = (cuda_config){from->block_m,   from->block_n, from->num_warps, from->num_stages,
                                  from->warp_keys, split_blocks,  direct};
  return count;
}

int64_t fa_cuda_seen_keys(const fa_problem *problem, const fa_shape *shape) {
  return problem->is_causal && shape->seqlen_q < shape->seqlen_k ? shape->seqlen_q : shape->seqlen_k;
}

static int forward_candidates(const fa_problem *problem, const fa_shape *shape, cuda_config *list) {
  const bool parts = problem->dtype == FA_FP32;
  const cuda_tiling *usual = parts ? forward_32 : forward_16, *few = parts ? few_32 : few_16;
  if (!shape)
    return append(split_any, SPLIT_BLOCKS, 0, list,
                  append(few, SPLIT_BLOCKS, parts, list, append(usual, 0, 0, list, 0)));
  const bool many_keys = fa_cuda_seen_keys(problem, shape) >= MANY_KEYS;
  int count = 0;
  if (shape->seqlen_q <= FEW_QUERIES || (shape->seqlen_q <= ONE_TILE && many_keys))
    count = append(few, SPLIT_BLOCKS, parts, list, count);
  if (shape->batch * shape->heads_q * ceil_div64(shape->seqlen_q, ONE_TILE) <= FEW_TILES && many_keys)
    count = append(split_any, SPLIT_BLOCKS, 0, list, count);
  return append(usual, 0, 0, list, count);
}

static int backward_candidates(const fa_problem *problem, const fa_shape *shape, cuda_config *list) {
  if (problem->dtype == FA_FP32)
    return append(backward_32, 0, 0, list, 0);
  if (!shape)
    return append(few_backward_16, 0, 0, list, append(backward_16, 0, 0, list, 0));
  const int few = shape->seqlen_q <= FEW_QUERIES ? append(few_backward_16, 0, 0, list, 0) : 0;
  return append(backward_16, 0, 0, list, few);
}

int fa_cuda_candidates(const fa_problem *problem, const fa_shape *shape, cuda_config list[FA_MAX_CANDIDATES]) {
  return (problem->op == FA_FORWARD ? forward_candidates : backward_candidates)(problem, shape, list);
}
