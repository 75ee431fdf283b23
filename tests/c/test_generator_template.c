/* The template language: what each directive gives, what each mistake is told as, and where lines come from. */
#include "tests/c/template_help.h"

static void test_copies_text(void) {
  CHECK_EXPANDS(NULL, "", "");
  CHECK_EXPANDS(NULL, "int a;\n", "int a;\n");
  CHECK_EXPANDS(NULL, "int a;", "int a;\n");
  CHECK_EXPANDS(NULL, "int a;\r\nint b;\r\n", "int a;\nint b;\n");
  CHECK_EXPANDS(NULL, "  indented $ $x {} // % no directive\n", "  indented $ $x {} // % no directive\n");
  CHECK_EXPANDS(NULL, "100 $", "100 $\n");
}

static void test_substitutes(void) {
  fa_constants constants = {0};
  CHECK(fa_constants_set_int(&constants, "block_m", 64) == 0);
  CHECK(fa_constants_set_text(&constants, "dtype", "fp32") == 0);
  CHECK_EXPANDS(&constants, "float a[${block_m}][${ block_m * 2 + 1 }]; // ${dtype}${dtype}\n",
                "float a[64][129]; // fp32fp32\n");
  CHECK_EXPANDS(&constants, "${dtype}_${block_m}${\"${\"}x}\n", "fp32_64${x}\n");
  CHECK_EXPANDS(&constants, "$${block_m} ${dtype == \"fp32\"} ${-block_m}\n", "$64 1 -64\n");
  CHECK_REFUSED(&constants, "a\nb ${block_n}\n", "main.c:2: unknown name 'block_n'");
  CHECK_REFUSED(&constants, "${block_m\n}", "main.c:1: '}' expected, but the line ends here");
  CHECK_REFUSED(&constants, "${block_m 3}", "main.c:1: '}' expected, not '3}'");
  CHECK_REFUSED(&constants, "${", "main.c:1: a number, a name or a text expected, but the line ends here");
  CHECK_REFUSED(&constants, "${}", "main.c:1: a number, a name or a text expected, not '}'");
  fa_constants_free(&constants);
}

static void test_if(void) {
  static const char branches[] =
      "//% if a == 1\none\n//% elif a == 2\ntwo\n//% elif a == 3\nthree\n//% else\nmore\n//% end\n";
  static const char *const expected[] = {"more\n", "one\n", "two\n", "three\n", "more\n"};
  for (int a = 0; a < 5; a++) {
    fa_constants constants = {0};
    CHECK(fa_constants_set_int(&constants, "a", a) == 0);
    CHECK_EXPANDS(&constants, branches, expected[a]);
    fa_constants_free(&constants);
  }
  CHECK_EXPANDS(NULL, "//% if 0\nno\n//% end\nyes\n", "yes\n");
  CHECK_EXPANDS(NULL, "   //%if 1\nyes\n\t//%\tend  \n", "yes\n");
  CHECK_EXPANDS(NULL, "//% if 0\n//% if 1\nno\n//% else\nno\n//% end\n//% for i in 0 .. nothing\n//% end\n//% end\n",
                "");
  CHECK_EXPANDS(NULL, "//% if 0\n${nothing}\n//% include \"none.c\"\n//% error \"no\"\n//% let a = b\n//% end\n", "");
  CHECK_EXPANDS(NULL, "//% if 1\n//% if 0\nno\n//% elif 1\nyes\n//% else\nno\n//% end\n//% else\nno\n//% end\n",
                "yes\n");
}

static void test_for(void) {
  CHECK_EXPANDS(NULL, "//% for i in 0 .. 3\na${i}\n//% end\n", "a0\na1\na2\n");
  CHECK_EXPANDS(NULL, "//% for i in 3 .. 3\na${i}\n//% end\n//% for i in 3 .. -1\na\n//% end\n", "");
  CHECK_EXPANDS(NULL, "//% for i in -1..1\na${i}\n//% end\n", "a-1\na0\n");
  CHECK_EXPANDS(NULL, "//% for i in 0 .. 2\n//% for j in i .. 2\n${i}${j}\n//% end\n//% end\n", "00\n01\n11\n");
  CHECK_EXPANDS(NULL, "//% for i in 0 .. 1\n//% end\n//% for i in 0 .. 1\n${i}\n//% end\n", "0\n");
  CHECK_EXPANDS(NULL, "//% for i in 9223372036854775805 .. 9223372036854775807\n${i}\n//% end\n",
                "9223372036854775805\n9223372036854775806\n");
}

