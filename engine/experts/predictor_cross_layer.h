// The default predictor: three kinds of evidence per token and expert, each calibrated by counting,
// summed as weighted log odds.
//
//   gate      the layer's own gate, applied early to the gate input of a layer before (Fate). Only
//             where the expert's score stands relative to the token's k-th best score counts: per
//             layer, distance and such a margin it is counted how often the expert was chosen.
//   history   whether the stream's previous token chose the expert and how often its recent ones
//             did (StreamHistory), counted per layer.
//   usage     the share of all recent tokens that chose the expert; the prior before that.
//
// The weights of the sum are learned online (logistic regression by damped Newton steps on single
// coordinates), one set per distance, shared by the layers; and one constant per layer, distance
// and expert, which takes out what an early gate always gets wrong about an expert (the layers
// between shift its score by much the same for every token). A step's probability that an expert is
// used is 1 - prod(1 - p) over its tokens.
//
// Measured on the demo model (tests/bench/bench_predictor.cc), log loss at distance 1: margins
// 5.32, ranks 5.41, absolute scores 5.99; without the constants 5.59, and without learned weights
// either (naive Bayes) 5.81.
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
  uint8_t history = StreamHistory::kCodes - 1;  // the bits of its codes that are used; 0: none
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
  void OnStreamEnd(int64_t stream) override { history_.Remove(stream); }
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
  static constexpr int kWeights = 4;  // bias, gate, history, usage

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
  size_t constant_row(int layer, int context) const {
    return (static_cast<size_t>(layer) * kContexts + context) * log_odds_.size();
  }
  // The stream's codes in this layer, masked; null where there are none, or none are used.
  const uint8_t* HistoryOf(int64_t stream, int layer);
  // Writes the log odds of one token's experts to log_odds_. Null: no such evidence.
  void Sum(int layer, int context, const uint8_t* margins, const uint8_t* history);
  // miss[e] *= 1 - p(e), from log_odds_.
  void Miss(std::span<float> miss) const;
  // Learns from one token that chose chosen_; returns the squared error.
  float Learn(int layer, int context, const uint8_t* margins, const uint8_t* history);
  void LearnToken(int layer, const RoutedTokens& routed, int token);
  void CountGuesses(int layer, const RoutedTokens& routed);
  void NewStep();

  CrossLayerOptions options_;
  ExpertSpace space_;
  int experts_per_token_;
  int max_scored_tokens_;  // of a step that gates are read for
  int learn_every_;        // steps
  int horizon_ = kMaxHorizon;
  int useful_ = kMaxHorizon;  // the horizon that was measured to pay
  int64_t steps_ = 0;
  int last_layer_ = -1;  // that was routed

  std::vector<Early> early_;           // [layer, distance]
  std::vector<int64_t> step_streams_;  // of the step, one per run of tokens
  StreamHistory history_;
  UsageRates usage_;
  TruthTable gate_truths_;     // rows by layer and distance
  TruthTable history_truths_;  // rows by layer
  std::array<Combination, kContexts> combinations_;
  std::array<Loss, kMaxHorizon + 1> losses_;
  PredictorStats stats_;

  std::vector<float> constants_, constant_curvatures_;  // [layer, context, expert]

  float even_odds_;
  std::vector<float> log_odds_;  // [experts]
  std::vector<uint8_t> chosen_;  // [experts]
  std::vector<uint8_t> codes_;   // [experts]
  std::vector<int32_t> top_;     // [experts_per_token]
  std::vector<int32_t> run_starts_;
};

}  // namespace sluice
