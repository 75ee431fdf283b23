/*
 * Which candidate is the fastest, given rounds of times. Arithmetic only: no device, no clock.
 *
 *     fa_contest_begin(&contest, count, limits)
 *     fa_contest_enter(&contest, i) for each candidate that can run
 *     while (!fa_contest_is_over(&contest)):
 *       for each i of count, in the order of fa_contest_at: if contest.in[i]: fa_contest_time(&contest, i, seconds)
 *       fa_contest_end_round(&contest)
 *     fa_contest_winner(&contest)
 *
 * In a round each candidate is timed once, in turn. A device's clock rate drifts from round to round, but hardly within
 * one: what counts is how a candidate's time compares with the fastest one's of the same round, and of that the median
 * over the rounds, so that a round in which something else disturbed the device decides nothing. The first round warms
 * up: the device's clock, new memory, a kernel's code.
 */
#ifndef FLASH_ATTENTION_CONTEST_H
#define FLASH_ATTENTION_CONTEST_H

#include <stdbool.h>

enum { FA_CONTEST_MOST = 256, FA_CONTEST_ROUNDS = 16 }; /* candidates; rounds, with the one that warms up */

typedef struct fa_contest_limits {
  int least_rounds; /* after the one that warms up */
  double seconds;   /* then, no round is begun once as much has been spent */
} fa_contest_limits;

typedef struct fa_contest {
  int count, rounds; /* rounds that have ended */
  fa_contest_limits limits;
  double spent;             /* what all runs took */
  bool in[FA_CONTEST_MOST]; /* is timed, and may win */
  double seconds[FA_CONTEST_MOST][FA_CONTEST_ROUNDS], relative[FA_CONTEST_MOST][FA_CONTEST_ROUNDS];
} fa_contest;

void fa_contest_begin(fa_contest *contest, int count, fa_contest_limits limits);
void fa_contest_enter(fa_contest *contest, int i);
/* The candidate at place `place` of this round. Every other round goes backwards: nobody always follows the same one.
 */
int fa_contest_at(const fa_contest *contest, int place);
/* `seconds` is the time of one run. A candidate that cannot be timed leaves the contest. */
void fa_contest_time(fa_contest *contest, int i, double seconds);
void fa_contest_fail(fa_contest *contest, int i);
/* Those that are far behind leave. */
void fa_contest_end_round(fa_contest *contest);
bool fa_contest_is_over(const fa_contest *contest);
/* The first of the candidates, which are in the order of best guesses, that are as good as the best; -1: nobody was
 * timed. */
int fa_contest_winner(const fa_contest *contest);
/* Median seconds of a candidate's runs; INFINITY if it was never timed. */
double fa_contest_seconds(const fa_contest *contest, int i);
/* The time of its last run, 0 if there was none. */
double fa_contest_last(const fa_contest *contest, int i);

#endif
