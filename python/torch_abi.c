/* Finds the functions of torch_abi.h in the PyTorch that this process has loaded. */
#define _GNU_SOURCE
#include "python/torch_abi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

const char *torch_abi_load(torch_abi *torch) {
  void *library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_NOW | RTLD_LOCAL);
  if (library == NULL)
    return "";
  /* The handle is never closed: the operators live as long as the process. */
  static const char *const names[] = {
#define TORCH_NAME(type, name, parameters) #name,
      TORCH_FUNCTIONS(TORCH_NAME)
#undef TORCH_NAME
  };
  _Static_assert(sizeof(torch_abi) == sizeof names / sizeof names[0] * sizeof(void *), "one pointer a name");
  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
    void *function = dlsym(library, names[i]);
    if (function == NULL) {
      static char message[160];
      snprintf(message, sizeof message, "this PyTorch has no %s: flash_attention needs PyTorch 2.10 or newer",
               names[i]);
      return message;
    }
    /* POSIX: an object pointer from dlsym holds a function's address; memcpy keeps ISO C content. */
    memcpy((char *)torch + i * sizeof(void *), &function, sizeof function);
  }
  return NULL;
}
