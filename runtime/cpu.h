/*
 * The parts of the CPU target: which instruction set, which compiler, how a compiled kernel gets into memory,
 * how a call is spread over threads. target_cpu.c puts them together.
 */
#ifndef FLASH_ATTENTION_CPU_H
#define FLASH_ATTENTION_CPU_H

#include "runtime/target.h"

/* --- cpu_isa.c */
enum { FA_CPU_MODEL_LENGTH = 128 };
/* The instruction set to generate for: the best this machine has, or the one FLASH_ATTENTION_CPU_ISA names. */
fa_status fa_cpu_isa(const char **isa, char *message);
const char *fa_cpu_lower_isa(const char *isa); /* NULL if there is none */
/* All that this machine has, best first, e.g. "avx512 avx2". */
void fa_cpu_list_isas(char *text, size_t size);
void fa_cpu_model(char model[FA_CPU_MODEL_LENGTH]);

/* --- cpu_compiler.c */
fa_status fa_cpu_compiler_identity(char identity[FA_COMPILER_LENGTH], char *message);
fa_status fa_cpu_compile(const fa_problem *problem, const fa_kernel *kernel, fa_compiled *compiled, char *message);
void fa_cpu_compiler_info(char *text, size_t size);

/* --- cpu_command.c: $CC or the first of cc, gcc, clang that there is. */
enum { FA_MAX_COMMAND_WORDS = 32 };
typedef struct fa_command {
  char *word[FA_MAX_COMMAND_WORDS + 1]; /* owned; word[0] is a path; NULL at the end */
  int count;
} fa_command;
fa_status fa_find_cpu_compiler(fa_command *command, char *message);
void fa_command_free(fa_command *command);
/* Split like a shell does: blanks, '..', "..", backslash; nothing is expanded. -1: an open quote, or too long. */
int fa_split_words(const char *text, fa_command *command);

/* --- process.c: run a program and read what it prints. */
typedef struct fa_process {
  bool timed_out;
  bool status_known; /* false where the host reaps or ignores children before we can ask */
  int exit_code;     /* 128 + signal where a signal ended it */
  char *output;      /* owned, NUL-terminated: stdout and stderr together */
} fa_process;
/* -1 and errno: it could not be started. */
int fa_run_process(char *const argv[], char *const environment[], double limit_seconds, fa_process *process);
void fa_process_free(fa_process *process);

/* --- private_dir.c: a directory only we can read, with files but no directories in it. */
int fa_private_dir_make(char *path, size_t size); /* -1: nowhere to write */
void fa_private_dir_remove(const char *path);

/* --- cpu_loader.c */
fa_status fa_cpu_load(const fa_device *device, const fa_kernel *kernel, const void *image, size_t length,
                      fa_loaded *loaded, char *message);
void fa_cpu_unload(const fa_device *device, fa_loaded *loaded);

/* --- cpu_launch.c */
fa_status fa_cpu_launch(const fa_launch *launch, const fa_host *host, char *message);
fa_status fa_cpu_time(const fa_launch *launch, const fa_host *host, double *seconds, char *message);
fa_status fa_cpu_zero(const fa_call *call, const struct fa_tensor *tensor, const int64_t size[4], size_t element_size,
                      char *message);

#endif
