/*
 * flash_attention, the C API: exact attention whose kernels are generated, compiled, tuned and cached on
 * this machine. Needs neither Python nor PyTorch; memory and threads reach it as callbacks.
 *
 *     fa_call call = {.op = FA_FORWARD, .dtype = FA_FP32, .device_type = FA_DEVICE_CPU, .softmax_scale = 0.125,
 *                     .shape = {batch, heads, heads, seqlen_q, seqlen_k}, .head_dim = 64, .head_dim_v = 64, ...};
 *     char message[FA_MESSAGE_SIZE];
 *     if (fa_execute(&call, fa_default_host(), message) != FA_OK) fprintf(stderr, "%s\n", message);
 *
 * The first call of a problem and shape bucket tunes, compiles and stores; later calls, and later processes,
 * launch. Any thread may call at any time. FLASH_ATTENTION_* variables and $CC are read once, at first use.
 * examples/plain_c.c is a whole program, for the CPU and for CUDA.
 */
#ifndef FLASH_ATTENTION_H
#define FLASH_ATTENTION_H

#include "generator/problem.h"
#include "templates/common/params.h"

#define FA_API __attribute__((visibility("default")))

enum { FA_MESSAGE_SIZE = 4096 };

typedef enum fa_status {
  FA_OK = 0,
  FA_INVALID_VALUE = 1, /* an argument has a value that it must not have (ValueError) */
  FA_INVALID_TYPE = 2,  /* ... a type (TypeError) */
  FA_UNSUPPORTED = 3,   /* legal, but not supported yet (NotImplementedError) */
  FA_OUT_OF_MEMORY = 4, /* the host's allocate returned NULL, and the device works */
  FA_NO_COMPILER = 5,   /* nothing here compiles the generated source */
  FA_FAILED = 6         /* anything else: message has the compiler's log, the driver's error, ... */
} fa_status;

typedef enum fa_device_type { FA_DEVICE_CPU = 0, FA_DEVICE_CUDA = 1 } fa_device_type;

typedef struct fa_call {
  fa_op op;
  fa_dtype dtype;
  fa_precision precision; /* REDUCED: where there is such a kernel, and lse is NULL */
  bool is_causal;
  bool deterministic;    /* the same call must give the same bits, even if that is slower; CPU kernels always do */
  bool backward_follows; /* forward: its gradients are wanted. What backward needs may be compiled meanwhile */
  double softmax_scale;  /* any value that is finite in float32 */
  fa_device_type device_type;
  int device_index;
  void *stream; /* CUDA stream; NULL on the CPU */
  fa_shape shape;
  int head_dim, head_dim_v;
  /* forward: query, key, value, output are needed; lse may be NULL.
   * backward: also lse (from forward), grad_output; a grad_* whose data is NULL is not computed. */
  struct fa_tensor query, key, value, output, grad_output, grad_query, grad_key, grad_value;
  float *lse; /* (batch, heads_q, seqlen_q, 2), see templates/common/params.h */
} fa_call;

/* What runtime asks of its host. */
typedef struct fa_host {
  void *context;
  /* Memory on the call's device, aligned to 64 bytes (256 on CUDA); NULL when there is none. On CUDA it is released
   * right after the launch: it may then be used again by what comes later on the call's stream, and by nothing else. */
  void *(*allocate)(void *context, fa_device_type type, int device_index, size_t bytes);
  void (*release)(void *context, fa_device_type type, int device_index, void *memory);
  int (*num_threads)(void *context);
  /* body(i, argument) for i in 0 .. count-1, possibly at once on num_threads threads; returns when all are done. */
  void (*parallel_for)(void *context, int64_t count, void (*body)(int64_t i, void *argument), void *argument);
} fa_host;

/* malloc and a small pool of threads; on CUDA the driver's plain allocations, whose release waits for the device. They
 * are gone when a call returns: to capture calls in a graph, a host must keep what it gave them as long as the graph.
 */
FA_API const fa_host *fa_default_host(void);

/* For hosts without means of their own: copy between the process and a device, in order with `stream`, and wait. */
FA_API fa_status fa_copy_to_device(fa_device_type type, int device_index, void *stream, void *to, const void *from,
                                   size_t bytes, char *message);
FA_API fa_status fa_copy_from_device(fa_device_type type, int device_index, void *stream, void *to, const void *from,
                                     size_t bytes, char *message);

/* For hosts, after an allocation that failed: FA_OK if memory is short, else what is wrong with the device. */
FA_API fa_status fa_check_device(fa_device_type type, int device_index, char *message);

/* Run one call. `message` (FA_MESSAGE_SIZE bytes) is written only on failure. */
FA_API fa_status fa_execute(const fa_call *call, const fa_host *host, char *message);

