// Never slower: decides, while serving, whether a mechanism (prefetch, dynamic planes, batch
// ordering) pays, by running short windows with and without it and comparing what tokens cost.
//
//   LiveGuard guard("prefetch", {}, /*on=*/true);
//   for every step:
//     mechanism.Enable(guard.on());
//     ... the step ...
//     guard.OnStep(kind, tokens, seconds);
//     if (guard.decisions() != logged) log(guard.decision());
//
// A trial alternates windows of the present setting and the other one. Steps are compared with
// their like only (same kind, tokens within a factor of two), by medians, without the first steps
// of a window, which still feel the setting before. A trial ends when the difference stands out
// from the noise, when it is surely smaller than the margin, or after max_pairs of windows; the
// setting changes only if the other one is cheaper by more than the margin. A window of the other
// setting that is plainly bad is cut short.
//
// Between trials the guard rests. A rest lasts at least until the steps, and the seconds lost, in
// the other setting are max_trial_share of all; it doubles with every trial that confirms the
// setting, up to max_rest_steps, and ends early when steps of one kind have become much dearer or
// cheaper than they were at the last trial. A setting that was just taken is not given up within
// its dwell time, which doubles when settings follow one another quickly (alternating costs must
// not make it flap).
//
// Time is what OnStep is told: no clock is read. Trap: a mechanism whose effect outlives a window
// (a cache that it filled) is judged too mildly in either direction.
//
// Threads: one owner thread. Nothing is allocated after construction, except decision().
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/experts/tier_stats.h"

namespace sluice {

struct LiveGuardOptions {
  int warm_up_steps = 32;  // before the first trial
  int window_steps = 12;
  int skipped_steps = 2;  // at the beginning of a window
  int min_pairs = 3;      // of windows in a trial
  int max_pairs = 8;
  double margin = 0.03;           // a smaller difference in cost is none
  double max_trial_share = 0.02;  // of steps in the other setting, and of seconds lost there
  int max_rest_steps = 20000;
  int dwell_steps = 200;
  double cut_short = 2;   // a window of the other setting ends when its steps cost this many times
                          // as much as usual
  double surprise = 1.3;  // so much dearer or cheaper than at the last trial: look again
};

class LiveGuard {
 public:
  LiveGuard(std::string_view name, const LiveGuardOptions& options, bool on);

  // Whether the next step runs with the mechanism.
  bool on() const { return on_; }
  // Whether a trial is going on: on() may differ from what was decided.
  bool in_trial() const { return in_trial_; }
  bool decided() const { return setting_; }

  // A step ran with on(). kind: a small number of the caller's (decode, prefill, ...): only steps
  // of one kind are compared. Steps without tokens are ignored.
  void OnStep(int kind, int tokens, double seconds);

  // The last trial's outcome in a sentence; says so when there was none yet.
  const std::string& decision() const { return decision_; }
  uint64_t decisions() const { return changes_; }  // that changed the setting
  uint64_t trials() const { return trials_; }
  uint64_t steps() const { return steps_; }
  uint64_t trial_steps() const { return other_steps_; }  // in the other setting
  // Measured cost without the mechanism / with it; 0: not known yet.
  double gain() const { return gain_; }
  ExpertTierStats::Guard stats() const;

 private:
  static constexpr int kClasses = 16;
  static constexpr int kSamples = 128;  // per class and setting; later ones replace the oldest
  static constexpr int kRecent = 16;

  // Steps that can be compared.
  struct StepClass {
    int kind = -1;
    int size = -1;  // log2 of the tokens
    uint64_t last_step = 0;
    std::vector<double> costs[2];  // seconds per token in this trial: [off, on]
    uint64_t counted[2] = {0, 0};
    double usual = 0;            // the setting's median at the last trial; 0: none
    std::vector<double> recent;  // of the setting, outside trials
    uint64_t recent_counted = 0;
  };
  struct Comparison {
    double log_gain = 0;   // log(cost off / cost on)
    double deviation = 0;  // standard error
    int64_t samples[2] = {0, 0};
    double cost[2] = {0, 0};  // of the class with most samples
  };

  StepClass& ClassOf(int kind, int tokens);
  double Median(const std::vector<double>& values);
  // False: no kind of step was seen often enough in both settings.
  bool Compare(Comparison* comparison);
  void Rest(double cost, StepClass* steps);
  void BeginTrial();
  void NextWindow();
  // Decides, or lets the trial go on.
  void Judge();
  void EndTrial(const Comparison& comparison, bool known, bool change);

  std::string name_;
  LiveGuardOptions options_;
  bool on_;
  bool setting_;
  bool in_trial_ = false;

  std::vector<StepClass> classes_;  // [kClasses]
  uint64_t steps_ = 0;
  uint64_t other_steps_ = 0;
  double seconds_ = 0;
  double lost_seconds_ = 0;  // in the other setting, over what its steps cost usually
  int window_step_ = 0;
  int windows_ = 0;          // of this trial
  int bad_steps_ = 0;        // of this window
  uint64_t next_trial_ = 0;  // step
  int rest_steps_ = 0;
  uint64_t changed_at_ = 0;
  int dwell_steps_ = 0;

  uint64_t trials_ = 0;
  uint64_t changes_ = 0;
  double gain_ = 0;
  std::string decision_;
  std::vector<double> sorted_;  // scratch
};

}  // namespace sluice
