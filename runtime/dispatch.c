/*
 * How a call becomes a kernel. Read fa_execute and follow it down:
 *
 *     fa_execute   the table in memory knows the kernel: launch it. No lock, no allocation, no environment.
 *     prepare      it does not: one thread finds out, others that want the same wait for it.
 *     resolve      the tuning record on disk names config and kernel, and the cache holds the kernel: load it.
 *     tune_once    nothing is known: one process generates, compiles and times candidates, and writes the record.
 *     pinned       instead of the last two, where only what is on disk may be used.
 *     look_ahead   for a forward whose gradients are wanted: backward's kernels are built meanwhile.
 *
 * While the call's stream is captured into a CUDA graph, none of this happens: see find_in_capture.
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A tuner elsewhere that takes longer than this is not waited for. */
static const double TUNING_LOCK_SECONDS = 120;

static fa_problem problem_of(const fa_call *call, const fa_device *device) {
  fa_problem problem = {.op = call->op,
                        .dtype = call->dtype,
                        /* Backward takes the statistics of rows for exact: it computes scores by three products. */
                        .precision = call->lse ? FA_PRECISION_FULL : call->precision,
                        .head_dim = call->head_dim,
                        .head_dim_v = call->head_dim_v,
                        .is_causal = call->is_causal,
                        .deterministic = call->deterministic};
  memcpy(problem.target, device->target, sizeof problem.target);
  fa_problem_normalize(&problem);
  if (device->ops->fit_target)
    device->ops->fit_target(device, call, &problem);
  return problem;
}

static void table_key_of(const fa_problem *problem, const fa_device *device, const fa_shape *shape, fa_table_key *key) {
  key->problem = (uint64_t)problem->op | (uint64_t)problem->dtype << 4 | (uint64_t)problem->precision << 8 |
                 (uint64_t)problem->is_causal << 12 | (uint64_t)problem->deterministic << 13 |
                 (uint64_t)(strcmp(problem->target, device->target) != 0) << 14 | (uint64_t)problem->head_dim << 16 |
                 (uint64_t)problem->head_dim_v << 28 | (uint64_t)device->ops->type << 40 |
                 (uint64_t)(unsigned)device->index << 48;
  device->ops->bucket(device, shape, &key->bucket);
}

static fa_status keep(const fa_device *device, const fa_problem *problem, const fa_config *config,
                      const char *kernel_hex, fa_loaded *loaded, const fa_ready **ready, char *message) {
  fa_status status = fa_make_ready(device, problem, config, kernel_hex, loaded, ready, message);
  if (status != FA_OK)
    device->ops->unload(device, loaded);
  return status;
}

/* The kernel that a record names, from the cache. */
static fa_status load_from_cache(const fa_device *device, const fa_problem *problem, const fa_config *config,
                                 const char *kernel_hex, const fa_ready **ready, char *message) {
  fa_entry entry;
  fa_kernel kernel;
  fa_loaded loaded;
  if (fa_describe(problem, config, &kernel, message, FA_MESSAGE_SIZE) != 0 ||
      !fa_cache_get_by_hex(fa_shared_cache(), "kernel", kernel_hex, &entry))
    return FA_FAILED;
  fa_status status = device->ops->load(device, &kernel, entry.payload, entry.payload_length, &loaded, message);
  fa_entry_free(&entry);
  if (status == FA_OK)
    status = keep(device, problem, config, kernel_hex, &loaded, ready, message);
  if (status == FA_OK)
    fa_count(&fa_counters.cache_hits);
  return status;
}

/* The cache has lost it, or what it holds does not load here: compile that config again. `pinned`: it must become
 * this very kernel; NULL: whatever this compiler makes of it. */
