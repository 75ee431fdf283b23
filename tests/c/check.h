/*
 * What the C tests share: a failed check says where, and the program goes on.
 *
 *     int main(void) {
 *       CHECK(1 + 1 == 2);
 *       CHECK_TEXT(fa_op_name(FA_FORWARD), "forward");
 *       return check_report();               "2 passed, 0 failed", and the exit status
 *     }
 */
#ifndef FLASH_ATTENTION_TESTS_CHECK_H
#define FLASH_ATTENTION_TESTS_CHECK_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int checks_passed, checks_failed;

/* Returns `passed`, so that a test can stop where going on makes no sense. */
static inline bool check_that(bool passed, const char *what, const char *file, int line) {
  if (passed) {
    checks_passed++;
  } else {
    checks_failed++;
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  }
  return passed;
}

static inline bool check_text(const char *actual, const char *expected, const char *what, const char *file, int line) {
  bool equal = actual && expected && strcmp(actual, expected) == 0;
  if (!check_that(equal, what, file, line))
    fprintf(stderr, "  expected: %s\n  actual:   %s\n", expected ? expected : "NULL", actual ? actual : "NULL");
  return equal;
}

#define CHECK(condition) check_that((condition), #condition, __FILE__, __LINE__)
#define CHECK_TEXT(actual, expected) check_text((actual), (expected), #actual " is " #expected, __FILE__, __LINE__)

static inline int check_report(void) {
  printf("%d passed, %d failed\n", checks_passed, checks_failed);
  return checks_failed == 0 ? 0 : 1;
}

#endif
