/* Expressions of the template language: operators as in C, every overflow and misuse told. */
#include "generator/expression.h"
#include "tests/c/check.h"

#include <limits.h>
#include <stdlib.h>

static int lookups; /* how often a name was looked up */

static bool lookup(void *context, const char *name, size_t length, fa_value *value) {
  (void)context;
  lookups++;
  if (length == 1 && (*name == 'a' || *name == 'b')) {
    *value = (fa_value){.number = *name == 'a' ? 7 : 0};
    return true;
  }
  if (length == 5 && memcmp(name, "dtype", 5) == 0) {
    *value = (fa_value){.is_text = true, .text = "fp32", .length = 4};
    return true;
  }
  return false;
}

/* What `text` gives, in words: a number, "text", "error: ...", and behind it what was not read. */
static const char *result(const char *text) {
  static char words[512];
  /* A copy without a NUL behind it: reading past the end is seen by ASan. */
  size_t length = strlen(text);
  char *copy = malloc(length ? length : 1);
  if (!copy)
    return "out of memory";
  memcpy(copy, text, length); /* NOLINT(bugprone-not-null-terminated-result): on purpose */
  fa_scanner scanner = {.position = copy, .end = copy + length, .lookup = lookup};
  fa_value value;
  if (!fa_expression_read(&scanner, &value))
    snprintf(words, sizeof words, "error: %s", scanner.error);
  else if (value.is_text)
    snprintf(words, sizeof words, "\"%.*s\"%.*s", (int)value.length, value.text, (int)(scanner.end - scanner.position),
             scanner.position);
  else
    snprintf(words, sizeof words, "%lld%.*s", value.number, (int)(scanner.end - scanner.position), scanner.position);
  free(copy);
  return words;
}

#define GIVES(text, expected)                                                                                          \
  do {                                                                                                                 \
    const char *result_ = result(text);                                                                                \
    CHECKF(strcmp(result_, (expected)) == 0, "%.200s gives %s", text, result_);                                        \
  } while (0)

static void test_values(void) {
  GIVES("0", "0");
  GIVES("42", "42");
  GIVES("0x1F", "31");
  GIVES("0", "0");
  GIVES("9223372036854775807", "9223372036854775807");
  GIVES("-9223372036854775807 - 1", "-9223372036854775808");
  GIVES("a", "7");
  GIVES("dtype", "\"fp32\"");
  GIVES("\"\"", "\"\"");
  GIVES("\"a ${b} }\"", "\"a ${b} }\"");
  GIVES("  a\t+ 1", "8");
  GIVES("a }", "7}");
  GIVES("0 .. 3", "0.. 3");
  GIVES("0..3", "0..3");
}

static void test_precedence(void) {
  GIVES("1 + 2 * 3", "7");
  GIVES("(1 + 2) * 3", "9");
  GIVES("10 - 4 - 3", "3");
  GIVES("100 / 10 / 5", "2");
  GIVES("7 % 4 * 2", "6");
  GIVES("-a + 1", "-6");
  GIVES("-(-a)", "7");
  GIVES("- -a", "7");
  GIVES("+a", "7");
  GIVES("!a", "0");
  GIVES("!b + 1", "2");
  GIVES("!!a", "1");
  GIVES("-7 / 2", "-3");
  GIVES("-7 % 2", "-1");
  GIVES("1 + 1 < 3", "1");
  GIVES("1 < 2 == 1", "1");
  GIVES("3 <= 3", "1");
  GIVES("4 >= 5", "0");
  GIVES("3 > 3", "0");
  GIVES("1 || 0 && 0", "1");
  GIVES("(1 || 0) && 0", "0");
  GIVES("0 || 5", "1");
  GIVES("2 && 4", "1");
  GIVES("2 && 0", "0");
  GIVES("1 == 1 && 2 != 3", "1");
  GIVES("dtype == \"fp32\" || dtype == \"fp16\"", "1");
  GIVES("dtype != \"fp32\"", "0");
  GIVES("dtype == \"fp3\"", "0");
}

static void test_functions(void) {
  GIVES("min(3, a)", "3");
  GIVES("max(3, a)", "7");
  GIVES("ceil_div(7, 4)", "2");
  GIVES("ceil_div(8, 4)", "2");
  GIVES("ceil_div(-7, 4)", "-1");
  GIVES("ceil_div(0, 4)", "0");
  GIVES("round_up(7, 4)", "8");
  GIVES("round_up(max(a, 9), min(4, 8)) + 1", "13");
  GIVES("ceil_div(9223372036854775807, 2)", "4611686018427387904");
}

