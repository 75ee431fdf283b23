/*
 * What ptxas says of compiled kernels (--ptxas-options=-v): registers, spills and static shared memory.
 *
 *     ptxas info    : Compiling entry function 'forward' for 'sm_90'
 *     ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
 *     ptxas info    : Used 168 registers, used 1 barriers, 1024 bytes smem
 */
#define _GNU_SOURCE
#include "runtime/cuda.h"

#include <stdlib.h>
#include <string.h>

/* The number before `unit` in this line; 0 if the line has none. */
static int number_before(const char *line, size_t length, const char *unit) {
  const char *found = memmem(line, length, unit, strlen(unit));
  if (!found)
    return 0;
  const char *digits = found;
  while (digits > line && digits[-1] >= '0' && digits[-1] <= '9')
    digits--;
  return atoi(digits);
}

static void raise_to(int *value, int at_least) { *value = at_least > *value ? at_least : *value; }

void fa_cuda_read_usage(const char *log, fa_compiled *compiled) {
  for (const char *line = log ? log : ""; *line;) {
    size_t length = strcspn(line, "\n");
    raise_to(&compiled->registers, number_before(line, length, " registers"));
    raise_to(&compiled->spill_bytes,
             number_before(line, length, " bytes spill stores") + number_before(line, length, " bytes spill loads"));
    raise_to(&compiled->shared_bytes, number_before(line, length, " bytes smem"));
    line += length + (line[length] == '\n');
  }
}
