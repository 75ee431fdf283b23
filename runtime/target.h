/*
 * What a kind of device must provide: everything of runtime that is not the same for a CPU and a GPU.
 * dispatch.c, tune.c and the rest reach a device through this struct only. To add a kind of device, fill one
 * in (target_cpu.c is the example) and list it in device.c.
 *
 * A device is described once and then never changes. Its target string ("cpu:avx512") is part of the
 * problem; its kind ("Intel Xeon ..., avx512") is part of a tuning record's key.
 */
#ifndef FLASH_ATTENTION_TARGET_H
#define FLASH_ATTENTION_TARGET_H

#include "generator/generator.h"
#include "runtime/contest.h"
#include "runtime/flash_attention.h"

enum { FA_DEVICE_KIND_LENGTH = 192, FA_COMPILER_LENGTH = 512 };

typedef enum fa_copy_kind { FA_COPY_TO_DEVICE, FA_COPY_FROM_DEVICE, FA_COPY_ON_DEVICE } fa_copy_kind;

typedef struct fa_device {
  const struct fa_target *ops;
  int index;
  char target[FA_TARGET_LENGTH];    /* what kernels are generated for */
  char kind[FA_DEVICE_KIND_LENGTH]; /* devices of one kind share tuning records */
  int processors;                   /* SMs of a GPU */
  size_t shared_bytes;              /* most shared memory of a block of a GPU */
} fa_device;

/* A compiled kernel, loaded: one entry for each phase. */
typedef struct fa_loaded {
  void *handle;
  void *entry[FA_MAX_PHASES];
} fa_loaded;

/* One call, ready to run. Everything is owned by the caller of launch. */
typedef struct fa_launch {
  const fa_device *device;
  const fa_kernel *kernel; /* phases; its source may be gone */
  const fa_loaded *loaded;
  const fa_plan *plan;
  struct fa_params *params; /* workspace is filled in by launch */
  void *stream;
  double flops; /* rough size of the work */
} fa_launch;

/* What the tuner may take: enough work to fill the device, little enough not to be waited for. */
typedef struct fa_trial_limits {
  double flops;     /* of one run, at most */
  int64_t elements; /* of one tensor, at most */
  /* The device is busy with so many heads, or rows of queries in all heads together. What is above that is left out
   * first; only then are sequences shortened. */
  int64_t heads, rows;
  int candidates;                    /* that are tried, unless all are asked for */
  int likely;                        /* the first so many are tried however long their builds take */
  fa_contest_limits usual, thorough; /* of timing some candidates, and all */
} fa_trial_limits;

/* State of a thread that makes a kernel ready; see begin_preparing. */
typedef struct fa_preparing {
  bool entered;
  int capture_mode;
} fa_preparing;

typedef struct fa_target {
  const char *name; /* "cpu": what comes before the colon of a target string */
  fa_device_type type;

  /* Describe device `index`; `message` says why there is no such device. */
  fa_status (*describe)(int index, fa_device *device, char *message);

  /* Round a shape to the part that the best config depends on. The result is also the shape that is timed. */
  void (*bucket)(const fa_device *device, const fa_shape *shape, fa_shape *rounded);

  /* Which compiler would be used, with its version and arguments but without paths: part of a kernel's key.
   * Neither this nor compile is called by a process whose kernels are all cached. */
  fa_status (*compiler_identity)(char identity[FA_COMPILER_LENGTH], char *message);

  /* Source -> image. FA_UNSUPPORTED: this compiler cannot build for this target; the caller goes on with
   * lower_target. Called from several threads at once. The caller frees what `compiled` holds. */
  fa_status (*compile)(const fa_problem *problem, const fa_kernel *kernel, fa_compiled *compiled, char *message);

  /* Are kernels worth building before they are wanted? Where compile() runs within the process, on another device than
   * the one that computes. */
  bool builds_ahead;

  /* The next simpler target whose kernels run on the same device; false if there is none. */
  bool (*lower_target)(const char *target, char lower[FA_TARGET_LENGTH]);

  /* Optional, on every call: replace the problem's target by a lower one where the kernels of the device's own do not
   * take tensors like those of the call. */
  void (*fit_target)(const fa_device *device, const fa_call *call, fa_problem *problem);

  /* Optional: replace the device's target by a lower one whose kernels are the better ones for this bucket. */
  void (*choose_target)(const fa_shape *bucket, char target[FA_TARGET_LENGTH]);

  fa_status (*load)(const fa_device *device, const fa_kernel *kernel, const void *image, size_t length,
                    fa_loaded *loaded, char *message);
  void (*unload)(const fa_device *device, fa_loaded *loaded);

  /* Run all phases. Workspace and scratch come from host->allocate. */
  fa_status (*launch)(const fa_launch *launch, const fa_host *host, char *message);

  void (*limit_trial)(const fa_device *device, const fa_problem *problem, fa_trial_limits *limits);

  /* For the tuner: run as launch does, wait for the end, and say how long one run takes by the device's own clock, for
   * which it may run more than once. *seconds is first what it is expected to take, 0 where that is not known. seconds
   * NULL: exactly once, and no time is wanted. */
  fa_status (*time)(const fa_launch *launch, const fa_host *host, double *seconds, char *message);

  /* Fill a (batch, heads, rows, cols) tensor with zeros. */
  fa_status (*zero)(const fa_call *call, const struct fa_tensor *tensor, const int64_t size[4], size_t element_size,
                    char *message);

  /* Bytes between the process and memory of the device, or within that; in order with the stream. On return
   * the process may use its own bytes again. */
  fa_status (*copy)(const fa_device *device, void *stream, void *to, const void *from, size_t bytes, fa_copy_kind kind,
                    char *message);

  /* Optional, before kernels are tried: return when all that this process has the device do is done, on the
   * stream in any case. */
  fa_status (*settle)(const fa_device *device, void *stream, char *message);

  /* Optional, after an allocation that failed: FA_OK if memory is short, else what is wrong with the device. */
  fa_status (*check)(const fa_device *device, char *message);

  /* Optional. Is the stream being captured into a graph? Then nothing is compiled, loaded or waited for. */
  bool (*is_capturing)(const fa_device *device, void *stream);

  /* Optional, a pair. Around all that makes a kernel ready, on the thread that does it: the device becomes
   * current, and what another thread's capture would forbid is allowed; then all is as it was. */
  fa_status (*begin_preparing)(const fa_device *device, fa_preparing *state, char *message);
  void (*end_preparing)(const fa_device *device, fa_preparing *state);

  /* Lines for fa_info, appended to `text`: what there is and what would be used. */
  void (*info)(char *text, size_t text_size);
} fa_target;

extern const fa_target fa_target_cpu;  /* target_cpu.c */
extern const fa_target fa_target_cuda; /* target_cuda.c */

#endif
