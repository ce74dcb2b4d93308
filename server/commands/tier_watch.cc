#include "server/commands/tier_watch.h"

#include <cstring>
#include <utility>

namespace sluice {

TierWatch::TierWatch(Engine* engine, std::optional<MemoryPressurePolicy> policy, Logger& log)
    : engine_(engine), log_(log), policy_(std::move(policy)) {}

void TierWatch::WatchTrace(std::string path, std::function<TraceWriter::Status()> status) {
  trace_path_ = std::move(path);
  trace_status_ = std::move(status);
}

void TierWatch::LogStart() {
  const auto tiers = engine_->Stats().expert_tiers;
  if (tiers == nullptr) return;
  uint64_t cache_bytes = 0;
  for (const ExpertTierStats::Tier& tier : tiers->tiers) cache_bytes += tier.capacity_bytes;
  log_.Info("experts live in tiers",
            {{"memory_budget_bytes", tiers->budget_bytes},
             {"least_memory_budget_bytes", tiers->least_budget_bytes},
             {"full_memory_budget_bytes", tiers->full_budget_bytes},
             {"cache_bytes", cache_bytes},
             {"disk", tiers->links.empty() ? std::string() : tiers->links[0].method},
             {"pressure", policy_ ? "on" : "off"}});
}

void TierWatch::Tick(TimePoint now, const std::function<MemorySignals()>& read_signals) {
  const auto tiers = engine_->Stats().expert_tiers;
  if (tiers == nullptr) return;
  LogPackFaults(*tiers);
  LogGuards(*tiers);
  LogTrace();
  // After a change the statistics in hand may be of before.
  if (!policy_ || FollowChange()) return;
  change_ = policy_->Observe(now, read_signals(), *tiers);
  if (!change_) return;
  before_bytes_ = tiers->budget_bytes;
  engine_->SetMemoryBudget(change_->bytes, [this](Result<> set) {
    std::lock_guard lock(mutex_);
    outcome_ = std::move(set);
  });
}

void TierWatch::LogPackFaults(const ExpertTierStats& tiers) {
  for (const ExpertTierStats::Link& link : tiers.links) {
    if (link.pack_truncated && !std::exchange(truncated_logged_, true)) {
      log_.Error(
          "the pack file was truncated under the server: requests that need what it lost fail; "
          "restore the file and restart",
          {{"link", link.name}});
    }
    if (link.pack_replaced && !std::exchange(replaced_logged_, true)) {
      log_.Warn(
          "another file has the pack's name, or none has: the old one is served on; restart to "
          "serve the new one",
          {{"link", link.name}});
    }
  }
}

void TierWatch::LogGuards(const ExpertTierStats& tiers) {
  guard_decisions_.resize(tiers.guards.size());
  for (size_t i = 0; i < tiers.guards.size(); ++i) {
    const ExpertTierStats::Guard& guard = tiers.guards[i];
    if (std::exchange(guard_decisions_[i], guard.decisions) == guard.decisions) continue;
    log_.Info(guard.on ? "a mechanism pays again and is on" : "a mechanism does not pay and is off",
              {{"mechanism", guard.name},
               {"cost_without_over_with", guard.gain},
               {"outcome", guard.outcome}});
  }
}

void TierWatch::LogTrace() {
  if (!trace_status_) return;
  const TraceWriter::Status status = trace_status_();
  if (status.error != 0 && !std::exchange(trace_error_logged_, true)) {
    log_.Error("the routing trace cannot be written; nothing more is recorded",
               {{"trace", trace_path_}, {"error", std::strerror(status.error)}});
  }
  if (status.full && !std::exchange(trace_full_logged_, true)) {
    log_.Warn("the routing trace has reached trace_limit; nothing more is recorded",
              {{"trace", trace_path_}, {"bytes", status.bytes}, {"steps", status.steps}});
  }
}

bool TierWatch::FollowChange() {
  if (!change_) return false;
  std::optional<Result<>> outcome;
  {
    std::lock_guard lock(mutex_);
    outcome = std::exchange(outcome_, std::nullopt);
  }
  if (!outcome) return true;  // the engine is within a step
  const auto change = *std::exchange(change_, std::nullopt);
  if (*outcome) {
    log_.Info(change.bytes < before_bytes_ ? "the memory budget was lowered"
                                           : "the memory budget was raised",
              {{"reason", change.reason},
               {"memory_budget_bytes", change.bytes},
               {"memory_budget_bytes_before", before_bytes_}});
  } else {
    log_.Warn("the memory budget could not be changed",
              {{"reason", change.reason}, {"error", outcome->error().message}});
  }
  return true;
}

void TierWatch::LogSummary() {
  const auto tiers = engine_->Stats().expert_tiers;
  if (tiers == nullptr) return;
  uint64_t hits = 0, demands = 0, bytes = 0;
  double stall_seconds = 0;
  for (const ExpertTierStats::Layer& layer : tiers->layers) {
    hits += layer.hits;
    demands += layer.hits + layer.misses;
    bytes += layer.bytes_read;
    stall_seconds += layer.stall_seconds;
  }
  uint64_t retries = 0, failures = 0;
  for (const ExpertTierStats::Link& link : tiers->links) {
    retries += link.retries;
    failures += link.failures;
  }
  const double rate = demands > 0 ? static_cast<double>(hits) / static_cast<double>(demands) : 1.0;
  log_.Info("what the expert tiers did", {{"demands", demands},
                                          {"hit_rate", rate},
                                          {"read_bytes", bytes},
                                          {"stall_seconds", stall_seconds},
                                          {"retries", retries},
                                          {"failures", failures}});
  for (const ExpertTierStats::Guard& guard : tiers->guards) {
    if (guard.gain == 0) continue;  // never measured
    log_.Info("what a mechanism was worth", {{"mechanism", guard.name},
                                             {"on", guard.on ? "yes" : "no"},
                                             {"cost_without_over_with", guard.gain},
                                             {"switched", guard.decisions},
                                             {"outcome", guard.outcome}});
  }
  LogTrace();
  if (!trace_status_) return;
  const TraceWriter::Status trace = trace_status_();
  log_.Info("the routing trace", {{"trace", trace_path_},
                                  {"steps", trace.steps},
                                  {"lost_steps", trace.lost_steps},
                                  {"bytes", trace.bytes}});
}

}  // namespace sluice
