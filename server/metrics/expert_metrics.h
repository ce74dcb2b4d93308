// The metrics of expert tiers (api.md, "Expert metrics"). Names and labels are what `sluice top`
// and dashboards read.
#pragma once

#include <span>

#include "engine/experts/tier_stats.h"
#include "server/metrics/snapshot.h"

namespace sluice {

// `per_expert`: also two series for every expert of the model (heat, planes in memory): many, and
// for a viewer rather than for a database.
void AddExpertMetrics(const ExpertTierStats& stats, bool per_expert, MetricSnapshot* out);

// Of mechanisms that are measured while they run.
void AddGuardMetrics(std::span<const ExpertTierStats::Guard> guards, MetricSnapshot* out);

}  // namespace sluice
