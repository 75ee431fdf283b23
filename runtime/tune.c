/*
 * Which config is best: the generator's candidates, best guess first, are built several at a time; those that
 * build are checked and, if right, timed in turn, round after round; contest.c says who wins.
 */
#include "runtime/contest.h"
#include "runtime/trial.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A first call shall take 3 seconds at most, on two slow cores too: after the first of these times no build is begun
 * but those of the likely best, after the second no round of timing but one. */
static const double BUILD_SECONDS = 1.2, TIMING_SECONDS = 2.2;

/* Without memory for a trial as it should be, one with tensors of so much less is made. */
enum { SMALLER = 16 };

typedef struct search {
  const fa_device *device;
  fa_problem problem; /* target as low as the compiler needs it */
  const fa_shape *bucket;
  const fa_host *host;
  void *stream;
  fa_autotune autotune;
  double started;
  fa_progress progress;
  char *notes;
  bool lacks_memory; /* for a candidate, of which nothing is known then */
  /* One of each for every candidate. */
  int count;
  fa_config *configs;
  fa_built *built;
  fa_candidate *loaded; /* its kernel is NULL where the candidate did not build, load or compute right */
  fa_contest *contest;
  fa_trial_limits limits;
} search;

static void drop(search *s, int i, const char *reason) {
  char config[256];
  fa_config_format(&s->configs[i], config, sizeof config);
  fa_say("dropped %s: %s", config, reason);
  fa_append(s->notes, FA_NOTES_SIZE, "dropped=%s; %.*s\n", config, (int)strcspn(reason, "\n"), reason);
  if (s->loaded[i].kernel)
    s->device->ops->unload(s->device, &s->loaded[i].loaded);
  s->loaded[i].kernel = NULL;
}

/* List candidates and build them; on a compiler that lacks an instruction set, for the next simpler target. */
static fa_status build_candidates(search *s, char *message) {
  for (;;) {
    int count = fa_candidates(&s->problem, s->bucket, s->configs, message, FA_MESSAGE_SIZE);
    if (count < 1)
      return FA_FAILED;
    if (s->autotune == FA_TUNE_NONE)
      count = 1;
    if (s->autotune == FA_TUNE_SOME && count > s->limits.candidates)
      count = s->limits.candidates;
    double budget = s->autotune == FA_TUNE_ALL ? INFINITY : BUILD_SECONDS;
    fa_build_all(s->device->ops, &s->problem, s->configs, count, s->limits.likely, budget, &s->progress, s->built);
    s->count = count;
    const fa_built *failed = NULL;
    for (int i = 0; i < count; i++) {
      if (s->built[i].status == FA_OK)
        return FA_OK;
      if (s->built[i].failure && !failed)
        failed = &s->built[i];
    }
    fa_status status = failed ? failed->status : FA_OUT_OF_MEMORY;
    fa_fail(status, message, "%s", failed ? failed->failure : "out of memory");
    for (int i = 0; i < count; i++)
      fa_built_free(&s->built[i]);
    s->count = 0;
    if (status != FA_UNSUPPORTED)
      return status;
    char lower[FA_TARGET_LENGTH];
    if (!s->device->ops->lower_target(s->problem.target, lower))
      return FA_NO_COMPILER;
    memcpy(s->problem.target, lower, sizeof lower);
    fa_problem_normalize(&s->problem);
  }
}

static fa_status load(const search *s, fa_built *built, fa_candidate *candidate, char *message) {
  *candidate = (fa_candidate){.problem = &built->problem, .config = &built->config};
  fa_status status = fa_load_built(s->device, built, &candidate->loaded, message);
  if (status == FA_OK)
    candidate->kernel = &built->kernel;
  return status;
}

/* Load what was built. `message` says what was wrong with the last one that does not load. Returns how many do. */
static int load_candidates(search *s, char *message) {
  int loaded = 0;
  for (int i = 0; i < s->count; i++) {
    fa_built *built = &s->built[i];
    fa_status status = built->status == FA_OK ? load(s, built, &s->loaded[i], message) : built->status;
    loaded += status == FA_OK;
    s->lacks_memory |= status == FA_OUT_OF_MEMORY;
    if (status != FA_OK)
      drop(s, i, built->status == FA_OK ? message : built->failure ? built->failure : "not built in time");
  }
  return loaded;
}

