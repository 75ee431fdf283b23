/*
 * The generator: problem + config -> source text. Pure C11; it opens no file but the templates, reads no
 * clock and no environment. The same input gives the same bytes.
 *
 *     fa_problem problem = {.op = FA_FORWARD, .dtype = FA_FP32, .head_dim = 64, .head_dim_v = 64,
 *                           .target = "cpu:avx512"};
 *     fa_config configs[FA_MAX_CANDIDATES];
 *     int count = fa_candidates(&problem, &shape, configs, message, sizeof message);  best guess first
 *     fa_kernel kernel;
 *     if (fa_render(&problem, &configs[0], template_dir, &kernel, message, sizeof message) == 0)
 *       ... kernel.source ...
 *     fa_kernel_free(&kernel);
 *
 * Every function returns 0 (or a count) on success and -1 on failure, with one sentence in `message` that
 * names the field, what it was and what it must be.
 */
#ifndef FLASH_ATTENTION_GENERATOR_H
#define FLASH_ATTENTION_GENERATOR_H

#include "generator/problem.h"

enum { FA_MAX_CANDIDATES = 256, FA_MAX_PHASES = 4, FA_MAX_MAPS = 4, FA_ENTRY_LENGTH = 48 };

/* One launch of a kernel. A kernel's phases run one after another. */
typedef struct fa_phase {
  char entry[FA_ENTRY_LENGTH]; /* name of the function in the compiled kernel */
  int block_size;              /* threads of a block (CUDA); 1 on a CPU */
  size_t shared_bytes;         /* dynamic shared memory of a block (CUDA); 0 on a CPU */
  bool persistent;             /* its blocks take one task after another: no more are launched than the GPU holds */
} fa_phase;

/* A tensor that a kernel reads with TMA, in boxes of `rows` rows and 64 columns (128 bytes, which are swizzled). Its
 * tensor map follows struct fa_params among the kernel's parameters. */
typedef enum fa_mapped { FA_MAP_QUERY, FA_MAP_KEY, FA_MAP_VALUE, FA_MAP_GRAD_OUTPUT } fa_mapped;
typedef struct fa_tensor_map {
  fa_mapped tensor;
  int cols; /* the head dim */
  int rows;
} fa_tensor_map;

typedef struct fa_kernel {
  char *source; /* owned; NUL-terminated */
  size_t source_length;
  char compile_options[384]; /* what the source needs of its compiler, e.g. "-O3 -mavx2 -mfma" */
  int num_phases;
  fa_phase phase[FA_MAX_PHASES];
  int num_maps;
  fa_tensor_map map[FA_MAX_MAPS]; /* of every phase */
} fa_kernel;

/* What one call of a kernel needs, for one shape. Pure arithmetic: the launch asks for it on every call. */
typedef struct fa_plan {
  int num_phases;
  int64_t grid[FA_MAX_PHASES]; /* tasks (CPU) or blocks (CUDA) of each phase; 0 means nothing to do */
  int num_splits;              /* fa_params.num_splits: parts that the keys are split into */
  size_t workspace_bytes;      /* one buffer for the whole call */
  size_t scratch_bytes;        /* one buffer for each worker (CPU); 0 on a GPU */
} fa_plan;

/* Is this problem one that some family computes? */
int fa_problem_check(const fa_problem *problem, char *message, size_t message_size);

/* Take back the switches that make no other kernel: precision full where there is no reduced one, and deterministic
 * false where every kernel is. */
void fa_problem_normalize(fa_problem *problem);

/* Do kernels of this problem read their tensors by TMA, through tensor maps? */
bool fa_needs_tensor_maps(const fa_problem *problem);

/* The configs of a problem worth trying for shapes like `shape` (NULL: in general), best guess first.
 * Returns how many were written (at most FA_MAX_CANDIDATES, at least 1), or -1. The first few are what the tuner times
 * by default; all of them are the space that FLASH_ATTENTION_AUTOTUNE=max searches. */
int fa_candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs, char *message,
                  size_t message_size);

/* "block_m=64,block_n=128" <-> config. Parsing takes the family's items in any order, each with a legal value; items
 * left out take the best guess's value. */
int fa_config_parse(const fa_problem *problem, const char *text, fa_config *config, char *message, size_t message_size);
int fa_config_check(const fa_problem *problem, const fa_config *config, char *message, size_t message_size);
int fa_config_format(const fa_config *config, char *text, size_t text_size);
int fa_config_get(const fa_config *config, const char *name, int missing); /* value, or `missing` */

/* Everything about a kernel but its source: phases and compile options. */
int fa_describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel, char *message,
                size_t message_size);

/* fa_describe plus the source, read from the templates under template_dir. The caller frees the kernel. */
int fa_render(const fa_problem *problem, const fa_config *config, const char *template_dir, fa_kernel *kernel,
              char *message, size_t message_size);
void fa_kernel_free(fa_kernel *kernel);

/* Grid, workspace and splits of one call. Does not depend on the number of threads: the same shape gives the
 * same sums in the same order on every machine. */
int fa_plan_call(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan);

#endif
