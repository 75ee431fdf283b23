/* Damaged templates: whatever is in one, the engine ends soon with a text or a message, and under the sanitizers
 * reads and writes nothing that is not its own. The damage is random but the same on every run. */
#include "generator/generator.h"
#include "tests/c/template_help.h"

#include <stdint.h>

enum { ROUNDS = 6000, CPU_ROUNDS = 600, LENGTH = 1 << 16 };

static const char *const seeds[] = {
    "/* ${dtype} */\n//% let tile = block_m / 16\n//% for r in 0 .. tile\nint x${r}[${round_up(block_m, 32)}];\n"
    "//% if r % 2 == 0 && dtype == \"fp32\"\nint even${r};\n//% elif r == 3\nint three;\n//% else\nint odd;\n"
    "//% end\n//% end\n//% include \"other.c\"\nend ${tile}\n",
    "//% if a\n//% if !a || 8 / a > 1\n#define A \\\n//% for i in 0 .. min(a, 4)\n  f(${i}) \\\n//% end\n  g()\n//% "
    "end\n"
    "//% elif a == 0\n//% error \"a is ${a}\"\n//% end\n//% for i in 0 .. 3\n//% for j in i .. 3\n${i * 3 + j},\n//% "
    "end\n"
    "//% end\n",
    "//%# comment\r\n//% let t = \"x\"\r\n${t}${ceil_div(-a, 4)}${max(1, (2 + 3) * -4)} $ $${t}\r\n//% include "
    "\"cpu/inner.c\"\r\n"
    "//% for n in -2 .. 2\r\n//% let sq = n * n\r\n${sq} \\\r\n//% end\r\n",
};

static const char *const words[] = {
    "//% if ",
    "//% elif ",
    "//% else",
    "//% end",
    "//% for ",
    "//% include ",
    "//% let ",
    "//% error ",
    "//%#",
    "//%",
    "\"main.c\"",
    "\"other.c\"",
    "\"third.c\"",
    "\"\"",
    "\"",
    "${",
    "}",
    "(",
    ")",
    " .. ",
    " in ",
    " = ",
    "==",
    "!=",
    "<=",
    ">",
    "&&",
    "||",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "min(",
    "round_up(",
    ",",
    "0",
    "1",
    "-1",
    "7",
    "9223372036854775807",
    "0x7f",
    "08",
    "a",
    "tile",
    "dtype",
    "block_m",
    "r",
    "i",
    "\n",
    "\r\n",
    "\\\n",
    "\n\n",
    "\t",
    "\xff",
    "\x01",
    "#line 3 \"x\"\n",
    "-----------------------------------------------------------------------------",
};

static uint64_t state = 0x9E3779B97F4A7C15U;

static uint32_t random_below(uint32_t limit) { /* xorshift64 */
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)((state >> 32) % limit);
}

/* Replaces `removed` bytes at `at` by `added` bytes, as far as there is room. */
static void splice(char *text, size_t *length, size_t at, size_t removed, const char *added, size_t added_length) {
  if (at + removed > *length)
    removed = *length - at;
  if (*length - removed + added_length > LENGTH)
    return;
  memmove(text + at + added_length, text + at + removed, *length - at - removed);
  memcpy(text + at, added, added_length);
  *length = *length - removed + added_length;
}

static void damage(char *text, size_t *length) {
  char piece[64];
  size_t at = random_below((uint32_t)*length + 1), from = random_below((uint32_t)*length + 1);
  size_t piece_length = random_below(sizeof piece);
  const char *word = words[random_below(sizeof words / sizeof words[0])];
  switch (random_below(6)) {
  case 0: /* cut out */
    splice(text, length, at, random_below(40), "", 0);
    break;
  case 1: /* cut off */
    if (random_below(8) == 0)
      *length = at;
    break;
  case 2: /* any byte, NUL too */
    piece[0] = (char)random_below(random_below(4) ? 128 : 256);
    splice(text, length, at, 1, piece, 1);
    break;
  case 3: /* a piece of itself elsewhere */
    if (from + piece_length <= *length) {
      memcpy(piece, text + from, piece_length);
      splice(text, length, at, 0, piece, piece_length);
    }
    break;
  default: /* words of the language where they do not belong */
    splice(text, length, at, random_below(2) ? strlen(word) : 0, word, strlen(word));
  }
}