/* End what is being compiled for calls with backward_follows, and wait for that. A process that made such calls must do
 * so before it ends by exit() or by returning from main: the compiler's library must not be taken down at work. Nothing
 * is built ahead from then on. */
FA_API void fa_stop_building(void);

/* Where the templates are. Default: "templates" beside the shared library, else what it was built with. */
FA_API fa_status fa_set_template_dir(const char *directory);
FA_API const char *fa_template_dir(void);

/* Folders, separated by colons, below which NVIDIA's Python packages may be, NVRTC among them (Python's sys.path). */
FA_API void fa_set_package_path(const char *folders);

/*
 * For the command line and for tests. Text results are malloc'ed and freed with fa_free.
 */
FA_API void fa_free(void *memory);
/* The target of a device: "cpu:avx512" here and now (obeys FLASH_ATTENTION_CPU_ISA), "cuda:sm_90a". */
FA_API fa_status fa_device_target(fa_device_type type, int device_index, char target[FA_TARGET_LENGTH], char *message);
/* Rendered source; config NULL or "" is the best guess, "k=v,..." sets some items. config_used may be NULL. */
FA_API fa_status fa_source(const fa_problem *problem, const char *config, char **source, char *config_used,
                           size_t config_used_size, char *message);
/* What one call launches, a word and its values a line: "num_splits N", "workspace_bytes N", "scratch_bytes N", then
 * for each phase in order "phase ENTRY BLOCK_SIZE SHARED_BYTES GRID". */
FA_API fa_status fa_plan_text(const fa_problem *problem, const char *config, const fa_shape *shape, char **text,
                              char *message);
/* Render and compile without the cache. */
typedef struct fa_compiled {
  void *image; /* malloc'ed: shared object or cubin; free with fa_free */
  size_t image_length;
  double seconds;
  char *log; /* malloc'ed: compiler's messages */
  /* Of a GPU's kernel: the most that one of its functions takes; 0 where that is not known. */
  int registers, spill_bytes, shared_bytes; /* for each thread; stored and loaded; static, for each block */
  char compiler[512];                       /* identity and version */
  char command[2048];                       /* how it was run */
} fa_compiled;
FA_API fa_status fa_compile(const fa_problem *problem, const char *config, fa_compiled *compiled, char *message);
/* Any template of the template directory ("cuda/matmul.cu"), with "name=value,..." as its constants: numbers where they
 * are integers, else text. And any source, compiled with these options and no others but those of every kernel. */
FA_API fa_status fa_expand(const char *name, const char *constants, char **text, char *message);
FA_API fa_status fa_compile_source(const char *target, const char *options, const char *source, fa_compiled *compiled,
                                   char *message);
/* Configs of a problem, one a line, best guess first. */
FA_API fa_status fa_list_configs(const fa_problem *problem, char **text, char *message);
/* "name: value" lines: version, template directory and digest, CPU, instruction sets, compiler, cache place and size.
 */
FA_API fa_status fa_info(char **text);
/* What happened in this process so far; tests and `bench` read it. */
typedef struct fa_statistics {
  int64_t compilations, compile_failures, tunings, cache_hits, cache_misses, kernels_loaded, launches;
  int64_t unrecorded; /* choices of which no record could be kept: the next process makes them again */
} fa_statistics;
FA_API void fa_get_statistics(fa_statistics *statistics);
/* Choose kernels as with another value of FLASH_ATTENTION_AUTOTUNE from now on, also for calls that have one, by
 * records of exactly such a search: to compare what they choose. No call may be under way. */
FA_API fa_status fa_set_autotune(const char *autotune, char *message);
/* The config of the kernel that was chosen last; "" if none was. */
FA_API void fa_last_config(char *config, size_t size);
/* The cache of this process, by path; visit as fa_cache_visit but as text lines (hex kind bytes last_used valid
 * metadata). */
FA_API fa_status fa_cache_report(bool verify, char **text, char *message);
FA_API fa_status fa_cache_remove_all(int64_t *removed, char *message);
FA_API const char *fa_cache_path(void);
/* Entries of the cache as the bytes of their files, to and from another cache (cache/cache.h: fa_cache_export,
 * fa_cache_import). `bytes` is freed with fa_free. `result` gets an fa_cache_import_result; FA_FAILED and a message
 * where the entry was refused or could not be stored. */
FA_API fa_status fa_cache_export_entry(const char *kind, const char *hex, char name[64], void **bytes, size_t *length,
                                       char *message);
FA_API fa_status fa_cache_import_entry(const char *name, const void *bytes, size_t length, bool store, int *result,
                                       char *message);

#endif
