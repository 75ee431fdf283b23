/*
 * Runtime, the way from source to loaded code: which compiler, how it is run, what happens when there is
 * none, when it lacks an instruction set, when it makes nonsense; and which instruction set is chosen.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <glob.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "tests/c/runtime_help.h"

/* --- which compiler */

static void check_failure(fa_status expected, const char *first, const char *second) {
  static help_case self;
  char message[FA_MESSAGE_SIZE] = "";
  help_make_case(&self, false);
  CHECK_NUMBER(fa_execute(&self.call, fa_default_host(), message), expected);
  CHECKF(strstr(message, first) && strstr(message, second), "message: %s", message);
}

static void in_child_no_compiler(void *unused) {
  (void)unused;
  unsetenv("CC");
  setenv("PATH", "/nonexistent", 1);
  check_failure(FA_NO_COMPILER, "none of cc, gcc and clang is on PATH", "apt-get install gcc");
}

static void in_child_wrong_cc(void *unused) {
  (void)unused;
  setenv("CC", "no-such-compiler -O2", 1);
  check_failure(FA_NO_COMPILER, "CC is 'no-such-compiler -O2', but there is no program 'no-such-compiler'", "install");
}

static void in_child_false(void *unused) {
  (void)unused;
  setenv("CC", "/bin/false", 1);
  check_failure(FA_NO_COMPILER, "/bin/false", "install gcc or clang");
}

static void test_no_compiler(void) {
  help_new_cache("none");
  IN_CHILD(in_child_no_compiler, NULL);
  IN_CHILD(in_child_wrong_cc, NULL);
  IN_CHILD(in_child_false, NULL);
}

static void in_child_arguments(void *unused) {
  (void)unused;
  char cc[2 * PATH_MAX], path[PATH_MAX];
  snprintf(path, sizeof path, "%s", help_compiler());
  snprintf(cc, sizeof cc, "'%s' -DANYTHING='a b'", path);
  setenv("CC", cc, 1);
  setenv("CPATH", "/nonexistent", 1);
  setenv("DEPENDENCIES_OUTPUT", "/nonexistent/file", 1); /* gcc would write there, or fail to */
  help_run(false);
  char *info = NULL;
  CHECK_NUMBER(fa_info(&info), FA_OK);
  CHECKF(info && strstr(info, path), "%s", info);
  fa_free(info);
}

static void test_compiler_with_arguments(void) {
  help_new_cache("arguments");
  IN_CHILD(in_child_arguments, NULL);
}

/* --- a compiler that lacks an instruction set */

static void in_child_target(void *argument) {
  char message[FA_MESSAGE_SIZE], target[FA_TARGET_LENGTH] = "";
  CHECK_NUMBER(fa_device_target(FA_DEVICE_CPU, 0, target, message), FA_OK);
  atomic_store(&((help_shared *)argument)->value[0], strcmp(target, "cpu:avx512") == 0        ? 1
                                                     : strcmp(target, "cpu:avx512_bf16") == 0 ? 2
                                                     : strcmp(target, "cpu:avx512_amx") == 0  ? 3
                                                                                              : 0);
}

static void in_child_lacks_avx512(void *unused) {
  (void)unused;
  char text[PATH_MAX + 256];
  snprintf(text, sizeof text,
           "for a; do case $a in -mavx512*) echo \"cc: error: unrecognized option $a\" >&2; exit 1;; esac; done\n"
           "exec %s \"$@\"\n",
           help_compiler());
  setenv("CC", help_script("old_cc", text), 1);
  help_run(false);
  char *report = NULL, message[FA_MESSAGE_SIZE] = "";
  CHECK_NUMBER(fa_cache_report(true, &report, message), FA_OK);
  CHECKF(report && strstr(report, "cpu:avx2"), "%s", report);
  fa_free(report);
}

static void in_child_warm(void *unused) {
  (void)unused;
  setenv("CC", "/bin/false", 1);
  help_run(false);
}

static void test_compiler_steps_down(void) {
  help_shared *shared = help_share();
  IN_CHILD(in_child_target, shared);
  if (shared->value[0] == 0) {
    SKIP("this machine has no AVX-512 to step down from");
    return;
  }
  help_new_cache("lacks");
  IN_CHILD(in_child_lacks_avx512, NULL);
  IN_CHILD(in_child_warm, NULL); /* the record says which target it came down to */
}

static void in_child_lacks_everything(void *unused) {
  (void)unused;
  char text[PATH_MAX + 256];
  snprintf(text, sizeof text,
           "case $1 in --version) exec %s --version;; esac\necho 'cc: error: this one compiles nothing'; exit 1\n",
           help_compiler());
  setenv("CC", help_script("useless_cc", text), 1);
  check_failure(FA_NO_COMPILER, "does not build for cpu:", "this one compiles nothing");
}

