/*
 * A CUDA driver that only remembers what it was asked: fake_cuda.c is built as a shared library and opened in the place
 * of libcuda.so.1, so that the CUDA runtime is tested on any machine.
 *
 *     fake_cuda *fake = fake_cuda_open();      in a forked child: the driver is opened once in a process
 *     ... calls of the runtime ...
 *     CHECK_TEXT(fake->log, "push 1\nlaunch forward grid=4 block=128 shared=0 stream=0\npop\n");
 *
 * Device memory is the process's own; a launch calls fake->run, which may compute what the kernel would. The
 * device's clock goes on by fake->milliseconds with every launch.
 */
#ifndef FLASH_ATTENTION_TESTS_FAKE_CUDA_H
#define FLASH_ATTENTION_TESTS_FAKE_CUDA_H

#include "templates/common/params.h"

#include <stddef.h>

typedef struct fake_device {
  const char *name;
  int major, minor, processors, shared_bytes;
} fake_device;

typedef struct fake_cuda {
  /* What there is. */
  int version, count, init_error;
  fake_device device[4];
  size_t memory_left;  /* bytes that cuMemAlloc still gives; 0: nor is there room for a module */
  const char *missing; /* a function that this driver lacks */
  /* What happens. */
  int broken;          /* a kernel failed so: no memory any more */
  const char *fail;    /* the next call of this function ... */
  int error;           /* ... returns this, once */
  int capture_status;  /* of every stream */
  double milliseconds; /* of each launch */
  void (*run)(const char *name, const struct fa_params *params, unsigned grid, unsigned block);
  void (*wait)(void); /* until the device has nothing to do, or NULL: it has nothing */
  int maps;           /* how many tensor maps follow the parameters of a launch */
  /* What was asked: a line for each call that changes something. */
  char log[65536];
  const void *mapped[4]; /* the tensors of the last launch's maps */
  int loads, unloads, launches, allocations, frees, events, retained, capture_mode;
} fake_cuda;

#endif
