#include "engine/runtime/affinity_former.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "engine/base/check.h"

namespace sluice {
namespace {

using std::chrono::duration;

// Of a new observation against all before.
constexpr double kNewShare = 0.1;
// Larger groups must be better by this much than smaller ones: estimates are noisy.
constexpr double kMargin = 1.02;
// The guard compares stretches of at least this long, which hold whole slices.
constexpr double kStretchDelays = 0.5;

double Seconds(std::chrono::steady_clock::duration d) { return duration<double>(d).count(); }

void Learn(double value, double* average) {
  *average = *average == 0 ? value : *average + kNewShare * (value - *average);
}

}  // namespace

Result<BatchOrder> ParseBatchOrder(const std::string& name) {
  if (name == "fcfs") return BatchOrder::kFcfs;
  if (name == "longest-queue") return BatchOrder::kLongestQueue;
  if (name == "affinity") return BatchOrder::kAffinity;
  if (name == "auto") return BatchOrder::kAuto;
  return InvalidArgument("unknown batch order \"" + name +
                         "\"; use auto, affinity, longest-queue or fcfs");
}

AffinityFormer::AffinityFormer(const AffinityOptions& options, const ExpertOutlook* outlook,
                               const Clock* clock)
    : options_(options), outlook_(outlook), clock_(clock) {
  SLUICE_CHECK(outlook != nullptr && options.max_delay_seconds > 0);
  if (options.order == BatchOrder::kAuto) {
    LiveGuardOptions guard;
    guard.warm_up_steps = 4;
    guard.window_steps = 4;
    guard.skipped_steps = 1;
    guard.dwell_steps = 24;
    guard.max_trial_share = 0.05;
    guard_.emplace("affinity", guard, true);
  }
  const ExpertSpace& space = outlook->space();
  even_.assign(static_cast<size_t>(space.size()), 0.5f);
}

std::span<const float> AffinityFormer::UsesOf(SequenceId id) const {
  const std::span<const float> uses = outlook_->Uses(static_cast<int64_t>(id));
  return uses.empty() ? std::span<const float>(even_) : uses;
}

double AffinityFormer::Waited(SequenceId id) const {
  const auto found = served_.find(id);
  return found == served_.end() ? 0 : Seconds(now_ - found->second);
}

void AffinityFormer::AddTo(Group* group, size_t decoder, std::span<const float> uses) const {
  group->members.push_back(decoder);
  for (size_t i = 0; i < uses.size(); ++i) group->unused[i] *= 1 - uses[i];
}

double AffinityFormer::Added(const Group& group, std::span<const float> uses) const {
  float added = 0;
  for (size_t i = 0; i < uses.size(); ++i) added += group.unused[i] * uses[i];
  return added;
}

void AffinityFormer::Rate(Group* group, size_t decoders) {
  const size_t places = group->unused.size();
  likely_.resize(places);
  double touched = 0;
  for (size_t i = 0; i < places; ++i) {
    likely_[i] = 1 - group->unused[i];
    touched += likely_[i];
  }
  // While the group runs, memory holds the experts that it is likeliest to use.
  const auto capacity = std::min(static_cast<size_t>(std::max(outlook_->capacity(), 1)), places);
  float threshold = 0;
  double missed = 0;
  if (capacity < places) {
    const auto nth = likely_.begin() + static_cast<ptrdiff_t>(capacity);
    std::nth_element(likely_.begin(), nth, likely_.end(), std::greater<>());
    threshold = *nth;
    for (auto it = nth; it != likely_.end(); ++it) missed += *it;
  }
  const double step = (options_.dense_bytes + touched * options_.expert_bytes) * seconds_per_byte_ +
                      missed * seconds_per_miss_;
  const auto size = static_cast<double>(group->members.size());
  if (group->members.size() == decoders) {
    group->slice_seconds = std::numeric_limits<double>::infinity();
    group->rate = size / step;
    return;
  }
  // All others have had their turn before this one waits too long.
  group->slice_seconds = options_.max_delay_seconds * size / (static_cast<double>(decoders) - size);
  const double steps = std::max(1.0, group->slice_seconds / step);
  double fetched = 0;  // when the slice begins
  for (size_t i = 0; i < places; ++i) {
    const float use = 1 - group->unused[i];
    if (use <= threshold || outlook_->resident(static_cast<int>(i))) continue;
    fetched += std::min(1.0, steps * use);
  }
  group->rate = steps * size / (steps * step + fetched * seconds_per_miss_);
}

size_t AffinityFormer::MarkOverdue(std::span<const SequenceId> decoders,
                                   std::span<uint8_t> chosen) const {
  size_t longest = 0;
  double most = -1;
  for (size_t i = 0; i < decoders.size(); ++i) {
    const double waited = Waited(decoders[i]);
    chosen[i] = waited + step_seconds_ >= options_.max_delay_seconds ? 1 : 0;
    if (waited > most) {
      most = waited;
      longest = i;
    }
  }
  return longest;
}

void AffinityFormer::BeginSlice(std::span<const SequenceId> decoders, std::span<uint8_t> chosen) {
  ++stats_.slices;
  const size_t seed = MarkOverdue(decoders, chosen);
  chosen[seed] = 1;
  Group group;
  group.unused.assign(even_.size(), 1);
  for (size_t i = 0; i < decoders.size(); ++i) {
    if (chosen[i] != 0) AddTo(&group, i, UsesOf(decoders[i]));
  }
  Rate(&group, decoders.size());
  size_t best_size = group.members.size();
  double best_rate = group.rate, best_slice = group.slice_seconds;
  // Who shares most with those who are in is next; the best size of that order is taken.
  std::vector<uint8_t> in(chosen.begin(), chosen.end());
  while (group.members.size() < decoders.size()) {
    double least = std::numeric_limits<double>::infinity();
    size_t next = 0;
    for (size_t i = 0; i < decoders.size(); ++i) {
      if (in[i] != 0) continue;
      const double added = Added(group, UsesOf(decoders[i]));
      if (added < least) {
        least = added;
        next = i;
      }
    }
    in[next] = 1;
    AddTo(&group, next, UsesOf(decoders[next]));
    Rate(&group, decoders.size());
    if (group.rate > best_rate * kMargin) {
      best_rate = group.rate;
      best_size = group.members.size();
      best_slice = group.slice_seconds;
    }
  }
  slice_.clear();
  std::fill(chosen.begin(), chosen.end(), uint8_t{0});
  for (size_t i = 0; i < best_size; ++i) {
    chosen[group.members[i]] = 1;
    slice_.push_back(decoders[group.members[i]]);
  }
  in_slice_ = best_size < decoders.size();
  if (in_slice_) {
    slice_end_ = now_ + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                            duration<double>(best_slice));
  }
}

