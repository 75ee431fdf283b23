/*
 * Finds the CUDA driver and its functions; see cuda_driver.h.
 */
#include "runtime/cuda_driver.h"

#include "runtime/runtime.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* The interface that is asked for: every function of FA_CUDA_FUNCTIONS exists since then. */
enum { OLDEST_VERSION = 11040, TENSOR_MAP_VERSION = 12000, FUNC_LOAD_VERSION = 12040 };

const char *fa_cuda_driver_name = "libcuda.so.1";

static fa_cuda_driver driver;
static fa_status outcome;
static char reason[FA_MESSAGE_SIZE];
static pthread_once_t once = PTHREAD_ONCE_INIT;

typedef struct resolver {
  void *library;
  CUresult (*get)(const char *name, void **function, int version, uint64_t flags, void *status);
} resolver;

/* cuGetProcAddress gives the form of a function that belongs to a version of CUDA; plain names are older forms. */
static bool resolve(const resolver *from, const char *name, int version, void *pointer_to_function) {
  void *function = NULL;
  if (from->get(name, &function, version, 0, NULL) != CUDA_SUCCESS || !function)
    return false;
  /* POSIX: an object pointer from dlsym holds a function's address; memcpy keeps ISO C content. */
  memcpy(pointer_to_function, &function, sizeof function);
  return true;
}

static fa_status find_functions(char *message) {
  resolver from = {.library = dlopen(fa_cuda_driver_name, RTLD_NOW | RTLD_LOCAL)};
  if (!from.library) {
    const char *error = dlerror();
    return fa_fail(FA_UNSUPPORTED, message, "there is no CUDA driver here: %s", error ? error : fa_cuda_driver_name);
  }
  /* The fifth parameter came with _v2; the older form does not look at it. */
  void *get = dlsym(from.library, "cuGetProcAddress_v2");
  if (!get)
    get = dlsym(from.library, "cuGetProcAddress");
  if (!get)
    return fa_fail(FA_UNSUPPORTED, message,
                   "the CUDA driver here is too old: flash_attention needs CUDA 11.4 or newer");
  memcpy(&from.get, &get, sizeof get);

  static const char *const names[] = {
#define CUDA_NAME(name, parameters) #name,
      FA_CUDA_FUNCTIONS(CUDA_NAME)
#undef CUDA_NAME
  };
  _Static_assert(offsetof(fa_cuda_driver, cuFuncLoad) == sizeof names / sizeof names[0] * sizeof(void *),
                 "one pointer a name");
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (!resolve(&from, names[i], OLDEST_VERSION, (char *)&driver + i * sizeof(void *)))
      return fa_fail(FA_UNSUPPORTED, message,
                     "the CUDA driver here has no %s: flash_attention needs CUDA 11.4 or newer", names[i]);
  if (!resolve(&from, "cuFuncLoad", FUNC_LOAD_VERSION, &driver.cuFuncLoad))
    driver.cuFuncLoad = NULL;
  if (!resolve(&from, "cuTensorMapEncodeTiled", TENSOR_MAP_VERSION, &driver.cuTensorMapEncodeTiled))
    driver.cuTensorMapEncodeTiled = NULL;
  return FA_OK;
}

static void find(void) {
  outcome = find_functions(reason);
  if (outcome != FA_OK)
    return;
  CUresult error = driver.cuInit(0);
  if (error == CUDA_SUCCESS)
    error = driver.cuDriverGetVersion(&driver.version);
  if (error == CUDA_ERROR_NO_DEVICE)
    outcome = fa_fail(FA_UNSUPPORTED, reason, "the CUDA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)");
  else if (error != CUDA_SUCCESS)
    outcome = fa_cuda_fail(&driver, error, "starting CUDA", reason);
}

fa_status fa_cuda_get_driver(const fa_cuda_driver **found, char *message) {
  pthread_once(&once, find);
  *found = outcome == FA_OK ? &driver : NULL;
  return outcome == FA_OK ? FA_OK : fa_fail(outcome, message, "%s", reason);
}

fa_status fa_cuda_fail(const fa_cuda_driver *cuda, CUresult error, const char *what, char *message) {
  const char *name = NULL, *words = NULL;
  cuda->cuGetErrorName(error, &name);
  cuda->cuGetErrorString(error, &words);
  return fa_fail(error == CUDA_ERROR_OUT_OF_MEMORY ? FA_OUT_OF_MEMORY : FA_FAILED, message, "%s failed: %s (%d), %s",
                 what, name ? name : "CUDA error", error, words ? words : "which this driver does not know");
}
