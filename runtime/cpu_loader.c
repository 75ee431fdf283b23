/*
 * Image of a shared object -> entry pointers. The image was verified in memory and is loaded from memory
 * (memfd), so that nothing can change it in between and no directory needs to allow execution; where there
 * is no memfd, from a private file that is gone right after.
 */
#define _GNU_SOURCE
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

static int write_all(int file, const char *data, size_t length) {
  while (length > 0) {
    ssize_t written = write(file, data, length);
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return -1;
    data += written;
    length -= (size_t)written;
  }
  return 0;
}

/* The dynamic loader takes a path that it has seen before for the library that it loaded then, and file
 * descriptors are used again. So each load spells its path in its own way: bit i of a counter is "/." or "/". */
static void unique_path(int file, char *path, size_t size) {
  static _Atomic unsigned loads;
  unsigned number = atomic_fetch_add(&loads, 1);
  snprintf(path, size, "/proc/self/fd");
  for (; number; number >>= 1)
    fa_append(path, size, number & 1 ? "/." : "/");
  fa_append(path, size, "/%d", file);
}

static void *load_from_memory(const void *image, size_t length) {
  int file = memfd_create("flash_attention_kernel", MFD_CLOEXEC | MFD_EXEC);
  if (file < 0 && errno == EINVAL)
    file = memfd_create("flash_attention_kernel", MFD_CLOEXEC); /* before Linux 6.3 */
  if (file < 0)
    return NULL;
  void *handle = NULL;
  if (write_all(file, image, length) == 0) {
    char path[128];
    unique_path(file, path, sizeof path);
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  }
  close(file);
  return handle;
}

static void *load_from_file(const void *image, size_t length) {
  static _Atomic unsigned loads;
  char directory[PATH_MAX - 64], path[PATH_MAX];
  if (fa_private_dir_make(directory, sizeof directory) != 0)
    return NULL;
  void *handle = NULL;
  snprintf(path, sizeof path, "%s/kernel%u.so", directory, atomic_fetch_add(&loads, 1));
  int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
  if (file >= 0) {
    bool written = write_all(file, image, length) == 0;
    if (close(file) == 0 && written)
      handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  }
  fa_private_dir_remove(directory);
  return handle;
}

fa_status fa_cpu_load(const fa_device *device, const fa_kernel *kernel, const void *image, size_t length,
                      fa_loaded *loaded, char *message) {
  memset(loaded, 0, sizeof *loaded);
  loaded->handle = load_from_memory(image, length);
  if (!loaded->handle)
    loaded->handle = load_from_file(image, length);
  if (!loaded->handle) {
    const char *reason = dlerror();
    return fa_fail(FA_FAILED, message, "a compiled kernel of %zu bytes does not load: %s", length,
                   reason ? reason : "neither memfd nor a temporary directory works here");
  }
  for (int i = 0; i < kernel->num_phases; i++) {
    loaded->entry[i] = dlsym(loaded->handle, kernel->phase[i].entry);
    if (!loaded->entry[i]) {
      fa_cpu_unload(device, loaded);
      return fa_fail(FA_FAILED, message, "a compiled kernel has no function %s", kernel->phase[i].entry);
    }
  }
  return FA_OK;
}

void fa_cpu_unload(const fa_device *device, fa_loaded *loaded) {
  (void)device;
  if (loaded->handle)
    dlclose(loaded->handle);
  memset(loaded, 0, sizeof *loaded);
}
