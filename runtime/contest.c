/*
 * Rounds of times -> the fastest candidate; see contest.h.
 */
#include "runtime/contest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* As good as the best: two times of one kernel differ by as much. */
static const double TIE = 1.01;

/* After so many rounds (the first warms up) a candidate leaves that was never nearer to the fastest than this. A
 * kernel's first run may take twice as long as its others; the rounds after it differ by a few hundredths. */
static const double FAR_BEHIND[] = {4, 1.5, 1.2, 1.1, 1.06};
enum { LAST_BOUND = (int)(sizeof FAR_BEHIND / sizeof *FAR_BEHIND) - 1 };

void fa_contest_begin(fa_contest *contest, int count, fa_contest_limits limits) {
  memset(contest, 0, sizeof *contest);
  contest->count = count < FA_CONTEST_MOST ? count : FA_CONTEST_MOST;
  contest->limits = limits;
}

void fa_contest_enter(fa_contest *contest, int i) { contest->in[i] = i < contest->count; }

int fa_contest_at(const fa_contest *contest, int place) {
  return contest->rounds % 2 == 0 ? place : contest->count - 1 - place;
}

void fa_contest_fail(fa_contest *contest, int i) { contest->in[i] = false; }

void fa_contest_time(fa_contest *contest, int i, double seconds) {
  if (!(seconds > 0) || !isfinite(seconds) || contest->rounds == FA_CONTEST_ROUNDS) {
    contest->in[i] = false;
    return;
  }
  contest->seconds[i][contest->rounds] = seconds;
  contest->spent += seconds;
}

static double nearest(const fa_contest *contest, int i) {
  double least = INFINITY;
  for (int round = 0; round < contest->rounds; round++)
    least = fmin(least, contest->relative[i][round]);
  return least;
}

void fa_contest_end_round(fa_contest *contest) {
  const int round = contest->rounds++;
  double fastest = INFINITY;
  for (int i = 0; i < contest->count; i++)
    if (contest->in[i])
      fastest = fmin(fastest, contest->seconds[i][round]);
  for (int i = 0; i < contest->count; i++)
    if (contest->in[i])
      contest->relative[i][round] = contest->seconds[i][round] / fastest;
  for (int i = 0; i < contest->count; i++)
    if (contest->in[i] && nearest(contest, i) > FAR_BEHIND[round < LAST_BOUND ? round : LAST_BOUND])
      contest->in[i] = false;
}

bool fa_contest_is_over(const fa_contest *contest) {
  int in = 0;
  for (int i = 0; i < contest->count; i++)
    in += contest->in[i];
  const int measured = contest->rounds - 1;
  return in == 0 || (in == 1 && measured > 0) || contest->rounds == FA_CONTEST_ROUNDS ||
         (measured >= contest->limits.least_rounds && contest->spent > contest->limits.seconds);
}

static int compare(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Of the rounds after the first; of that one where there was no other. */
static double median(const fa_contest *contest, const double *values) {
  double sorted[FA_CONTEST_ROUNDS];
  int count = 0;
  for (int round = contest->rounds > 1 ? 1 : 0; round < contest->rounds; round++)
    if (values[round] > 0)
      sorted[count++] = values[round];
  if (count == 0)
    return INFINITY;
  qsort(sorted, (size_t)count, sizeof *sorted, compare);
  return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

int fa_contest_winner(const fa_contest *contest) {
  double best = INFINITY;
  for (int i = 0; i < contest->count; i++)
    if (contest->in[i])
      best = fmin(best, median(contest, contest->relative[i]));
  if (!isfinite(best))
    return -1;
  int winner = 0;
  while (!contest->in[winner] || median(contest, contest->relative[winner]) > best * TIE)
    winner++;
  return winner;
}

double fa_contest_seconds(const fa_contest *contest, int i) {
  double seconds = median(contest, contest->seconds[i]);
  return isfinite(seconds) || contest->rounds == 0 ? seconds
         : contest->seconds[i][0] > 0              ? contest->seconds[i][0]
                                                   : INFINITY;
}

double fa_contest_last(const fa_contest *contest, int i) {
  double last = 0;
  for (int round = 0; round < FA_CONTEST_ROUNDS && round <= contest->rounds; round++)
    if (contest->seconds[i][round] > 0)
      last = contest->seconds[i][round];
  return last;
}
