/*
 * Builds of kernels that will be wanted soon, into the cache, while the process goes on: a call whose gradients are
 * wanted has backward's compiled on cores that are idle while forward is compiled and timed. Backward then takes what
 * is there, and waits for what is under way, by the cache's lock of a kernel's key, as it would for another process.
 *
 * These threads render, compile and store. They use neither the device nor the host (Python), change no result and no
 * choice, and if one fails nobody hears of it: whoever wants the kernel builds it and says why it cannot. They take no
 * signals. A forked child has none of them, waits for none. Before the process ends, fa_stop_building has the compiler
 * stop, where it can be told to (NVRTC 12.8; it listens but now and then), and waits. A handler of exit() would come
 * too late: libraries register their destructors as they go, and those that are registered last run first.
 */
#include "runtime/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

/* Fewer cores are busy with forward. */
enum { LEAST_CORES = 4, MAX_THREADS = 16 };

int fa_cores_of_tests;

typedef struct job {
  const fa_target *ops;
  fa_problem problem;
  int count;
  fa_config *configs;
  _Atomic int next, holders;
} job;

/* Under the lock. */
static int running;
static unsigned running_in; /* the generation whose threads they are */

static atomic_bool stopped;
static _Thread_local bool is_ahead; /* this is one of the threads */

const atomic_bool *fa_build_stopped(void) { return is_ahead ? &stopped : NULL; }

void fa_stop_building(void) {
  atomic_store(&stopped, true);
  fa_lock();
  while (running > 0 && running_in == fa_generation())
    fa_wait();
  fa_unlock();
}

static void let_go(job *work) {
  if (atomic_fetch_sub(&work->holders, 1) > 1)
    return;
  free(work->configs);
  free(work);
}

static void *work_ahead(void *argument) {
  job *work = argument;
  is_ahead = true;
  for (int i = atomic_fetch_add(&work->next, 1); i < work->count && !atomic_load(&stopped);
       i = atomic_fetch_add(&work->next, 1)) {
    char message[FA_MESSAGE_SIZE];
    fa_built built;
    fa_build(work->ops, &work->problem, &work->configs[i], &built, message);
    fa_built_free(&built);
  }
  let_go(work);
  fa_lock();
  running--;
  fa_wake_all();
  fa_unlock();
  return NULL;
}

/* How many more threads there may be: half of the cores are left to whoever waits. They count as running. */
static int take_threads(int wanted) {
  const int cores = fa_cores_of_tests ? fa_cores_of_tests : fa_online_cores();
  int most = cores / 2 < MAX_THREADS ? cores / 2 : MAX_THREADS;
  if (cores < LEAST_CORES)
    return 0;
  fa_lock();
  if (running_in != fa_generation())
    running = 0, running_in = fa_generation();
  most -= running;
  int taken = wanted < most ? wanted : most;
  taken = taken > 0 ? taken : 0;
  running += taken;
  fa_unlock();
  return taken;
}

static void give_threads_back(int count) {
  fa_lock();
  running -= count;
  fa_wake_all();
  fa_unlock();
}

static bool start_thread(job *work) {
  pthread_attr_t attributes;
  pthread_t thread;
  if (pthread_attr_init(&attributes) != 0)
    return false;
  bool started = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0 &&
                 pthread_create(&thread, &attributes, work_ahead, work) == 0;
  pthread_attr_destroy(&attributes);
  return started;
}

static void start(job *work) {
  const int wanted = take_threads(work->count);
  int started = 0;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (; started < wanted; started++) {
    atomic_fetch_add(&work->holders, 1);
    if (!start_thread(work)) {
      atomic_fetch_sub(&work->holders, 1);
      break;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  give_threads_back(wanted - started);
  if (started > 0)
    fa_say("building %d kernels ahead of their first call: %s for %s", work->count, fa_op_name(work->problem.op),
           work->problem.target);
}

void fa_build_ahead(const fa_device *device, const fa_problem *problem, const fa_shape *bucket, fa_autotune autotune) {
  char ignored[FA_MESSAGE_SIZE];
  if (!device->ops->builds_ahead || atomic_load(&stopped) ||
      !fa_cache_usable(fa_shared_cache(), ignored, sizeof ignored))
    return;
  job *work = calloc(1, sizeof *work);
  if (!work)
    return;
  work->ops = device->ops;
  work->problem = *problem;
  work->holders = 1;
  work->configs = calloc(FA_MAX_CANDIDATES, sizeof *work->configs);
  if (work->configs)
    work->count = fa_candidates(problem, bucket, work->configs, ignored, sizeof ignored);
  fa_trial_limits limits;
  device->ops->limit_trial(device, problem, &limits);
  const int most = autotune == FA_TUNE_NONE ? 1 : autotune == FA_TUNE_SOME ? limits.candidates : FA_MAX_CANDIDATES;
  if (work->count > most)
    work->count = most;
  if (work->count > 0)
    start(work);
  let_go(work);
}