static void test_compiler_lacks_everything(void) {
  help_new_cache("useless");
  IN_CHILD(in_child_lacks_everything, NULL);
}

/* --- what a compiler makes may not load: not now, and not from the cache of an unlike machine */

static void in_child_unloadable(void *unused) {
  (void)unused;
  char text[PATH_MAX + 512];
  snprintf(text, sizeof text,
           "case $1 in --version) exec %s --version;; esac\n"
           "while [ $# -gt 0 ]; do if [ \"$1\" = -o ]; then printf '\\177ELF nonsense' > \"$2\"; fi; shift; done\n",
           help_compiler());
  setenv("CC", help_script("nonsense_cc", text), 1);
  check_failure(FA_FAILED, "does not load", "bytes");
}

static void in_child_after_unloadable(void *unused) {
  (void)unused;
  setenv("CC", help_compiler(), 1); /* the same identity, so the same keys: finds the nonsense in the cache */
  help_run(false);
  fa_statistics statistics;
  fa_get_statistics(&statistics);
  CHECK_NUMBER(statistics.compilations, 1);
}

static void test_load_failure_is_a_miss(void) {
  help_new_cache("unloadable");
  IN_CHILD(in_child_unloadable, NULL);
  IN_CHILD(in_child_after_unloadable, NULL);
  IN_CHILD(in_child_warm, NULL);
}

/* --- what loads may still be wrong: it is run on generated inputs before any caller's */

static void in_child_wrong_results(void *unused) {
  (void)unused;
  char text[3 * PATH_MAX];
  snprintf(text, sizeof text,
           "case $1 in --version) exec %s --version;; esac\n"
           "for source; do :; done\n" /* the last argument */
           "echo 'void forward(void) {}' > $source\nexec %s \"$@\"\n",
           help_compiler(), help_compiler());
  setenv("CC", help_script("wrong_cc", text), 1);
  check_failure(FA_FAILED, "output[head 0, row 0]", "not written");
}

static void test_wrong_results(void) {
  help_new_cache("wrong");
  IN_CHILD(in_child_wrong_results, NULL);
}

/* --- the loader: the same descriptor number again, and another kernel behind it */

static void in_child_many_loads(void *unused) {
  (void)unused;
  static const char source[] = "int value(void) { return %d; }\n";
  for (int i = 0; i < 5; i++) {
    char text[128], message[FA_MESSAGE_SIZE] = "";
    snprintf(text, sizeof text, source, i);
    fa_problem problem = {.op = FA_FORWARD, .target = "cpu:test"};
    fa_kernel kernel = {.source = text, .source_length = strlen(text), .num_phases = 1, .phase = {{.entry = "value"}}};
    fa_compiled compiled;
    fa_loaded loaded;
    CHECKF(fa_cpu_compile(&problem, &kernel, &compiled, message) == FA_OK, "%s", message);
    CHECKF(fa_cpu_load(NULL, &kernel, compiled.image, compiled.image_length, &loaded, message) == FA_OK, "%s", message);
    int (*value)(void) = NULL;
    memcpy(&value, &loaded.entry[0], sizeof value);
    CHECK_NUMBER(value(), i); /* all stay loaded */
    snprintf(kernel.phase[0].entry, sizeof kernel.phase[0].entry, "missing");
    CHECK_NUMBER(fa_cpu_load(NULL, &kernel, compiled.image, compiled.image_length, &loaded, message), FA_FAILED);
    CHECK(strstr(message, "missing") != NULL);
    fa_free(compiled.image);
    fa_free(compiled.log);
  }
}

/* Old kernels and strict sandboxes have no memfd: then a private file is loaded, and is gone afterwards. */
static void in_child_without_memfd(void *unused) {
  (void)unused;
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
  CHECK(memfd_create("test", 0) == -1);
  in_child_many_loads(NULL);
  char pattern[PATH_MAX];
  glob_t left;
  snprintf(pattern, sizeof pattern, "%s/flash_attention.*", help_dir);
  CHECK(glob(pattern, 0, NULL, &left) == GLOB_NOMATCH);
}

static void test_many_loads(void) {
  IN_CHILD(in_child_many_loads, NULL);
  if (help_is_emulated())
    SKIP("the emulator has no seccomp");
  else
    IN_CHILD(in_child_without_memfd, NULL);
}

/* --- a template with a mistake: the log, and the generated lines around it */

