// Where the expert layer gets its weights from (SEAM): everything resident (ResidentExperts), or a
// cache in front of a disk (TieredExperts).
//
// One layer of a step:
//
//   source->Begin(layer, demands);
//   for (;;) {
//     std::span<const ReadyExpert> ready = source->Next(/*wait=*/true);
//     if (ready.empty()) break;   // every demand was handed over
//     ... compute with ready[i].weights ...
//   }
//   source->End();
//
// Experts come in the order in which they can be computed, each demand exactly once. Weights are
// valid until the following Next or End. They have at least the precision that the demand accepts,
// and whatever more is in memory.
//
// Threads: one owner thread (the engine thread).
#pragma once

#include <cstdint>
#include <span>

#include "engine/base/result.h"
#include "engine/experts/expert_id.h"
#include "engine/experts/expert_predictor.h"
#include "engine/experts/expert_weights.h"
#include "engine/experts/quality.h"

namespace sluice {

struct ExpertDemand {
  int expert = 0;    // index in the layer
  int tokens = 0;    // of the step that chose it
  float weight = 0;  // sum of their gate weights
  // The least precision that all of them accept; kSkippable: none rather than wait.
  int8_t least_bits = kAllBits;
};

struct ReadyExpert {
  int demand = 0;  // index into Begin's demands
  // Null: it cannot be had; see error. Without an error: it is skipped, as the demand accepts.
  const ExpertWeights* weights = nullptr;
  const Error* error = nullptr;
  bool degraded = false;  // fewer planes than the pack has for it

  bool skipped() const { return weights == nullptr && error == nullptr; }
};

class ExpertSource {
 public:
  virtual ~ExpertSource() = default;

  // demands: experts of the layer, distinct, ascending; valid until End. routed: the choices they
  // come from.
  virtual void Begin(int layer, std::span<const ExpertDemand> demands,
                     const RoutedTokens& routed) = 0;
  // Demands that can be computed now. wait: sleeps until there is one, unless all were handed over;
  // otherwise may return nothing.
  virtual std::span<const ReadyExpert> Next(bool wait) = 0;
  virtual void End() = 0;

  // Around all layers of a step with `tokens` tokens.
  virtual void BeginStep(int /*tokens*/) {}
  virtual void EndStep() {}

  // How many layers ahead gate scores are wanted in this step; 0: none.
  virtual int horizon() const { return 0; }
  // Between Begin and the first Next: the gate of `layer`, from the input of the open layer.
  virtual void Predict(int /*layer*/, int /*distance*/, const GateScores& /*scores*/) {}
};

}  // namespace sluice
