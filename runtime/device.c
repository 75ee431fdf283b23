/*
 * The kinds of devices that there are, and each device, described once.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEVICES = 64 };

static const fa_target *const targets[] = {&fa_target_cpu, &fa_target_cuda, NULL};

/* Published once and never freed, so that a call finds its device without a lock. */
static const fa_device *_Atomic devices[2][MAX_DEVICES];

const fa_target *fa_target_at(int i) { return targets[i]; }

const fa_target *fa_find_target(const char *target) {
  for (int i = 0; targets[i]; i++) {
    size_t length = strlen(targets[i]->name);
    if (strncmp(target, targets[i]->name, length) == 0 && target[length] == ':')
      return targets[i];
  }
  return NULL;
}

static fa_status describe(fa_device_type type, int index, const fa_device **device, char *message) {
  const fa_target *ops = NULL;
  for (int i = 0; targets[i]; i++)
    if (targets[i]->type == type)
      ops = targets[i];
  if (!ops)
    return fa_fail(FA_UNSUPPORTED, message, "device type %s is not supported yet; use a CPU device",
                   type == FA_DEVICE_CUDA ? "cuda" : "(unknown)");
  fa_device *made = calloc(1, sizeof *made);
  if (!made)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory: %zu bytes to describe a device", sizeof *made);
  made->ops = ops;
  made->index = index;
  fa_status status = ops->describe(index, made, message);
  if (status != FA_OK) {
    free(made);
    return status;
  }
  fa_say("device %s:%d is %s, kernels are made for %s", ops->name, index, made->kind, made->target);
  const fa_device *expected = NULL;
  if (!atomic_compare_exchange_strong(&devices[type][index], &expected, made)) {
    free(made); /* another thread was faster */
    made = (fa_device *)expected;
  }
  *device = made;
  return FA_OK;
}

fa_status fa_find_device(fa_device_type type, int index, const fa_device **device, char *message) {
  if (type == FA_DEVICE_CPU)
    index = 0; /* there is one, whatever it is called */
  if ((unsigned)type > FA_DEVICE_CUDA || index < 0 || index >= MAX_DEVICES)
    return fa_fail(FA_INVALID_VALUE, message, "device_index is %d; it must be 0 to %d", index, MAX_DEVICES - 1);
  *device = atomic_load_explicit(&devices[type][index], memory_order_acquire);
  return *device ? FA_OK : describe(type, index, device, message);
}

fa_status fa_device_target(fa_device_type type, int device_index, char target[FA_TARGET_LENGTH], char *message) {
  const fa_device *device = NULL;
  fa_status status = fa_find_device(type, device_index, &device, message);
  if (device)
    memcpy(target, device->target, FA_TARGET_LENGTH);
  return status;
}

fa_status fa_check_device(fa_device_type type, int device_index, char *message) {
  const fa_device *device = NULL;
  fa_status status = fa_find_device(type, device_index, &device, message);
  return device && device->ops->check ? device->ops->check(device, message) : status;
}

static fa_status copy(fa_device_type type, int device_index, void *stream, void *to, const void *from, size_t bytes,
                      fa_copy_kind kind, char *message) {
  const fa_device *device = NULL;
  fa_status status = fa_find_device(type, device_index, &device, message);
  return device ? device->ops->copy(device, stream, to, from, bytes, kind, message) : status;
}

fa_status fa_copy_to_device(fa_device_type type, int device_index, void *stream, void *to, const void *from,
                            size_t bytes, char *message) {
  return copy(type, device_index, stream, to, from, bytes, FA_COPY_TO_DEVICE, message);
}

fa_status fa_copy_from_device(fa_device_type type, int device_index, void *stream, void *to, const void *from,
                              size_t bytes, char *message) {
  return copy(type, device_index, stream, to, from, bytes, FA_COPY_FROM_DEVICE, message);
}
