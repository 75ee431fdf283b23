/*
 * What the files of runtime/ share. The way of a call through them:
 *
 *     call_check.c   arguments -> a legal call
 *     dispatch.c     call -> kernel: table in memory, else record on disk, else tune.c
 *     table.c        the table; looking up takes no lock
 *     record.c       tuning records: what was found best, on disk
 *     build.c        problem + config -> image, from the cache or a compiler; ahead.c, before it is wanted
 *     tune.c         candidates -> the best; trial.c and trial_check.c run them, reference.c says what is right,
 *                    contest.c who wins
 *     launch.c       kernel + call -> results
 *     device.c, target.h                           what depends on the kind of device:
 *       target_cpu.c, cpu_*.c                      a CPU and the system's C compiler
 *       target_cuda.c, cuda_*.c, nvrtc*.c          a GPU, its driver and NVRTC
 *     sync.c, settings.c, templates.c              state of the process
 *     api.c, expand.c, report.c, host.c            the rest of flash_attention.h
 *
 * All functions that return fa_status write `message` (FA_MESSAGE_SIZE bytes) on failure only.
 */
#ifndef FLASH_ATTENTION_RUNTIME_H
#define FLASH_ATTENTION_RUNTIME_H

#include "cache/cache.h"
#include "runtime/target.h"

#include <stdatomic.h>

/* --- sync.c: one lock for everything off the hit path. Nobody holds it for longer than it takes to change a few
 * fields, so fork() can take it; work that takes time is marked as claimed under it instead. */
void fa_lock(void);
void fa_unlock(void);
void fa_wait(void); /* releases the lock, sleeps until fa_wake_all, takes it again */
void fa_wake_all(void);
/* Changes in a forked child: what was claimed in another generation was claimed by a thread that is gone. */
unsigned fa_generation(void);

