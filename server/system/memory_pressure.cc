#include "server/system/memory_pressure.h"

#include <algorithm>

namespace sluice {
namespace {

using std::chrono::seconds;

constexpr double kPressedShare = 0.10;
constexpr double kCalmShare = 0.01;
constexpr seconds kSustained{2};
constexpr seconds kSettle{3};
constexpr seconds kCalm{30};
constexpr seconds kMostCalm{600};
constexpr seconds kRiseInterval{10};
constexpr seconds kRegret{60};
constexpr seconds kTrust{300};
constexpr uint64_t kLeastStep = uint64_t{16} << 20;

std::string Mib(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }
std::string Percent(double share) {
  return std::to_string(static_cast<int>(share * 100 + 0.5)) + "%";
}

// What experts could lose at once: the budget without what it leaves unused.
uint64_t HeldBudget(const ExpertTierStats& tiers) {
  uint64_t held = std::min(tiers.budget_bytes, tiers.full_budget_bytes);
  for (const ExpertTierStats::Tier& tier : tiers.tiers) {
    held -= std::min(held, tier.capacity_bytes - std::min(tier.capacity_bytes, tier.used_bytes));
  }
  return std::max(held, tiers.least_budget_bytes);
}

}  // namespace

std::optional<MemoryPressurePolicy::Change> MemoryPressurePolicy::Observe(
    TimePoint now, const MemorySignals& signals, const ExpertTierStats& tiers) {
  if (!begun_) {
    begun_ = true;
    wanted_ = expected_ = before_ = tiers.budget_bytes;
    limit_ = signals.limit_bytes;
    last_ = signals;
    last_at_ = calm_since_ = lowered_at_ = raised_at_ = now;
    return std::nullopt;
  }
  NoteBudget(tiers.budget_bytes);
  if (auto change = FollowLimit(signals, tiers)) return change;
  std::string why;
  const bool pressed = Pressed(now, signals, &why);
  last_ = signals;
  last_at_ = now;
  if (raised_ && now - raised_at_ > kTrust) {
    raised_ = false;
    calm_needed_ = kCalm;
  }
  if (pressed) return Lower(now, tiers, why);
  pressed_since_.reset();
  return Raise(now, signals, tiers);
}

void MemoryPressurePolicy::NoteBudget(uint64_t budget) {
  if (budget == expected_) return;
  // Either the last proposal was refused, or somebody else has decided.
  if (budget != before_) {
    wanted_ = budget;
    limit_changed_ = false;
  }
  expected_ = before_ = budget;
}

bool MemoryPressurePolicy::Pressed(TimePoint now, const MemorySignals& signals, std::string* why) {
  const double elapsed = std::chrono::duration<double>(now - last_at_).count();
  if (elapsed <= 0) return pressed_since_.has_value();
  const double group = (signals.group_stall_seconds - last_.group_stall_seconds) / elapsed;
  const double machine = (signals.machine_stall_seconds - last_.machine_stall_seconds) / elapsed;
  const bool machine_short = signals.machine_available_bytes < signals.machine_bytes / 8;
  const double share = std::max(group, machine_short ? machine : 0);
  const uint64_t whole = std::min(signals.limit_bytes, signals.machine_bytes);
  const bool exhausted = signals.available_bytes < whole / 64;
  if (share >= kCalmShare || exhausted) calm_since_ = now;
  if (share >= kPressedShare) {
    *why = "memory pressure: tasks waited for memory during " + Percent(share) + " of the time";
  } else if (exhausted) {
    *why = "memory pressure: only " + Mib(signals.available_bytes) + " of " + Mib(whole) +
           " are available";
  }
  return !why->empty();
}

std::optional<MemoryPressurePolicy::Change> MemoryPressurePolicy::FollowLimit(
    const MemorySignals& signals, const ExpertTierStats& tiers) {
  if (signals.limit_bytes == limit_) return std::nullopt;
  limit_ = signals.limit_bytes;
  limit_changed_ = true;
  if (automatic_) wanted_ = AutomaticBudget(std::min(limit_, signals.machine_bytes));
  const uint64_t bytes = std::max(Ceiling(), tiers.least_budget_bytes);
  if (bytes >= tiers.budget_bytes) return std::nullopt;
  return Propose(bytes, "the cgroup's memory limit is now " + Mib(limit_));
}

std::optional<MemoryPressurePolicy::Change> MemoryPressurePolicy::Lower(
    TimePoint now, const ExpertTierStats& tiers, const std::string& why) {
  if (!pressed_since_) pressed_since_ = now;
  if (now - *pressed_since_ < kSustained || now - lowered_at_ < kSettle) return std::nullopt;
  const uint64_t held = HeldBudget(tiers);
  const uint64_t least = tiers.least_budget_bytes;
  const uint64_t step = std::max((held - least) / 8, kLeastStep);
  const uint64_t bytes = held - std::min(step, held - least);
  if (bytes >= tiers.budget_bytes) return std::nullopt;  // there is nothing to give
  if (raised_ && now - raised_at_ < kRegret) calm_needed_ = std::min(2 * calm_needed_, kMostCalm);
  raised_ = false;
  lowered_at_ = now;
  return Propose(bytes, why);
}

std::optional<MemoryPressurePolicy::Change> MemoryPressurePolicy::Raise(
    TimePoint now, const MemorySignals& signals, const ExpertTierStats& tiers) {
  const uint64_t ceiling = Ceiling();
  if (tiers.budget_bytes >= ceiling) return std::nullopt;
  if (now - calm_since_ < calm_needed_ || (raised_ && now - raised_at_ < kRiseInterval)) {
    return std::nullopt;
  }
  const uint64_t top = std::min(ceiling, tiers.full_budget_bytes);
  const uint64_t way = top - std::min(top, tiers.least_budget_bytes);
  const uint64_t step = std::max(way / 16, kLeastStep);
  if (signals.available_bytes < 2 * step) return std::nullopt;
  // With every expert in memory a larger number changes nothing.
  const uint64_t risen = tiers.budget_bytes + step;
  raised_ = true;
  raised_at_ = now;
  return Propose(
      risen >= top ? ceiling : risen,
      "memory has been free for " +
          std::to_string(std::chrono::duration_cast<seconds>(now - calm_since_).count()) + " s");
}

uint64_t MemoryPressurePolicy::Ceiling() const {
  return limit_changed_ ? std::min(wanted_, AutomaticBudget(limit_)) : wanted_;
}

MemoryPressurePolicy::Change MemoryPressurePolicy::Propose(uint64_t bytes, std::string reason) {
  before_ = expected_;
  expected_ = bytes;
  return {bytes, std::move(reason)};
}

}  // namespace sluice
