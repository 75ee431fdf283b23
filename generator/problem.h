/*
 * The words that every part of the project shares: problem, config, shape.
 *
 * A problem says what is computed, a config how; together they are one kernel. A shape is what a kernel
 * takes at run time. Nothing here knows CUDA, a CPU, PyTorch or a file.
 */
#ifndef FLASH_ATTENTION_PROBLEM_H
#define FLASH_ATTENTION_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum fa_op { FA_FORWARD = 0, FA_BACKWARD = 1 } fa_op;

typedef enum fa_dtype { FA_FP32 = 0, FA_FP16 = 1, FA_BF16 = 2 } fa_dtype;

/* How exactly fp32 is computed. REDUCED, no less exactly than TF32 does, is what the user allows with
 * torch.set_float32_matmul_precision("high"); it means nothing for 16-bit types, and nothing where a family has no such
 * kernel. */
typedef enum fa_precision { FA_PRECISION_FULL = 0, FA_PRECISION_REDUCED = 1 } fa_precision;

enum { FA_MAX_HEAD_DIM = 256, FA_TARGET_LENGTH = 32, FA_MAX_CONFIG_ITEMS = 16 };

typedef struct fa_problem {
  fa_op op;
  fa_dtype dtype;
  fa_precision precision;
  int head_dim;                  /* of query and key, 1 to 256 */
  int head_dim_v;                /* of value and output, 1 to 256 */
  bool is_causal;                /* query i sees keys 0..i (aligned top left) */
  bool deterministic;            /* the same call gives the same bits; false where a family's kernels always do */
  char target[FA_TARGET_LENGTH]; /* "cpu:avx512", "cuda:sm_90a", ... */
} fa_problem;

/* How a problem is computed: block_m, block_n and a family's own switches, in the family's order. */
typedef struct fa_config {
  int count;
  struct {
    const char *name; /* static text of the family that made the config */
    int value;
  } item[FA_MAX_CONFIG_ITEMS];
} fa_config;

typedef struct fa_shape {
  int64_t batch, heads_q, heads_kv, seqlen_q, seqlen_k;
} fa_shape;

const char *fa_op_name(fa_op op);          /* "forward", "backward" */
const char *fa_dtype_name(fa_dtype dtype); /* "fp32", "fp16", "bf16" */
size_t fa_dtype_size(fa_dtype dtype);      /* bytes */

#endif