static fa_status make_again(const fa_device *device, const fa_problem *problem, const fa_config *config,
                            const char *pinned, const fa_ready **ready, char *message) {
  fa_built built;
  fa_loaded loaded;
  fa_status status = fa_build(device->ops, problem, config, &built, message);
  if (status == FA_OK && pinned && strcmp(built.kernel_hex, pinned) != 0)
    status = fa_fail(FA_FAILED, message, "its kernel %s is lost, and the compiler of this machine makes another one",
                     pinned);
  if (status == FA_OK)
    status = fa_load_built(device, &built, &loaded, message);
  if (status == FA_OK)
    status = keep(device, problem, config, built.kernel_hex, &loaded, ready, message);
  fa_built_free(&built);
  return status;
}

/* A record, with the problem of its kernel, whose target may be lower than that of `problem`, and the config. */
typedef struct found_record {
  fa_record record;
  fa_problem lowered;
  fa_config config;
} found_record;
static bool read_record(const fa_problem *problem, const fa_key *key, found_record *found, char *message) {
  if (!fa_record_get(key, &found->record))
    return false;
  found->lowered = *problem;
  memcpy(found->lowered.target, found->record.target, sizeof found->lowered.target);
  fa_problem_normalize(&found->lowered);
  return fa_config_parse(&found->lowered, found->record.config, &found->config, message, FA_MESSAGE_SIZE) == 0;
}

/* What a tuner found before, here or in another process. FA_FAILED: nothing. */
static fa_status from_record(const fa_device *device, const fa_problem *problem, const fa_key *key,
                             const fa_ready **ready, char *message) {
  found_record found;
  if (!read_record(problem, key, &found, message))
    return FA_FAILED;
  fa_record *record = &found.record;
  *ready = fa_find_loaded(device, record->kernel_hex);
  if (*ready)
    return FA_OK;
  if (load_from_cache(device, &found.lowered, &found.config, record->kernel_hex, ready, message) == FA_OK) {
    fa_say("kernel %s (%s) comes from the cache", record->kernel_hex, record->config);
    return FA_OK;
  }
  const bool pinned = fa_get_settings()->autotune == FA_TUNE_PINNED;
  fa_status status =
      make_again(device, &found.lowered, &found.config, pinned ? record->kernel_hex : NULL, ready, message);
  if (status == FA_OK && strcmp((*ready)->kernel_hex, record->kernel_hex) != 0) { /* another compiler than then */
    memcpy(record->kernel_hex, (*ready)->kernel_hex, sizeof record->kernel_hex);
    fa_record_put(key, problem, FA_CACHE_REPLACE, record, "");
  }
  return status;
}

/* Publish what the tuner chose. The first published record wins, so that all processes compute with one kernel, unless
 * it is of no use here, as one for a target that this compiler does not know. false: there is no record now. */
static bool publish(const fa_device *device, const fa_problem *problem, const fa_key *key, const char *notes,
                    const fa_ready **ready) {
  fa_record record;
  memcpy(record.target, (*ready)->problem.target, sizeof record.target);
  memcpy(record.kernel_hex, (*ready)->kernel_hex, sizeof record.kernel_hex);
  fa_config_format(&(*ready)->config, record.config, sizeof record.config);
  if (fa_record_put(key, problem, FA_CACHE_KEEP_FIRST, &record, notes))
    return true;
  const fa_ready *theirs = NULL;
  char ignored[FA_MESSAGE_SIZE];
  fa_status status = from_record(device, problem, key, &theirs, ignored);
  if (status == FA_OK)
    *ready = theirs;
  return status == FA_OK ||
         (status != FA_OUT_OF_MEMORY && fa_record_put(key, problem, FA_CACHE_REPLACE, &record, notes));
}

/* Nothing is known: one process at a time tunes, those that waited for it find its record. To load kernels, the driver
 * waits until this process's work on the device is done, and that may wait for what another process does after a call
 * like this one, as in a pipeline, whose stages receive before they send. So it is waited for before the lock is taken.
 */
