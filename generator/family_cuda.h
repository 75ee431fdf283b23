/*
 * The portable CUDA family's configs: what they consist of (family_cuda.c), and which ones the tuner is offered
 * (family_cuda_candidates.c).
 */
#ifndef FA_GENERATOR_FAMILY_CUDA_H
#define FA_GENERATOR_FAMILY_CUDA_H

#include "generator/generator.h"

typedef struct cuda_config {
  int block_m;    /* queries of a block of threads */
  int block_n;    /* keys that are worked on at a time (forward), or keys of a block of threads (backward) */
  int num_warps;  /* each has block_m / num_warps rows of queries (forward), or warp_keys keys with others (backward) */
  int num_stages; /* tiles of K, and of V, that shared memory holds (forward); of Q, and of dO (backward) */
  int warp_keys;  /* 16 or 32 (backward) */
  int split_blocks; /* where blocks would be fewer, up to so many share the keys (forward); 0: never */
  int direct;       /* 1: blocks of threads split K and V of fp32 as they read them; 0: a first phase does */
} cuda_config;

enum { LEAST_SPLIT_KEYS = 256 }; /* of a part of the keys, so that a block of threads is worth it */

/* Configs to try, best guess first; some may not fit. Returns how many. `shape` is NULL for all of them, or what the
 * tuner rounds calls to: 16, 64, 256, 512, ... queries, few heads or about as many as SMs. */
int fa_cuda_candidates(const fa_problem *problem, const fa_shape *shape, cuda_config list[FA_MAX_CANDIDATES]);

/* Keys that a query may see. */
int64_t fa_cuda_seen_keys(const fa_problem *problem, const fa_shape *shape);

#endif
