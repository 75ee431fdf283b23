/* Recursive descent over the expressions of the template language; see expression.h. */
#include "generator/expression.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 64 }; /* parentheses, calls and signs inside each other: bounds the stack */

static bool is_blank(char c) { return c == ' ' || c == '\t'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_name_char(char c) { return is_name_start(c) || is_digit(c); }

bool fa_scan_fail(fa_scanner *scanner, const char *format, ...) {
  if (!scanner->error[0]) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(scanner->error, sizeof scanner->error, format, arguments);
    va_end(arguments);
  }
  return false;
}

bool fa_scan_fail_here(fa_scanner *scanner, const char *expected) {
  fa_scan_blanks(scanner);
  if (scanner->position == scanner->end)
    return fa_scan_fail(scanner, "%s expected, but the line ends here", expected);
  const char *stop = scanner->position + 1;
  while (stop < scanner->end && stop - scanner->position < 40 && !is_blank(*stop))
    stop++;
  return fa_scan_fail(scanner, "%s expected, not '%.*s'", expected, (int)(stop - scanner->position), scanner->position);
}

void fa_scan_blanks(fa_scanner *scanner) {
  while (scanner->position < scanner->end && is_blank(*scanner->position))
    scanner->position++;
}

size_t fa_scan_name(fa_scanner *scanner, const char **name) {
  fa_scan_blanks(scanner);
  const char *start = scanner->position;
  if (start == scanner->end || !is_name_start(*start))
    return 0;
  while (scanner->position < scanner->end && is_name_char(*scanner->position))
    scanner->position++;
  *name = start;
  return (size_t)(scanner->position - start);
}

bool fa_scan_symbol(fa_scanner *scanner, const char *symbol) {
  fa_scan_blanks(scanner);
  size_t length = strlen(symbol);
  if ((size_t)(scanner->end - scanner->position) < length || memcmp(scanner->position, symbol, length) != 0)
    return false;
  scanner->position += length;
  return true;
}

static bool overflow(fa_scanner *scanner) {
  return fa_scan_fail(scanner, "the result does not fit into a 64-bit integer");
}

static bool read_integer(fa_scanner *scanner, fa_value *value) {
  const char *start = scanner->position;
  int base = 10;
  if (*start == '0' && scanner->end - start > 2 && (start[1] == 'x' || start[1] == 'X')) {
    base = 16;
    scanner->position += 2;
  }
  const char *digits = scanner->position;
  long long number = 0;
  for (; scanner->position < scanner->end && is_name_char(*scanner->position); scanner->position++) {
    char c = *scanner->position;
    int digit = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 99;
    if (digit >= base)
      return fa_scan_fail(scanner, "an integer ends with '%c'", c);
    if (__builtin_mul_overflow(number, base, &number) || __builtin_add_overflow(number, digit, &number))
      return overflow(scanner);
  }
  if (base == 10 && digits[0] == '0' && scanner->position - digits > 1)
    return fa_scan_fail(scanner, "an integer must not start with 0: it would look octal");
  *value = (fa_value){.number = number};
  return true;
}

static bool need_numbers(fa_scanner *scanner, const char *what, fa_value left, fa_value right) {
  if (!left.is_text && !right.is_text)
    return true;
  return fa_scan_fail(scanner, "'%s' needs numbers, not text", what);
}

/* ceil_div; the divisor is positive. */
static long long ceil_div(long long a, long long b) { return a / b + (a % b > 0); }