static fa_status tune_once(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                           const fa_key *key, const fa_host *host, void *stream, const fa_ready **ready,
                           char *message) {
  fa_status status = device->ops->settle ? device->ops->settle(device, stream, message) : FA_OK;
  if (status != FA_OK)
    return status;
  fa_cache *cache = fa_shared_cache();
  const double asked = fa_seconds();
  fa_cache_lock *lock = fa_cache_lock_key(cache, key, TUNING_LOCK_SECONDS);
  if (!lock && fa_seconds() - asked >= TUNING_LOCK_SECONDS) {
    char description[160];
    fa_describe_problem(problem, description, sizeof description);
    fa_warn("others have been tuning %s for %.0f s; this process goes on without their result", description,
            TUNING_LOCK_SECONDS);
  }
  status = from_record(device, problem, key, ready, message);
  if (status != FA_OK) {
    /* A choice that cannot be kept would be made anew, perhaps differently, by each process; the best guess is the
     * same in all of them. */
    char reason[256];
    bool usable = fa_cache_usable(cache, reason, sizeof reason), tuned = false;
    fa_autotune autotune = usable ? fa_get_settings()->autotune : FA_TUNE_NONE;
    char notes[FA_NOTES_SIZE] = "";
    status = fa_tune(device, problem, bucket, autotune, host, stream, ready, &tuned, notes, message);
    if (status == FA_OK && !(tuned && usable && publish(device, problem, key, notes, ready)))
      fa_count(&fa_counters.unrecorded);
  }
  fa_cache_unlock(lock);
  return status;
}

/* The arguments of `python -m flash_attention tune` for such a call. */
static void tune_arguments(const fa_problem *problem, const fa_shape *shape, char *text, size_t size) {
  snprintf(text, size, "--op %s --dtype %s --head-dim %d --batch %lld --heads %lld --seqlen %lld",
           fa_op_name(problem->op), fa_dtype_name(problem->dtype), problem->head_dim, (long long)shape->batch,
           (long long)shape->heads_q, (long long)shape->seqlen_q);
  if (problem->head_dim_v != problem->head_dim)
    fa_append(text, size, " --head-dim-v %d", problem->head_dim_v);
  if (shape->heads_kv != shape->heads_q)
    fa_append(text, size, " --heads-kv %lld", (long long)shape->heads_kv);
  if (shape->seqlen_k != shape->seqlen_q)
    fa_append(text, size, " --seqlen-k %lld", (long long)shape->seqlen_k);
  fa_append(text, size, "%s%s%s", problem->is_causal ? " --causal" : "",
            problem->deterministic ? " --deterministic" : "",
            problem->precision == FA_PRECISION_REDUCED ? " --precision reduced" : "");
}

/* How a record was searched for that counts here, the most thorough search first: an exhaustive one, if one was made,
 * found at least as good a config. Returns how many there are. */
static int searches_that_count(fa_autotune searched[3]) {
  const fa_settings *settings = fa_get_settings();
  int count = 0;
  if (settings->autotune == FA_TUNE_PINNED || (settings->autotune == FA_TUNE_SOME && !settings->only_such_records))
    searched[count++] = FA_TUNE_ALL;
  if (settings->autotune == FA_TUNE_PINNED)
    searched[count++] = FA_TUNE_SOME;
  searched[count++] = settings->autotune == FA_TUNE_PINNED ? FA_TUNE_NONE : settings->autotune;
  return count;
}

