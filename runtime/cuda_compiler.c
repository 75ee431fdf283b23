/*
 * CUDA source -> cubin, with NVRTC. No GPU is needed: any architecture that NVRTC knows can be compiled for.
 */
#define _GNU_SOURCE
#include "runtime/cuda.h"
#include "runtime/nvrtc.h"
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 48 };

/* For every kernel: the log says what registers and memory it takes. No influence on the code. */
static const char FIXED_OPTIONS[] = "--ptxas-options=-v";

/* A kernel's functions, at most FA_MAX_PHASES, are compiled at once: fp32 forward on Hopper takes 0.7 s, not 0.9. NVRTC
 * 12.0 can. The code does not depend on the number of threads. From sm_100 on it is not used: with it NVRTC 13.2.86
 * spilled 560 bytes of fp32 backward at head dim 256 on sm_120, without it none. */
static const char *split_option(const fa_nvrtc *nvrtc, const fa_kernel *kernel, const char *target) {
  const bool splits = kernel->num_phases > 1 && strtol(nvrtc->version, NULL, 10) >= 12 &&
                      strtol(target + strlen("cuda:sm_"), NULL, 10) < 100;
  return splits ? "--split-compile=4 " : "";
}

fa_status fa_cuda_compiler_identity(char identity[FA_COMPILER_LENGTH], char *message) {
  const fa_nvrtc *nvrtc = NULL;
  fa_status status = fa_nvrtc_get(&nvrtc, message);
  if (status == FA_OK)
    snprintf(identity, FA_COMPILER_LENGTH, "NVRTC %s", nvrtc->version);
  return status;
}

void fa_cuda_compiler_info(char *text, size_t size) {
  const fa_nvrtc *nvrtc = NULL;
  char message[FA_MESSAGE_SIZE];
  if (fa_nvrtc_get(&nvrtc, message) != FA_OK) {
    fa_append(text, size, "cuda compiler: none; %s\n", message);
    return;
  }
  fa_append(text, size, "cuda compiler: NVRTC %s, %s\ncuda compiles for:", nvrtc->version, nvrtc->path);
  for (int i = 0; i < nvrtc->num_archs; i++)
    fa_append(text, size, " sm_%d", nvrtc->arch[i]);
  fa_append(text, size, "\n");
}

/* Split at blanks, in place. Returns how many, or -1 if they are too many. */
static int split_options(char *text, const char *options[MAX_OPTIONS]) {
  int count = 0;
  for (char *word = text + strspn(text, " "); *word; word += strspn(word, " ")) {
    if (count == MAX_OPTIONS)
      return -1;
    options[count++] = word;
    word += strcspn(word, " ");
    if (*word)
      *word++ = 0;
  }
  return count;
}

static char *take_log(const fa_nvrtc *nvrtc, nvrtcProgram program) {
  size_t size = 0;
  if (nvrtc->nvrtcGetProgramLogSize(program, &size) != NVRTC_SUCCESS)
    return NULL;
  char *log = calloc(1, size + 1);
  if (log)
    nvrtc->nvrtcGetProgramLog(program, log);
  return log;
}

static fa_status take_image(const fa_nvrtc *nvrtc, nvrtcProgram program, bool is_ptx, fa_compiled *compiled,
                            char *message) {
  size_t size = 0;
  nvrtcResult error = is_ptx ? nvrtc->nvrtcGetPTXSize(program, &size) : nvrtc->nvrtcGetCUBINSize(program, &size);
  char *image = error == NVRTC_SUCCESS && size > 0 ? malloc(size) : NULL;
  if (image)
    error = is_ptx ? nvrtc->nvrtcGetPTX(program, image) : nvrtc->nvrtcGetCUBIN(program, image);
  if (!image || error != NVRTC_SUCCESS) {
    free(image);
    return fa_fail(FA_FAILED, message, "NVRTC %s gives no result: %s", nvrtc->version,
                   nvrtc->nvrtcGetErrorString(error));
  }
  compiled->image = image;
  compiled->image_length = size; /* of PTX with the 0 at its end */
  return FA_OK;
}