static void test_errors(void) {
  GIVES("", "error: a number, a name or a text expected, but the line ends here");
  GIVES("1 +", "error: a number, a name or a text expected, but the line ends here");
  GIVES("* 2", "error: a number, a name or a text expected, not '*'");
  GIVES("(1", "error: ')' expected, but the line ends here");
  GIVES("\"abc", "error: the text literal has no closing '\"'");
  GIVES("nothing", "error: unknown name 'nothing'");
  GIVES("abs(3)", "error: unknown function 'abs'; there are min, max, ceil_div and round_up");
  GIVES("min(3)", "error: ',' and a second argument expected, not ')'");
  GIVES("min(3, 4, 5)", "error: ')' expected, not ','");
  GIVES("1 < a < 3", "error: a chain of comparisons needs parentheses or &&");
  GIVES("1 == 1 == 1", "error: a chain of comparisons needs parentheses or &&");
  GIVES("(1 == 1) == 1", "1");
  GIVES("1 / 0", "error: division by zero");
  GIVES("1 % b", "error: division by zero");
  GIVES("ceil_div(1, 0)", "error: the second argument of ceil_div is 0 and must be positive");
  GIVES("round_up(1, -4)", "error: the second argument of round_up is -4 and must be positive");
  GIVES("dtype + 1", "error: '+' needs numbers, not text");
  GIVES("!dtype", "error: '!' needs numbers, not text");
  GIVES("-dtype", "error: '-' needs numbers, not text");
  GIVES("dtype < \"fp16\"", "error: '<' needs numbers, not text");
  GIVES("max(dtype, 1)", "error: 'max' needs numbers, not text");
  GIVES("dtype == 3", "error: '==' cannot compare text with a number");
  GIVES("1 && dtype", "error: '&&' needs numbers, not text");
  GIVES("dtype || 1", "error: '||' needs numbers, not text");
  GIVES("010", "error: an integer must not start with 0: it would look octal");
  GIVES("12ab", "error: an integer ends with 'a'");
  GIVES("0x", "error: an integer ends with 'x'");
  GIVES("0xg", "error: an integer ends with 'g'");
}

static void test_overflow(void) {
  static const char overflow[] = "error: the result does not fit into a 64-bit integer";
  GIVES("9223372036854775808", overflow);
  GIVES("0x8000000000000000", overflow);
  GIVES("9223372036854775807 + 1", overflow);
  GIVES("-9223372036854775807 - 2", overflow);
  GIVES("4611686018427387904 * 2", overflow);
  GIVES("-(-9223372036854775807 - 1)", overflow);
  GIVES("(-9223372036854775807 - 1) / -1", overflow);
  GIVES("(-9223372036854775807 - 1) % -1", overflow);
  GIVES("round_up(9223372036854775807, 2)", overflow);
}

/* The side that does not matter cannot fail, but its names are looked up: they count as read, and a misspelt
 * one is found whatever the values are. */
static void test_unneeded_side(void) {
  GIVES("b != 0 && 8 / b == 1", "0");
  GIVES("b == 0 || 8 % b", "1");
  GIVES("b && (dtype < 3 || !dtype)", "0");
  GIVES("b && 9223372036854775807 + a", "0");
  GIVES("b && ceil_div(a, b)", "0");
  GIVES("b && 1 || 2", "1");
  GIVES("b && b && 1 / b || a", "1");
  GIVES("b && (1 || 1 / b)", "0");
  GIVES("b && nothing", "error: unknown name 'nothing'");
  GIVES("a || nothing", "error: unknown name 'nothing'");
  GIVES("b && )", "error: a number, a name or a text expected, not ')'");
  lookups = 0;
  GIVES("b && (a || b)", "0");
  CHECK(lookups == 3);
}

/* Depth is bounded, so that no template can exhaust the stack. */
static void test_nesting(void) {
  char text[4096];
  memset(text, '(', 50);
  snprintf(text + 50, sizeof text - 50, "a");
  memset(text + 51, ')', 50);
  text[101] = '\0';
  GIVES(text, "7");
  const char starts[][2] = {"(", "-", "!", "+"};
  for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
    memset(text, starts[i][0], sizeof text - 1);
    text[sizeof text - 1] = '\0';
    GIVES(text, "error: the expression is nested too deeply");
  }
  for (size_t i = 0; i + 4 < sizeof text; i += 4)
    memcpy(text + i, "min(", 5);
  GIVES(text, "error: the expression is nested too deeply");
  char *wide = malloc(400001);
  CHECK(wide != NULL);
  if (!wide)
    return;
  for (size_t i = 0; i < 400000; i += 4)
    memcpy(wide + i, "1 + ", 4);
  wide[400000 - 3] = '\0';
  GIVES(wide, "100000");
  free(wide);
}

int main(void) {
  RUN(test_values);
  RUN(test_precedence);
  RUN(test_functions);
  RUN(test_errors);
  RUN(test_overflow);
  RUN(test_unneeded_side);
  RUN(test_nesting);
  return check_summary();
}
