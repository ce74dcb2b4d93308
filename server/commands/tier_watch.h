// Looks once a second at the expert tiers of a running server: keeps the memory budget within what
// the machine can spare (memory_pressure.h), and tells the log what nobody would see otherwise.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/log.h"
#include "engine/experts/trace.h"
#include "engine/runtime/engine.h"
#include "server/system/memory_pressure.h"

namespace sluice {

// Threads: Tick from one at a time; the others while no Tick runs.
class TierWatch {
 public:
  // `engine` and `log` outlive this, and this the engine's thread. policy: none leaves the budget
  // alone.
  TierWatch(Engine* engine, std::optional<MemoryPressurePolicy> policy, Logger& log);

  // Also tells what becomes of a trace of the traffic. `status` from TraceWriter, while Tick runs.
  void WatchTrace(std::string path, std::function<TraceWriter::Status()> status);

  // What experts get and how they are read.
  void LogStart();
  // `read_signals` (ReadMemorySignals) is called where there is a policy to tell.
  using TimePoint = MemoryPressurePolicy::TimePoint;
  void Tick(TimePoint now, const std::function<MemorySignals()>& read_signals);
  // One line on what the tiers did.
  void LogSummary();

 private:
  void LogPackFaults(const ExpertTierStats& tiers);
  // A mechanism that must pay for itself was switched on or off.
  void LogGuards(const ExpertTierStats& tiers);
  void LogTrace();
  // Logs how the change that was asked for went; true while one is under way or was just logged.
  bool FollowChange();

  Engine* const engine_;
  Logger& log_;
  std::optional<MemoryPressurePolicy> policy_;
  bool truncated_logged_ = false;
  bool replaced_logged_ = false;
  std::vector<uint64_t> guard_decisions_;  // logged, of each guard
  std::string trace_path_;
  std::function<TraceWriter::Status()> trace_status_;
  bool trace_full_logged_ = false, trace_error_logged_ = false;

  std::optional<MemoryPressurePolicy::Change> change_;  // asked for, not yet logged
  uint64_t before_bytes_ = 0;                           // the budget before it
  std::mutex mutex_;
  std::optional<Result<>> outcome_;  // GUARDED_BY(mutex_), of change_
};

}  // namespace sluice
