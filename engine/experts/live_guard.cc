#include "engine/experts/live_guard.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdio>

#include "engine/base/check.h"

namespace sluice {
namespace {

constexpr int kMinSamples = 4;  // of a kind of step in each setting, to be compared
constexpr double kSure = 2.5;   // standard errors
constexpr int kBadSteps = 3;    // that cut a window short
constexpr int kFirstRestSteps = 500;
constexpr int kMaxDwellFactor = 16;

}  // namespace

LiveGuard::LiveGuard(std::string_view name, const LiveGuardOptions& options, bool on)
    : name_(name), options_(options), on_(on), setting_(on), classes_(kClasses) {
  SLUICE_CHECK(options.window_steps > options.skipped_steps && options.min_pairs >= 1 &&
               options.max_pairs >= options.min_pairs && options.max_trial_share > 0);
  for (StepClass& c : classes_) {
    for (auto& costs : c.costs) costs.reserve(kSamples);
    c.recent.reserve(kRecent);
  }
  sorted_.reserve(kSamples);
  next_trial_ = static_cast<uint64_t>(options.warm_up_steps);
  rest_steps_ = kFirstRestSteps;
  dwell_steps_ = options.dwell_steps;
  decision_ = name_ + " is " + (on ? "on" : "off") + ": not measured yet";
}

ExpertTierStats::Guard LiveGuard::stats() const {
  return {name_, setting_, gain_, changes_, other_steps_, decision_};
}

LiveGuard::StepClass& LiveGuard::ClassOf(int kind, int tokens) {
  const int size = std::bit_width(static_cast<unsigned>(tokens));
  StepClass* oldest = classes_.data();
  for (StepClass& c : classes_) {
    if (c.kind == kind && c.size == size) return c;
    if (c.last_step < oldest->last_step) oldest = &c;
  }
  oldest->kind = kind;
  oldest->size = size;
  for (int on = 0; on < 2; ++on) {
    oldest->costs[on].clear();
    oldest->counted[on] = 0;
  }
  oldest->usual = 0;
  oldest->recent.clear();
  oldest->recent_counted = 0;
  return *oldest;
}

double LiveGuard::Median(const std::vector<double>& values) {
  sorted_ = values;
  const auto middle = sorted_.begin() + static_cast<ptrdiff_t>(sorted_.size() / 2);
  std::nth_element(sorted_.begin(), middle, sorted_.end());
  return *middle;
}

bool LiveGuard::Compare(Comparison* comparison) {
  double weights = 0;
  double variance = 0;
  size_t most = 0;
  *comparison = {};
  for (const StepClass& c : classes_) {
    const size_t pairs = std::min(c.costs[0].size(), c.costs[1].size());
    if (c.kind < 0 || pairs < static_cast<size_t>(kMinSamples)) continue;
    double median[2];
    double relative_variance = 0;
    for (int on = 0; on < 2; ++on) {
      median[on] = Median(c.costs[on]);
      // 1.4826 of the median deviation is a standard deviation, 1.2533 of that over the root of n
      // the standard error of a median, for normal noise.
      for (size_t i = 0; i < sorted_.size(); ++i) {
        sorted_[i] = std::abs(c.costs[on][i] - median[on]);
      }
      const auto middle = sorted_.begin() + static_cast<ptrdiff_t>(sorted_.size() / 2);
      std::nth_element(sorted_.begin(), middle, sorted_.end());
      const double error = 1.2533 * 1.4826 * *middle / median[on];
      relative_variance += error * error / static_cast<double>(sorted_.size());
    }
    // What a kind of step takes of the time is what it should say in the matter.
    const double weight = static_cast<double>(pairs) * (median[0] + median[1]) *
                          static_cast<double>(uint64_t{1} << c.size);
    comparison->log_gain += weight * std::log(median[0] / median[1]);
    variance += weight * weight * relative_variance;
    weights += weight;
    for (int on = 0; on < 2; ++on) {
      comparison->samples[on] += static_cast<int64_t>(c.costs[on].size());
      if (pairs > most) comparison->cost[on] = median[on];
    }
    most = std::max(most, pairs);
  }
  if (weights == 0) return false;
  comparison->log_gain /= weights;
  comparison->deviation = std::sqrt(variance) / weights;
  return true;
}

void LiveGuard::OnStep(int kind, int tokens, double seconds) {
  if (tokens <= 0 || !(seconds > 0)) return;
  ++steps_;
  seconds_ += seconds;
  StepClass& steps = ClassOf(kind, tokens);
  steps.last_step = steps_;
  const double cost = seconds / tokens;
  if (!in_trial_) return Rest(cost, &steps);

  ++window_step_;
  if (window_step_ > options_.skipped_steps) {
    auto& costs = steps.costs[on_];
    if (costs.size() < kSamples) {
      costs.push_back(cost);
    } else {
      costs[steps.counted[on_] % kSamples] = cost;
    }
    ++steps.counted[on_];
  }
  if (on_ != setting_) {
    ++other_steps_;
    const auto& usual = steps.costs[setting_];
    if (!usual.empty()) {
      const double median = Median(usual);
      lost_seconds_ += std::max(0.0, seconds - median * tokens);
      if (cost > options_.cut_short * median) ++bad_steps_;
    }
  }
  if (window_step_ >= options_.window_steps || bad_steps_ >= kBadSteps) NextWindow();
}

void LiveGuard::Rest(double cost, StepClass* steps) {
  if (steps->recent.size() < kRecent) {
    steps->recent.push_back(cost);
  } else {
    steps->recent[steps->recent_counted % kRecent] = cost;
  }
  ++steps->recent_counted;
  const double share = options_.max_trial_share;
  if (steps->usual > 0 && steps->recent_counted % kRecent == 0) {
    const double change = Median(steps->recent) / steps->usual;
    if (change > options_.surprise || change < 1 / options_.surprise) {
      next_trial_ = std::min(next_trial_, steps_);
      rest_steps_ = kFirstRestSteps;
      steps->usual = 0;  // said once
    }
  }
  // The first trial is on the house: without it there is nothing to go by.
  const bool affordable =
      trials_ == 0 || (static_cast<double>(other_steps_) <= share * static_cast<double>(steps_) &&
                       lost_seconds_ <= share * seconds_);
  const bool dwelt = changes_ == 0 || steps_ >= changed_at_ + static_cast<uint64_t>(dwell_steps_);
  if (steps_ >= next_trial_ && affordable && dwelt) BeginTrial();
}

void LiveGuard::BeginTrial() {
  in_trial_ = true;
  ++trials_;
  windows_ = 0;
  window_step_ = 0;
  bad_steps_ = 0;
  for (StepClass& c : classes_) {
    for (int on = 0; on < 2; ++on) {
      c.costs[on].clear();
      c.counted[on] = 0;
    }
  }
}

void LiveGuard::NextWindow() {
  ++windows_;
  window_step_ = 0;
  bad_steps_ = 0;
  on_ = !on_;
  if (on_ == setting_ && windows_ / 2 >= options_.min_pairs) Judge();
}

void LiveGuard::Judge() {
  Comparison comparison;
  const bool known = Compare(&comparison);
  const bool last = windows_ / 2 >= options_.max_pairs;
  if (!known) {
    if (last) EndTrial(comparison, false, false);
    return;
  }
  // In favour of the other setting.
  const double advantage = setting_ ? -comparison.log_gain : comparison.log_gain;
  const double margin = std::log1p(options_.margin);
  const double doubt = kSure * comparison.deviation;
  if (advantage > margin + doubt) return EndTrial(comparison, true, true);
  const bool same = std::abs(advantage) + doubt < margin;
  if (last || same || advantage < -doubt) EndTrial(comparison, true, false);
}

void LiveGuard::EndTrial(const Comparison& comparison, bool known, bool change) {
  in_trial_ = false;
  if (change) {
    const bool soon =
        changes_ > 0 && steps_ < changed_at_ + 8 * static_cast<uint64_t>(dwell_steps_);
    dwell_steps_ = soon ? std::min(2 * dwell_steps_, kMaxDwellFactor * options_.dwell_steps)
                        : options_.dwell_steps;
    setting_ = !setting_;
    ++changes_;
    changed_at_ = steps_;
    rest_steps_ = kFirstRestSteps;
  } else if (known) {
    rest_steps_ = std::min(2 * rest_steps_, options_.max_rest_steps);
  }
  on_ = setting_;
  next_trial_ = steps_ + static_cast<uint64_t>(rest_steps_);
  for (StepClass& c : classes_) {
    const auto& costs = c.costs[setting_];
    c.usual = costs.size() >= static_cast<size_t>(kMinSamples) ? Median(costs) : 0;
    c.recent.clear();
    c.recent_counted = 0;
  }
  if (!known) {
    decision_ = name_ + " stays " + (setting_ ? "on" : "off") +
                ": the steps seen with and without it could not be compared";
    return;
  }
  gain_ = std::exp(comparison.log_gain);
  char text[256];
  std::snprintf(text, sizeof text,
                "%s %s %s: %.3g ms per token with it, %.3g without (%.2fx, within %.0f%%, %lld and "
                "%lld steps)",
                name_.c_str(), change ? "is switched" : "stays", setting_ ? "on" : "off",
                1e3 * comparison.cost[1], 1e3 * comparison.cost[0], gain_,
                100 * kSure * comparison.deviation, static_cast<long long>(comparison.samples[1]),
                static_cast<long long>(comparison.samples[0]));
  decision_ = text;
}

}  // namespace sluice