static void test_let(void) {
  CHECK_EXPANDS(NULL, "//% let a = 3\n//% let t = \"x\"\n${a}${t}\n", "3x\n");
  CHECK_EXPANDS(NULL, "//% let a = 3\n//% let a = a + 1\n${a}\n", "4\n");
  CHECK_EXPANDS(NULL, "//% for i in 0 .. 2\n//% let a = i * 2\n${a}\n//% end\n", "0\n2\n");
  CHECK_EXPANDS(NULL, "//% if 1\n//% let a = 1\n${a}\n//% end\n//% if 1\n//% let a = 2\n${a}\n//% end\n", "1\n2\n");
  CHECK_REFUSED(NULL, "//% if 1\n//% let a = 1\n//% end\n${a}\n", "main.c:4: unknown name 'a'");
  CHECK_REFUSED(NULL, "//% for i in 0 .. 1\n//% end\n${i}\n", "main.c:3: unknown name 'i'");
  CHECK_REFUSED(NULL, "//% let a = 1\n//% if 1\n//% let a = 2\n//% end\n",
                "main.c:3: 'a': the name is taken in a block around this one");
  CHECK_REFUSED(NULL, "//% for i in 0 .. 2\n//% let i = 2\n//% end\n",
                "main.c:2: 'i': the name is taken in a block around this one");
  CHECK_REFUSED(NULL, "//% let i = 2\n//% for i in 0 .. 2\n//% end\n",
                "main.c:2: 'i': the name is taken in a block around this one");
  fa_constants constants = {0};
  CHECK(fa_constants_offer_int(&constants, "causal", 1) == 0);
  CHECK_REFUSED(&constants, "//% let causal = 0\n",
                "main.c:1: 'causal': the name is taken by a constant of the generator");
  fa_constants_free(&constants);
}

static void test_include(void) {
  write_template("other.c", "//%# helper\n//% let a = n + 1\nother ${n}\n");
  CHECK_EXPANDS(NULL, "//% let n = 1\n//% include \"other.c\"\n${a}\n//% let n = 5\n//% include \"other.c\"\n${a}\n",
                "other 1\n2\nother 5\n6\n");
  CHECK_EXPANDS(NULL, "//% for n in 0 .. 2\n//% include \"other.c\"\n//% end\n", "other 0\nother 1\n");
  write_template("cpu/inner.c", "inner");
  write_template("other.c", "//% include \"cpu/inner.c\"\n");
  CHECK_EXPANDS(NULL, "//% let name = \"other.c\"\n//% include name\nend", "inner\nend\n");
  CHECK_REFUSED(NULL, "//% include \"main.c\"\n", "main.c:1: 'main.c' includes itself");
  write_template("other.c", "\n//% include \"third.c\"\n");
  write_template("third.c", "//% if 1\n//% include \"other.c\"\n//% end\n");
  CHECK_REFUSED(NULL, "//% include \"other.c\"\n",
                "third.c:2: 'other.c' includes itself (included from other.c:2, main.c:1)");
  write_template("third.c", "${what}\n");
  CHECK_REFUSED(NULL, "//% include \"other.c\"\n",
                "third.c:1: unknown name 'what' (included from other.c:2, main.c:1)");
  write_template("other.c", "//% if 1\n");
  CHECK_REFUSED(NULL, "//% include \"other.c\"\n//% end\n",
                "other.c:1: this 'if' has no '//% end' (included from main.c:1)");
  write_template("other.c", "//% end\n");
  CHECK_REFUSED(NULL, "//% if 1\n//% include \"other.c\"\n",
                "other.c:1: 'end' closes nothing (included from main.c:2)");
  write_template("main.c", "//% include \"missing.c\"\n");
  CHECK(expand(NULL) == NULL);
  CHECK(strstr(test_message, "main.c:1: template \"missing.c\" cannot be read from ") == test_message);
  CHECK(strstr(test_message, ": No such file or directory") != NULL);
  static const char *const bad_names[] = {"", "/etc/passwd", "../x.c", "cpu/../x.c", "a b.c", "a\\b.c"};
  for (size_t i = 0; i < sizeof bad_names / sizeof bad_names[0]; i++) {
    char text[64];
    snprintf(text, sizeof text, "//%% include \"%s\"\n", bad_names[i]);
    CHECK_REFUSED(NULL, text,
                  "main.c:1: a template's name is letters, digits and _-./, relative to the template directory and "
                  "without '..'");
  }
  CHECK_REFUSED(NULL, "//% include 3\n", "main.c:1: a text is needed here, not the number 3");
  write_template("main.c", "//% include \"cpu\"\n");
  CHECK(expand(NULL) == NULL);
  write_bytes("main.c", "a\0b\n", 4);
  CHECK(expand(NULL) == NULL);
  CHECK(strcmp(test_message, "template \"main.c\" is not text: it holds a NUL byte") == 0);
}

