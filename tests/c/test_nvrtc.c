/*
 * NVRTC: where it is looked for, what it is asked for, and what comes of that. No GPU is needed; without NVRTC the
 * tests that compile are skipped.
 */
#define _GNU_SOURCE
#include "runtime/cuda.h"
#include "runtime/nvrtc.h"
#include "runtime/runtime.h"
#include "tests/c/runtime_help.h"

#include <dlfcn.h>

/* --- architectures */

static const int NVRTC_13_2[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};
static const int NVRTC_12_8[] = {50, 52, 75, 80, 86, 87, 89, 90, 100, 101, 120};

static void check_choice(const char *target, const int *supported, int count, const char *expected, bool is_ptx) {
  fa_cuda_choice choice;
  char message[FA_MESSAGE_SIZE] = "";
  CHECKF(fa_cuda_choose_arch(target, supported, count, &choice, message) == FA_OK, "%s: %s", target, message);
  CHECK_TEXT(choice.name, expected);
  CHECK(choice.is_ptx == is_ptx);
}

static void test_choice(void) {
  check_choice("cuda:sm_90", NVRTC_13_2, 12, "sm_90", false);
  check_choice("cuda:sm_90a", NVRTC_13_2, 12, "sm_90a", false);
  check_choice("cuda:sm_100f", NVRTC_13_2, 12, "sm_100f", false);
  check_choice("cuda:sm_80", NVRTC_12_8, 11, "sm_80", false);
  /* The same major and a lower minor. */
  check_choice("cuda:sm_103", NVRTC_12_8, 11, "sm_100", false);
  check_choice("cuda:sm_121", NVRTC_12_8, 11, "sm_120", false);
  /* A newer major: PTX, which the driver compiles. */
  check_choice("cuda:sm_110", NVRTC_12_8, 11, "compute_100", true);
  check_choice("cuda:sm_101", NVRTC_12_8, 11, "sm_101", false);
  check_choice("cuda:sm_101", NVRTC_13_2, 12, "compute_100", true);
  check_choice("cuda:sm_89", (const int[]){80, 86, 87}, 3, "sm_86", false); /* 87 is a Tegra */
  check_choice("cuda:sm_130", NVRTC_13_2, 12, "compute_121", true);
  fa_cuda_choice choice;
  char message[FA_MESSAGE_SIZE];
  static const char *const unsupported[] = {"cuda:sm_103a", "cuda:sm_130a", "cuda:sm_40"};
  for (int i = 0; i < 3; i++) {
    CHECK_NUMBER(fa_cuda_choose_arch(unsupported[i], NVRTC_12_8, 11, &choice, message), FA_UNSUPPORTED);
    CHECK(strstr(message, unsupported[i]) != NULL && strstr(message, "knows sm_50, sm_52, sm_75, sm_80") != NULL);
  }
  static const char *const wrong[] = {"cuda:sm_", "cuda:90", "cpu:avx2", "cuda:sm_90x", "cuda:sm_90aa", "cuda:sm_9"};
  for (int i = 0; i < 6; i++)
    CHECK_NUMBER(fa_cuda_choose_arch(wrong[i], NVRTC_12_8, 11, &choice, message), FA_INVALID_VALUE);
}

/* --- the log */

static void test_usage(void) {
  static const char log[] = "ptxas info    : 0 bytes gmem\n"
                            "ptxas info    : Compiling entry function 'delta' for 'sm_90'\n"
                            "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
                            "ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]\n"
                            "ptxas info    : Compiling entry function 'main' for 'sm_90'\n"
                            "    72 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads\n"
                            "ptxas info    : Used 255 registers, used 1 barriers, 512 bytes smem\n";
  fa_compiled compiled = {0};
  fa_cuda_read_usage(log, &compiled);
  CHECK_NUMBER(compiled.registers, 255);
  CHECK_NUMBER(compiled.spill_bytes, 64);
  CHECK_NUMBER(compiled.shared_bytes, 1024);
  compiled = (fa_compiled){0};
  fa_cuda_read_usage("", &compiled);
  fa_cuda_read_usage(NULL, &compiled);
  CHECK_NUMBER(compiled.registers, 0);
}

/* --- where it is looked for */

static void make_file(const char *name) {
  char command[2 * PATH_MAX];
  snprintf(command, sizeof command, "mkdir -p \"$(dirname '%s/%s')\" && : > '%s/%s'", help_dir, name, help_dir, name);
  CHECK(system(command) == 0);
}

