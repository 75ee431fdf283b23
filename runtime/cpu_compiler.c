/*
 * C source -> shared object, with the system's C compiler.
 *
 * The compiler is looked for only when something must be compiled. What is made depends on the source, the
 * flags and the compiler alone: variables that change what a compiler finds or writes are taken out of its
 * environment, and messages are asked for in English because they are read here.
 */
#define _GNU_SOURCE
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Generous: an emulated or overloaded machine takes half a minute for what takes a second elsewhere. */
static const double COMPILE_SECONDS = 180;

/* Free-standing: the result needs no library and runs no code when it is loaded. */
static const char FIXED_FLAGS[] = "-x c -std=gnu11 -shared -fPIC -nostdlib -nostartfiles -ffreestanding "
                                  "-fno-stack-protector -fno-asynchronous-unwind-tables";

typedef struct compiler {
  fa_command command;
  char identity[FA_COMPILER_LENGTH];
} compiler;

static const compiler *known_compiler; /* under the lock; never freed */

/* The environment of the compiler: ours, without what would change its result. The strings stay ours but two. */
static char **make_environment(const char *temporary_dir) {
  static const char *const dropped[] = {"TMPDIR=",
                                        "LC_ALL=",
                                        "LANGUAGE=",
                                        "CPATH=",
                                        "C_INCLUDE_PATH=",
                                        "LIBRARY_PATH=",
                                        "COMPILER_PATH=",
                                        "DEPENDENCIES_OUTPUT=",
                                        "SUNPRO_DEPENDENCIES=",
                                        "GCC_COMPARE_DEBUG=",
                                        "GCC_EXEC_PREFIX="};
  size_t count = 0, kept = 0;
  while (environ[count])
    count++;
  char **made = calloc(count + 3, sizeof *made);
  char *temporary = malloc(strlen(temporary_dir) + sizeof "TMPDIR=");
  char *english = strdup("LC_ALL=C");
  if (!made || !temporary || !english) {
    free(made);
    free(temporary);
    free(english);
    return NULL;
  }
  sprintf(temporary, "TMPDIR=%s", temporary_dir);
  made[kept++] = temporary;
  made[kept++] = english;
  for (size_t i = 0; i < count; i++) {
    bool drop = false;
    for (size_t j = 0; j < sizeof dropped / sizeof *dropped; j++)
      drop = drop || strncmp(environ[i], dropped[j], strlen(dropped[j])) == 0;
    if (!drop)
      made[kept++] = environ[i];
  }
  return made;
}

static void free_environment(char **environment) {
  if (!environment)
    return;
  free(environment[0]);
  free(environment[1]);
  free(environment);
}

/* Run the compiler with `arguments` after its own. -1: it could not be run, with the reason in message. */
static int run(const fa_command *command, const fa_command *arguments, const char *temporary_dir, fa_process *process,
               char *message) {
  char *argv[2 * FA_MAX_COMMAND_WORDS + 1];
  int count = 0;
  for (int i = 0; i < command->count; i++)
    argv[count++] = command->word[i];
  for (int i = 0; i < arguments->count; i++)
    argv[count++] = arguments->word[i];
  argv[count] = NULL;
  char **environment = make_environment(temporary_dir);
  int result = environment ? fa_run_process(argv, environment, COMPILE_SECONDS, process) : -1;
  if (result != 0)
    fa_fail(FA_FAILED, message, "the C compiler %s could not be run: %s", argv[0], strerror(errno));
  free_environment(environment);
  return result;
}

