#include "server/api/served_routing.h"

#include <system_error>
#include <utility>

namespace sluice {

Result<std::unique_ptr<ServedRouting>> ServedRouting::Create(const TraceModel& model,
                                                             const std::filesystem::path& trace,
                                                             uint64_t limit_bytes) {
  std::unique_ptr<TraceTap> tap;
  if (!trace.empty()) {
    std::error_code error;
    const std::string before = trace.string() + ".1";
    if (std::filesystem::is_regular_file(trace, error)) {
      std::filesystem::rename(trace, before, error);
      // Writing on would lose what was recorded before.
      if (error) {
        return IoError("cannot keep the trace " + trace.string() + " as " + before + ": " +
                       error.message() + "; move it away or record under another name");
      }
    }
    auto writer = TraceWriter::Create(trace, model,
                                      {.flush_seconds = kFlushSeconds, .limit_bytes = limit_bytes});
    if (!writer) return writer.error();
    tap = std::make_unique<TraceTap>(std::move(*writer));
  }
  return std::unique_ptr<ServedRouting>(new ServedRouting(model, std::move(tap)));
}

void ServedRouting::OnLayer(int layer, const RoutedTokens& routed,
                            std::span<const ExpertUse> uses) {
  optimum_.OnLayer(layer, routed, uses);
  if (trace_ != nullptr) trace_->OnLayer(layer, routed, uses);
}

void ServedRouting::OnPredicted(int layer, std::span<const float> probability) {
  if (trace_ != nullptr) trace_->OnPredicted(layer, probability);
}

void ServedRouting::OnStreamEnd(int64_t stream) {
  if (trace_ != nullptr) trace_->OnStreamEnd(stream);
}

void ServedRouting::EndStep() {
  optimum_.EndStep();
  if (trace_ != nullptr) trace_->EndStep();
}

void ServedRouting::AddOptimum(ExpertTierStats* stats) {
  if (stats->tiers.empty()) return;
  const LiveOptimum::Rates rates = optimum_.Latest(stats->tiers.front().capacity_bytes);
  stats->belady_hit_rate = rates.optimal;
  stats->window_hit_rate = rates.hits;
}

std::optional<TraceWriter::Status> ServedRouting::trace_status() const {
  if (trace_ == nullptr) return std::nullopt;
  return trace_->status();
}

}  // namespace sluice