static void test_error_directive(void) {
  fa_constants constants = {0};
  CHECK(fa_constants_set_int(&constants, "block_m", 3) == 0);
  CHECK_REFUSED(&constants, "//% if block_m % 16\n//% error \"block_m is ${block_m}\"\n//% end\n",
                "main.c:2: block_m is 3");
  CHECK_REFUSED(&constants, "//% error 3\n", "main.c:1: a text is needed here, not the number 3");
  CHECK_REFUSED(&constants, "//% error \"100%s %n\"\n", "main.c:1: 100%s %n");
  fa_constants_free(&constants);
}

static void test_bad_directives(void) {
  CHECK_REFUSED(NULL, "//% if 1\nx\n", "main.c:1: this 'if' has no '//% end'");
  CHECK_REFUSED(NULL, "\n//% for i in 0 .. 2\nx\n", "main.c:2: this 'for' has no '//% end'");
  CHECK_REFUSED(NULL, "//% if 0\n//% for i in 0 .. 2\n//% end\n", "main.c:1: this 'if' has no '//% end'");
  CHECK_REFUSED(NULL, "//% if 1\n//% else\n", "main.c:1: this 'if' has no '//% end'");
  CHECK_REFUSED(NULL, "a\n//% end\n", "main.c:2: 'end' closes nothing");
  CHECK_REFUSED(NULL, "//% else\n", "main.c:1: 'else' closes nothing");
  CHECK_REFUSED(NULL, "//% elif 1\n", "main.c:1: 'elif' closes nothing");
  CHECK_REFUSED(NULL, "//% for i in 0 .. 2\n//% else\n//% end\n", "main.c:2: 'else' without 'if'");
  CHECK_REFUSED(NULL, "//% if 1\n//% else\n//% else\n//% end\n", "main.c:3: 'else' after 'else'");
  CHECK_REFUSED(NULL, "//% if 0\n//% else\n//% elif 1\n//% end\n", "main.c:3: 'elif' after 'else'");
  CHECK_REFUSED(NULL, "//% end if\n", "main.c:1: the end of the line expected, not 'if'");
  CHECK_REFUSED(NULL, "//% if 1 2\n//% end\n", "main.c:1: the end of the line expected, not '2'");
  CHECK_REFUSED(NULL, "//% if\n//% end\n", "main.c:1: a number, a name or a text expected, but the line ends here");
  CHECK_REFUSED(NULL, "//% if \"a\"\n//% end\n", "main.c:1: a number is needed here, not the text \"a\"");
  CHECK_REFUSED(NULL, "//% if 1\n//% elif 1 /\n//% end\n",
                "main.c:2: a number, a name or a text expected, but the line ends here");
  CHECK_REFUSED(NULL, "//% for in 0 .. 2\n//% end\n", "main.c:1: 'in' expected after the loop's variable");
  CHECK_REFUSED(NULL, "//% for i = 0 .. 2\n//% end\n", "main.c:1: 'in' expected after the loop's variable");
  CHECK_REFUSED(NULL, "//% for 3\n//% end\n", "main.c:1: the name of the loop's variable expected, not '3'");
  CHECK_REFUSED(NULL, "//% for i in 0 to 2\n//% end\n", "main.c:1: '..' expected, not 'to'");
  CHECK_REFUSED(NULL, "//% for i in 0 .. \"2\"\n//% end\n", "main.c:1: a number is needed here, not the text \"2\"");
  CHECK_REFUSED(NULL, "//% for i in 0 .. 2 .. 4\n//% end\n", "main.c:1: the end of the line expected, not '..'");
  CHECK_REFUSED(NULL, "//% let 3 = 4\n", "main.c:1: a name expected, not '3'");
  CHECK_REFUSED(NULL, "//% let a\n", "main.c:1: '=' expected, but the line ends here");
  CHECK_REFUSED(NULL, "//% let a = 1 / 0\n", "main.c:1: division by zero");
  CHECK_REFUSED(NULL, "//% let a = 1,\n", "main.c:1: the end of the line expected, not ','");
  static const char unknown[] =
      "main.c:1: unknown directive 'macro'; there are if, elif, else, end, for, include, let, error and #";
  CHECK_REFUSED(NULL, "//% macro x\n", unknown);
  CHECK_REFUSED(NULL, "//%\n",
                "main.c:1: unknown directive ''; there are if, elif, else, end, for, include, let, error and #");
  /* also where nothing is copied */
  CHECK_REFUSED(NULL, "//% if 0\n//% endif\n//% end\n",
                "main.c:2: unknown directive 'endif'; there are if, elif, else, end, for, include, let, error and #");
}