static fa_status identify(compiler *found, char *message) {
  fa_command arguments;
  if (fa_split_words("--version", &arguments) != 0)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  fa_process process;
  fa_status status = FA_FAILED;
  if (run(&found->command, &arguments, "/tmp", &process, message) == 0) {
    process.output[strcspn(process.output, "\n")] = 0;
    if (!*process.output || (process.status_known && process.exit_code != 0)) {
      status = fa_fail(FA_NO_COMPILER, message,
                       "%s is no C compiler: it does not answer --version; install gcc or clang, or set CC to one",
                       found->command.word[0]);
    } else {
      snprintf(found->identity, sizeof found->identity, "%.160s |", process.output);
      for (int i = 1; i < found->command.count; i++)
        fa_append(found->identity, sizeof found->identity, " %s", found->command.word[i]);
      fa_append(found->identity, sizeof found->identity, " | %s", FIXED_FLAGS);
      status = FA_OK;
    }
    fa_process_free(&process);
  }
  fa_command_free(&arguments);
  return status;
}

static fa_status find_compiler(const compiler **found, char *message) {
  fa_lock();
  *found = known_compiler;
  fa_unlock();
  if (*found)
    return FA_OK;
  compiler *made = calloc(1, sizeof *made);
  if (!made)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory");
  fa_status status = fa_find_cpu_compiler(&made->command, message);
  if (status == FA_OK)
    status = identify(made, message);
  if (status == FA_OK) {
    fa_lock();
    bool first = !known_compiler;
    if (first)
      known_compiler = made;
    *found = known_compiler;
    fa_unlock();
    if (first)
      return FA_OK;
  }
  fa_command_free(&made->command);
  free(made);
  return status;
}

fa_status fa_cpu_compiler_identity(char identity[FA_COMPILER_LENGTH], char *message) {
  const compiler *found = NULL;
  fa_status status = find_compiler(&found, message);
  if (found)
    memcpy(identity, found->identity, FA_COMPILER_LENGTH);
  return status;
}

void fa_cpu_compiler_info(char *text, size_t size) {
  char message[FA_MESSAGE_SIZE];
  const compiler *found = NULL;
  if (find_compiler(&found, message) == FA_OK)
    fa_append(text, size, "compiler: %s (%.*s)\n", found->command.word[0], (int)(strcspn(found->identity, "|") - 1),
              found->identity);
  else
    fa_append(text, size, "compiler: none; %s\n", message);
}

static int write_file(const char *path, const char *text, size_t length) {
  int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0)
    return -1;
  while (length > 0) {
    ssize_t written = write(file, text, length);
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      break;
    text += written;
    length -= (size_t)written;
  }
  return close(file) == 0 && length == 0 ? 0 : -1;
}

static void *read_file(const char *path, size_t *length) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (file < 0)
    return NULL;
  char *data = fstat(file, &info) == 0 && info.st_size > 0 ? malloc((size_t)info.st_size) : NULL;
  size_t done = 0;
  while (data && done < (size_t)info.st_size) {
    ssize_t got = read(file, data + done, (size_t)info.st_size - done);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0) {
      free(data);
      data = NULL;
    } else {
      done += (size_t)got;
    }
  }
  close(file);
  *length = done;
  return data;
}

/* Compile `source` in a directory for it alone. *image is NULL if the compiler refused; `process` says why. */
static fa_status compile_in(const char *directory, const compiler *with, const char *source, const char *options,
                            fa_process *process, void **image, size_t *length, char *command, char *message) {
  char source_path[PATH_MAX], image_path[PATH_MAX], text[3 * PATH_MAX];
  snprintf(source_path, sizeof source_path, "%s/kernel.c", directory);
  snprintf(image_path, sizeof image_path, "%s/kernel.so", directory);
  snprintf(text, sizeof text, "%s %s -o '%s' '%s'", FIXED_FLAGS, options, image_path, source_path);
  *image = NULL;
  if (write_file(source_path, source, strlen(source)) != 0)
    return fa_fail(FA_FAILED, message, "%s could not be written: %s", source_path, strerror(errno));
  fa_command arguments;
  if (fa_split_words(text, &arguments) != 0)
    return fa_fail(FA_FAILED, message, "the compile options are too many or malformed: %s", options);
  int ran = run(&with->command, &arguments, directory, process, message);
  command[0] = 0;
  for (int i = 0; i < with->command.count; i++)
    fa_append(command, 2048, "%s ", with->command.word[i]);
  fa_append(command, 2048, "%s", text);
  fa_command_free(&arguments);
  if (ran != 0)
    return FA_FAILED;
  if (!process->timed_out && !(process->status_known && process->exit_code != 0))
    *image = read_file(image_path, length);
  if (*image && (*length < 4 || memcmp(*image, "\177ELF", 4) != 0)) {
    free(*image);
    *image = NULL;
  }
  unlink(source_path);
  unlink(image_path);
  return FA_OK;
}

