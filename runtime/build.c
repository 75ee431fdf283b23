/*
 * Problem + config -> image of a compiled kernel: rendered, then taken from the cache or compiled and stored.
 * One process or thread compiles a key at a time, the others find it there when they get the lock.
 */
#include "runtime/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KERNEL_SCHEMA = 1, MAX_WORKERS = 64 };

/* A compilation elsewhere that takes longer than this is not waited for. */
static const double COMPILE_LOCK_SECONDS = 60;

static void make_key(fa_key *key, const fa_built *built, const char *compiler) {
  fa_key_begin(key, "kernel", KERNEL_SCHEMA);
  fa_key_add(key, "source", built->kernel.source, built->kernel.source_length);
  fa_key_add_text(key, "options", built->kernel.compile_options);
  fa_key_add_text(key, "compiler", compiler);
  fa_key_add_text(key, "target", built->problem.target);
}

static bool take_from_cache(const fa_key *key, fa_built *built) {
  fa_entry entry;
  if (!fa_cache_get(fa_shared_cache(), key, &entry))
    return false;
  built->image = malloc(entry.payload_length ? entry.payload_length : 1);
  if (built->image) {
    memcpy(built->image, entry.payload, entry.payload_length);
    built->image_length = entry.payload_length;
    built->from_cache = true;
    fa_count(&fa_counters.cache_hits);
  }
  fa_entry_free(&entry);
  return built->image != NULL;
}

static void store(const fa_key *key, const fa_built *built, const fa_compiled *compiled) {
  char problem[160], config[256], metadata[1536];
  fa_describe_problem(&built->problem, problem, sizeof problem);
  fa_config_format(&built->config, config, sizeof config);
  snprintf(metadata, sizeof metadata, "problem=%s\nconfig=%s\ncompiler=%s\nseconds=%.3f\n", problem, config,
           compiled->compiler, compiled->seconds);
  if (compiled->registers > 0)
    fa_append(metadata, sizeof metadata, "registers=%d\nspill_bytes=%d\n", compiled->registers, compiled->spill_bytes);
  for (int i = 0; i < built->kernel.num_phases; i++)
    fa_append(metadata, sizeof metadata, "entry=%s\n", built->kernel.phase[i].entry);
  fa_cache_put(fa_shared_cache(), key, FA_CACHE_REPLACE, metadata, built->image, built->image_length);
}

static fa_status compile(const fa_target *ops, const fa_key *key, fa_built *built, char *message) {
  fa_compiled compiled = {0};
  fa_count(&fa_counters.cache_misses);
  fa_count(&fa_counters.compilations);
  fa_status status = ops->compile(&built->problem, &built->kernel, &compiled, message);
  if (status == FA_OK) {
    built->image = compiled.image;
    built->image_length = compiled.image_length;
    fa_say("compiled %s in %.2f s, %zu bytes: %s", built->kernel_hex, compiled.seconds, compiled.image_length,
           compiled.command);
    if (compiled.registers > 0)
      fa_say("%s takes %d registers of a thread, %d bytes spilled", built->kernel_hex, compiled.registers,
             compiled.spill_bytes);
    store(key, built, &compiled);
  } else {
    fa_count(&fa_counters.compile_failures);
  }
  free(compiled.log);
  return status;
}

fa_status fa_build(const fa_target *ops, const fa_problem *problem, const fa_config *config, fa_built *built,
                   char *message) {
  memset(built, 0, sizeof *built);
  built->problem = *problem;
  built->config = *config;
  char compiler[FA_COMPILER_LENGTH];
  fa_status status = ops->compiler_identity(compiler, message);
  if (status != FA_OK)
    return status;
  if (fa_render(problem, config, fa_template_dir(), &built->kernel, message, FA_MESSAGE_SIZE) != 0)
    return FA_FAILED;

  fa_key key;
  make_key(&key, built, compiler);
  fa_key_hex(&key, built->kernel_hex);
  if (!take_from_cache(&key, built)) {
    fa_cache_lock *lock = fa_cache_lock_key(fa_shared_cache(), &key, COMPILE_LOCK_SECONDS);
    if (!take_from_cache(&key, built))
      status = compile(ops, &key, built, message);
    fa_cache_unlock(lock);
  }
  fa_key_free(&key);
  return status;
}

fa_status fa_load_built(const fa_device *device, fa_built *built, fa_loaded *loaded, char *message) {
  const fa_target *ops = device->ops;
  fa_status status = ops->load(device, &built->kernel, built->image, built->image_length, loaded, message);
  if (status == FA_OK || status == FA_OUT_OF_MEMORY || !built->from_cache)
    return status;
  fa_say("kernel %s from the cache does not load and is made again: %s", built->kernel_hex, message);
  free(built->image);
  built->image = NULL;
  built->from_cache = false;
  char compiler[FA_COMPILER_LENGTH];
  status = ops->compiler_identity(compiler, message);
  if (status != FA_OK)
    return status;
  fa_key key;
  make_key(&key, built, compiler);
  status = compile(ops, &key, built, message);
  fa_key_free(&key);
  return status == FA_OK ? ops->load(device, &built->kernel, built->image, built->image_length, loaded, message)
                         : status;
}

void fa_built_free(fa_built *built) {
  fa_kernel_free(&built->kernel);
  free(built->image);
  free(built->failure);
  built->image = NULL;
  built->failure = NULL;
}

/* The work of fa_build_all, shared by its threads. */
typedef struct batch {
  const fa_target *ops;
  const fa_problem *problem;
  const fa_config *configs;
  fa_built *built;
  int count, likely;
  double deadline;
  fa_progress *progress;
  _Atomic int next, done, succeeded;
} batch;

static void build_some(batch *work) {
  for (;;) {
    int i = atomic_fetch_add(&work->next, 1);
    if (i >= work->count)
      return;
    if (i >= work->likely && atomic_load(&work->succeeded) > 0 && fa_seconds() > work->deadline)
      return;
    char message[FA_MESSAGE_SIZE];
    fa_built *built = &work->built[i];
    fa_status status = fa_build(work->ops, work->problem, &work->configs[i], built, message);
    built->status = status;
    if (status == FA_OK)
      atomic_fetch_add(&work->succeeded, 1);
    else
      built->failure = strdup(message);
    fa_progress_show(work->progress, "%s for %s: %d of %d kernels compiled", fa_op_name(work->problem->op),
                     work->problem->target, atomic_fetch_add(&work->done, 1) + 1, work->count);
  }
}

static void *build_thread(void *argument) {
  build_some(argument);
  return NULL;
}

void fa_build_all(const fa_target *ops, const fa_problem *problem, const fa_config *configs, int count, int likely,
                  double budget, fa_progress *progress, fa_built *built) {
  memset(built, 0, (size_t)count * sizeof *built);
  for (int i = 0; i < count; i++)
    built[i].status = FA_FAILED;
  batch work = {.ops = ops,
                .problem = problem,
                .configs = configs,
                .built = built,
                .count = count,
                .likely = likely,
                .deadline = fa_seconds() + budget,
                .progress = progress};

  /* The host's signals (Ctrl-C in Python) belong to the host's own threads. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t threads[MAX_WORKERS];
  int wanted = fa_online_cores() < count ? fa_online_cores() : count, started = 0;
  while (started < wanted - 1 && started < MAX_WORKERS &&
         pthread_create(&threads[started], NULL, build_thread, &work) == 0)
    started++;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  build_some(&work);
  for (int i = 0; i < started; i++)
    pthread_join(threads[i], NULL);
}
