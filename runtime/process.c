/*
 * Run a program without a shell and read what it prints, inside a host whose signals, children and threads
 * are its own: no handler is set, no other child is waited for, and a host that ignores SIGCHLD or reaps
 * every child itself only costs us the exit status.
 */
#define _GNU_SOURCE
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_OUTPUT = 1 << 20 };

void fa_process_free(fa_process *process) {
  free(process->output);
  process->output = NULL;
}

/* A process group of its own, so that a driver and the programs it runs can be ended together and the terminal's
 * Ctrl-C reaches the host only; and signals as a program expects them (Python ignores SIGPIPE). */
static int spawn(char *const argv[], char *const environment[], int output, pid_t *pid) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  int error = posix_spawn_file_actions_init(&files);
  if (error)
    return error;
  error = posix_spawnattr_init(&attributes);
  if (error) {
    posix_spawn_file_actions_destroy(&files);
    return error;
  }
  sigset_t none, defaults;
  sigemptyset(&none);
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  sigaddset(&defaults, SIGCHLD);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setpgroup(&attributes, 0);
  error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  if (!error)
    error = posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (!error)
    error = posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
  if (!error)
    error = posix_spawn_file_actions_adddup2(&files, output, STDERR_FILENO);
  if (!error)
    error = posix_spawn(pid, argv[0], &files, &attributes, argv, environment);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  return error;
}

/* Read what there is. Returns false at the end of the output. */
static bool drain(int from, char *output, size_t *length) {
  for (;;) {
    char discarded[4096];
    bool full = *length + 1 >= MAX_OUTPUT;
    ssize_t got =
        full ? read(from, discarded, sizeof discarded) : read(from, output + *length, MAX_OUTPUT - 1 - *length);
    if (got > 0 && !full)
      *length += (size_t)got;
    if (got == 0)
      return false;
    if (got < 0 && errno != EINTR)
      return errno == EAGAIN;
  }
}

/* Has it ended? Fills in the status where it can be known. */
static bool has_ended(pid_t pid, fa_process *process) {
  int status = 0;
  pid_t got;
  do
    got = waitpid(pid, &status, WNOHANG);
  while (got < 0 && errno == EINTR);
  if (got == 0)
    return false;
  if (got == pid) {
    process->status_known = true;
    process->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  return true; /* also ECHILD: somebody else has reaped it */
}

int fa_run_process(char *const argv[], char *const environment[], double limit_seconds, fa_process *process) {
  memset(process, 0, sizeof *process);
  int ends[2];
  process->output = malloc(MAX_OUTPUT);
  if (!process->output) {
    errno = ENOMEM;
    return -1;
  }
  if (pipe2(ends, O_CLOEXEC) != 0) {
    fa_process_free(process);
    return -1;
  }
  pid_t pid = 0;
  int error = spawn(argv, environment, ends[1], &pid);
  close(ends[1]);
  if (error) {
    close(ends[0]);
    fa_process_free(process);
    errno = error;
    return -1;
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);

  size_t length = 0;
  double deadline = fa_seconds() + limit_seconds;
  bool open = true, ended = false;
  while (!ended) {
    struct pollfd reading = {.fd = open ? ends[0] : -1, .events = POLLIN};
    poll(&reading, 1, open ? 20 : 1); /* the output ends with the program: then its status is a moment away */
    if (open)
      open = drain(ends[0], process->output, &length);
    ended = has_ended(pid, process);
    if (!ended && !process->timed_out && fa_seconds() > deadline) {
      process->timed_out = true;
      kill(-pid, SIGKILL);
    }
  }
  if (open)
    drain(ends[0], process->output, &length);
  close(ends[0]);
  process->output[length] = 0;
  return 0;
}