/* Did it fail because this compiler or its assembler lacks the instruction set? */
static bool lacks_target(const char *directory, const compiler *with, const char *options, const char *log) {
  if (strstr(log, "no such instruction") || strstr(log, "unsupported instruction"))
    return true;
  char message[FA_MESSAGE_SIZE], command[2048];
  fa_process process = {0};
  void *image = NULL;
  size_t length = 0;
  if (compile_in(directory, with, "int nothing;\n", options, &process, &image, &length, command, message) != FA_OK)
    return false;
  bool lacks = !image && !process.timed_out;
  free(image);
  fa_process_free(&process);
  return lacks;
}

/* Once for each target: what this compiler cannot do. */
static void say_lacking(const char *target, const compiler *with, const char *log) {
  static char said[8][FA_TARGET_LENGTH];
  fa_lock();
  int i = 0;
  while (i < 8 && said[i][0] && strcmp(said[i], target) != 0)
    i++;
  bool first = i < 8 && !said[i][0];
  if (first)
    snprintf(said[i], sizeof said[i], "%s", target);
  fa_unlock();
  if (first)
    fa_warn(
        "%s does not build for %s (%.*s); going on with simpler instructions. A newer compiler makes faster kernels.",
        with->command.word[0], target, (int)strcspn(log, "\n"), log);
}

static fa_status explain(const fa_problem *problem, const fa_kernel *kernel, const compiler *with,
                         const fa_process *process, const fa_compiled *compiled, const char *directory, char *message) {
  const char *log = process->output ? process->output : "";
  if (process->timed_out)
    return fa_fail(FA_FAILED, message, "compiling took longer than %.0f s and was stopped: %s", COMPILE_SECONDS,
                   compiled->command);
  if (lacks_target(directory, with, kernel->compile_options, log)) {
    if (fa_cpu_lower_isa(problem->target + strlen("cpu:")))
      say_lacking(problem->target, with, log);
    return fa_fail(FA_UNSUPPORTED, message, "%s does not build for %s: %.2000s", with->command.word[0], problem->target,
                   log);
  }
  const char *start = fa_first_error(log);
  fa_fail(FA_FAILED, message, "compiling a %s kernel for %s failed: %s\n%.1200s\n", fa_op_name(problem->op),
          problem->target, compiled->command, strlen(log) > 1200 ? start : log);
  fa_quote_source(kernel->source, start, message, FA_MESSAGE_SIZE);
  return FA_FAILED;
}

fa_status fa_cpu_compile(const fa_problem *problem, const fa_kernel *kernel, fa_compiled *compiled, char *message) {
  const compiler *with = NULL;
  fa_status status = find_compiler(&with, message);
  if (!with)
    return status;
  char directory[PATH_MAX - 32];
  if (fa_private_dir_make(directory, sizeof directory) != 0)
    return fa_fail(FA_FAILED, message, "there is no directory to compile in: tried TMPDIR, /tmp, /var/tmp, /dev/shm");
  fa_process process = {0};
  memset(compiled, 0, sizeof *compiled);
  memcpy(compiled->compiler, with->identity, sizeof compiled->compiler);
  double start = fa_seconds();
  status = compile_in(directory, with, kernel->source, kernel->compile_options, &process, &compiled->image,
                      &compiled->image_length, compiled->command, message);
  compiled->seconds = fa_seconds() - start;
  if (status == FA_OK && !compiled->image)
    status = explain(problem, kernel, with, &process, compiled, directory, message);
  compiled->log = process.output; /* moved */
  fa_private_dir_remove(directory);
  return status;
}
