/*
 * The default host of C programs: memory from the C library or the CUDA driver, and a small pool of threads.
 *
 * One loop runs at a time; a second caller, and a loop inside a loop, runs on its own thread alone. The pool
 * starts at the first loop and lives as long as the process. A forked child has none of its threads and
 * starts its own.
 */
#include "runtime/cuda.h"
#include "runtime/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

enum { MAX_THREADS = 256 };

typedef struct loop {
  void (*body)(int64_t i, void *argument);
  void *argument;
  int64_t count;
  _Atomic int64_t next;
} loop;

static struct {
  pthread_mutex_t mutex;
  pthread_cond_t work_there, all_idle;
  loop *current;
  uint64_t number; /* of loops so far: a thread takes part in each at most once */
  int threads, busy;
  _Atomic bool taken;
} pool = {
    .mutex = PTHREAD_MUTEX_INITIALIZER, .work_there = PTHREAD_COND_INITIALIZER, .all_idle = PTHREAD_COND_INITIALIZER};

static void run(loop *work) {
  int64_t i;
  while ((i = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed)) < work->count)
    work->body(i, work->argument);
}

static void *pool_thread(void *unused) {
  (void)unused;
  uint64_t seen = 0;
  pthread_mutex_lock(&pool.mutex);
  for (;;) {
    while (!pool.current || pool.number == seen)
      pthread_cond_wait(&pool.work_there, &pool.mutex);
    loop *work = pool.current;
    seen = pool.number;
    pool.busy++;
    pthread_mutex_unlock(&pool.mutex);
    run(work);
    pthread_mutex_lock(&pool.mutex);
    if (--pool.busy == 0)
      pthread_cond_signal(&pool.all_idle);
  }
  return NULL;
}

static void forget_pool_in_child(void) {
  pthread_mutex_init(&pool.mutex, NULL);
  pthread_cond_init(&pool.work_there, NULL);
  pthread_cond_init(&pool.all_idle, NULL);
  pool.current = NULL;
  pool.threads = pool.busy = 0;
  atomic_store(&pool.taken, false);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_pool_in_child); }

static int num_threads(void *context) {
  (void)context;
  static _Atomic int cores;
  int known = atomic_load_explicit(&cores, memory_order_relaxed);
  if (known == 0) {
    known = fa_online_cores() < MAX_THREADS ? fa_online_cores() : MAX_THREADS;
    atomic_store_explicit(&cores, known, memory_order_relaxed);
  }
  return known;
}

/* Under pool.mutex. The caller is one of the threads. */
static void start_threads(void) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t detached;
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  while (pool.threads < num_threads(NULL) - 1 && pthread_create(&thread, &detached, pool_thread, NULL) == 0)
    pool.threads++;
  pthread_attr_destroy(&detached);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void parallel_for(void *context, int64_t count, void (*body)(int64_t i, void *argument), void *argument) {
  (void)context;
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  loop work = {.body = body, .argument = argument, .count = count};
  bool expected = false;
  if (count <= 1 || !atomic_compare_exchange_strong(&pool.taken, &expected, true)) {
    run(&work);
    return;
  }
  pthread_mutex_lock(&pool.mutex);
  start_threads();
  pool.current = &work;
  pool.number++;
  pthread_cond_broadcast(&pool.work_there);
  pthread_mutex_unlock(&pool.mutex);
  run(&work);
  pthread_mutex_lock(&pool.mutex);
  pool.current = NULL; /* threads that come late find nothing */
  while (pool.busy > 0)
    pthread_cond_wait(&pool.all_idle, &pool.mutex);
  pthread_mutex_unlock(&pool.mutex);
  atomic_store(&pool.taken, false);
}

static void *allocate(void *context, fa_device_type type, int device_index, size_t bytes) {
  (void)context;
  if (type == FA_DEVICE_CUDA)
    return fa_cuda_allocate(device_index, bytes);
  if (type != FA_DEVICE_CPU || bytes > SIZE_MAX - 64)
    return NULL;
  return aligned_alloc(64, (bytes + 63) / 64 * 64 + (bytes == 0) * 64);
}

static void release(void *context, fa_device_type type, int device_index, void *memory) {
  (void)context;
  if (type == FA_DEVICE_CUDA)
    fa_cuda_release(device_index, memory);
  else
    free(memory);
}

const fa_host *fa_default_host(void) {
  static const fa_host host = {
      .allocate = allocate, .release = release, .num_threads = num_threads, .parallel_for = parallel_for};
  return &host;
}
