/*
 * Cubin or PTX -> functions ready to launch. All work is done here: with CUDA's lazy loading a function's code would
 * otherwise be copied to the device at its first launch, which may be inside of a capture.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <stdio.h>
#include <string.h>

/* What a block may have without asking. */
enum { PLAIN_SHARED_BYTES = 48 * 1024 };

static fa_status prepare_phase(const fa_cuda_driver *cuda, const fa_device *device, CUmodule module,
                               const fa_phase *phase, void **entry, char *message) {
  CUfunction function = NULL;
  char what[128];
  snprintf(what, sizeof what, "loading %s", phase->entry);
  CUresult error = cuda->cuModuleGetFunction(&function, module, phase->entry);
  if (error == CUDA_SUCCESS && phase->shared_bytes > PLAIN_SHARED_BYTES) {
    if (phase->shared_bytes > device->shared_bytes)
      return fa_fail(FA_FAILED, message, "%s needs %zu bytes of shared memory; a block has at most %zu on this GPU",
                     phase->entry, phase->shared_bytes, device->shared_bytes);
    error =
        cuda->cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)phase->shared_bytes);
  }
  if (error == CUDA_SUCCESS && cuda->cuFuncLoad)
    error = cuda->cuFuncLoad(function);
  *entry = function;
  return error == CUDA_SUCCESS ? FA_OK : fa_cuda_fail(cuda, error, what, message);
}

fa_status fa_cuda_load(const fa_device *device, const fa_kernel *kernel, const void *image, size_t length,
                       fa_loaded *loaded, char *message) {
  fa_cuda_entered entered;
  CUmodule module = NULL;
  memset(loaded, 0, sizeof *loaded);
  if (length < 4) /* the driver is not told how long it is */
    return fa_fail(FA_FAILED, message, "a compiled kernel of %zu bytes is none", length);
  fa_status status = fa_cuda_enter(device->index, &entered, message);
  if (status != FA_OK)
    return status;
  CUresult error = entered.cuda->cuModuleLoadData(&module, image);
  if (error != CUDA_SUCCESS) {
    char what[192];
    snprintf(what, sizeof what, "loading a kernel for %s with the driver of CUDA %d.%d", device->target,
             entered.cuda->version / 1000, entered.cuda->version % 1000 / 10);
    status = fa_cuda_fail(entered.cuda, error, what, message);
  }
  loaded->handle = module;
  for (int i = 0; i < kernel->num_phases && status == FA_OK; i++)
    status = prepare_phase(entered.cuda, device, module, &kernel->phase[i], &loaded->entry[i], message);
  if (status != FA_OK && loaded->handle)
    fa_cuda_unload(device, loaded);
  fa_cuda_leave(&entered);
  return status;
}

void fa_cuda_unload(const fa_device *device, fa_loaded *loaded) {
  fa_cuda_entered entered;
  char ignored[FA_MESSAGE_SIZE];
  if (loaded->handle && fa_cuda_enter(device->index, &entered, ignored) == FA_OK) {
    entered.cuda->cuModuleUnload(loaded->handle);
    fa_cuda_leave(&entered);
  }
  memset(loaded, 0, sizeof *loaded);
}
