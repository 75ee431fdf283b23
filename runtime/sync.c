/*
 * The one lock of runtime, and what happens to it in a forked child.
 *
 * A child inherits the memory of all threads but only one of them: a lock that another thread held would
 * never be released, and work that another thread had claimed would never be finished. So the lock is taken
 * before a fork (nobody holds it for long), and the child starts a new generation, in which the claims of
 * the old one do not count.
 */
#include "runtime/runtime.h"

#include <pthread.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned generation = 1;
static pthread_once_t watch_forks_once = PTHREAD_ONCE_INIT;

static void before_fork(void) { pthread_mutex_lock(&mutex); }

static void after_fork_in_parent(void) { pthread_mutex_unlock(&mutex); }

static void after_fork_in_child(void) {
  generation++;
  pthread_cond_init(&changed, NULL); /* it may count waiters that do not exist here */
  pthread_mutex_unlock(&mutex);
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

void fa_lock(void) {
  pthread_once(&watch_forks_once, watch_forks);
  pthread_mutex_lock(&mutex);
}

void fa_unlock(void) { pthread_mutex_unlock(&mutex); }

void fa_wait(void) { pthread_cond_wait(&changed, &mutex); }

void fa_wake_all(void) { pthread_cond_broadcast(&changed); }

unsigned fa_generation(void) { return generation; }