static fa_status explain(const fa_problem *problem, const fa_kernel *kernel, const fa_compiled *compiled,
                         const char *error, char *message) {
  const char *log = compiled->log ? compiled->log : "", *start = fa_first_error(log);
  fa_fail(FA_FAILED, message, "compiling a %s kernel for %s with %s failed: %s: %s\n%.1200s\n", fa_op_name(problem->op),
          problem->target, compiled->compiler, error, compiled->command, strlen(log) > 1200 ? start : log);
  fa_quote_source(kernel->source, start, message, FA_MESSAGE_SIZE);
  return FA_FAILED;
}

/* Lines about code that is slower than it looks: ptxas serialises wgmma (C75xx), or anything it warns of. */
static void say_warnings(const char *log) {
  for (const char *line = log ? log : ""; *line;) {
    int length = (int)strcspn(line, "\n");
    if (memmem(line, (size_t)length, "warning", 7) || memmem(line, (size_t)length, "(C7", 3))
      fa_say("%.*s", length, line);
    line += length + (line[length] == '\n');
  }
}

/* Asked by NVRTC while it compiles, on any of its threads. */
static int is_over(void *stopped, void *reserved) {
  (void)reserved;
  return atomic_load((const atomic_bool *)stopped);
}

static fa_status run(const fa_nvrtc *nvrtc, const fa_problem *problem, const fa_kernel *kernel,
                     const fa_cuda_choice *choice, fa_compiled *compiled, char *message) {
  char words[sizeof kernel->compile_options + 128];
  const char *options[MAX_OPTIONS];
  snprintf(words, sizeof words, "--gpu-architecture=%s %s %s%s", choice->name, FIXED_OPTIONS,
           split_option(nvrtc, kernel, problem->target), kernel->compile_options);
  snprintf(compiled->command, sizeof compiled->command, "nvrtc %s", words);
  int count = split_options(words, options);
  if (count < 0)
    return fa_fail(FA_FAILED, message, "the compile options are too many: %s", kernel->compile_options);
  nvrtcProgram program = NULL;
  nvrtcResult error = nvrtc->nvrtcCreateProgram(&program, kernel->source, "kernel.cu", 0, NULL, NULL);
  if (error != NVRTC_SUCCESS)
    return fa_fail(FA_FAILED, message, "NVRTC %s failed: %s", nvrtc->version, nvrtc->nvrtcGetErrorString(error));
  double start = fa_seconds();
  const atomic_bool *stopped = fa_build_stopped();
  if (stopped && nvrtc->nvrtcSetFlowCallback)
    nvrtc->nvrtcSetFlowCallback(program, is_over, (void *)stopped);
  error = nvrtc->nvrtcCompileProgram(program, count, options);
  compiled->seconds = fa_seconds() - start;
  compiled->log = take_log(nvrtc, program);
  fa_status status = error == NVRTC_SUCCESS
                         ? take_image(nvrtc, program, choice->is_ptx, compiled, message)
                         : explain(problem, kernel, compiled, nvrtc->nvrtcGetErrorString(error), message);
  nvrtc->nvrtcDestroyProgram(&program);
  return status;
}

fa_status fa_cuda_compile(const fa_problem *problem, const fa_kernel *kernel, fa_compiled *compiled, char *message) {
  const fa_nvrtc *nvrtc = NULL;
  fa_cuda_choice choice;
  memset(compiled, 0, sizeof *compiled);
  fa_status status = fa_nvrtc_get(&nvrtc, message);
  if (status == FA_OK)
    status = fa_cuda_choose_arch(problem->target, nvrtc->arch, nvrtc->num_archs, &choice, message);
  if (status != FA_OK)
    return status;
  if (strtol(nvrtc->version, NULL, 10) < 12 && strcmp(choice.name, "sm_90a") == 0)
    return fa_fail(FA_UNSUPPORTED, message, "NVRTC %s does not compile for %s; it takes 12.0 or newer", nvrtc->version,
                   problem->target);
  snprintf(compiled->compiler, sizeof compiled->compiler, "NVRTC %s", nvrtc->version);
  status = run(nvrtc, problem, kernel, &choice, compiled, message);
  if (status == FA_OK) {
    fa_cuda_read_usage(compiled->log, compiled);
    say_warnings(compiled->log);
  }
  return status;
}