static void test_constants(void) {
  fa_constants constants = {0};
  CHECK(fa_constants_set_int(&constants, "a", 1) == 0);
  CHECK(fa_constants_set_text(&constants, "b", "x") == 0);
  CHECK(fa_constants_offer_int(&constants, "c", 3) == 0);
  CHECK(fa_constants_offer_text(&constants, "d", "y") == 0);
  CHECK_REFUSED(&constants, "${a}\n", "main.c: constant 'b' was set but no template reads it");
  CHECK_REFUSED(&constants, "${b}\n", "main.c: constant 'a' was set but no template reads it");
  CHECK_EXPANDS(&constants, "${a}${b}\n", "1x\n");
  /* What counts as read: a condition, both sides of && and ||, the elif after a branch that was taken. */
  CHECK_EXPANDS(&constants, "//% if a == 1 || b == \"x\"\nyes\n//% end\n", "yes\n");
  CHECK_EXPANDS(&constants, "//% if a == 1\nyes\n//% elif b == \"x\"\nno\n//% end\n", "yes\n");
  /* and what does not: lines that are skipped */
  CHECK_REFUSED(&constants, "${a}\n//% if 0\n${b}\n//% end\n", "main.c: constant 'b' was set but no template reads it");
  /* Setting again replaces value, kind and duty. */
  CHECK(fa_constants_offer_int(&constants, "b", 7) == 0);
  CHECK_EXPANDS(&constants, "${a}\n", "1\n");
  CHECK_EXPANDS(&constants, "${a}${b}${c}${d}\n", "173y\n");
  CHECK(fa_constants_set_text(&constants, "c", "") == 0);
  CHECK_REFUSED(&constants, "${a}${b}${d}\n", "main.c: constant 'c' was set but no template reads it");
  for (int i = 0; i < 100; i++) {
    char name[32];
    snprintf(name, sizeof name, "many_%d", i);
    CHECK(fa_constants_offer_int(&constants, name, i) == 0);
  }
  CHECK_EXPANDS(&constants, "${a}${b}${c}${many_0 + many_99}\n", "1799\n");
  fa_constants_free(&constants);
  CHECK(constants.count == 0 && constants.item == NULL);
  fa_constants_free(&constants);
}

