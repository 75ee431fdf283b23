/*
 * What the C tests share: a failed check says where, and the program goes on.
 *
 *     static void test_names(void) { CHECK(1 + 1 == 2); CHECK_TEXT(fa_op_name(FA_FORWARD), "forward"); }
 *     int main(void) {
 *       RUN(test_names);
 *       return check_summary();               "2 passed, 0 failed", and the exit status
 *     }
 *
 * The counters lie in shared memory, so checks made in forked children count as well. `./test_x name` runs only
 * those RUN tests whose names contain `name`.
 */
#ifndef FLASH_ATTENTION_TESTS_CHECK_H
#define FLASH_ATTENTION_TESTS_CHECK_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct check_counts {
  atomic_int passed, failed, skipped;
};
static struct check_counts *check_counts;
static const char *check_filter;

/* A program that waits for ever is killed after so long, and so is a child: the test fails instead. The slowest program
 * takes five minutes on a machine that is busy. */
enum { CHECK_SECONDS = 1200 };

/* Before main, so that the counters are there before anything forks. glibc passes argc and argv. */
__attribute__((constructor)) static void check_begin(int argc, char **argv) {
  check_counts = mmap(NULL, sizeof *check_counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (check_counts == MAP_FAILED) {
    perror("mmap");
    _exit(2);
  }
  alarm(CHECK_SECONDS);
  check_filter = argc > 1 ? argv[1] : NULL;
  setvbuf(stdout, NULL, _IOLBF, 0); /* nothing is left in a buffer that a forked child would print again */
}

/* Returns `passed`, so that a test can stop where going on makes no sense. */
static inline bool check_that(bool passed, const char *what, const char *file, int line) {
  atomic_fetch_add(passed ? &check_counts->passed : &check_counts->failed, 1);
  if (!passed)
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  return passed;
}

static inline bool check_text(const char *actual, const char *expected, const char *what, const char *file, int line) {
  bool equal = actual && expected && strcmp(actual, expected) == 0;
  if (!check_that(equal, what, file, line))
    fprintf(stderr, "  expected: %s\n  actual:   %s\n", expected ? expected : "NULL", actual ? actual : "NULL");
  return equal;
}

static inline bool check_number(long long actual, long long expected, const char *what, const char *file, int line) {
  if (!check_that(actual == expected, what, file, line))
    fprintf(stderr, "  expected: %lld\n  actual:   %lld\n", expected, actual);
  return actual == expected;
}

/* With values: CHECKF(a == b, "a=%d b=%d", a, b). */
#define CHECKF(condition, ...)                                                                                         \
  do {                                                                                                                 \
    if (!CHECK(condition)) {                                                                                           \
      fprintf(stderr, "  " __VA_ARGS__);                                                                               \
      fputc('\n', stderr);                                                                                             \
    }                                                                                                                  \
  } while (0)
#define CHECK(condition) check_that((condition), #condition, __FILE__, __LINE__)
#define CHECK_TEXT(actual, expected) check_text((actual), (expected), #actual " is " #expected, __FILE__, __LINE__)
#define CHECK_NUMBER(actual, expected) check_number((actual), (expected), #actual " is " #expected, __FILE__, __LINE__)

/* Something cannot be tested here: say why. */
static inline void check_skip(const char *test, const char *reason) {
  atomic_fetch_add(&check_counts->skipped, 1);
  printf("%s: skipped: %s\n", test, reason);
}
#define SKIP(reason) check_skip(__func__, reason)

#define RUN(test)                                                                                                      \
  do {                                                                                                                 \
    if (check_filter == NULL || strstr(#test, check_filter) != NULL)                                                   \
      test();                                                                                                          \
  } while (0)

/* A child that runs body(argument) and ends with status 0. */
static inline pid_t check_fork(void (*body)(void *argument), void *argument) {
  pid_t child = fork();
  if (child == 0) {
    alarm(CHECK_SECONDS);
    body(argument);
    _exit(0);
  }
  return child;
}

/* May a thread allocate while another forks? glibc's allocator is made for it. AddressSanitizer's (GCC 12) is not: if
 * the thread holds one of its locks just then, the child waits for it for ever, at the latest where exit() looks for
 * leaks. */
#define CHECK_NO_FORK_BESIDE_THREADS "AddressSanitizer's allocator locks up in a child forked while a thread allocates"
static inline bool check_forks_beside_threads(void) {
#ifdef __SANITIZE_ADDRESS__
  return false;
#else
  return true;
#endif
}

/* Did this child end by itself, with status 0? */
static inline bool check_ended_well(pid_t child) {
  int status = 0;
  bool ended = child > 0 && waitpid(child, &status, 0) == child;
  if (ended && WIFSIGNALED(status))
    fprintf(stderr, "child %d was ended by signal %d%s\n", (int)child, WTERMSIG(status),
            WTERMSIG(status) == SIGALRM ? ": it took too long" : "");
  return ended && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
#define IN_CHILD(body, argument) CHECK(check_ended_well(check_fork(body, argument)))

static inline int check_summary(void) {
  int passed = atomic_load(&check_counts->passed), failed = atomic_load(&check_counts->failed);
  if (atomic_load(&check_counts->skipped) > 0)
    printf("%d skipped\n", atomic_load(&check_counts->skipped));
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
