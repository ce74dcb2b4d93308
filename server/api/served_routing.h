// Who listens to the routing of a serving engine: the live optimum for the metrics, always, and a
// trace of the traffic where one is asked for.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "engine/base/result.h"
#include "engine/experts/live_optimum.h"
#include "engine/experts/tier_stats.h"
#include "engine/experts/trace_tap.h"

namespace sluice {

// Threads: the taps' functions on the engine thread, the others from any.
class ServedRouting final : public RoutingTap {
 public:
  // What is pending reaches the file this often, whatever there is of it.
  static constexpr double kFlushSeconds = 1;

  // trace: where traffic is recorded, up to limit_bytes (0: no limit); empty: nowhere. A file of
  // that name is kept as FILE.1, which replaces the one before. Errors: those of
  // TraceWriter::Create.
  static Result<std::unique_ptr<ServedRouting>> Create(const TraceModel& model,
                                                       const std::filesystem::path& trace,
                                                       uint64_t limit_bytes);

  void OnLayer(int layer, const RoutedTokens& routed, std::span<const ExpertUse> uses) override;
  void OnPredicted(int layer, std::span<const float> probability) override;
  void OnStreamEnd(int64_t stream) override;
  void EndStep() override;

  // Adds what the optimum would have hit to `stats` (belady_hit_rate, window_hit_rate): as of the
  // last call before this one that had steps to look at.
  void AddOptimum(ExpertTierStats* stats);
  // Nothing without a trace.
  std::optional<TraceWriter::Status> trace_status() const;

 private:
  ServedRouting(const TraceModel& model, std::unique_ptr<TraceTap> trace)
      : optimum_(model.space, model.expert_bytes), trace_(std::move(trace)) {}

  LiveOptimum optimum_;
  const std::unique_ptr<TraceTap> trace_;
};

}  // namespace sluice