/* Everything is bounded: a template cannot hang the process, exhaust the stack or the memory. */
static void test_bounds(void) {
  CHECK_REFUSED(NULL, "//% for i in 0 .. 9223372036854775807\n//% end\n",
                "main.c:2: more than 1000000 lines were expanded: a loop runs too long");
  char *text = malloc(3 << 20);
  CHECK(text != NULL);
  if (!text)
    return;
  text[0] = '\0';
  for (int depth = 60; depth <= 70; depth += 10) {
    size_t used = 0;
    for (int i = 0; i < depth; i++)
      used += (size_t)snprintf(text + used, 64, "//%% %s\n", i % 2 ? "if 1" : "for i in 0 .. 1");
    for (int i = 0; i < depth; i++)
      used += (size_t)snprintf(text + used, 64, "//%% end\n");
    write_template("main.c", text);
    char *result = expand(NULL);
    CHECK(result == NULL); /* the loops share one name */
    free(result);
    for (char *p = text; (p = strstr(p, "for i in 0 .. 1"));)
      memcpy(p, "if   1         ", 15);
    write_template("main.c", text);
    result = expand(NULL);
    CHECK((result != NULL) == (depth == 60));
    if (depth == 70)
      CHECK(strcmp(test_message, "main.c:65: more than 64 blocks and includes inside each other") == 0);
    free(result);
  }
  /* One long line, with many substitutions. */
  size_t used = 0;
  for (int i = 0; i < 100000; i++)
    used += (size_t)snprintf(text + used, 64, "word%d${n}", i);
  write_template("main.c", text);
  fa_constants constants = {0};
  CHECK(fa_constants_set_int(&constants, "n", 7) == 0);
  char *result = expand(&constants);
  CHECK(result != NULL && strstr(result, "word0"
                                         "7word1"
                                         "7word2"
                                         "7") != NULL);
  free(result);
  fa_constants_free(&constants);
  /* A message that is longer than its room is cut, not written past. */
  memset(text, 'x', 100000);
  memcpy(text, "${", 2);
  text[100000] = '\0';
  write_template("main.c", text);
  char message[16];
  fa_constants none = {0};
  CHECK(fa_template_expand(test_dir, "main.c", &none, message, sizeof message) == NULL);
  CHECK(strcmp(message, "main.c:1: unkno") == 0);
  free(text);
}

static void test_same_bytes(void) {
  write_template("other.c", "o ${n}\n");
  write_template("main.c", "//% for n in 0 .. 9\n//% if n % 2\nx ${n}\n//% include \"other.c\"\n//% end\n//% end\n");
  char *first = expand(NULL), *second = expand(NULL);
  CHECK(first && second && strcmp(first, second) == 0);
  CHECK(first && strstr(first, test_dir) == NULL);
  free(first);
  free(second);
}

/* The example of docs/templates.md: its first two blocks of C. */
static void test_example_of_the_manual(void) {
  static const char path[] = FA_TEMPLATE_DIR "/../docs/templates.md";
  static char manual[65536];
  FILE *stream = fopen(path, "rb");
  if (!stream) {
    SKIP("no docs/templates.md beside the templates");
    return;
  }
  manual[fread(manual, 1, sizeof manual - 1, stream)] = '\0';
  fclose(stream);
  char *block[2] = {NULL, NULL}, *from = manual;
  for (int i = 0; i < 2; i++) {
    char *start = strstr(from, "```c\n"), *end = start ? strstr(start, "\n```\n") : NULL;
    if (!CHECK(end != NULL))
      return;
    block[i] = start + 5;
    end[1] = '\0';
    from = end + 2;
  }
  fa_constants constants = {0};
  CHECK(fa_constants_set_int(&constants, "vectors", 2) == 0 && fa_constants_set_int(&constants, "lanes", 8) == 0);
  write_template("main.c", block[0]);
  char *result = expand(&constants), *name;
  CHECK(result != NULL);
  while ((name = strstr(block[1], "example.c"))) { /* the name of the test's template is shorter */
    memcpy(name, "main.c", 6);
    memmove(name + 6, name + 9, strlen(name + 9) + 1);
  }
  CHECK_TEXT(result, block[1]);
  free(result);
  fa_constants_free(&constants);
}

int main(void) {
  make_test_dir();
  RUN(test_copies_text);
  RUN(test_substitutes);
  RUN(test_if);
  RUN(test_for);
  RUN(test_let);
  RUN(test_include);
  RUN(test_error_directive);
  RUN(test_bad_directives);
  RUN(test_constants);
  RUN(test_bounds);
  RUN(test_same_bytes);
  RUN(test_example_of_the_manual);
  remove_test_dir();
  return check_summary();
}
