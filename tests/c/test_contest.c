/*
 * The tuner's choice from rounds of times: noise, a clock that drifts, rounds in which something else ran, ties, and
 * candidates that are not worth more runs. No device and no clock: times are made up here.
 */
#include "runtime/contest.h"
#include "tests/c/check.h"

#include <math.h>
#include <stdint.h>

enum { MOST = 6 };

/* A device: what a run of each candidate takes, and what disturbs it. */
typedef struct device {
  int count;
  double seconds[MOST];
  double noise;          /* at most so much is added, as a part of a run's time */
  double drift;          /* each run of any candidate makes all later ones slower by so much */
  double cold;           /* a candidate's first run takes so many times as long; 0: it does not */
  int bad_round;         /* in which everything takes three times as long from a candidate on; 0: none */
  int bad_from, bad_for; /* ... from this candidate on, for so many */
  int runs[MOST], total;
  uint64_t random;
} device;

static double random_part(device *d) {
  d->random = d->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (double)(d->random >> 11) * 0x1p-53;
}

static double run(device *d, int i, int round) {
  double seconds = d->seconds[i] * (1 + d->noise * random_part(d)) * (1 + d->drift * d->total++);
  if (d->runs[i]++ == 0 && d->cold > 0)
    seconds *= d->cold;
  if (d->bad_round > 0 && round == d->bad_round && i >= d->bad_from && i < d->bad_from + d->bad_for)
    seconds *= 3;
  return seconds;
}

static const fa_contest_limits usual = {.least_rounds = 3, .seconds = 0.1};
static fa_contest contest;

static int hold(device *d, fa_contest_limits limits) {
  d->random += 12345;
  fa_contest_begin(&contest, d->count, limits);
  for (int i = 0; i < d->count; i++)
    fa_contest_enter(&contest, i);
  while (!fa_contest_is_over(&contest)) {
    for (int place = 0; place < d->count; place++) {
      const int i = fa_contest_at(&contest, place);
      if (contest.in[i])
        fa_contest_time(&contest, i, run(d, i, contest.rounds));
    }
    fa_contest_end_round(&contest);
  }
  return fa_contest_winner(&contest);
}

static void test_the_fastest_wins(void) {
  for (int fastest = 0; fastest < 4; fastest++) {
    device d = {.count = 4, .seconds = {1e-3, 1e-3, 1e-3, 1e-3}};
    d.seconds[fastest] = 0.95e-3;
    CHECK_NUMBER(hold(&d, usual), fastest);
    CHECK(fabs(fa_contest_seconds(&contest, fastest) - 0.95e-3) < 1e-9);
  }
}

/* Among those that no measurement tells apart it is always the same one. */
static void test_ties_go_to_the_best_guess(void) {
  for (int trial = 0; trial < 200; trial++) {
    device d = {.count = 4, .seconds = {1.1e-3, 1e-3, 1e-3, 0.998e-3}, .noise = 0.006, .random = (uint64_t)trial};
    CHECK_NUMBER(hold(&d, usual), 1);
  }
}

/* 3 %: what a choice may cost. */
static void test_noise(void) {
  for (int trial = 0; trial < 500; trial++) {
    device d = {.count = 5,
                .seconds = {1.06e-3, 1.05e-3, 1e-3, 1.03e-3, 1.2e-3},
                .noise = 0.04,
                .cold = 2.5,
                .random = (uint64_t)trial};
    const int winner = hold(&d, usual);
    CHECKF(winner == 2 || winner == 3, "trial %d: winner %d", trial, winner);
  }
}

/* Timed one after another, the first would win: the last of five is begun 30 % later. */
static void test_a_clock_that_drifts(void) {
  const double drifts[] = {0.004, -0.004};
  for (int k = 0; k < 2; k++) {
    device d = {.count = 5, .seconds = {1.03e-3, 1.03e-3, 1.03e-3, 1.03e-3, 1e-3}, .drift = drifts[k]};
    CHECK_NUMBER(hold(&d, usual), 4);
    device e = {.count = 5, .seconds = {1e-3, 1.03e-3, 1.03e-3, 1.03e-3, 1.03e-3}, .drift = drifts[k]};
    CHECK_NUMBER(hold(&e, usual), 0);
  }
}

/* A neighbour takes the device for a while, whenever that is and whomever it meets. */
static void test_an_outlier_round(void) {
  for (int round = 0; round < 5; round++)
    for (int from = 0; from < 4; from++)
      for (int whom = 1; whom <= 4; whom++) {
        device d = {.count = 4,
                    .seconds = {8.5e-3, 8.2e-3, 8e-3, 10e-3},
                    .bad_round = round,
                    .bad_from = from,
                    .bad_for = whom};
        const int winner = hold(&d, usual);
        CHECKF(winner == 2, "round %d, candidates %d to %d: winner %d", round, from, from + whom, winner);
      }
}