/* For a trial of backward: forward's best guess, which its own tuning has most likely left in the cache. */
static fa_status get_forward(const search *s, fa_built *built, fa_candidate *forward, char *message) {
  fa_problem problem = s->problem;
  problem.op = FA_FORWARD;
  fa_problem_normalize(&problem);
  fa_config *configs = calloc(FA_MAX_CANDIDATES, sizeof *configs);
  if (!configs)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory for the tuner");
  fa_status status = FA_FAILED;
  if (fa_candidates(&problem, s->bucket, configs, message, FA_MESSAGE_SIZE) > 0)
    status = fa_build(s->device->ops, &problem, &configs[0], built, message);
  free(configs);
  return status == FA_OK ? load(s, built, forward, message) : status;
}

/* Drop the candidates that compute wrong results. FA_OUT_OF_MEMORY: there is no room to find out; FA_FAILED: none is
 * right. `message` is of the last dropped. */
static fa_status check_candidates(search *s, fa_trial *trial, char *message) {
  int right = 0;
  for (int i = 0; i < s->count; i++) {
    if (!s->loaded[i].kernel)
      continue;
    fa_status status = fa_trial_check(trial, &s->loaded[i], message);
    if (status == FA_OUT_OF_MEMORY)
      return status;
    if (status == FA_OK)
      right++;
    else
      drop(s, i, message);
  }
  return right > 0 ? FA_OK : FA_FAILED;
}

static int best_guess(const search *s) {
  for (int i = 0; i < s->count; i++)
    if (s->loaded[i].kernel)
      return i;
  return -1;
}

static void note_times(search *s) {
  for (int i = 0; i < s->count; i++) {
    const double milliseconds = fa_contest_seconds(s->contest, i) * 1e3;
    if (!isfinite(milliseconds))
      continue;
    char config[256];
    fa_config_format(&s->configs[i], config, sizeof config);
    fa_say("%9.3f ms %s%s", milliseconds, config, s->contest->in[i] ? "" : ", given up");
    fa_append(s->notes, FA_NOTES_SIZE, "milliseconds=%.4f %s\n", milliseconds, config);
  }
}

/* Time the candidates that are right. Returns the fastest; the best guess where none can be timed. */
static int time_candidates(search *s, fa_trial *trial) {
  const bool all = s->autotune == FA_TUNE_ALL;
  fa_contest *contest = s->contest;
  fa_contest_begin(contest, s->count, all ? s->limits.thorough : s->limits.usual);
  for (int i = 0; i < s->count; i++)
    if (s->loaded[i].kernel)
      fa_contest_enter(contest, i);
  while (!fa_contest_is_over(contest)) {
    if (!all && contest->rounds > 1 && fa_seconds() - s->started > TIMING_SECONDS)
      break;
    for (int place = 0; place < s->count; place++) {
      const int i = fa_contest_at(contest, place);
      char ignored[FA_MESSAGE_SIZE];
      double seconds = fa_contest_last(contest, i);
      if (!contest->in[i])
        continue;
      if (fa_trial_time(trial, &s->loaded[i], &seconds, ignored) == FA_OK)
        fa_contest_time(contest, i, seconds);
      else
        fa_contest_fail(contest, i);
    }
    fa_contest_end_round(contest);
    fa_progress_show(&s->progress, "%s for %s: %d kernels timed %d times", fa_op_name(s->problem.op), s->problem.target,
                     s->count, contest->rounds);
  }
  note_times(s);
  const int winner = fa_contest_winner(contest);
  return winner >= 0 ? winner : best_guess(s);
}

/* Check and time the candidates. FA_OUT_OF_MEMORY: no memory for that, and nothing is known. */
static fa_status try_candidates(search *s, const fa_candidate *forward, int *winner, char *message) {
  fa_trial *trial = NULL;
  fa_status status =
      fa_trial_begin(s->device, &s->problem, s->bucket, &s->limits, s->host, s->stream, forward, &trial, message);
  if (status == FA_OK)
    status = check_candidates(s, trial, message);
  if (status == FA_OK)
    *winner = s->autotune == FA_TUNE_NONE ? best_guess(s) : time_candidates(s, trial);
  fa_trial_end(trial);
  return status;
}

