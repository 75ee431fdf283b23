/*
 * Finds and opens NVRTC; see nvrtc.h.
 */
#define _GNU_SOURCE
#include "runtime/nvrtc.h"

#include "runtime/runtime.h"

#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Published once and never freed. */
static const fa_nvrtc *_Atomic known;

static char *_Atomic package_path; /* never freed: whoever reads it needs no lock */

void fa_set_package_path(const char *folders) {
  char *copy = strdup(folders ? folders : "");
  if (copy)
    atomic_store(&package_path, copy);
}

static bool find_functions(fa_nvrtc *made, void *library, char *message) {
  static const char *const names[] = {
#define NVRTC_NAME(name, parameters) #name,
      FA_NVRTC_FUNCTIONS(NVRTC_NAME)
#undef NVRTC_NAME
          "nvrtcGetErrorString"};
  _Static_assert(offsetof(fa_nvrtc, nvrtcSetFlowCallback) == sizeof names / sizeof names[0] * sizeof(void *),
                 "one pointer a name");
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    void *function = dlsym(library, names[i]);
    if (!function) {
      fa_fail(FA_NO_COMPILER, message, "%s has no %s: NVRTC of CUDA 11.7 or newer is needed", made->path, names[i]);
      return false;
    }
    memcpy((char *)made + i * sizeof(void *), &function, sizeof function);
  }
  void *optional = dlsym(library, "nvrtcSetFlowCallback");
  memcpy(&made->nvrtcSetFlowCallback, &optional, sizeof optional);
  return true;
}

static void explain(const fa_nvrtc *made, nvrtcProgram program, nvrtcResult error, char *message) {
  size_t size = 0;
  char *log = NULL;
  if (program && made->nvrtcGetProgramLogSize(program, &size) == NVRTC_SUCCESS)
    log = calloc(1, size + 1);
  if (log)
    made->nvrtcGetProgramLog(program, log);
  fa_fail(FA_NO_COMPILER, message, "%s compiles nothing: %s: %.1000s", made->path, made->nvrtcGetErrorString(error),
          log ? log : "");
  free(log);
}

/* Major and minor version are not all: a compiler's build decides what it makes. It stands in the head of every PTX:
 * "// Cuda compilation tools, release 13.2, V13.2.86". False: it compiles nothing, as without libnvrtc-builtins. */
static bool read_build(fa_nvrtc *made, char *message) {
  nvrtcProgram program = NULL;
  size_t size = 0;
  char option[48];
  snprintf(option, sizeof option, "--gpu-architecture=compute_%d", made->arch[made->num_archs - 1]);
  const char *const options[] = {option};
  nvrtcResult error = made->nvrtcCreateProgram(&program, "", "kernel.cu", 0, NULL, NULL);
  if (error == NVRTC_SUCCESS)
    error = made->nvrtcCompileProgram(program, 1, options);
  if (error != NVRTC_SUCCESS)
    explain(made, program, error, message);
  if (error == NVRTC_SUCCESS && made->nvrtcGetPTXSize(program, &size) == NVRTC_SUCCESS) {
    char *ptx = calloc(1, size + 1);
    if (ptx && made->nvrtcGetPTX(program, ptx) == NVRTC_SUCCESS) {
      const char *found = strstr(ptx, ", V");
      size_t length = found ? strspn(found + 3, "0123456789.") : 0;
      if (length > 0 && length < sizeof made->version)
        snprintf(made->version, sizeof made->version, "%.*s", (int)length, found + 3);
    }
    free(ptx);
  }
  if (program)
    made->nvrtcDestroyProgram(&program);
  return error == NVRTC_SUCCESS;
}

static bool identify(fa_nvrtc *made, char *message) {
  int major = 0, minor = 0;
  if (made->nvrtcVersion(&major, &minor) != NVRTC_SUCCESS ||
      made->nvrtcGetNumSupportedArchs(&made->num_archs) != NVRTC_SUCCESS || made->num_archs < 1 ||
      made->num_archs > FA_MAX_ARCHS || made->nvrtcGetSupportedArchs(made->arch) != NVRTC_SUCCESS) {
    fa_fail(FA_NO_COMPILER, message, "%s does not say which version it is and what it compiles for", made->path);
    return false;
  }
  snprintf(made->version, sizeof made->version, "%d.%d", major, minor);
  return read_build(made, message);
}

/* NULL: it cannot be used, and `message` says why. */
static fa_nvrtc *open_file(const char *file, char *message) {
  fa_nvrtc *made = calloc(1, sizeof *made);
  void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (!made || !library) {
    const char *error = library ? "out of memory" : dlerror();
    fa_fail(FA_NO_COMPILER, message, "%s", error ? error : file);
  } else {
    struct link_map *map = NULL;
    bool has_path = dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name && *map->l_name;
    snprintf(made->path, sizeof made->path, "%s", has_path ? map->l_name : file);
    if (find_functions(made, library, message) && identify(made, message))
      return made;
  }
  if (library)
    dlclose(library);
  free(made);
  return NULL;
}

/* What this process has loaded already, whoever did it: a second NVRTC beside it would only cost memory. */
static int find_loaded(struct dl_phdr_info *info, size_t size, void *path) {
  (void)size;
  const char *name = strrchr(info->dlpi_name, '/');
  if (!name || strncmp(name, "/libnvrtc.so", strlen("/libnvrtc.so")) != 0)
    return 0;
  snprintf(path, PATH_MAX, "%s", info->dlpi_name);
  return 1;
}

static fa_nvrtc *find(char *message) {
  static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
  const char *const homes[2] = {getenv("CUDA_HOME"), getenv("CUDA_PATH")};
  char loaded[PATH_MAX] = "", trouble[FA_MESSAGE_SIZE] = "", first_trouble[FA_MESSAGE_SIZE] = "";
  char *files[FA_MAX_NVRTC_FILES];
  fa_nvrtc *found = NULL;
  if (dl_iterate_phdr(find_loaded, loaded))
    found = open_file(loaded, first_trouble);
  int count = found ? 0 : fa_nvrtc_list_files(atomic_load(&package_path), homes, files);
  for (int i = 0; i < count; i++) {
    if (!found && !(found = open_file(files[i], trouble)) && !*first_trouble)
      memcpy(first_trouble, trouble, sizeof trouble);
    free(files[i]);
  }
  for (int i = 0; i < 3 && !found; i++)
    found = open_file(names[i], trouble);
  if (!found)
    fa_fail(FA_NO_COMPILER, message,
            "CUDA kernels are compiled on this machine by NVRTC, and there is none among Python's packages "
            "(nvidia/*/lib), below CUDA_HOME or CUDA_PATH, or on the loader's path; python -m pip install "
            "nvidia-cuda-nvrtc (%.3000s)",
            *first_trouble ? first_trouble : trouble);
  return found;
}

fa_status fa_nvrtc_get(const fa_nvrtc **nvrtc, char *message) {
  *nvrtc = atomic_load_explicit(&known, memory_order_acquire);
  if (*nvrtc)
    return FA_OK;
  fa_nvrtc *found = find(message);
  if (!found)
    return FA_NO_COMPILER;
  const fa_nvrtc *expected = NULL;
  if (atomic_compare_exchange_strong(&known, &expected, found)) {
    fa_say("NVRTC %s is %s", found->version, found->path);
    *nvrtc = found;
  } else { /* another thread was faster; the library stays open a second time */
    free(found);
    *nvrtc = expected;
  }
  return FA_OK;
}
