// When to give memory back to the rest of the machine, and when to take it again: the decisions
// alone, on numbers that the caller reads about once a second.
//
// Pressure is one of: tasks of this process's cgroup lost 10% of the time to waiting for memory;
// tasks of the machine did, and less than an eighth of its memory is available (another cgroup at
// its own limit is none of our business); less than a 64th of the limit or the machine is left.
// When it lasts for 2 s, an eighth of what experts hold beyond the least goes, and again every 3 s
// while it lasts. After 30 s without any, and with twice the step available, the budget rises by a
// sixteenth of the way's whole length, every 10 s, up to what the operator (or the start) wanted.
// Pressure within a minute after a rise doubles these 30 s, up to ten minutes: so a budget that
// does not fit is not tried all the time.
//
// A limit of the cgroup that was lowered below the budget is heeded at once. A budget that was
// chosen automatically follows limits upwards too.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "engine/experts/tier_stats.h"
#include "server/config/memory.h"

namespace sluice {

// The budget that a process takes of `bytes` by default: a sixteenth stays free.
constexpr uint64_t AutomaticBudget(uint64_t bytes) { return bytes - bytes / 16; }

class MemoryPressurePolicy {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // automatic: nobody gave a budget, so it may follow limits upwards.
  explicit MemoryPressurePolicy(bool automatic) : automatic_(automatic) {}

  struct Change {
    uint64_t bytes = 0;  // the new budget, at least the least
    std::string reason;  // for the log
  };
  // REQUIRES: an earlier change was carried out or refused. Whoever else has changed the budget
  // since the last call is taken at their word: that is what the budget rises to from then on.
  std::optional<Change> Observe(TimePoint now, const MemorySignals& signals,
                                const ExpertTierStats& tiers);

 private:
  void NoteBudget(uint64_t budget);
  // Whether there is pressure now, and in which words.
  bool Pressed(TimePoint now, const MemorySignals& signals, std::string* why);
  // Nothing when the limit is as it was, or the budget below it.
  std::optional<Change> FollowLimit(const MemorySignals& signals, const ExpertTierStats& tiers);
  std::optional<Change> Lower(TimePoint now, const ExpertTierStats& tiers, const std::string& why);
  std::optional<Change> Raise(TimePoint now, const MemorySignals& signals,
                              const ExpertTierStats& tiers);
  // The most that the budget may be now.
  uint64_t Ceiling() const;
  Change Propose(uint64_t bytes, std::string reason);

  const bool automatic_;
  bool begun_ = false;
  uint64_t wanted_ = 0;    // what the operator or the start asked for
  uint64_t expected_ = 0;  // the budget, as far as this knows
  uint64_t before_ = 0;    // the budget before the last proposal
  uint64_t limit_ = 0;
  bool limit_changed_ = false;
  MemorySignals last_;
  TimePoint last_at_;
  std::optional<TimePoint> pressed_since_;
  TimePoint calm_since_;
  TimePoint lowered_at_, raised_at_;
  bool raised_ = false;  // raised_at_ is of a rise that no pressure followed yet
  std::chrono::seconds calm_needed_{30};
};

}  // namespace sluice