/* --- settings.c: environment variables, read once; messages on stderr. */
typedef enum fa_autotune {
  FA_TUNE_NONE,
  FA_TUNE_SOME,
  FA_TUNE_ALL,
  FA_TUNE_PINNED /* none of these: only what one of them has recorded is used */
} fa_autotune;
typedef struct fa_settings {
  fa_autotune autotune;   /* FLASH_ATTENTION_AUTOTUNE: 0, 1, max, pinned; fa_set_autotune */
  bool only_such_records; /* a record of a more thorough search does not count */
  bool verbose;           /* FLASH_ATTENTION_VERBOSE */
  bool show_progress;     /* stderr is a terminal and this is rank 0 */
} fa_settings;
const fa_settings *fa_get_settings(void);
fa_cache *fa_shared_cache(void);
void fa_say(const char *format, ...) __attribute__((format(printf, 1, 2)));  /* when verbose */
void fa_warn(const char *format, ...) __attribute__((format(printf, 1, 2))); /* always */
fa_status fa_fail(fa_status status, char *message, const char *format, ...) __attribute__((format(printf, 3, 4)));
void fa_append(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
double fa_seconds(void); /* of a clock that never goes back */
int fa_online_cores(void);

/* One line on a terminal that is written again and again, not before 0.5 s have passed. */
typedef struct fa_progress {
  double started;
  _Atomic bool shown;
} fa_progress;
void fa_progress_show(fa_progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fa_progress_end(fa_progress *progress);

extern struct fa_counters {
  _Atomic int64_t compilations, compile_failures, tunings, cache_hits, cache_misses, kernels_loaded, launches,
      unrecorded;
} fa_counters;
static inline void fa_count(_Atomic int64_t *counter) { atomic_fetch_add_explicit(counter, 1, memory_order_relaxed); }

/* --- compile_log.c */
const char *fa_first_error(const char *log); /* the line with it: a long log of warnings must not hide it; else `log` */
/* Append the numbered lines of `source` around the first error that `log` names. */
void fa_quote_source(const char *source, const char *log, char *text, size_t size);

/* --- templates.c */
const char *fa_templates_digest(void); /* of all template files; "" where they cannot be read */

/* --- device.c */
fa_status fa_find_device(fa_device_type type, int index, const fa_device **device, char *message);
const fa_target *fa_find_target(const char *target); /* by "cpu:..."; NULL if there is none */
const fa_target *fa_target_at(int i);                /* all of them, NULL at the end */

/* --- build.c */
typedef struct fa_built { /* a candidate on its way to a loaded kernel */
  fa_problem problem;     /* its target is the device's, or a lower one */
  fa_config config;
  fa_kernel kernel;
  char kernel_hex[33];
  void *image; /* owned */
  size_t image_length;
  bool from_cache;
  fa_status status;
  char *failure; /* owned; the message of status, or NULL */
} fa_built;
/* Render, and take the image from the cache or compile and store it. */
fa_status fa_build(const fa_target *ops, const fa_problem *problem, const fa_config *config, fa_built *built,
                   char *message);
/* The same for many, several at a time. Behind the first `likely` it starts none after `budget` seconds once one has
 * succeeded; those not started have status FA_FAILED and no failure. */
void fa_build_all(const fa_target *ops, const fa_problem *problem, const fa_config *configs, int count, int likely,
                  double budget, fa_progress *progress, fa_built *built);
/* Load the image. One from the cache that does not load is compiled again. */
fa_status fa_load_built(const fa_device *device, fa_built *built, fa_loaded *loaded, char *message);
void fa_built_free(fa_built *built);

/* --- ahead.c: build what fa_tune will want of this problem, on threads of their own; returns at once. */
void fa_build_ahead(const fa_device *device, const fa_problem *problem, const fa_shape *bucket, fa_autotune autotune);
/* Of a build on this thread: becomes true when nobody wants it any more. NULL: somebody waits for it. */
const atomic_bool *fa_build_stopped(void);
extern int fa_cores_of_tests; /* as many cores as there were, for ahead.c; 0: those that there are */

/* --- table.c: kernels ready to launch. They stay for the life of the process. */
typedef struct fa_ready {
  const fa_device *device;
  fa_problem problem;
  fa_config config;
  fa_kernel kernel; /* phases only */
  char kernel_hex[33];
  fa_loaded loaded;
  struct fa_ready *next; /* in the list that fa_find_loaded walks */
} fa_ready;
typedef struct fa_table_key {
  uint64_t problem; /* op, dtype, ..., device, packed */
  fa_shape bucket;
} fa_table_key;
typedef struct fa_slot {
  fa_table_key key;
  const fa_ready *_Atomic ready;
  struct fa_slot *next;
  /* Under the lock: who makes it, and how the last attempt ended. */
  unsigned claimed_by; /* a generation, 0: nobody */
  uint64_t attempts;
  fa_status status;
  char *failure;
} fa_slot;
const fa_ready *fa_table_find(const fa_table_key *key); /* NULL: not there. No lock. */
fa_slot *fa_table_slot(const fa_table_key *key);        /* find or add, under the lock; NULL: out of memory */
void fa_table_forget(void); /* every call looks for its kernel again; those that are loaded stay */
/* Keep a loaded kernel. */
fa_status fa_make_ready(const fa_device *device, const fa_problem *problem, const fa_config *config,
                        const char *kernel_hex, const fa_loaded *loaded, const fa_ready **ready, char *message);
/* Several buckets may have the same winner; it is loaded once. NULL: not there. */
const fa_ready *fa_find_loaded(const fa_device *device, const char *kernel_hex);
/* Any kernel of this problem and its very target, whatever shapes it was tuned for. NULL: not there. */
const fa_ready *fa_find_loaded_for(const fa_device *device, const fa_problem *problem);

/* --- record.c */
typedef struct fa_record {
  char target[FA_TARGET_LENGTH]; /* of the kernel: lower than the device's where the compiler lacks something */
  char config[256];
  char kernel_hex[33];
} fa_record;
void fa_describe_problem(const fa_problem *problem, char *text, size_t size); /* one line for people and keys */
/* `searched`: how the record was found, so not FA_TUNE_PINNED. */
void fa_record_key(fa_key *key, const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                   fa_autotune searched);
bool fa_record_get(const fa_key *key, fa_record *record);
/* `notes` goes into the entry for people: the timings. False if another record was published first. */
bool fa_record_put(const fa_key *key, const fa_problem *problem, fa_cache_mode mode, const fa_record *record,
                   const char *notes);

/* --- tune.c: the best of the candidates. `notes` gets a line with the time of each. */
enum { FA_NOTES_SIZE = 16384 };
fa_status fa_tune(const fa_device *device, const fa_problem *problem, const fa_shape *bucket, fa_autotune autotune,
                  const fa_host *host, void *stream, const fa_ready **ready, bool *keep, char notes[FA_NOTES_SIZE],
                  char *message);

/* --- reference.c: one head of attention in double precision, a row at a time. Rows are contiguous. */
typedef struct fa_reference {
  int head_dim, head_dim_v;
  bool is_causal;
  int64_t seqlen_q, seqlen_k;
  double softmax_scale;
  const double *query, *key, *value;
  const double *output, *grad_output; /* read by the gradients only */
  double *log_sums;                   /* of each query's exponentials; read by the gradients only */
} fa_reference;
int fa_reference_output(const fa_reference *reference, int64_t row, double *output); /* -1: out of memory */
void fa_reference_log_sums(const fa_reference *reference, double *log_sums);
void fa_reference_grad_query(const fa_reference *reference, int64_t row, double *grad_query);
void fa_reference_grad_key_value(const fa_reference *reference, int64_t row, double *grad_key, double *grad_value);
double fa_from_bits(fa_dtype dtype, const void *data, int64_t index);
void fa_to_bits(fa_dtype dtype, double value, void *data, int64_t index); /* rounds to nearest */

/* --- call_check.c, launch.c */
fa_status fa_check_call(const fa_call *call, char *message);
double fa_flops(const fa_problem *problem, const fa_shape *shape);
bool fa_call_is_empty(const fa_call *call); /* no query or no key: nothing to launch */
fa_status fa_execute_empty(const fa_device *device, const fa_call *call, char *message);
fa_status fa_launch_call(const fa_ready *ready, const fa_call *call, const fa_host *host, char *message);

#endif