static void test_files(void) {
  static const char *const there[] = {"site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
                                      "site/nvidia/cu13/lib/libnvrtc.so.13",
                                      "site/nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
                                      "site/nvidia/cu14/lib/libnvrtc.so.14",
                                      "user/nvidia/cu13/lib/libnvrtc.so.13",
                                      "cuda/lib64/libnvrtc.so",
                                      "cuda/lib64/libnvrtc.so.9.2",
                                      "cuda/lib64/libnvrtc.so.13",
                                      "cuda/lib64/libnvrtc.so.13.0.88",
                                      "cuda/lib64/libnvrtc.alt.so.13",
                                      "conda/lib/libnvrtc.so.12"};
  /* Packages before homes, in their order; below one, the newest first. */
  static const char *const expected[] = {
      "user/nvidia/cu13/lib/libnvrtc.so.13", "site/nvidia/cu14/lib/libnvrtc.so.14",
      "site/nvidia/cu13/lib/libnvrtc.so.13", "site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
      "cuda/lib64/libnvrtc.so.13.0.88",      "cuda/lib64/libnvrtc.so.13",
      "cuda/lib64/libnvrtc.so.9.2",          "conda/lib/libnvrtc.so.12"};
  enum { EXPECTED = sizeof expected / sizeof expected[0] };
  for (size_t i = 0; i < sizeof there / sizeof there[0]; i++)
    make_file(there[i]);
  char packages[4 * PATH_MAX], cuda[PATH_MAX], conda[PATH_MAX], path[PATH_MAX], *files[FA_MAX_NVRTC_FILES];
  snprintf(packages, sizeof packages, "%s/empty::%s/user:%s/site:", help_dir, help_dir, help_dir);
  snprintf(cuda, sizeof cuda, "%s/cuda", help_dir);
  snprintf(conda, sizeof conda, "%s/conda", help_dir);
  int count = fa_nvrtc_list_files(packages, (const char *const[2]){cuda, conda}, files);
  CHECK_NUMBER(count, EXPECTED);
  for (int i = 0; i < count; i++) {
    snprintf(path, sizeof path, "%s/%s", help_dir, i < EXPECTED ? expected[i] : "");
    CHECK_TEXT(files[i], path);
    free(files[i]);
  }
  CHECK_NUMBER(fa_nvrtc_list_files(NULL, (const char *const[2]){NULL, ""}, files), 0);
}

/* Folders are called what they are called, and are no patterns. */
static void test_files_of_odd_folders(void) {
  static const char *const names[] = {"odd [x86] *?", "odd \\[a]", "odd [", "odd \\"};
  char folder[PATH_MAX], made[PATH_MAX], expected[PATH_MAX + 64], *files[FA_MAX_NVRTC_FILES];
  make_file("odd x ab/lib/libnvrtc.so.12"); /* what the first of these would match as a pattern */
  for (int i = 0; i < 4; i++) {
    snprintf(made, sizeof made, "%s/nvidia/cu13/lib/libnvrtc.so.13", names[i]);
    make_file(made);
    snprintf(made, sizeof made, "%s/lib/libnvrtc.so.12", names[i]);
    make_file(made);
    snprintf(folder, sizeof folder, "%s/%s", help_dir, names[i]);
    int count = fa_nvrtc_list_files(folder, (const char *const[2]){folder, NULL}, files);
    CHECK_NUMBER(count, 2);
    for (int j = 0; j < count; j++) {
      snprintf(expected, sizeof expected, "%s/%s", folder, j ? "lib/libnvrtc.so.12" : "nvidia/cu13/lib/libnvrtc.so.13");
      CHECK_TEXT(files[j], expected);
      free(files[j]);
    }
  }
  /* One that is too long is passed over. */
  static char longest[2 * PATH_MAX];
  memset(longest, '[', sizeof longest - 1);
  CHECK_NUMBER(fa_nvrtc_list_files(longest, (const char *const[2]){longest, NULL}, files), 0);
}

/* Files that are no library are passed over, and said where nothing else is found. */
static void in_child_damaged(void *unused) {
  (void)unused;
  char home[PATH_MAX], message[FA_MESSAGE_SIZE] = "", identity[FA_COMPILER_LENGTH] = "";
  make_file("damaged/lib64/libnvrtc.so.13");
  snprintf(home, sizeof home, "%s/damaged", help_dir);
  setenv("CUDA_HOME", home, 1);
  fa_status status = fa_cuda_compiler_identity(identity, message);
  if (status == FA_OK) {
    CHECKF(strncmp(identity, "NVRTC ", 6) == 0, "%s", identity);
  } else {
    CHECK_NUMBER(status, FA_NO_COMPILER);
    CHECKF(strstr(message, "pip install nvidia-cuda-nvrtc") != NULL && strstr(message, home) != NULL, "%s", message);
  }
}
static void test_damaged(void) { IN_CHILD(in_child_damaged, NULL); }

/* --- compiling */

static bool have_nvrtc(void) {
  const fa_nvrtc *nvrtc = NULL;
  char message[FA_MESSAGE_SIZE];
  return fa_nvrtc_get(&nvrtc, message) == FA_OK;
}

