/* The #line directives of the template engine: each line of the result leads back to the line it came from, as
 * counted here and as the system's C compiler sees it, and there are no more directives than needed. */
#include "tests/c/template_help.h"

/* Goes through the text as a compiler does. Every line with words in it has the form "FILE:LINE words" and is to be
 * where it says. Returns how many such lines there were, or -1 after the first that is not. */
static int count_mapped_lines(const char *text, int *num_directives) {
  char file[128] = "none";
  int line = 0, count = 0;
  *num_directives = 0;
  for (const char *next; *text; text = next) {
    char said[160];
    next = strchr(text, '\n');
    if (!next++)
      return -1;
    int length = (int)(next - text - 1);
    if (sscanf(text, "#line %d \"%127[^\"]\"", &line, file) == 2) {
      ++*num_directives;
      continue;
    }
    int said_length = snprintf(said, sizeof said, "%s:%d ", file, line++);
    if (length == 0)
      continue;
    if (strncmp(text, said, (size_t)said_length) != 0) {
      printf("  expected %.*s to be at %s\n", length, text, said);
      return -1;
    }
    count++;
  }
  return count;
}

static void check_mapping(int line, const char *text, int num_lines, int num_directives) {
  write_template("main.c", text);
  char *result = expand(NULL);
  int directives = -1, count = result ? count_mapped_lines(result, &directives) : -1;
  CHECKF(count == num_lines && directives == num_directives, "test of line %d: %d lines, %d directives\n%.800s", line,
         count, directives, result ? result : test_message);
  free(result);
}

#define CHECK_MAPPING(text, num_lines, num_directives) check_mapping(__LINE__, (text), (num_lines), (num_directives))

static void test_each_line_is_mapped(void) {
  write_template("other.c", "other.c:1 a\nother.c:2 b");
  CHECK_MAPPING("main.c:1 a\nmain.c:2 b\n\nmain.c:4 c\n", 3, 1);
  /* One directive line, or two, leave blank lines; more are jumped over. */
  CHECK_MAPPING("main.c:1 a\n//% let x = 1\nmain.c:3 b\n", 2, 1);
  CHECK_MAPPING("//% let x = 1\n//% let y = 1\nmain.c:3 b\n", 1, 1);
  CHECK_MAPPING("main.c:1 a\n//%#\n//%#\nmain.c:4 b\n", 2, 1);
  CHECK_MAPPING("main.c:1 a\n//%#\n//%#\n//%#\nmain.c:5 b\n", 2, 2);
  CHECK_MAPPING("main.c:1 a\n//% if 0\nno\nno\n//% else\nmain.c:6 b\n//% end\nmain.c:8 c\n", 3, 2);
  /* A loop jumps back once an iteration. */
  CHECK_MAPPING("main.c:1 a\n//% for i in 0 .. 3\nmain.c:3 ${i}\nmain.c:4 ${i}\n//% end\nmain.c:6 b\n", 8, 3);
  CHECK_MAPPING("//% for i in 0 .. 2\n//% for j in 0 .. 2\nmain.c:3 ${i} ${j}\n//% end\nmain.c:5 x\n//% end\n", 6, 4);
  /* An include jumps there and back. */
  CHECK_MAPPING("main.c:1 a\n//% include \"other.c\"\nmain.c:3 b\n", 4, 3);
  CHECK_MAPPING("//% include \"other.c\"\n//% include \"other.c\"\n", 4, 2);
  CHECK_MAPPING("//% for i in 0 .. 2\n//% include \"other.c\"\nmain.c:3 ${i}\n//% end\n", 6, 4);
  /* An include that copies nothing leaves no trace. */
  write_template("other.c", "//% let x = 1\n");
  CHECK_MAPPING("main.c:1 a\n//% include \"other.c\"\nmain.c:3 b\n", 2, 1);
  /* A directive stands below blank lines, not above. */
  CHECK_MAPPING("main.c:1 a\n//% if 0\nno\nno\n//% end\n\n\nmain.c:8 b\n", 2, 2);
  CHECK_MAPPING("\n\n//% if 1\n\n//% end\n", 0, 0);
  CHECK_MAPPING("", 0, 0);
}