/* The record of the best search that was made, or an error that says how to come by one. */
static fa_status pinned(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                        const fa_shape *shape, const fa_ready **ready, char *message) {
  fa_autotune searched[3];
  const int count = searches_that_count(searched);
  char description[160], arguments[320], reason[FA_MESSAGE_SIZE] = "";
  for (int i = 0; i < count && !*reason; i++) {
    fa_key key;
    fa_record_key(&key, device, problem, bucket, searched[i]);
    fa_status status = from_record(device, problem, &key, ready, reason);
    fa_key_free(&key);
    if (status == FA_OK)
      return FA_OK;
  }
  fa_describe_problem(problem, description, sizeof description);
  tune_arguments(problem, shape, arguments, sizeof arguments);
  return fa_fail(FA_FAILED, message,
                 "FLASH_ATTENTION_AUTOTUNE is 'pinned', and the cache %s has no%s tuning record for %s on %s%s%.2000s: "
                 "make one (FLASH_ATTENTION_AUTOTUNE=1 python -m flash_attention tune %s --device %s), or take it from "
                 "another cache (python -m flash_attention cache import FILE)",
                 fa_cache_path(), *reason ? " usable" : "", description, device->kind, *reason ? "; " : "", reason,
                 arguments, device->ops->name);
}

static fa_status resolve(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                         const fa_shape *shape, const fa_host *host, void *stream, const fa_ready **ready,
                         char *message) {
  if (fa_get_settings()->autotune == FA_TUNE_PINNED)
    return pinned(device, problem, bucket, shape, ready, message);
  fa_autotune searched[3];
  const int count = searches_that_count(searched);
  fa_status status = FA_FAILED;
  for (int i = 0; i < count && status != FA_OK; i++) {
    fa_key key;
    fa_record_key(&key, device, problem, bucket, searched[i]);
    status = from_record(device, problem, &key, ready, message);
    if (status != FA_OK && i == count - 1)
      status = tune_once(device, problem, bucket, &key, host, stream, ready, message);
    fa_key_free(&key);
  }
  return status;
}

/* Of the records that count: is there one, and which is the first whose kernel is loaded? NULL: none's is. */
static const fa_ready *find_recorded(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                                     bool *is_recorded) {
  fa_autotune searched[3];
  char ignored[FA_MESSAGE_SIZE];
  const int count = searches_that_count(searched);
  const fa_ready *ready = NULL;
  *is_recorded = false;
  for (int i = 0; i < count && !ready; i++) {
    found_record found;
    fa_key key;
    fa_record_key(&key, device, problem, bucket, searched[i]);
    if (read_record(problem, &key, &found, ignored)) {
      *is_recorded = true;
      ready = fa_find_loaded(device, found.record.kernel_hex);
    }
    fa_key_free(&key);
  }
  return ready;
}

/* Backward with tensors like forward's. If it comes with others, that tune or compile something else, work was lost and
 * nothing more. */
static void look_ahead(const fa_device *device, const fa_problem *forward, const fa_shape *bucket, bool deterministic) {
  const fa_autotune autotune = fa_get_settings()->autotune;
  fa_problem problem = *forward;
  bool is_recorded;
  problem.op = FA_BACKWARD;
  problem.deterministic = deterministic;
  fa_problem_normalize(&problem);
  find_recorded(device, &problem, bucket, &is_recorded);
  if (autotune == FA_TUNE_PINNED || is_recorded)
    return;
  fa_build_ahead(device, &problem, bucket, autotune);
}

static fa_problem choose_target(const fa_device *device, const fa_problem *problem, const fa_shape *bucket) {
  fa_problem chosen = *problem;
  if (device->ops->choose_target) {
    device->ops->choose_target(bucket, chosen.target);
    fa_problem_normalize(&chosen);
  }
  return chosen;
}

static fa_status make_ready(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                            const fa_call *call, const fa_host *host, const fa_ready **ready, char *message) {
  fa_preparing state;
  fa_status status = device->ops->begin_preparing ? device->ops->begin_preparing(device, &state, message) : FA_OK;
  if (status != FA_OK)
    return status;
  const fa_problem chosen = choose_target(device, problem, bucket);
  if (call->backward_follows && call->op == FA_FORWARD)
    look_ahead(device, &chosen, bucket, call->deterministic);
  status = resolve(device, &chosen, bucket, &call->shape, host, call->stream, ready, message);
  if (device->ops->end_preparing)
    device->ops->end_preparing(device, &state);
  return status;
}

