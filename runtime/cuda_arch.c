/*
 * Architectures of GPUs: the target of a device, and what to ask of an NVRTC that may be older than the GPU.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool fa_cuda_parse_target(const char *target, fa_cuda_arch *arch) {
  static const char prefix[] = "cuda:sm_";
  if (strncmp(target, prefix, sizeof prefix - 1) != 0 || !isdigit((unsigned char)target[sizeof prefix - 1]))
    return false;
  char *end;
  long number = strtol(target + sizeof prefix - 1, &end, 10);
  arch->suffix = *end;
  if (*end == 'a' || *end == 'f')
    end++;
  arch->number = (int)number;
  return *end == 0 && number >= 10 && number < 10000;
}

/* Asked through a problem that every family of this kind of target has. */
static bool is_offered(const char *target, char *message) {
  fa_problem problem = {.op = FA_FORWARD, .dtype = FA_FP16, .head_dim = 64, .head_dim_v = 64};
  memcpy(problem.target, target, sizeof problem.target);
  return fa_problem_check(&problem, message, FA_MESSAGE_SIZE) == 0;
}

/* FLASH_ATTENTION_CUDA_ARCH takes the device's own architecture or the portable one of the same number. */
static fa_status obey_environment(char target[FA_TARGET_LENGTH], char *message) {
  const char *wanted = getenv("FLASH_ATTENTION_CUDA_ARCH");
  const char *own = target + strlen("cuda:");
  char lower[FA_TARGET_LENGTH];
  const bool has_lower = fa_cuda_lower_target(target, lower);
  if (!wanted || !*wanted || strcmp(wanted, own) == 0)
    return FA_OK;
  if (!has_lower || strcmp(wanted, lower + strlen("cuda:")) != 0)
    return fa_fail(
        FA_INVALID_VALUE, message,
        "FLASH_ATTENTION_CUDA_ARCH is '%s'; on this device it must be one of: %s%s%s (or unset for the first)", wanted,
        own, has_lower ? ", " : "", has_lower ? lower + strlen("cuda:") : "");
  memcpy(target, lower, sizeof lower);
  return FA_OK;
}

fa_status fa_cuda_device_target(int major, int minor, char target[FA_TARGET_LENGTH], char *message) {
  /* What is special to one architecture (suffix a, since 9.0) first, if there are kernels for it. */
  snprintf(target, FA_TARGET_LENGTH, "cuda:sm_%d%da", major, minor);
  if (major < 9 || !is_offered(target, message))
    snprintf(target, FA_TARGET_LENGTH, "cuda:sm_%d%d", major, minor);
  return is_offered(target, message) ? obey_environment(target, message) : FA_UNSUPPORTED;
}

bool fa_cuda_lower_target(const char *target, char lower[FA_TARGET_LENGTH]) {
  fa_cuda_arch arch;
  char ignored[FA_MESSAGE_SIZE];
  if (!fa_cuda_parse_target(target, &arch) || !arch.suffix)
    return false;
  snprintf(lower, FA_TARGET_LENGTH, "cuda:sm_%d", arch.number);
  return is_offered(lower, ignored);
}

/* Of Tegra: a cubin for these runs on them alone, and none of another architecture on them. */
static bool is_embedded(int arch) { return arch == 72 || arch == 87 || arch == 88 || arch == 101 || arch == 110; }

/* A cubin runs on its own major version from its own minor version on; PTX on everything newer, but the driver has to
 * compile it. What has a suffix runs on exactly one architecture. */
fa_status fa_cuda_choose_arch(const char *target, const int *supported, int count, fa_cuda_choice *choice,
                              char *message) {
  fa_cuda_arch arch;
  if (!fa_cuda_parse_target(target, &arch))
    return fa_fail(FA_INVALID_VALUE, message, "target is '%s'; it must be cuda:sm_80, cuda:sm_90a or the like", target);
  int best = 0;
  char known[256] = "";
  for (int i = 0; i < count; i++) {
    if (supported[i] == arch.number ||
        (supported[i] < arch.number && supported[i] > best && !is_embedded(supported[i])))
      best = supported[i];
    fa_append(known, sizeof known, "%ssm_%d", i ? ", " : "", supported[i]);
  }
  if (best == 0 || (arch.suffix && best != arch.number))
    return fa_fail(FA_UNSUPPORTED, message, "NVRTC does not compile for %s; this version knows %s", target, known);
  choice->is_ptx = best != arch.number && (best / 10 != arch.number / 10 || is_embedded(arch.number));
  if (choice->is_ptx)
    snprintf(choice->name, sizeof choice->name, "compute_%d", best);
  else if (arch.suffix)
    snprintf(choice->name, sizeof choice->name, "sm_%d%c", best, arch.suffix);
  else
    snprintf(choice->name, sizeof choice->name, "sm_%d", best);
  return FA_OK;
}
