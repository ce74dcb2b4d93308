#include "server/metrics/expert_metrics.h"

#include <string>

namespace sluice {
namespace {

using Layer = ExpertTierStats::Layer;

// One counter of every layer that saw experts (dense layers see none).
template <class Value>
void ByLayer(const ExpertTierStats& stats, const char* name, const char* help, Value&& value,
             MetricSnapshot* out) {
  for (size_t l = 0; l < stats.layers.size(); ++l) {
    const Layer& layer = stats.layers[l];
    if (layer.hits + layer.misses == 0) continue;
    out->Counter(name, help, static_cast<double>(value(layer)), {{"layer", std::to_string(l)}});
  }
}

void AddPrefetch(const ExpertTierStats& stats, MetricSnapshot* out) {
  ByLayer(
      stats, "sluice_expert_prefetch_issued_total", "Experts whose read ahead was queued.",
      [](const Layer& l) { return l.prefetch_issued; }, out);
  constexpr struct {
    const char* outcome;
    uint64_t Layer::*count;
  } kOutcomes[] = {{"used", &Layer::prefetch_used},
                   {"late", &Layer::prefetch_late},
                   {"wasted", &Layer::prefetch_wasted},
                   {"cancelled", &Layer::prefetch_cancelled}};
  for (size_t l = 0; l < stats.layers.size(); ++l) {
    const Layer& layer = stats.layers[l];
    if (layer.hits + layer.misses == 0) continue;
    for (const auto& [outcome, count] : kOutcomes) {
      out->Counter(
          "sluice_expert_prefetch_ended_total",
          "Reads ahead by outcome: used (in time for a demand), late (demanded while being "
          "read), wasted (evicted without a demand), cancelled (before the disk saw it).",
          static_cast<double>(layer.*count), {{"layer", std::to_string(l)}, {"outcome", outcome}});
    }
  }
}

void AddLinks(const ExpertTierStats& stats, MetricSnapshot* out) {
  using Link = ExpertTierStats::Link;
  const auto by_link = [&](const char* name, const char* help, auto value) {
    for (const Link& link : stats.links) {
      out->Counter(name, help, static_cast<double>(value(link)), {{"link", link.name}});
    }
  };
  for (const Link& link : stats.links) {
    for (const bool demand : {true, false}) {
      out->Counter("sluice_link_bytes_total",
                   "Expert bytes by link and reason: demand or prefetch.",
                   static_cast<double>(demand ? link.demand_bytes : link.prefetch_bytes),
                   {{"link", link.name}, {"reason", demand ? "demand" : "prefetch"}});
    }
  }
  by_link("sluice_link_reads_total", "Reads of expert bytes.",
          [](const Link& link) { return link.reads; });
  by_link("sluice_link_busy_seconds_total", "Time with at least one read in flight.",
          [](const Link& link) { return link.busy_seconds; });
  by_link("sluice_link_retries_total", "Reads that were tried again.",
          [](const Link& link) { return link.retries; });
  by_link("sluice_link_failures_total", "Demands for experts that ended with an error.",
          [](const Link& link) { return link.failures; });
}

void AddTiers(const ExpertTierStats& stats, MetricSnapshot* out) {
  for (const auto& tier : stats.tiers) {
    out->Gauge("sluice_tier_bytes", "Bytes that a tier may hold of experts.",
               static_cast<double>(tier.capacity_bytes), {{"tier", tier.name}});
  }
  for (const auto& tier : stats.tiers) {
    out->Gauge("sluice_tier_used_bytes", "Bytes that a tier holds of experts.",
               static_cast<double>(tier.used_bytes), {{"tier", tier.name}});
  }
}

void AddPlaces(const ExpertTierStats& stats, MetricSnapshot* out) {
  const auto experts = static_cast<size_t>(stats.experts_per_layer);
  if (experts == 0) return;
  const auto labels = [&](size_t place) {
    return MetricSnapshot::Labels{{"layer", std::to_string(place / experts)},
                                  {"expert", std::to_string(place % experts)}};
  };
  for (size_t i = 0; i < stats.heat.size(); ++i) {
    out->Gauge("sluice_expert_heat", "Demands for an expert, older ones counting less and less.",
               stats.heat[i], labels(i));
  }
  for (size_t i = 0; i < stats.resident_planes.size(); ++i) {
    out->Gauge("sluice_expert_resident_planes", "Bit planes of an expert in memory.",
               stats.resident_planes[i], labels(i));
  }
}

}  // namespace

void AddExpertMetrics(const ExpertTierStats& stats, bool per_expert, MetricSnapshot* out) {
  ByLayer(
      stats, "sluice_expert_hits_total",
      "Distinct experts of a layer and step that were in memory when the layer asked.",
      [](const Layer& l) { return l.hits; }, out);
  ByLayer(
      stats, "sluice_expert_misses_total",
      "Distinct experts of a layer and step that were not in memory when the layer asked.",
      [](const Layer& l) { return l.misses; }, out);
  ByLayer(
      stats, "sluice_expert_stall_seconds_total", "Compute waited for experts.",
      [](const Layer& l) { return l.stall_seconds; }, out);
  ByLayer(
      stats, "sluice_expert_degraded_assignments_total",
      "Token-expert pairs computed below the full precision, or skipped.",
      [](const Layer& l) { return l.degraded_assignments; }, out);
  ByLayer(
      stats, "sluice_expert_planes_read_total", "Bit planes read.",
      [](const Layer& l) { return l.planes_read; }, out);
  ByLayer(
      stats, "sluice_expert_read_bytes_total", "Expert bytes read.",
      [](const Layer& l) { return l.bytes_read; }, out);
  AddPrefetch(stats, out);
  ByLayer(
      stats, "sluice_expert_prediction_wanted_total",
      "Token-expert pairs that an early gate was asked for.",
      [](const Layer& l) { return l.prediction_wanted; }, out);
  ByLayer(
      stats, "sluice_expert_prediction_hits_total",
      "Of these, among its best guesses, as many as a token has experts: their share is the "
      "predictor's recall.",
      [](const Layer& l) { return l.prediction_hits; }, out);
  for (size_t l = 0; l < stats.layers.size(); ++l) {
    const Layer& layer = stats.layers[l];
    if (layer.hits + layer.misses == 0) continue;
    out->Gauge("sluice_expert_resident", "Experts of the layer that are wholly in memory.",
               layer.resident, {{"layer", std::to_string(l)}});
  }
  for (size_t l = 0; l < stats.layers.size(); ++l) {
    const Layer& layer = stats.layers[l];
    if (layer.hits + layer.misses == 0) continue;
    out->Gauge("sluice_expert_pinned",
               "Experts of the layer that a step holds; 0 whenever no step runs.", layer.pinned,
               {{"layer", std::to_string(l)}});
  }
  if (stats.belady_hit_rate >= 0) {
    out->Gauge("sluice_expert_belady_hit_rate",
               "Share of hits with the best possible evictions on the last window.",
               stats.belady_hit_rate);
    out->Gauge("sluice_expert_window_hit_rate", "Share of hits on the same window.",
               stats.window_hit_rate);
  }
  AddLinks(stats, out);
  AddTiers(stats, out);
  AddGuardMetrics(stats.guards, out);
  if (per_expert) AddPlaces(stats, out);
}

void AddGuardMetrics(std::span<const ExpertTierStats::Guard> guards, MetricSnapshot* out) {
  using Guard = ExpertTierStats::Guard;
  for (const Guard& g : guards) {
    out->Gauge("sluice_guard_on", "1 while a mechanism that must pay for itself is on.", g.on,
               {{"mechanism", g.name}});
  }
  for (const Guard& g : guards) {
    out->Gauge("sluice_guard_gain",
               "Measured cost per token without the mechanism over that with it; 0: not known.",
               g.gain, {{"mechanism", g.name}});
  }
  for (const Guard& g : guards) {
    out->Counter("sluice_guard_decisions_total", "Times the mechanism was switched.",
                 static_cast<double>(g.decisions), {{"mechanism", g.name}});
  }
  for (const Guard& g : guards) {
    out->Counter("sluice_guard_trial_steps_total", "Steps in the other setting, to measure it.",
                 static_cast<double>(g.trial_steps), {{"mechanism", g.name}});
  }
}

}  // namespace sluice
