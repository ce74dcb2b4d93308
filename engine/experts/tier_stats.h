// What the expert tiers did, for /metrics, `sluice top` and the log: plain counters, filled by
// whoever serves experts from less memory than they need (TieredExperts), read by anybody through
// EngineStats. Counters only grow; what says "now" is a level.
//
// Words: a *demand* is a distinct expert that a layer of a step was routed to. A *hit* had every
// plane that the step wanted in memory when the layer asked.
//
// Rows of guesses (speculation.h) that turn out wrong count like all others, in hits, misses, bytes
// and heat: their experts were waited for and read, and which rows were wrong is known only after
// the step. Heat is thus of what was computed, not of what was generated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

struct ExpertTierStats {
  struct Layer {
    // Demands, by what the tier in front of the disk had of them; without those skipped.
    uint64_t hits = 0;
    uint64_t misses = 0;
    double stall_seconds = 0;           // compute waited for experts with nothing left to do
    uint64_t degraded_assignments = 0;  // (token, expert) pairs computed at less than the full
                                        // precision, or skipped

    uint64_t planes_read = 0;
    uint64_t bytes_read = 0;

    // Reads ahead of the layer, in experts. Every one issued ends as used, late, wasted or
    // cancelled.
    uint64_t prefetch_issued = 0;
    uint64_t prefetch_used = 0;       // landed in time for a demand
    uint64_t prefetch_late = 0;       // demanded while still being read
    uint64_t prefetch_wasted = 0;     // left the cache without a demand
    uint64_t prefetch_cancelled = 0;  // withdrawn before the disk saw them

    // The predictor's top-k from the layer before (PredictorStats::layers).
    uint64_t prediction_wanted = 0;
    uint64_t prediction_hits = 0;

    int resident = 0;  // experts with all planes in memory, now
    int pinned = 0;    // experts that a step holds, now: 0 between steps, or one was never let go
  };
  std::vector<Layer> layers;  // [model layers]; empty: every expert is resident, nothing is counted

  // What travelled over a link to get experts.
  struct Link {
    std::string name;  // "disk"
    uint64_t reads = 0;
    uint64_t demand_bytes = 0;
    uint64_t prefetch_bytes = 0;
    double busy_seconds = 0;  // with at least one read in flight
    uint64_t retries = 0;
    uint64_t failures = 0;  // demands that ended with an error
    std::string method;     // how it is read, for people: "io_uring, direct"
    // What happened to the pack file (ExpertStoreStats), as of the last read.
    bool pack_truncated = false;
    bool pack_replaced = false;
  };
  std::vector<Link> links;

  // What holds experts, now.
  struct Tier {
    std::string name;  // "host"
    uint64_t capacity_bytes = 0;
    uint64_t used_bytes = 0;
  };
  std::vector<Tier> tiers;

  // Of the whole process, in bytes (Model::SetMemoryBudget): the budget now, the least that can be
  // set, and the least with which every expert stays resident: a larger one changes nothing.
  uint64_t budget_bytes = 0;
  uint64_t least_budget_bytes = 0;
  uint64_t full_budget_bytes = 0;

  // Mechanisms that must pay for themselves (live_guard.h).
  struct Guard {
    std::string name;  // "prefetch"
    bool on = false;
    double gain = 0;           // measured cost without it / with it; 0: not measured yet
    uint64_t decisions = 0;    // times it was switched on or off for good
    uint64_t trial_steps = 0;  // steps spent in the other setting to measure it
    std::string outcome;       // of the last trial, in a sentence
  };
  std::vector<Guard> guards;

  // Share of hits on a window of the last demands: with the best possible evictions, and real.
  // Negative: not known.
  double belady_hit_rate = -1;
  double window_hit_rate = -1;

  // By place (ExpertSpace). heat: demands, with those of `heat_half_life_steps` steps ago worth
  // half. resident_planes: planes in memory, now.
  int experts_per_layer = 0;
  int heat_half_life_steps = 256;
  std::vector<float> heat;
  std::vector<uint8_t> resident_planes;
};

}  // namespace sluice