/* Neither a blank line nor a directive may stand inside a macro that is continued with backslashes. */
static void test_continued_lines_stay_together(void) {
  write_template("main.c", "#define A \\\n//% for i in 0 .. 2\n  f(${i}); \\\n//% end\n  g()\nint main_c_6;\n");
  char *result = expand(NULL);
  CHECKF(result && strcmp(result, "#line 1 \"main.c\"\n#define A \\\n  f(0); \\\n  f(1); \\\n  g()\n"
                                  "\nint main_c_6;\n") == 0,
         "got: %.900s", result ? result : test_message);
  free(result);
}

/* In a comment a #line would be text: what follows is put right behind it. */
static void test_comments_stay_together(void) {
  write_template("main.c", "/* a\n//% if 0\nno\n//% end\n * \"\n//% for i in 0 .. 2\n * ${i}\n//% end\n */\nint a;\n"
                           "char b = '\"', c[] = \"/*\\\"\"; // /*\n//% if 0\n\n\n//% end\nint d;\n");
  char *result = expand(NULL);
  CHECKF(result && strcmp(result, "#line 1 \"main.c\"\n/* a\n * \"\n * 0\n * 1\n */\n#line 10 \"main.c\"\nint a;\n"
                                  "char b = '\"', c[] = \"/*\\\"\"; // /*\n#line 16 \"main.c\"\nint d;\n") == 0,
         "got: %.900s", result ? result : test_message);
  free(result);
}

/* Where the system's compiler sees the error of `text`: "FILE:LINE", or NULL where there is no compiler. */
static const char *compiler_sees(const char *text, const char *error) {
  static char seen[256];
  char command[256], line[512];
  write_template("main.c", text);
  char *result = expand(NULL);
  CHECKF(result != NULL, "%s", test_message);
  write_template("third.c", result ? result : "");
  free(result);
  seen[0] = '\0';
  snprintf(command, sizeof command,
           "command -v cc >/dev/null || exit 3; LC_ALL=C cc -fsyntax-only -x c %s/third.c 2>&1", test_dir);
  FILE *stream = popen(command, "r");
  if (!stream)
    return NULL;
  while (fgets(line, sizeof line, stream))
    if (!seen[0] && strstr(line, error)) {
      char *colon = strchr(line, ':'), *end = colon ? strchr(colon + 1, ':') : NULL;
      snprintf(seen, sizeof seen, "%.*s", end ? (int)(end - line) : 0, line);
    }
  int status = pclose(stream);
  return WIFEXITED(status) && WEXITSTATUS(status) == 3 ? NULL : seen;
}

static void test_compiler_agrees(void) {
  write_template("other.c", "int other;\n//% if n == 2\nint wrong = undeclared_name;\n//% end\n");
  const char *seen = compiler_sees("//%# a\n//% for n in 0 .. 4\nint x${n};\n//% if n == 3\n//% let y = n\n"
                                   "int z = ${y} + undeclared_name;\n//% end\n//% end\n",
                                   "undeclared_name");
  if (!seen) {
    SKIP("no cc on this machine");
    return;
  }
  CHECKF(strcmp(seen, "main.c:6") == 0, "%s", seen);
  seen = compiler_sees("int a;\n//% for n in 0 .. 3\n//% include \"other.c\"\n//% end\n", "undeclared_name");
  CHECKF(seen && strcmp(seen, "other.c:3") == 0, "%s", seen ? seen : "");
  seen = compiler_sees(
      "#define A \\\n//% for i in 0 .. 4\n  int a${i}; \\\n//% end\n  int b\nA;\nint undeclared_name = c;\n",
      "undeclared");
  CHECKF(seen && strcmp(seen, "main.c:7") == 0, "%s", seen ? seen : "");
}

int main(void) {
  make_test_dir();
  RUN(test_each_line_is_mapped);
  RUN(test_continued_lines_stay_together);
  RUN(test_comments_stay_together);
  RUN(test_compiler_agrees);
  remove_test_dir();
  return check_summary();
}