static fa_status compile(const char *target, const char *source, const char *options, fa_compiled *compiled,
                         char *message) {
  fa_problem problem = {.op = FA_FORWARD};
  fa_kernel kernel = {.source = (char *)source, .source_length = strlen(source)};
  snprintf(problem.target, sizeof problem.target, "%s", target);
  snprintf(kernel.compile_options, sizeof kernel.compile_options, "%s", options);
  return fa_cuda_compile(&problem, &kernel, compiled, message);
}

static void check_identity(void) {
  char identity[FA_COMPILER_LENGTH] = "", message[FA_MESSAGE_SIZE];
  int major = 0, minor = 0, build = -1;
  CHECK(fa_cuda_compiler_identity(identity, message) == FA_OK);
  CHECKF(sscanf(identity, "NVRTC %d.%d.%d", &major, &minor, &build) == 3 && major >= 11, "%s", identity);
  CHECK(strchr(identity, '/') == NULL); /* it is part of a key that machines share */
}

static void check_good(void) {
  static const char source[] = "extern \"C\" __global__ void forward(float *x) {\n"
                               "  __shared__ float part[256];\n"
                               "  part[threadIdx.x] = x[threadIdx.x];\n"
                               "  __syncthreads();\n"
                               "  x[threadIdx.x] = part[255 - threadIdx.x];\n"
                               "}\n";
  fa_compiled compiled;
  char message[FA_MESSAGE_SIZE] = "";
  CHECKF(compile("cuda:sm_80", source, "-std=c++17  --use_fast_math", &compiled, message) == FA_OK, "%s", message);
  CHECK(compiled.image_length > 64 && memcmp(compiled.image, "\177ELF", 4) == 0);
  CHECK(compiled.registers > 0 && compiled.registers < 64);
  CHECK_NUMBER(compiled.shared_bytes, 1024);
  CHECK_NUMBER(compiled.spill_bytes, 0);
  CHECK(strstr(compiled.log, "Compiling entry function 'forward' for 'sm_80'") != NULL);
  CHECK_TEXT(compiled.command, "nvrtc --gpu-architecture=sm_80 --ptxas-options=-v -std=c++17  --use_fast_math");
  free(compiled.image), free(compiled.log);
  /* A GPU newer than all: PTX with a 0 at its end, as the driver wants it. */
  CHECKF(compile("cuda:sm_990", source, "", &compiled, message) == FA_OK, "%s", message);
  CHECK(compiled.image_length > 0 && strstr(compiled.image, ".entry forward") != NULL &&
        ((char *)compiled.image)[compiled.image_length - 1] == 0);
  free(compiled.image), free(compiled.log);
}

static void check_bad(void) {
  static const char source[] = "/* head */\n"
                               "extern \"C\" __global__ void good(float *x) { *x = 1; }\n"
                               "#line 7 \"cuda/forward.cu\"\n"
                               "extern \"C\" __global__ void forward(float *x) {\n"
                               "  int unused;\n"
                               "  *x = nonsense;\n"
                               "}\n";
  fa_compiled compiled;
  char message[FA_MESSAGE_SIZE] = "";
  CHECK_NUMBER(compile("cuda:sm_90", source, "", &compiled, message), FA_FAILED);
  CHECK(compiled.image == NULL);
  static const char *const said[] = {"compiling a forward kernel for cuda:sm_90 with NVRTC ",
                                     "--gpu-architecture=sm_90",
                                     "cuda/forward.cu(9): error: identifier \"nonsense\" is undefined",
                                     "generated source around cuda/forward.cu:9:\n",
                                     ">    6 |   *x = nonsense;\n",
                                     "     5 |   int unused;\n"};
  for (int i = 0; i < 6; i++)
    CHECKF(strstr(message, said[i]) != NULL, "'%s' is not in: %s", said[i], message);
  free(compiled.log);
  CHECK_NUMBER(compile("cuda:sm_90", source, "--no-such-option", &compiled, message), FA_FAILED);
  CHECKF(strstr(message, "--no-such-option") != NULL, "%s", message);
  free(compiled.log);
  CHECK_NUMBER(compile("cuda:sm_30", source, "", &compiled, message), FA_UNSUPPORTED);
}

static void in_child_compile(void *unused) {
  (void)unused;
  check_identity();
  check_good();
  check_bad();
}
static void in_child_ask(void *found) { *(bool *)found = have_nvrtc(); }
static void test_compile(void) {
  bool *found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  IN_CHILD(in_child_ask, found);
  if (*found)
    IN_CHILD(in_child_compile, NULL);
  else
    SKIP("there is no NVRTC here");
}

/* --- logs that NVRTC seldom writes, by a fake one (fake_nvrtc.c) */

