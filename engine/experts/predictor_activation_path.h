// The baseline after MoE-Infinity (arXiv 2401.14361, "expert activation matrix"): every sequence
// has a matrix [layers, experts] of how often it chose each expert since it began; those of
// finished sequences are kept as patterns. The pattern that a running sequence's matrix is most
// like tells the layers ahead. No gates are read.
//
// Likeness is the mean over the layers of the cosine of the two rows, over what the sequence has
// shown so far. At most kMaxPatterns are kept: past that, a new one replaces the one
// that is most like another, unless it is itself more like one that is kept.
//
// Memory: 1 KiB per expert of the model, and 2 KiB per layer of each running sequence.
//
// Until there is a pattern, the experts' usage rates are given.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/experts/expert_predictor.h"
#include "engine/experts/predictor_evidence.h"

namespace sluice {

class ActivationPathPredictor final : public ExpertPredictor {
 public:
  static constexpr int kMaxPatterns = 256;

  ActivationPathPredictor(ExpertSpace space, int experts_per_token, const ExpertPrior& prior);

  std::string_view name() const override { return "activation-path"; }
  int horizon(int /*tokens*/) const override { return 0; }
  void OnScores(int /*layer*/, int /*distance*/, const GateScores& /*scores*/) override {}
  void OnRouted(int layer, const RoutedTokens& routed) override;
  void OnStreamEnd(int64_t stream) override;
  void Estimate(int layer, int tokens, std::span<float> probability) override;
  PredictorStats stats() const override { return stats_; }

  int patterns() const { return patterns_; }

 private:
  // A running sequence.
  struct Path {
    int64_t tokens = 0;
    std::vector<float> counts;    // [place]
    std::vector<float> squares;   // [layer] squared length of the row
    std::vector<float> products;  // [layer, kMaxPatterns] with the patterns' unit rows
    std::vector<float> cosines;   // [layer, kMaxPatterns]
    std::vector<float> likeness;  // [kMaxPatterns] sums of cosines over layers
  };

  size_t row(int layer) const { return static_cast<size_t>(layer) * kMaxPatterns; }
  // The likeliest pattern, or -1.
  int Nearest(const Path& path) const;
  void Reset(Path* path) const;
  void Add(Path* path, int layer, int tokens, const int32_t* ids);
  // Sums up `pattern` anew, after it was replaced.
  void Compare(Path* path, int pattern) const;
  // Multiplies miss [experts] by what one token of the stream leaves.
  void Miss(int layer, int64_t stream, std::span<float> miss) const;
  void Keep(const Path& path);

  ExpertSpace space_;
  int experts_per_token_;
  UsageRates usage_;
  StreamRows rows_;
  std::vector<Path> paths_;  // by row
  std::vector<int64_t> step_streams_;

  int patterns_ = 0;
  // Rows of unit length, patterns innermost: an expert's column is added to all products at once.
  std::vector<float> units_;    // [place, kMaxPatterns]
  std::vector<float> lengths_;  // [layer, kMaxPatterns] of the rows as shares of tokens
  // [kMaxPatterns] likeness to the most alike other pattern; may be that of one replaced since.
  std::vector<float> nearest_;
  std::vector<float> all_likeness_;  // [kMaxPatterns] to the one that is being kept
  PredictorStats stats_;
  std::vector<float> scores_;  // [experts]
  std::vector<int32_t> top_;   // [experts_per_token]
};

}  // namespace sluice