static bool apply(fa_scanner *scanner, const char *operation, fa_value left, fa_value right, fa_value *result) {
  *result = (fa_value){0};
  if (scanner->unneeded)
    return true;
  long long a = left.number, b = right.number, *number = &result->number;
  bool equal = !strcmp(operation, "=="), unequal = !strcmp(operation, "!=");
  if (equal || unequal) {
    if (left.is_text != right.is_text)
      return fa_scan_fail(scanner, "'%s' cannot compare text with a number", operation);
    bool same = left.is_text ? left.length == right.length && !memcmp(left.text, right.text, left.length) : a == b;
    *number = same == equal;
    return true;
  }
  if (!need_numbers(scanner, operation, left, right))
    return false;
  if (!strcmp(operation, "+"))
    return !__builtin_add_overflow(a, b, number) || overflow(scanner);
  if (!strcmp(operation, "-"))
    return !__builtin_sub_overflow(a, b, number) || overflow(scanner);
  if (!strcmp(operation, "*"))
    return !__builtin_mul_overflow(a, b, number) || overflow(scanner);
  if (!strcmp(operation, "/") || !strcmp(operation, "%")) {
    if (b == 0)
      return fa_scan_fail(scanner, "division by zero");
    if (a == LLONG_MIN && b == -1)
      return overflow(scanner);
    *number = operation[0] == '/' ? a / b : a % b;
    return true;
  }
  if (!strcmp(operation, "ceil_div") || !strcmp(operation, "round_up")) {
    if (b <= 0)
      return fa_scan_fail(scanner, "the second argument of %s is %lld and must be positive", operation, b);
    *number = ceil_div(a, b);
    return operation[0] == 'c' || !__builtin_mul_overflow(*number, b, number) || overflow(scanner);
  }
  if (!strcmp(operation, "<="))
    *number = a <= b;
  else if (!strcmp(operation, ">="))
    *number = a >= b;
  else if (!strcmp(operation, "<"))
    *number = a < b;
  else if (!strcmp(operation, ">"))
    *number = a > b;
  else if (!strcmp(operation, "min"))
    *number = a < b ? a : b;
  else
    *number = a > b ? a : b; /* max */
  return true;
}

static bool read_call(fa_scanner *scanner, const char *name, size_t length, fa_value *value) {
  static const char *const functions[] = {"min", "max", "ceil_div", "round_up"};
  const char *function = NULL;
  for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
    if (strlen(functions[i]) == length && !memcmp(functions[i], name, length))
      function = functions[i];
  if (!function)
    return fa_scan_fail(scanner, "unknown function '%.*s'; there are min, max, ceil_div and round_up", (int)length,
                        name);
  fa_value left, right;
  if (!fa_expression_read(scanner, &left))
    return false;
  if (!fa_scan_symbol(scanner, ","))
    return fa_scan_fail_here(scanner, "',' and a second argument");
  if (!fa_expression_read(scanner, &right))
    return false;
  if (!fa_scan_symbol(scanner, ")"))
    return fa_scan_fail_here(scanner, "')'");
  return apply(scanner, function, left, right, value);
}

static bool read_primary(fa_scanner *scanner, fa_value *value) {
  fa_scan_blanks(scanner);
  const char *name;
  size_t length;
  if (scanner->position < scanner->end && is_digit(*scanner->position))
    return read_integer(scanner, value);
  if (fa_scan_symbol(scanner, "(")) {
    if (!fa_expression_read(scanner, value))
      return false;
    return fa_scan_symbol(scanner, ")") || fa_scan_fail_here(scanner, "')'");
  }
  if (fa_scan_symbol(scanner, "\"")) {
    const char *start = scanner->position;
    const char *stop = memchr(start, '"', (size_t)(scanner->end - start));
    if (!stop)
      return fa_scan_fail(scanner, "the text literal has no closing '\"'");
    scanner->position = stop + 1;
    *value = (fa_value){.is_text = true, .text = start, .length = (size_t)(stop - start)};
    return true;
  }
  if ((length = fa_scan_name(scanner, &name)) == 0)
    return fa_scan_fail_here(scanner, "a number, a name or a text");
  if (fa_scan_symbol(scanner, "("))
    return read_call(scanner, name, length, value);
  if (!scanner->lookup(scanner->context, name, length, value))
    return fa_scan_fail(scanner, "unknown name '%.*s'", (int)(length > 200 ? 200 : length), name);
  return true;
}

