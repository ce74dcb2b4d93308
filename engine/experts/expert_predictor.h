// Which experts the layers ahead will want (SEAM). Everything that is known is turned into one
// number per expert: the probability that the next visit of its layer uses it, by any token of the
// step. Reads ahead and evictions are decided from these numbers alone.
//
// Probabilities are calibrated by what was seen: a predictor counts how often its guesses of each
// rank came true, per layer and distance, so that a poor guess has a low probability whatever its
// score is.
//
// Threads: one owner thread (the engine thread). No call allocates after the first steps.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/experts/cache_policy.h"
#include "engine/experts/expert_id.h"

namespace sluice {

// What the tokens of a step chose in one layer.
struct RoutedTokens {
  int tokens = 0;
  int experts_per_token = 0;
  const int32_t* ids = nullptr;      // [tokens, experts_per_token]
  const int64_t* streams = nullptr;  // [tokens] names the sequence of each token, from step to step
  const float* weights = nullptr;    // of the gate, rows weights_stride apart; may be null
  int weights_stride = 0;
};

// Gate probabilities of a layer ahead, from a gate input of today's.
struct GateScores {
  int tokens = 0;
  int experts = 0;
  const float* probabilities = nullptr;  // [tokens, experts]
  const int64_t* streams = nullptr;      // [tokens]
};

// How good the guesses were. Counters only grow.
struct PredictorStats {
  struct Layer {
    uint64_t wanted = 0;     // (token, expert) pairs that the layer chose and a guess was made for
    uint64_t predicted = 0;  // of these, among the experts_per_token best guesses for the token
  };
  // From the gate of the layer before (distance 1) alone; of predictors that read no gates, from
  // what they knew when the layer was reached.
  std::vector<Layer> layers;
  std::vector<Layer> control;  // from the layer's own gate (distance 0): every pair is predicted
};

class ExpertPredictor {
 public:
  virtual ~ExpertPredictor() = default;
  virtual std::string_view name() const = 0;

  // How many layers ahead OnScores is worth calling for now, in a step of `tokens` tokens; 0: this
  // predictor reads no gates, or so many tokens touch nearly every expert anyway.
  virtual int horizon(int tokens) const = 0;
  // The gate of `layer`, computed `distance` layers early (0: by the layer itself, which must then
  // predict exactly what it chooses: the control).
  virtual void OnScores(int layer, int distance, const GateScores& scores) = 0;
  // The layer was reached, and this is what its tokens chose.
  virtual void OnRouted(int layer, const RoutedTokens& routed) = 0;
  // A sequence ended; its history may be kept as a pattern but its name will not come again.
  virtual void OnStreamEnd(int64_t /*stream*/) {}

  // Probability that the next visit of `layer` uses each expert, by a step of `tokens` tokens.
  // probability: [experts_per_layer].
  virtual void Estimate(int layer, int tokens, std::span<float> probability) = 0;

  virtual PredictorStats stats() const = 0;
};

// "cross-layer": the gates of layers ahead, the sequences' previous tokens and the experts'
// frequency (prior, then counted) together. "previous-token" and "prior": the same without gates,
// and without gates and previous tokens. "activation-path": the baseline after MoE-Infinity: the
// recorded sequence whose experts so far are most like this one's. Errors: kInvalidArgument,
// listing the names.
Result<std::unique_ptr<ExpertPredictor>> MakeExpertPredictor(std::string_view name,
                                                             ExpertSpace space,
                                                             int experts_per_token,
                                                             const ExpertPrior& prior);

}  // namespace sluice
