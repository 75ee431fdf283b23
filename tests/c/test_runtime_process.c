/*
 * Runtime: running a compiler inside a host whose signals and children are its own.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#include "tests/c/runtime_help.h"

/* --- words */

static void check_words(const char *text, int count, const char *second) {
  fa_command command;
  CHECK_NUMBER(fa_split_words(text, &command), 0);
  CHECK_NUMBER(command.count, count);
  if (count > 1)
    CHECK_TEXT(command.word[1], second);
  fa_command_free(&command);
}

static void test_words(void) {
  check_words("", 0, NULL);
  check_words("  cc ", 1, NULL);
  check_words("ccache gcc-12  -m64", 3, "gcc-12");
  check_words("cc '-DX=a b'", 2, "-DX=a b");
  check_words("cc -D'X=\"a\"' -O2", 3, "-DX=\"a\"");
  check_words("cc \"-DX=\\\"a\\\"\"", 2, "-DX=\"a\"");
  check_words("cc -I/a\\ b", 2, "-I/a b");
  check_words("cc ''", 2, "");
  check_words("cc $HOME;ls", 2, "$HOME;ls"); /* nothing is expanded, nothing is run */
  fa_command command;
  CHECK_NUMBER(fa_split_words("cc 'open", &command), -1);
}

/* --- running a program */

static int run_script(const char *text, double limit, fa_process *process) {
  char *argv[] = {"/bin/sh", "-c", (char *)text, NULL}, *environment[] = {"A=b", NULL};
  return fa_run_process(argv, environment, limit, process);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void test_process(void) {
  fa_process process;
  CHECK_NUMBER(run_script("echo $A; echo error >&2; exit 3", 10, &process), 0);
  CHECK_TEXT(process.output, "b\nerror\n");
  CHECK(process.status_known && !process.timed_out);
  CHECK_NUMBER(process.exit_code, 3);
  fa_process_free(&process);

  double start = now(); /* the program's own children end with it */
  CHECK_NUMBER(run_script("sleep 20 & sleep 20", 0.2, &process), 0);
  CHECK(process.timed_out);
  CHECK(now() - start < 10);
  fa_process_free(&process);

  CHECK_NUMBER(
      run_script("i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890123456789012345678901234567"
                 "8901; i=$((i+1)); done",
                 60, &process),
      0); /* more than is kept, and more than a pipe holds */
  CHECK(strlen(process.output) > 100000 && process.exit_code == 0);
  fa_process_free(&process);

  char *argv[] = {"/nonexistent/cc", NULL}, *environment[] = {NULL};
  if (!help_is_emulated())
    CHECK_NUMBER(fa_run_process(argv, environment, 10, &process), -1);
}

static void in_child_ignores_children(void *unused) {
  (void)unused;
  fa_process process;
  signal(SIGCHLD, SIG_IGN); /* the system reaps: there is no exit status to be had */
  CHECK_NUMBER(run_script("echo there", 10, &process), 0);
  CHECK_TEXT(process.output, "there\n");
  CHECK(!process.status_known && !process.timed_out);
  fa_process_free(&process);
  help_run(false);
}

static void test_host_that_ignores_children(void) {
  help_new_cache("sigchld");
  IN_CHILD(in_child_ignores_children, NULL);
}

static void on_alarm(int signal) { (void)signal; }

static void in_child_interrupted(void *unused) {
  (void)unused;
  struct sigaction action = {.sa_handler = on_alarm}; /* no SA_RESTART: system calls end with EINTR */
  struct timeval often = {.tv_usec = 2000};
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &(struct itimerval){often, often}, NULL);
  help_run(false);
}

static void test_host_that_interrupts(void) {
  help_new_cache("interrupted");
  IN_CHILD(in_child_interrupted, NULL);
}

int main(void) {
  help_begin();
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1); /* one candidate is enough here */
  RUN(test_words);
  RUN(test_process);
  RUN(test_host_that_ignores_children);
  RUN(test_host_that_interrupts);
  help_end();
  return check_summary();
}