/* What is far slower gets no more runs than it takes to know; what is near gets them all. */
static void test_the_slow_leave(void) {
  device d = {.count = 5, .seconds = {1e-3, 1.02e-3, 1.3e-3, 2e-3, 10e-3}, .cold = 2};
  CHECK_NUMBER(hold(&d, usual), 0);
  CHECK_NUMBER(d.runs[4], 1);
  CHECK_NUMBER(d.runs[3], 2);
  CHECK_NUMBER(d.runs[2], 3);
  CHECK_NUMBER(d.runs[1], FA_CONTEST_ROUNDS);
  CHECK_NUMBER(d.runs[0], FA_CONTEST_ROUNDS);
}

/* Runs that take long are few, but every candidate that is near gets the least number of rounds. */
static void test_time_is_bounded(void) {
  device d = {.count = 3, .seconds = {1, 1.01, 1.02}};
  hold(&d, usual);
  CHECK_NUMBER(contest.rounds, 1 + usual.least_rounds);
  device e = {.count = 3, .seconds = {10e-3, 10.1e-3, 10.2e-3}};
  hold(&e, usual);
  CHECK_NUMBER(contest.rounds, 1 + usual.least_rounds);
  device f = {.count = 3, .seconds = {1e-3, 1.01e-3, 1.02e-3}};
  hold(&f, usual);
  CHECK_NUMBER(contest.rounds, FA_CONTEST_ROUNDS);
  device one = {.count = 1, .seconds = {1e-3}};
  CHECK_NUMBER(hold(&one, usual), 0);
  CHECK_NUMBER(contest.rounds, 2);
}

/* The round that warms up does not count, where there is another. */
static void test_warming_up(void) {
  fa_contest_begin(&contest, 2, usual);
  const double seconds[2][2] = {{3e-3, 1e-3}, {0.9e-3, 1e-3}};
  fa_contest_enter(&contest, 0);
  fa_contest_enter(&contest, 1);
  for (int round = 0; round < 2; round++) {
    fa_contest_time(&contest, 0, seconds[round][0]);
    fa_contest_time(&contest, 1, seconds[round][1]);
    fa_contest_end_round(&contest);
  }
  CHECK_NUMBER(fa_contest_winner(&contest), 0);
  CHECK(fa_contest_seconds(&contest, 0) == 0.9e-3);
}

/* Candidates that fail, at any time, and contests that nobody can win. */
static void test_failures(void) {
  fa_contest_begin(&contest, 3, usual);
  CHECK(fa_contest_is_over(&contest));
  CHECK_NUMBER(fa_contest_winner(&contest), -1);
  CHECK(isinf(fa_contest_seconds(&contest, 0)));
  CHECK(fa_contest_last(&contest, 0) == 0);
  fa_contest_enter(&contest, 0);
  fa_contest_enter(&contest, 2);
  CHECK(!contest.in[1]);
  fa_contest_time(&contest, 0, 1e-3);
  fa_contest_time(&contest, 2, 1.5e-3);
  CHECK(fa_contest_last(&contest, 2) == 1.5e-3);
  fa_contest_end_round(&contest);
  CHECK_NUMBER(fa_contest_winner(&contest), 0); /* the round that warms up, where there is no other */
  fa_contest_fail(&contest, 0);
  fa_contest_time(&contest, 2, 1.4e-3);
  fa_contest_end_round(&contest);
  CHECK(fa_contest_is_over(&contest));
  CHECK_NUMBER(fa_contest_winner(&contest), 2);
  const double wrong[] = {0, -1, NAN, INFINITY};
  for (int i = 0; i < 4; i++) {
    fa_contest_begin(&contest, 2, usual);
    fa_contest_enter(&contest, 0);
    fa_contest_enter(&contest, 1);
    fa_contest_time(&contest, 0, wrong[i]);
    fa_contest_time(&contest, 1, 1e-3);
    fa_contest_end_round(&contest);
    CHECK_NUMBER(fa_contest_winner(&contest), 1);
  }
}

/* Every other round goes backwards. */
static void test_order(void) {
  fa_contest_begin(&contest, 3, usual);
  CHECK(fa_contest_at(&contest, 0) == 0 && fa_contest_at(&contest, 2) == 2);
  fa_contest_end_round(&contest);
  CHECK(fa_contest_at(&contest, 0) == 2 && fa_contest_at(&contest, 2) == 0);
}

int main(void) {
  RUN(test_the_fastest_wins);
  RUN(test_ties_go_to_the_best_guess);
  RUN(test_noise);
  RUN(test_a_clock_that_drifts);
  RUN(test_an_outlier_round);
  RUN(test_the_slow_leave);
  RUN(test_time_is_bounded);
  RUN(test_warming_up);
  RUN(test_failures);
  RUN(test_order);
  return check_summary();
}