void AffinityFormer::ChooseLongestQueue(std::span<const SequenceId> decoders,
                                        std::span<uint8_t> chosen) {
  constexpr float kLikely = 0.5f;
  MarkOverdue(decoders, chosen);
  std::vector<int> queue(even_.size(), 0);
  for (const SequenceId id : decoders) {
    const std::span<const float> uses = UsesOf(id);
    for (size_t p = 0; p < uses.size(); ++p) queue[p] += uses[p] >= kLikely ? 1 : 0;
  }
  const auto longest =
      static_cast<size_t>(std::max_element(queue.begin(), queue.end()) - queue.begin());
  bool any = false;
  for (size_t i = 0; i < decoders.size(); ++i) {
    if (queue[longest] == 0 || UsesOf(decoders[i])[longest] >= kLikely) chosen[i] = 1;
    any |= chosen[i] != 0;
  }
  SLUICE_CHECK(any);
}

void AffinityFormer::Choose(std::span<const SequenceId> decoders, std::span<uint8_t> chosen) {
  SLUICE_CHECK(decoders.size() >= 2 && chosen.size() == decoders.size());
  now_ = clock_->Now();
  for (const SequenceId id : decoders) served_.try_emplace(id, now_);
  const bool known = seconds_per_byte_ > 0;
  const bool plain = options_.order == BatchOrder::kFcfs || outlook_->complete() ||
                     (options_.order != BatchOrder::kLongestQueue && !known) ||
                     (guard_ && !guard_->on());
  if (plain) {
    std::fill(chosen.begin(), chosen.end(), uint8_t{1});
    in_slice_ = false;
  } else if (options_.order == BatchOrder::kLongestQueue) {
    ChooseLongestQueue(decoders, chosen);
  } else {
    MarkOverdue(decoders, chosen);
    bool overdue = false, goes_on = false;
    for (size_t i = 0; i < decoders.size(); ++i) {
      const bool member = std::find(slice_.begin(), slice_.end(), decoders[i]) != slice_.end();
      overdue |= chosen[i] != 0 && !member;
      goes_on |= member;
      chosen[i] = member ? 1 : 0;
    }
    if (!in_slice_ || overdue || !goes_on || now_ >= slice_end_) BeginSlice(decoders, chosen);
  }
  ++stats_.steps;
  stats_.candidates += decoders.size();
  for (size_t i = 0; i < decoders.size(); ++i) {
    if (chosen[i] == 0) continue;
    ++stats_.chosen;
    stats_.longest_wait_seconds = std::max(stats_.longest_wait_seconds, Waited(decoders[i]));
    served_[decoders[i]] = now_;
  }
  chose_ = true;
}

void AffinityFormer::OnStep(int tokens, int prompt_tokens) {
  const ExpertStepCounts step = outlook_->last_step();
  step_seconds_ = step.seconds;
  // What prompts cost says little of decoding.
  if (prompt_tokens == 0 && step.touched > 0) {
    const double bytes = options_.dense_bytes + step.touched * options_.expert_bytes;
    Learn((step.seconds - step.stall_seconds) / bytes, &seconds_per_byte_);
    if (step.missed > 0) Learn(step.stall_seconds / step.missed, &seconds_per_miss_);
  }
  if (!guard_ || !chose_) return;
  chose_ = false;
  if (prompt_tokens > 0) return;
  stretch_seconds_ += step.seconds;
  stretch_tokens_ += tokens;
  if (stretch_seconds_ < kStretchDelays * options_.max_delay_seconds) return;
  // By token, whatever the number of sequences in a step.
  guard_->OnStep(/*kind=*/0, /*tokens=*/1, stretch_seconds_ / stretch_tokens_);
  stretch_seconds_ = 0;
  stretch_tokens_ = 0;
}

}  // namespace sluice
