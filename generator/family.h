/*
 * A template family: one way of writing kernels for a set of targets. The generator finds the family of a
 * problem and asks it for everything that depends on the kind of hardware. To add a family,
 * fill in this struct in a file of its own, list it in generator.c and put its templates under templates/.
 */
#ifndef FLASH_ATTENTION_FAMILY_H
#define FLASH_ATTENTION_FAMILY_H

#include "generator/generator.h"
#include "generator/template.h"

/* Switches of a problem that may or may not make another kernel. */
enum { FA_VARIANT_REDUCED = 1, FA_VARIANT_DETERMINISTIC = 2 };

typedef struct fa_family {
  const char *name; /* "cpu" */
  /* Is the problem this family's? By its target, as a rule. Families are asked in the order of generator.c. */
  bool (*owns)(const fa_problem *problem);
  /* Template of an op, relative to the template directory: "cpu/forward.c". */
  const char *(*template_name)(const fa_problem *problem);
  int (*check_problem)(const fa_problem *problem, char *message, size_t message_size);
  /* Optional: do this problem's kernels read their tensors by TMA? NULL: none does. */
  bool (*needs_tensor_maps)(const fa_problem *problem);
  /* Optional: which of the switches above make another kernel of this problem; NULL: none. The others are
   * taken back before a problem is looked up, tuned or rendered (fa_problem_normalize). */
  unsigned (*variants)(const fa_problem *problem);
  /* Configs to try, best guess first, at most FA_MAX_CANDIDATES; those that check_config refuses are left out later. */
  int (*candidates)(const fa_problem *problem, const fa_shape *shape, fa_config *configs);
  int (*check_config)(const fa_problem *problem, const fa_config *config, char *message, size_t message_size);
  /* Phases and compile options; `source` is left alone. */
  void (*describe)(const fa_problem *problem, const fa_config *config, fa_kernel *kernel);
  /* The constants that the template may use, beyond those of every problem (see generator.c). */
  int (*constants)(const fa_problem *problem, const fa_config *config, fa_constants *constants);
  void (*plan)(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan);
} fa_family;

/* What configs and plans are computed with; b > 0, nothing is negative. */
static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
static inline int64_t ceil_div64(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

extern const fa_family fa_family_amx;         /* family_amx.c */
extern const fa_family fa_family_cpu;         /* family_cpu.c */
extern const fa_family fa_family_cuda;        /* family_cuda.c */
extern const fa_family fa_family_hopper;      /* family_hopper.c */
extern const fa_family fa_family_hopper_fp32; /* family_hopper_fp32.c */
extern const fa_family fa_family_hopper_wide; /* family_hopper_wide.c */

extern const fa_family *fa_family_of_tests; /* NULL, or looked at before all others */

#endif