static void in_child_compile_error(void *unused) {
  (void)unused;
  char source[] = "int first;\n#line 10 \"cpu/forward.c\"\nint ten;\nint eleven = nothing;\nint twelve;\n";
  fa_problem problem = {.op = FA_FORWARD, .target = "cpu:test"};
  fa_kernel kernel = {.source = source, .source_length = strlen(source)};
  fa_compiled compiled;
  char message[FA_MESSAGE_SIZE] = "";
  CHECK_NUMBER(fa_cpu_compile(&problem, &kernel, &compiled, message), FA_FAILED);
  CHECKF(strstr(message, "cpu/forward.c:11:") && strstr(message, ">    4 | int eleven = nothing;"), "%s", message);
  CHECK(compiled.log && strstr(compiled.log, "nothing"));
  fa_free(compiled.log);
}

static void test_compile_error(void) {
  IN_CHILD(in_child_compile_error, NULL);
  char text[1000] = "";
  fa_quote_source("a\n#line 3 \"k.cu\"\nb\nc\n", "k.cu(4): error: no", text, sizeof text);
  CHECKF(strstr(text, ">    4 | c") != NULL, "%s", text);
  text[0] = 0;
  fa_quote_source("a\n", "", text, sizeof text);
  fa_quote_source("a\n", "cc: error: no such file\n\n", text, sizeof text);
  fa_quote_source("a\n", "x:99:1: error: no such line", text, sizeof text);
  CHECK_TEXT(text, "");
  /* Warnings that speak of errors, and the lines of the source that they show. */
  static const char log[] = "k.cu(3): warning #1105-D: #warning directive: this error: to be expected\n"
                            "  #warning this error: to be expected\n"
                            "k.c:3:2: warning: no error [-Wcpp]\n"
                            "k.cu(3): warning #177-D: variable \"error\" was declared but never referenced\n"
                            "  float error(1) = a ? b : error;\n"
                            "k.cu(4): %s: no\n";
  static const char *const said[] = {"error", "catastrophic error", "fatal error"};
  for (int i = 0; i < 3; i++) {
    char lines[1000];
    snprintf(lines, sizeof lines, log, said[i]);
    CHECKF(strncmp(fa_first_error(lines), "k.cu(4): ", 9) == 0, "%s", fa_first_error(lines));
    text[0] = 0;
    fa_quote_source("a\n#line 3 \"k.cu\"\nb\nc\n", lines, text, sizeof text);
    CHECKF(strstr(text, ">    4 | c") != NULL, "%s", text);
  }
  CHECK_TEXT(fa_first_error("k.cu(1): warning: x\nptxas error   : too much data"), "ptxas error   : too much data");
  CHECK_TEXT(fa_first_error("k.cu(1): warning: no error\n"), "k.cu(1): warning: no error\n");
}

/* --- instruction sets */

static void in_child_forced(void *isa) {
  char message[FA_MESSAGE_SIZE] = "", target[FA_TARGET_LENGTH] = "", expected[FA_TARGET_LENGTH];
  setenv("FLASH_ATTENTION_CPU_ISA", isa, 1);
  snprintf(expected, sizeof expected, "cpu:%s", (char *)isa);
  CHECKF(fa_device_target(FA_DEVICE_CPU, 0, target, message) == FA_OK, "%s", message);
  CHECK_TEXT(target, expected);
  help_run(true);
  help_run(false);
}

static void in_child_forced_wrong(void *unused) {
  (void)unused;
  setenv("FLASH_ATTENTION_CPU_ISA", "sse9", 1);
  check_failure(FA_INVALID_VALUE, "FLASH_ATTENTION_CPU_ISA is 'sse9'", "must be one of");
}

static void test_instruction_sets(void) {
  char isas[64];
  fa_cpu_list_isas(isas, sizeof isas);
  printf("instruction sets here: %s\n", isas);
  CHECK(isas[0] != 0);
  help_new_cache("isa");
  for (char *isa = strtok(isas, " "); isa; isa = strtok(NULL, " "))
    IN_CHILD(in_child_forced, isa);
  IN_CHILD(in_child_forced_wrong, NULL);
}

int main(void) {
  help_begin();
  setenv("FLASH_ATTENTION_AUTOTUNE", "0", 1); /* one candidate is enough here */
  RUN(test_no_compiler);
  RUN(test_compiler_with_arguments);
  RUN(test_compiler_steps_down);
  RUN(test_compiler_lacks_everything);
  RUN(test_load_failure_is_a_miss);
  RUN(test_wrong_results);
  RUN(test_many_loads);
  RUN(test_compile_error);
  RUN(test_instruction_sets);
  help_end();
  return check_summary();
}