/* In a graph's capture nothing can be made ready. The kernel that this bucket would get outside of one, if it is
 * loaded; else, unless only such kernels are wanted, any that is there computes the same but for rounding, if it is one
 * of the problem and the target. */
static fa_status find_in_capture(const fa_device *device, const fa_problem *problem, const fa_shape *bucket,
                                 const fa_ready **ready, char *message) {
  char description[160];
  bool ignored;
  const bool pinned = fa_get_settings()->autotune == FA_TUNE_PINNED;
  const fa_problem chosen = choose_target(device, problem, bucket);
  *ready = find_recorded(device, &chosen, bucket, &ignored);
  if (!*ready && !pinned)
    *ready = fa_find_loaded_for(device, &chosen);
  if (*ready)
    return FA_OK;
  fa_describe_problem(&chosen, description, sizeof description);
  return fa_fail(FA_FAILED, message,
                 "the stream is being captured into a graph, and there is no kernel yet for %s%s: make one call with "
                 "tensors like these (shapes, strides, alignment) before the capture, to compile and load it",
                 description, pinned ? " (FLASH_ATTENTION_AUTOTUNE is 'pinned': of its tuning record)" : "");
}

/* Under the lock. */
static char last_config[256];

void fa_last_config(char *config, size_t size) {
  fa_lock();
  snprintf(config, size, "%s", last_config);
  fa_unlock();
}

/* Off the hit path: the first thread that wants a slot's kernel makes it, the others wait and share its outcome.
 * A failure is not kept: the next call tries again. */
static fa_status prepare(const fa_device *device, const fa_problem *problem, const fa_table_key *key,
                         const fa_call *call, const fa_host *host, const fa_ready **ready, char *message) {
  if (device->ops->is_capturing && device->ops->is_capturing(device, call->stream))
    return find_in_capture(device, problem, &key->bucket, ready, message);
  fa_lock();
  fa_slot *slot = fa_table_slot(key);
  if (!slot) {
    fa_unlock();
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory: %zu bytes to remember a kernel", sizeof *slot);
  }
  uint64_t attempts = slot->attempts;
  while (slot->claimed_by == fa_generation() && slot->attempts == attempts)
    fa_wait();
  *ready = atomic_load_explicit(&slot->ready, memory_order_acquire);
  if (*ready || slot->attempts != attempts) { /* somebody else did it, or failed to */
    fa_status status = *ready ? FA_OK : slot->status;
    if (status != FA_OK)
      fa_fail(status, message, "%s", slot->failure ? slot->failure : "out of memory");
    fa_unlock();
    return status;
  }
  slot->claimed_by = fa_generation();
  fa_unlock();

  fa_status status = make_ready(device, problem, &key->bucket, call, host, ready, message);

  fa_lock();
  slot->claimed_by = 0;
  slot->attempts++;
  slot->status = status;
  free(slot->failure);
  slot->failure = status == FA_OK ? NULL : strdup(message);
  if (status == FA_OK) {
    atomic_store_explicit(&slot->ready, *ready, memory_order_release);
    fa_config_format(&(*ready)->config, last_config, sizeof last_config);
  }
  fa_wake_all();
  fa_unlock();
  return status;
}

fa_status fa_execute(const fa_call *call, const fa_host *host, char *message) {
  fa_status status = fa_check_call(call, message);
  if (status != FA_OK)
    return status;
  const fa_device *device = NULL;
  status = fa_find_device(call->device_type, call->device_index, &device, message);
  if (status != FA_OK)
    return status;
  if (fa_call_is_empty(call))
    return fa_execute_empty(device, call, message);

  fa_problem problem = problem_of(call, device);
  fa_table_key key;
  table_key_of(&problem, device, &call->shape, &key);
  const fa_ready *ready = fa_table_find(&key);
  if (!ready) {
    status = prepare(device, &problem, &key, call, host, &ready, message);
    if (status != FA_OK)
      return status;
  }
  return fa_launch_call(ready, call, host, message);
}
