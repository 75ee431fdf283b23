/*
 * NVRTC, NVIDIA's compiler in a library, opened when something must be compiled: the one that this process has loaded
 * already, else one among Python's packages (PyTorch brings one), else below CUDA_HOME or CUDA_PATH, else where the
 * system's loader finds it. Names and numbers are those of nvrtc.h.
 */
#ifndef FLASH_ATTENTION_NVRTC_H
#define FLASH_ATTENTION_NVRTC_H

#include "runtime/flash_attention.h"

#include <limits.h>

typedef struct nvrtcProgram_st *nvrtcProgram;
typedef int nvrtcResult;
enum { NVRTC_SUCCESS = 0 };

/* name, parameters; each returns an nvrtcResult. */
#define FA_NVRTC_FUNCTIONS(F)                                                                                          \
  F(nvrtcVersion, (int *major, int *minor))                                                                            \
  F(nvrtcGetNumSupportedArchs, (int *count))                                                                           \
  F(nvrtcGetSupportedArchs, (int *archs))                                                                              \
  F(nvrtcCreateProgram, (nvrtcProgram *, const char *source, const char *name, int num_headers,                        \
                         const char *const *headers, const char *const *include_names))                                \
  F(nvrtcDestroyProgram, (nvrtcProgram *))                                                                             \
  F(nvrtcCompileProgram, (nvrtcProgram, int num_options, const char *const *options))                                  \
  F(nvrtcGetPTXSize, (nvrtcProgram, size_t *))                                                                         \
  F(nvrtcGetPTX, (nvrtcProgram, char *))                                                                               \
  F(nvrtcGetCUBINSize, (nvrtcProgram, size_t *))                                                                       \
  F(nvrtcGetCUBIN, (nvrtcProgram, char *))                                                                             \
  F(nvrtcGetProgramLogSize, (nvrtcProgram, size_t *))                                                                  \
  F(nvrtcGetProgramLog, (nvrtcProgram, char *))

enum { FA_MAX_ARCHS = 64, FA_MAX_NVRTC_FILES = 32 };

typedef struct fa_nvrtc {
#define FA_NVRTC_MEMBER(name, parameters) nvrtcResult(*name) parameters;
  FA_NVRTC_FUNCTIONS(FA_NVRTC_MEMBER)
#undef FA_NVRTC_MEMBER
  const char *(*nvrtcGetErrorString)(nvrtcResult);
  /* NULL in versions that lack it. The callback is asked now and then while a program is compiled: 1 ends that. */
  nvrtcResult (*nvrtcSetFlowCallback)(nvrtcProgram, int (*callback)(void *payload, void *reserved), void *payload);
  char path[PATH_MAX];
  char version[32]; /* "13.2.86": part of a kernel's key */
  int num_archs, arch[FA_MAX_ARCHS];
} fa_nvrtc;

/* Found once; FA_NO_COMPILER: there is none, and where it was looked for. Any thread. */
fa_status fa_nvrtc_get(const fa_nvrtc **nvrtc, char *message);

/* --- nvrtc_files.c: the files to try, in order. Each is malloc'ed; returns how many. Below each folder of `packages`
 * (separated by colons: Python's search path), then below each of `homes`, which may be NULL or "". */
int fa_nvrtc_list_files(const char *packages, const char *const homes[2], char *files[FA_MAX_NVRTC_FILES]);

#endif
