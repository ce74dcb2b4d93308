// The default predictor: three kinds of evidence per token and expert, each calibrated by counting,
// summed as weighted log odds.
//
//   gate      the layer's own gate, applied early to the gate input of a layer before (Fate). Only
//             where the expert's score stands relative to the token's k-th best score counts: per
//             layer, distance and such a margin it is counted how often the expert was chosen.
//   previous  whether the stream's previous token chose the expert, counted per layer.
//   usage     the share of recent tokens that chose the expert; the prior before that.
//
// The weights of the sum are learned online (logistic regression by damped Newton steps on single
// coordinates), one set per distance, shared by the layers. A step's probability that an expert is
// used is 1 - prod(1 - p) over its tokens.
//
// The horizon goes as far as the gates at a distance are measured to beat the same prediction
// without them; from time to time one distance more is tried again.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/experts/expert_predictor.h"
#include "engine/experts/predictor_evidence.h"

namespace sluice {

struct CrossLayerOptions {
  std::string_view name = "cross-layer";
  bool gates = true;
  bool previous = true;
};

class CrossLayerPredictor final : public ExpertPredictor {
 public:
  static constexpr int kMaxHorizon = 4;

  CrossLayerPredictor(const CrossLayerOptions& options, ExpertSpace space, int experts_per_token,
                      const ExpertPrior& prior);

  std::string_view name() const override { return options_.name; }
  int horizon(int tokens) const override;
  void OnScores(int layer, int distance, const GateScores& scores) override;
  void OnRouted(int layer, const RoutedTokens& routed) override;
  void OnStreamEnd(int64_t stream) override { last_.Remove(stream); }
  void Estimate(int layer, int tokens, std::span<float> probability) override;
  PredictorStats stats() const override { return stats_; }

  // Mean squared errors of single (token, expert) probabilities, recent ones: of gates at a
  // distance in [0, kMaxHorizon], and of the same tokens without gates.
  struct Errors {
    float with_gates = 0, without_gates = 0;
  };
  Errors errors(int distance) const;

 private:
  // Evidence of a distance: 0 to kMaxHorizon, or none.
  static constexpr int kNoGates = kMaxHorizon + 1;
  static constexpr int kContexts = kMaxHorizon + 2;
  static constexpr int kWeights = 4;  // bias, gate, previous, usage

  // A gate's scores, until its layer is reached.
  struct Early {
    int tokens = 0;  // 0: none
    std::vector<int64_t> streams;
    std::vector<uint8_t> margins;  // [tokens, experts]
    std::vector<int32_t> guesses;  // [tokens, experts_per_token]; distances 0 and 1
  };
  struct Combination {
    std::array<float, kWeights> weight;
    std::array<float, kWeights> curvature;  // decayed sums of p (1 - p) x^2
  };
  struct Loss {
    float with_gates = 0, without_gates = 0, count = 0;  // decayed
  };

  Early& early(int layer, int distance) {
    return early_[static_cast<size_t>(layer) * (kMaxHorizon + 1) + distance];
  }
  int gate_row(int layer, int distance) const { return layer * (kMaxHorizon + 1) + distance; }
  // Writes the log odds of one token's experts to log_odds_. Null margins or last: no such
  // evidence.
  void Sum(int layer, int context, const uint8_t* margins, const uint8_t* last);
  // probability[e] *= 1 - p(e), from log_odds_.
  void Miss(std::span<float> probability) const;
  // Learns from one token that chose chosen_; returns the squared error.
  float Learn(int layer, int context, const uint8_t* margins, const uint8_t* last);
  void LearnToken(int layer, const RoutedTokens& routed, int token);
  void CountGuesses(int layer, const RoutedTokens& routed);
  void NewStep();

  CrossLayerOptions options_;
  ExpertSpace space_;
  int experts_per_token_;
  int max_scored_tokens_;  // of a step that gates are read for
  int horizon_ = kMaxHorizon;
  int useful_ = kMaxHorizon;  // the horizon that was measured to pay
  int64_t steps_ = 0;
  int last_layer_ = -1;  // that was routed

  std::vector<Early> early_;           // [layer, distance]
  std::vector<int64_t> step_streams_;  // of the step, one per run of tokens
  LastChoices last_;
  UsageRates usage_;
  TruthTable gate_truths_;      // rows by layer and distance
  TruthTable previous_truths_;  // rows by layer; bucket 1: chosen by the previous token
  std::array<Combination, kContexts> combinations_;
  std::array<Loss, kMaxHorizon + 1> losses_;
  PredictorStats stats_;

  std::vector<float> log_odds_;      // [experts]
  std::vector<uint8_t> chosen_;      // [experts]
  std::vector<uint8_t> last_flags_;  // [experts]
  std::vector<int32_t> top_;         // [experts_per_token]
};

}  // namespace sluice
