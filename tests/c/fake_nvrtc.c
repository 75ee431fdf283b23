/*
 * An NVRTC that compiles the empty program alone, by which it is tried: built as libnvrtc.so, and found as the one that
 * the process has loaded. Every other program fails with the log that fake_nvrtc_log points to, and the empty one too
 * where fake_nvrtc_broken is set.
 */
#include "runtime/nvrtc.h"

#include <stdbool.h>
#include <string.h>

#pragma GCC visibility push(default) /* the rest is what a caller finds */

enum { NVRTC_ERROR_COMPILATION = 6 };

extern const char *fake_nvrtc_log;
const char *fake_nvrtc_log = "";
extern int fake_nvrtc_broken;
int fake_nvrtc_broken = 0;

struct nvrtcProgram_st {
  bool is_empty;
};
static struct nvrtcProgram_st empty = {true}, other = {false};
static const char ptx[] = "// Cuda compilation tools, release 13.0, V13.0.1\n";

static nvrtcResult outcome(nvrtcProgram program) {
  return program->is_empty && !fake_nvrtc_broken ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
}

nvrtcResult nvrtcVersion(int *major, int *minor) {
  *major = 13, *minor = 0;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetNumSupportedArchs(int *count) {
  *count = 1;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetSupportedArchs(int *archs) {
  *archs = 80;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *source, const char *name, int num_headers,
                               const char *const *headers, const char *const *include_names) {
  (void)name, (void)num_headers, (void)headers, (void)include_names;
  *program = *source ? &other : &empty;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
  *program = NULL;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int num_options, const char *const *options) {
  (void)num_options, (void)options;
  return outcome(program);
}
nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, size_t *size) {
  *size = sizeof ptx;
  return outcome(program);
}
nvrtcResult nvrtcGetPTX(nvrtcProgram program, char *to) {
  memcpy(to, ptx, sizeof ptx);
  return outcome(program);
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *size) { return nvrtcGetPTXSize(program, size); }
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *cubin) { return nvrtcGetPTX(program, cubin); }
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t *size) {
  (void)program;
  *size = strlen(fake_nvrtc_log) + 1;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char *log) {
  (void)program;
  memcpy(log, fake_nvrtc_log, strlen(fake_nvrtc_log) + 1);
  return NVRTC_SUCCESS;
}
const char *nvrtcGetErrorString(nvrtcResult error) {
  return error == NVRTC_SUCCESS ? "NVRTC_SUCCESS" : "NVRTC_ERROR_COMPILATION";
}