/* The message for this log begins, behind the command, with `shown`. */
static void check_explained(const char **log, const char *text, const char *shown) {
  fa_compiled compiled;
  char message[FA_MESSAGE_SIZE] = "", expected[512];
  *log = text;
  CHECK_NUMBER(compile("cuda:sm_80", "void f();\n", "", &compiled, message), FA_FAILED);
  snprintf(expected, sizeof expected, "NVRTC_ERROR_COMPILATION: %.200s\n%.200s", compiled.command, shown);
  CHECKF(strstr(message, expected) != NULL, "'%s' is not in: %s", expected, message);
  free(compiled.log);
}

static char fake_path[PATH_MAX];
static void *open_fake(void) {
  ssize_t length = readlink("/proc/self/exe", fake_path, sizeof fake_path - 64);
  fake_path[length > 0 ? length : 0] = 0;
  char *slash = strrchr(fake_path, '/');
  strcpy(slash ? slash + 1 : fake_path, "libnvrtc.so"); /* beside this program */
  void *fake = dlopen(fake_path, RTLD_NOW | RTLD_LOCAL);
  CHECKF(fake != NULL, "%s", fake_path);
  return fake;
}

static void in_child_explain(void *unused) {
  (void)unused;
  void *fake = open_fake();
  const char **log = fake ? (const char **)dlsym(fake, "fake_nvrtc_log") : NULL;
  if (!log)
    return;
  static const char last[] = "nvrtc: error: cannot write a temporary file";
  char many[4096] = "";
  check_explained(log, "", "");
  check_explained(log, last, last); /* the only line, and no end of line */
  check_explained(log, "nothing to be seen", "nothing to be seen");
  for (int i = 0; i < 40; i++)
    fa_append(many, sizeof many, "kernel.cu(%d): warning #177-D: variable was never used\n", i);
  fa_append(many, sizeof many, "%s", last);
  check_explained(log, many, last); /* behind more warnings than a message has room for */
  fa_append(many, sizeof many, "\nkernel.cu(1): more");
  check_explained(log, many, last);
}
static void test_explain(void) { IN_CHILD(in_child_explain, NULL); }

/* One that compiles nothing is passed over, as one without its builtins. */
static bool break_fake(void) {
  void *fake = open_fake();
  int *broken = fake ? (int *)dlsym(fake, "fake_nvrtc_broken") : NULL;
  const char **log = fake ? (const char **)dlsym(fake, "fake_nvrtc_log") : NULL;
  if (!broken || !log)
    return false;
  *broken = 1;
  *log = "nvrtc: error: failed to open libnvrtc-builtins.so.13.0.";
  return true;
}
static void in_child_broken(void *unused) {
  (void)unused;
  char command[3 * PATH_MAX], home[PATH_MAX], expected[PATH_MAX + 64], message[FA_MESSAGE_SIZE] = "";
  const fa_nvrtc *nvrtc = NULL;
  if (!CHECK(break_fake()))
    return;
  make_file("whole/lib64/libnvrtc.so.13");
  snprintf(home, sizeof home, "%s/whole", help_dir);
  snprintf(command, sizeof command, "cp '%s' '%s/lib64/libnvrtc.so.13'", fake_path, home);
  CHECK(system(command) == 0);
  setenv("CUDA_HOME", home, 1);
  CHECKF(fa_nvrtc_get(&nvrtc, message) == FA_OK, "%s", message);
  snprintf(expected, sizeof expected, "%s/lib64/libnvrtc.so.13", home);
  CHECK_TEXT(nvrtc ? nvrtc->path : "", expected);
  CHECK_TEXT(nvrtc ? nvrtc->version : "", "13.0.1");
}
static void in_child_only_broken(void *unused) {
  (void)unused;
  char message[FA_MESSAGE_SIZE] = "";
  const fa_nvrtc *nvrtc = NULL;
  unsetenv("CUDA_HOME"), unsetenv("CUDA_PATH");
  if (CHECK(break_fake()) && fa_nvrtc_get(&nvrtc, message) == FA_OK) /* the loader's, which is another */
    CHECK(strcmp(nvrtc->path, fake_path) != 0);
  else
    CHECKF(strstr(message, "libnvrtc.so compiles nothing: NVRTC_ERROR_COMPILATION: nvrtc: error: failed to open "
                           "libnvrtc-builtins.so.13.0.)") != NULL,
           "%s", message);
}
static void test_broken(void) {
  IN_CHILD(in_child_broken, NULL);
  IN_CHILD(in_child_only_broken, NULL);
}

int main(void) {
  help_begin();
  RUN(test_choice);
  RUN(test_usage);
  RUN(test_files);
  RUN(test_files_of_odd_folders);
  RUN(test_damaged);
  RUN(test_compile);
  RUN(test_explain);
  RUN(test_broken);
  help_end();
  return check_summary();
}