static void test_damaged_templates(void) {
  static char text[LENGTH];
  int expanded = 0, refused = 0;
  fa_constants constants = {0};
  CHECK(fa_constants_offer_int(&constants, "a", 5) == 0);
  CHECK(fa_constants_offer_int(&constants, "block_m", 64) == 0);
  CHECK(fa_constants_offer_text(&constants, "dtype", "fp32") == 0);
  CHECK(fa_constants_offer_int(&constants, "tile_n", -3) == 0);
  write_template("other.c", "//% let q = 3\ninc ${q}");
  write_template("third.c", "//% if dtype == \"fp32\"\n//% include \"other.c\"\n//% end\n//% include \"main.c\"\n");
  write_template("cpu/inner.c", "//% for r in 0 .. 2\ninner ${r}\n//% end\n");
  for (int round = 0; round < ROUNDS; round++) {
    const char *seed = seeds[random_below(sizeof seeds / sizeof seeds[0])];
    size_t length = 0;
    splice(text, &length, 0, 0, seed, strlen(seed));
    for (uint32_t i = random_below(6); i > 0; i--)
      damage(text, &length);
    write_bytes("main.c", text, length);
    char *result = expand(&constants);
    if (result) {
      char *again = expand(&constants);
      if (!again || strcmp(result, again) != 0)
        CHECKF(false, "round %d gives two results", round);
      free(again);
      expanded++;
    } else {
      if (!strstr(test_message, ".c"))
        CHECKF(false, "round %d: no file in the message '%s'", round, test_message);
      refused++;
    }
    free(result);
  }
  CHECKF(expanded > ROUNDS / 20 && refused > ROUNDS / 4, "%d expanded, %d refused", expanded, refused);
  printf("%d damaged templates expanded, %d refused\n", expanded, refused);
  fa_constants_free(&constants);
}

/* A copy of the CPU templates, one file of which is damaged at a time. */
typedef struct copied_file {
  char name[128];
  char *data;
  size_t length;
} copied_file;

static copied_file copies[64];
static int num_copies;

static void copy_templates(const char *folder) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", FA_TEMPLATE_DIR, folder);
  DIR *directory = opendir(path);
  CHECK(directory != NULL);
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    copied_file *copy = &copies[num_copies];
    snprintf(path, sizeof path, "%s/%s/%s", FA_TEMPLATE_DIR, folder, entry->d_name);
    FILE *stream = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
    if (!stream || num_copies == sizeof copies / sizeof copies[0])
      continue;
    snprintf(copy->name, sizeof copy->name, "%s/%.100s", folder, entry->d_name);
    copy->data = malloc(LENGTH);
    copy->length = copy->data ? fread(copy->data, 1, LENGTH, stream) : 0;
    CHECK(copy->length > 0 && copy->length < LENGTH);
    fclose(stream);
    write_bytes(copy->name, copy->data, copy->length);
    num_copies++;
  }
  if (directory)
    closedir(directory);
}

static void test_damaged_cpu_templates(void) {
  static char text[LENGTH];
  static fa_config configs[FA_MAX_CANDIDATES];
  static const char *const targets[] = {"cpu:avx2", "cpu:avx512", "cpu:avx512_bf16", "cpu:avx512_amx", "cpu:neon"};
  char path[128];
  int rendered = 0;
  snprintf(path, sizeof path, "%s/common", test_dir);
  CHECK(mkdir(path, 0700) == 0);
  copy_templates("cpu");
  copy_templates("common");
  for (int round = 0; num_copies > 0 && round < CPU_ROUNDS; round++) {
    const copied_file *copy = &copies[random_below((uint32_t)num_copies)];
    fa_problem problem = {.op = (fa_op)random_below(2),
                          .dtype = (fa_dtype)random_below(3),
                          .head_dim = 1 + (int)random_below(FA_MAX_HEAD_DIM),
                          .head_dim_v = 1 + (int)random_below(8),
                          .is_causal = random_below(2) == 1};
    fa_kernel kernel;
    size_t length = 0;
    snprintf(problem.target, sizeof problem.target, "%s", targets[random_below(4)]);
    int count = fa_candidates(&problem, NULL, configs, test_message, sizeof test_message);
    if (!CHECK(count >= 1))
      break;
    splice(text, &length, 0, 0, copy->data, copy->length);
    for (uint32_t i = 1 + random_below(3); i > 0; i--)
      damage(text, &length);
    write_bytes(copy->name, text, length);
    if (fa_render(&problem, &configs[random_below((uint32_t)count)], test_dir, &kernel, test_message,
                  sizeof test_message) == 0)
      rendered++;
    else
      CHECKF(strstr(test_message, copy->name) != NULL || strstr(test_message, "no template reads it") != NULL,
             "%s damaged: %s", copy->name, test_message);
    fa_kernel_free(&kernel);
    write_bytes(copy->name, copy->data, copy->length);
  }
  CHECKF(rendered > 0 && rendered < CPU_ROUNDS, "%d rendered", rendered);
  printf("%d damaged CPU templates rendered, %d refused\n", rendered, CPU_ROUNDS - rendered);
  for (int i = 0; i < num_copies; i++)
    free(copies[i].data);
}

int main(void) {
  make_test_dir();
  RUN(test_damaged_templates);
  RUN(test_damaged_cpu_templates);
  remove_test_dir();
  return check_summary();
}
