/*
 * What the tests of the CUDA runtime share: the fake driver, and a small family of kernels for it.
 */
#ifndef FLASH_ATTENTION_TESTS_CUDA_HELP_H
#define FLASH_ATTENTION_TESTS_CUDA_HELP_H

#include "generator/family.h"
#include "runtime/cuda.h"
#include "tests/c/fake_cuda.h"
#include "tests/c/runtime_help.h"

#include <dlfcn.h>

/* Makes the runtime of this process use the fake driver, which lies beside the test program. */
static inline fake_cuda *fake_cuda_open(void) {
  static char path[PATH_MAX];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 64);
  path[length > 0 ? length : 0] = 0;
  char *slash = strrchr(path, '/');
  strcpy(slash ? slash + 1 : path, "libfake_cuda.so");
  void *library = dlopen(path, RTLD_NOW);
  fake_cuda *fake = library ? dlsym(library, "fake_cuda_state") : NULL;
  if (!fake) {
    fprintf(stderr, "%s\n", dlerror());
    exit(2);
  }
  fa_cuda_driver_name = path;
  return fake;
}

static inline void fake_forget(fake_cuda *fake) { fake->log[0] = 0; }

/* --- a family of CUDA kernels for tests: one block for each head. config: block_m, which means nothing but is in the
 * source. Its template, which help_use_family writes, is compiled but never runs. */
static inline bool help_owns(const fa_problem *problem) { return strncmp(problem->target, "cuda:sm_", 8) == 0; }
static inline const char *help_template(const fa_problem *problem) {
  (void)problem;
  return "kernel.cu";
}
static inline int help_check_problem(const fa_problem *problem, char *message, size_t size) {
  if (!strchr(problem->target + strlen("cuda:"), 'a') || strcmp(problem->target, "cuda:sm_90a") == 0)
    return 0;
  snprintf(message, size, "target is '%s'; there is no such test kernel", problem->target);
  return -1;
}
static inline int help_candidates(const fa_problem *problem, const fa_shape *shape, fa_config *configs) {
  (void)problem, (void)shape;
  for (int i = 0; i < 3; i++)
    configs[i] = (fa_config){.count = 1, .item = {{"block_m", 16 << i}}};
  return 3;
}
static inline int help_check_config(const fa_problem *problem, const fa_config *config, char *message, size_t size) {
  (void)problem, (void)config, (void)message, (void)size;
  return 0;
}
static inline void help_describe(const fa_problem *problem, const fa_config *config, fa_kernel *kernel) {
  snprintf(kernel->compile_options, sizeof kernel->compile_options, "-std=c++17");
  kernel->num_phases = 1;
  snprintf(kernel->phase[0].entry, FA_ENTRY_LENGTH, "%s%d", fa_op_name(problem->op),
           fa_config_get(config, "block_m", 0));
  kernel->phase[0].block_size = strcmp(problem->target, "cuda:sm_90a") == 0 ? 128 : 64;
  kernel->phase[0].shared_bytes = 64 * 1024;
}
static inline int help_constants(const fa_problem *problem, const fa_config *config, fa_constants *constants) {
  (void)problem, (void)config, (void)constants;
  return 0;
}
static inline void help_plan(const fa_problem *problem, const fa_config *config, const fa_shape *shape, fa_plan *plan) {
  (void)problem, (void)config;
  *plan = (fa_plan){.num_phases = 1, .grid = {shape->batch * shape->heads_q}, .num_splits = 1, .workspace_bytes = 512};
}
static inline unsigned help_variants(const fa_problem *problem) {
  return problem->op == FA_BACKWARD ? FA_VARIANT_DETERMINISTIC : FA_VARIANT_REDUCED;
}

static const fa_family help_family = {.name = "test",
                                      .owns = help_owns,
                                      .template_name = help_template,
                                      .check_problem = help_check_problem,
                                      .variants = help_variants,
                                      .candidates = help_candidates,
                                      .check_config = help_check_config,
                                      .describe = help_describe,
                                      .constants = help_constants,
                                      .plan = help_plan};

static inline void help_use_family(void) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/templates", help_dir);
  mkdir(path, 0700);
  fa_set_template_dir(path);
  strcat(path, "/kernel.cu");
  FILE *file = fopen(path, "w");
  if (file) {
    fputs("extern \"C\" __global__ void ${op}${block_m}(float *x) { *x = ${block_m}; }\n", file);
    fclose(file);
  }
  fa_family_of_tests = &help_family;
}

/* In a child: where NVRTC has been opened, a fork may find its locks held. */
static inline void in_child_ask_for_nvrtc(void *found) {
  char identity[FA_COMPILER_LENGTH], message[FA_MESSAGE_SIZE];
  *(bool *)found = fa_cuda_compiler_identity(identity, message) == FA_OK;
}
static inline bool help_has_nvrtc(void) {
  bool *found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  IN_CHILD(in_child_ask_for_nvrtc, found);
  return *found;
}

#endif
