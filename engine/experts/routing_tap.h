// What the expert layers of a serving model were asked for, as it happens (SEAM): recorded into a
// trace (trace_tap.h), or kept as a window for comparisons with the optimum (live_optimum.h).
//
// Threads: calls come on the engine thread, between and within steps, and must not block.
#pragma once

#include <cstdint>
#include <span>

#include "engine/experts/cache_policy.h"
#include "engine/experts/expert_predictor.h"

namespace sluice {

class RoutingTap {
 public:
  virtual ~RoutingTap() = default;

  // A layer was reached, after all lower ones of the step. uses: the distinct experts that `routed`
  // names, ascending, and whether each was in memory.
  virtual void OnLayer(int layer, const RoutedTokens& routed, std::span<const ExpertUse> uses) = 0;
  // What the next visit of `layer` is now expected to use: [experts_per_layer].
  virtual void OnPredicted(int /*layer*/, std::span<const float> /*probability*/) {}
  // A sequence ended; its name does not come again.
  virtual void OnStreamEnd(int64_t /*stream*/) {}
  virtual void EndStep() = 0;
};

}  // namespace sluice
