/*
 * Which instruction sets this CPU and its operating system offer, and which one is generated for.
 *
 * A CPUID bit is not enough: the system must also save the registers (XCR0), or a context switch loses them.
 */
#include "runtime/cpu.h"
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Best first; each one's kernels run on every machine that has an earlier one of the same family. */
static const char *const isas[] = {"avx512_amx", "avx512_bf16", "avx512", "avx2", "neon"};
enum { AVX512_AMX, AVX512_BF16, AVX512, AVX2, NEON, NUM_ISAS };

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t saved_registers(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* The 8 KB of tiles are saved for a process only once it has asked (Linux 5.16, Documentation/arch/x86/xstate.rst): for
 * the whole process, with the threads that it has. It is asked each time, since that costs no more than remembering. */
static bool may_use_tiles(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  const uint64_t TILES = 1u << 17 | 1u << 18; /* their configuration and their data */
  return (saved_registers() & TILES) == TILES && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static void detect(bool have[NUM_ISAS]) {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx))
    return;
  const unsigned FMA = 1u << 12, OSXSAVE = 1u << 27, AVX = 1u << 28, F16C = 1u << 29;
  if ((ecx & (FMA | OSXSAVE | AVX | F16C)) != (FMA | OSXSAVE | AVX | F16C))
    return;
  const uint64_t YMM = 0x6, ZMM = 0xe6; /* SSE and AVX state; also opmask, upper halves and registers 16-31 */
  uint64_t saved = saved_registers();
  if ((saved & YMM) != YMM || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
    return;
  have[AVX2] = ebx >> 5 & 1;
  const unsigned F = 1u << 16, DQ = 1u << 17, CD = 1u << 28, BW = 1u << 30, VL = 1u << 31;
  have[AVX512] = have[AVX2] && (ebx & (F | DQ | CD | BW | VL)) == (F | DQ | CD | BW | VL) && (saved & ZMM) == ZMM;
  const unsigned TILE_BF16 = 1u << 22, TILE = 1u << 24;
  bool has_tiles = (edx & (TILE_BF16 | TILE)) == (TILE_BF16 | TILE);
  if (have[AVX512] && eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx))
    have[AVX512_BF16] = eax >> 5 & 1;
  have[AVX512_AMX] = have[AVX512_BF16] && has_tiles && may_use_tiles();
}

static void read_model(char model[FA_CPU_MODEL_LENGTH]) {
  unsigned brand[12] = {0};
  for (unsigned i = 0; i < 3; i++)
    if (!__get_cpuid(0x80000002u + i, &brand[4 * i], &brand[4 * i + 1], &brand[4 * i + 2], &brand[4 * i + 3]))
      return;
  memcpy(model, brand, sizeof brand);
  model[sizeof brand] = 0;
}

#elif defined(__aarch64__)

static void detect(bool have[NUM_ISAS]) { have[NEON] = true; } /* part of the architecture */

/* There is no brand string; implementer and part number tell the cores apart. */
static void read_model(char model[FA_CPU_MODEL_LENGTH]) {
  FILE *file = fopen("/proc/cpuinfo", "re");
  char line[256], implementer[32] = "?", part[32] = "?";
  while (file && fgets(line, sizeof line, file)) {
    sscanf(line, "CPU implementer : %31s", implementer);
    sscanf(line, "CPU part : %31s", part);
  }
  if (file)
    fclose(file);
  snprintf(model, FA_CPU_MODEL_LENGTH, "ARM implementer %s part %s", implementer, part);
}

#else
#error "the CPU target is for x86-64 and aarch64"
#endif

void fa_cpu_model(char model[FA_CPU_MODEL_LENGTH]) {
  char text[FA_CPU_MODEL_LENGTH] = "";
  read_model(text);
  char *out = model;
  for (const char *in = text; *in; in++) { /* brand strings are padded with blanks */
    bool blank = *in == ' ' && (out == model || out[-1] == ' ');
    if (!blank)
      *out++ = *in;
  }
  while (out > model && out[-1] == ' ')
    out--;
  *out = 0;
  if (!*model)
    strcpy(model, "unknown CPU");
}

void fa_cpu_list_isas(char *text, size_t size) {
  bool have[NUM_ISAS] = {false};
  detect(have);
  text[0] = 0;
  for (int i = 0; i < NUM_ISAS; i++)
    if (have[i])
      fa_append(text, size, "%s%s", *text ? " " : "", isas[i]);
}

fa_status fa_cpu_isa(const char **isa, char *message) {
  bool have[NUM_ISAS] = {false};
  detect(have);
  const char *forced = getenv("FLASH_ATTENTION_CPU_ISA");
  char all[64];
  fa_cpu_list_isas(all, sizeof all);
  for (int i = 0; i < NUM_ISAS; i++) {
    bool wanted = !forced || !*forced || strcmp(forced, isas[i]) == 0;
    if (wanted && have[i]) {
      *isa = isas[i];
      return FA_OK;
    }
  }
  if (!*all)
    return fa_fail(FA_UNSUPPORTED, message, "this CPU lacks AVX2, FMA or F16C; kernels need all three");
  return fa_fail(FA_INVALID_VALUE, message,
                 "FLASH_ATTENTION_CPU_ISA is '%s'; on this machine it must be one of: %s (or unset for the first)",
                 forced, all);
}

const char *fa_cpu_lower_isa(const char *isa) {
  for (int i = AVX512_AMX; i < AVX2; i++)
    if (strcmp(isa, isas[i]) == 0)
      return isas[i + 1];
  return NULL;
}