static bool read_unary(fa_scanner *scanner, fa_value *value) {
  fa_scan_blanks(scanner);
  char sign = scanner->position < scanner->end ? *scanner->position : '\0';
  if (sign != '!' && sign != '-' && sign != '+')
    return read_primary(scanner, value);
  scanner->position++;
  if (++scanner->depth > MAX_DEPTH)
    return fa_scan_fail(scanner, "the expression is nested too deeply");
  if (!read_unary(scanner, value))
    return false;
  scanner->depth--;
  const fa_value zero = {0};
  if (sign != '!')
    return apply(scanner, sign == '-' ? "-" : "+", zero, *value, value);
  if (!scanner->unneeded && !need_numbers(scanner, "!", *value, zero))
    return false;
  *value = (fa_value){.number = value->number == 0};
  return true;
}

/* Operators of each level of precedence, weakest first; longer ones before their beginnings. */
static const char *const levels[][5] = {{"||"},     {"&&"},         {"==", "!="}, {"<=", ">=", "<", ">"},
                                        {"+", "-"}, {"*", "/", "%"}};
enum { LEVEL_OR = 0, LEVEL_AND = 1, LEVEL_EQUAL = 2, LEVEL_LESS = 3, NUM_LEVELS = 6 };

static bool read_level(fa_scanner *scanner, int level, fa_value *value);

static bool read_logical(fa_scanner *scanner, int level, fa_value *value) {
  const char *symbol = levels[level][0];
  fa_value right;
  bool is_or = level == LEVEL_OR;
  bool decided = !scanner->unneeded && !value->is_text && (value->number != 0) == is_or;
  scanner->unneeded += decided;
  bool read = read_level(scanner, level + 1, &right);
  scanner->unneeded -= decided;
  if (!read)
    return false;
  if (decided)
    right = (fa_value){.number = is_or};
  if (!scanner->unneeded && !need_numbers(scanner, symbol, *value, right))
    return false;
  *value = (fa_value){.number = right.number != 0};
  return true;
}

static bool read_level(fa_scanner *scanner, int level, fa_value *value) {
  if (level == NUM_LEVELS)
    return read_unary(scanner, value);
  if (!read_level(scanner, level + 1, value))
    return false;
  for (int count = 0;; count++) {
    const char *operation = NULL;
    for (int i = 0; levels[level][i] && !operation; i++)
      if (fa_scan_symbol(scanner, levels[level][i]))
        operation = levels[level][i];
    if (!operation)
      return true;
    if (level <= LEVEL_AND) {
      if (!read_logical(scanner, level, value))
        return false;
      continue;
    }
    if ((level == LEVEL_EQUAL || level == LEVEL_LESS) && count > 0)
      return fa_scan_fail(scanner, "a chain of comparisons needs parentheses or &&");
    fa_value right;
    if (!read_level(scanner, level + 1, &right) || !apply(scanner, operation, *value, right, value))
      return false;
  }
}

bool fa_expression_read(fa_scanner *scanner, fa_value *value) {
  *value = (fa_value){0};
  if (++scanner->depth > MAX_DEPTH)
    return fa_scan_fail(scanner, "the expression is nested too deeply");
  bool read = read_level(scanner, 0, value);
  scanner->depth--;
  return read;
}

bool fa_expression_read_number(fa_scanner *scanner, long long *number) {
  fa_value value;
  if (!fa_expression_read(scanner, &value))
    return false;
  if (value.is_text)
    return fa_scan_fail(scanner, "a number is needed here, not the text \"%.*s\"",
                        (int)(value.length > 100 ? 100 : value.length), value.text);
  *number = value.number;
  return true;
}

bool fa_expression_read_text(fa_scanner *scanner, fa_value *text) {
  if (!fa_expression_read(scanner, text))
    return false;
  return text->is_text || fa_scan_fail(scanner, "a text is needed here, not the number %lld", text->number);
}
