/* What the families of Hopper (sm_90a) share. */
#ifndef FLASH_ATTENTION_FAMILY_HOPPER_H
#define FLASH_ATTENTION_FAMILY_HOPPER_H

#include "generator/family.h"

#include <stdio.h>

enum {
  SHARED_LIMIT = 227 * 1024, /* CUDA C++ Programming Guide, compute capability 9.0 */
  ROW_BYTES = 128,           /* of a row of a chunk of 64 columns */
  BARRIER_BYTES = 8,
  STATS_BYTES = 16, /* of a query row: struct row_stats of templates/cuda/workspace.h */
};

/* Chunks of 64 columns. */
static inline int chunks_qk(const fa_problem *problem) { return ceil_div(problem->head_dim, 64); }
static inline int chunks_v(const fa_problem *problem) { return ceil_div(problem->head_dim_v, 64); }

/* Of a backward kernel whose warpgroups have roles, as templates/hopper/roles_shared.h lays it out: stages of K and V,
 * of Q and dO, a tile of weights and two of d_scores. */
static inline int roles_shared(const fa_problem *problem, int block_m, int block_n, int num_stages, int key_stages) {
  const int parts = block_n / 64, chunks = chunks_qk(problem) + chunks_v(problem);
  const int rows = (key_stages * block_n + num_stages * block_m) * chunks + 3 * parts * block_m;
  return rows * ROW_BYTES + num_stages * block_m * STATS_BYTES +
         (2 * key_stages + 4 * num_stages + 3 * parts + 3) * BARRIER_BYTES;
}

static inline void set_phase(fa_kernel *kernel, const char *entry, int block_size, int shared_bytes, bool persistent) {
  fa_phase *phase = &kernel->phase[kernel->num_phases++];
  snprintf(phase->entry, sizeof phase->entry, "%s", entry);
  phase->block_size = block_size;
  phase->shared_bytes = (size_t)shared_bytes;
  phase->persistent = persistent;
}

#endif