/* The index of the winner, or -1 and a message. Without the memory for a trial that is the best guess; then, and
 * where there was none for a candidate, *keep is false: the next process tries again. */
static int find_winner(search *s, bool *keep, char *message) {
  if (load_candidates(s, message) == 0)
    return -1;
  fa_built forward_built = {0};
  fa_candidate forward = {0};
  const bool backward = s->problem.op == FA_BACKWARD;
  int winner = -1;
  bool tried = false;
  fa_status status = backward ? get_forward(s, &forward_built, &forward, message) : FA_OK;
  if (status == FA_OK) {
    status = try_candidates(s, backward ? &forward : NULL, &winner, message);
    if (status == FA_OUT_OF_MEMORY) {
      fa_say("cannot tune with tensors of up to %lld elements: %s", (long long)s->limits.elements, message);
      s->limits.elements /= SMALLER;
      status = try_candidates(s, backward ? &forward : NULL, &winner, message);
    }
    tried = status == FA_OK || status == FA_FAILED;
  }
  *keep = tried && !s->lacks_memory;
  if (!tried) {
    fa_say("cannot tune, taking the best guess for now: %s", message);
    winner = best_guess(s);
  }
  if (forward.kernel)
    s->device->ops->unload(s->device, &forward.loaded);
  fa_built_free(&forward_built);
  return winner;
}

static fa_status run(search *s, const fa_ready **ready, bool *keep, char *message) {
  if (!s->configs || !s->built || !s->loaded || !s->contest)
    return fa_fail(FA_OUT_OF_MEMORY, message, "out of memory for the tuner");
  fa_status status = build_candidates(s, message);
  if (status != FA_OK)
    return status;
  char config[256], reason[FA_MESSAGE_SIZE] = "";
  int winner = find_winner(s, keep, reason);
  if (winner < 0) {
    fa_describe_problem(&s->problem, config, sizeof config);
    return fa_fail(s->lacks_memory ? FA_OUT_OF_MEMORY : FA_FAILED, message,
                   "no kernel for %s loads here and computes right results; the last one tried: %.3000s", config,
                   reason);
  }
  const fa_built *built = &s->built[winner];
  status = fa_make_ready(s->device, &built->problem, &built->config, built->kernel_hex, &s->loaded[winner].loaded,
                         ready, message);
  if (status != FA_OK)
    return status;
  s->loaded[winner].kernel = NULL; /* it is kept */
  fa_config_format(&built->config, config, sizeof config);
  fa_say("chose %s after %.2f s", config, fa_seconds() - s->started);
  if (s->autotune != FA_TUNE_NONE)
    fa_count(&fa_counters.tunings);
  return status;
}

fa_status fa_tune(const fa_device *device, const fa_problem *problem, const fa_shape *bucket, fa_autotune autotune,
                  const fa_host *host, void *stream, const fa_ready **ready, bool *keep, char notes[FA_NOTES_SIZE],
                  char *message) {
  search s = {.device = device,
              .problem = *problem,
              .bucket = bucket,
              .host = host,
              .stream = stream,
              .autotune = autotune,
              .started = fa_seconds(),
              .progress = {.started = fa_seconds()},
              .notes = notes,
              .configs = calloc(FA_MAX_CANDIDATES, sizeof(fa_config)),
              .built = calloc(FA_MAX_CANDIDATES, sizeof(fa_built)),
              .loaded = calloc(FA_MAX_CANDIDATES, sizeof(fa_candidate)),
              .contest = calloc(1, sizeof(fa_contest))};
  device->ops->limit_trial(device, problem, &s.limits);
  char description[160];
  fa_describe_problem(problem, description, sizeof description);
  fa_say("tuning %s for seqlen_q=%lld seqlen_k=%lld", description, (long long)bucket->seqlen_q,
         (long long)bucket->seqlen_k);
  fa_status status = run(&s, ready, keep, message);
  fa_progress_end(&s.progress);
  for (int i = 0; i < s.count; i++) {
    if (s.loaded[i].kernel)
      device->ops->unload(device, &s.loaded[i].loaded);
    fa_built_free(&s.built[i]);
  }
  free(s.configs);
  free(s.built);
  free(s.loaded);
  free(s.contest);
  return status;
}
