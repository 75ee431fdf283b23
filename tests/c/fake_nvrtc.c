/*
 * An NVRTC that compiles nothing: built as libnvrtc.so, and found as the one that the process has loaded. Every program
 * fails with the log that fake_nvrtc_log points to.
 */
#include "runtime/nvrtc.h"

#include <string.h>

#pragma GCC visibility push(default) /* the rest is what a caller finds */

enum { NVRTC_ERROR_COMPILATION = 6 };

extern const char *fake_nvrtc_log;
const char *fake_nvrtc_log = "";

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
  (void)source, (void)name, (void)num_headers, (void)headers, (void)include_names;
  *program = NULL;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
  *program = NULL;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int num_options, const char *const *options) {
  (void)program, (void)num_options, (void)options;
  return NVRTC_ERROR_COMPILATION;
}
nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, size_t *size) {
  (void)program, (void)size;
  return NVRTC_ERROR_COMPILATION;
}
nvrtcResult nvrtcGetPTX(nvrtcProgram program, char *ptx) {
  (void)program, (void)ptx;
  return NVRTC_ERROR_COMPILATION;
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
