#include "engine/experts/live_optimum.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/experts/replay.h"
#include "engine/experts/trace.h"

namespace sluice {
namespace {

constexpr size_t kStepHeaderWords = 2;

// Every demand becomes a token of a model that chooses one expert per token.
void AppendSteps(const std::vector<uint32_t>& window, Trace* trace) {
  for (size_t at = 0; at < window.size();) {
    const size_t end = at + kStepHeaderWords + window[at];
    for (at += kStepHeaderWords; at < end;) {
      const int layer = static_cast<int>(window[at]);
      const int count = static_cast<int>(window[at + 1]);
      at += 2;
      trace->events.push_back({Trace::Kind::kVisit, static_cast<int64_t>(trace->visits.size())});
      trace->visits.push_back({layer, count, trace->ids.size()});
      for (int i = 0; i < count; ++i, ++at) {
        trace->ids.push_back(static_cast<int32_t>(window[at] / 2));
        trace->weights.push_back(1);
        trace->streams.push_back(i);
      }
    }
    trace->events.push_back({Trace::Kind::kStepEnd, 0});
    ++trace->steps;
  }
}

int64_t CountHits(const std::vector<uint32_t>& window) {
  int64_t hits = 0;
  for (size_t at = 0; at < window.size();) {
    const size_t end = at + kStepHeaderWords + window[at];
    for (at += kStepHeaderWords; at < end;) {
      const size_t count = window[at + 1];
      at += 2;
      for (size_t i = 0; i < count; ++i, ++at) hits += window[at] % 2;
    }
  }
  return hits;
}

}  // namespace

LiveOptimum::LiveOptimum(ExpertSpace space, std::vector<uint64_t> expert_bytes,
                         size_t window_demands)
    : space_(space),
      expert_bytes_(std::move(expert_bytes)),
      window_demands_(window_demands),
      thread_([this] { Run(); }) {
  SLUICE_CHECK(expert_bytes_.size() == 1 ||
               expert_bytes_.size() == static_cast<size_t>(space.size()));
}

LiveOptimum::~LiveOptimum() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    wake_.notify_one();
  }
  thread_.join();
}

void LiveOptimum::OnLayer(int layer, const RoutedTokens& /*routed*/,
                          std::span<const ExpertUse> uses) {
  step_.push_back(static_cast<uint32_t>(layer));
  step_.push_back(static_cast<uint32_t>(uses.size()));
  for (const ExpertUse& use : uses) {
    step_.push_back(2 * static_cast<uint32_t>(use.expert) + (use.hit ? 1 : 0));
  }
  step_demands_ += static_cast<uint32_t>(uses.size());
}

void LiveOptimum::EndStep() {
  if (step_.empty()) return;
  {
    std::lock_guard lock(mutex_);
    window_.push_back(static_cast<uint32_t>(step_.size()));
    window_.push_back(step_demands_);
    window_.insert(window_.end(), step_.begin(), step_.end());
    demands_ += step_demands_;
    while (demands_ - window_[first_ + 1] >= window_demands_) {
      demands_ -= window_[first_ + 1];
      first_ += kStepHeaderWords + window_[first_];
    }
    // What has left the window is dropped when it is half of all: each word moves once on average.
    if (first_ > window_.size() / 2) {
      window_.erase(window_.begin(), window_.begin() + static_cast<ptrdiff_t>(first_));
      first_ = 0;
    }
    ++steps_;
  }
  step_.clear();
  step_demands_ = 0;
}

LiveOptimum::Rates LiveOptimum::Latest(uint64_t capacity_bytes) {
  std::lock_guard lock(mutex_);
  if (steps_ > replayed_steps_ || capacity_bytes != capacity_bytes_) {
    capacity_bytes_ = capacity_bytes;
    asked_ = steps_ > 0;
    wake_.notify_one();
  }
  return rates_;
}

LiveOptimum::Rates LiveOptimum::Wait() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return !asked_; });
  return rates_;
}

void LiveOptimum::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return closing_ || asked_; });
    if (closing_) return;
    const std::vector<uint32_t> window(window_.begin() + static_cast<ptrdiff_t>(first_),
                                       window_.end());
    const uint64_t capacity_bytes = capacity_bytes_;
    const uint64_t steps = steps_;
    const auto demands = static_cast<int64_t>(demands_);
    lock.unlock();
    Rates rates = Replay(space_, expert_bytes_, window, capacity_bytes);
    rates.demands = demands;
    lock.lock();
    rates_ = rates;
    replayed_steps_ = steps;
    asked_ = false;
    done_.notify_all();
  }
}

LiveOptimum::Rates LiveOptimum::Replay(ExpertSpace space, const std::vector<uint64_t>& expert_bytes,
                                       const std::vector<uint32_t>& window,
                                       uint64_t capacity_bytes) {
  Trace trace;
  trace.model.space = space;
  trace.model.experts_per_token = 1;
  trace.model.expert_bytes = expert_bytes;
  AppendSteps(window, &trace);
  const int64_t steps = trace.steps;
  AppendSteps(window, &trace);
  double all_bytes = 0;
  for (int place = 0; place < space.size(); ++place) {
    all_bytes += static_cast<double>(trace.model.bytes(place));
  }
  ReplayOptions options;
  options.policy = "optimal";
  options.budget = std::min(1.0, static_cast<double>(capacity_bytes) / all_bytes);
  options.warm_steps = steps;
  const Result<ReplayResult> optimal = sluice::Replay(trace, options);
  SLUICE_CHECK(optimal, "the window is a trace");
  Rates rates;
  if (optimal->wanted == 0) return rates;
  rates.optimal = optimal->hit_rate();
  rates.hits = static_cast<double>(CountHits(window)) / static_cast<double>(optimal->wanted);
  return rates;
}

}  // namespace sluice
