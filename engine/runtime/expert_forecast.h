// How many experts a step will touch and how many of them will be in memory, from the best that is
// known:
//   a trace        replayed with the policy and the memory, its sequences laid side by side for as
//                  many users as are asked about
//   calibration    the share of tokens that chose each expert (the pack's provenance)
//   typical        nothing is known of this model: shares as they typically fall (kTypicalDecay)
//
// Without a trace tokens are drawn from the shares and the most used experts are in memory, with
// two corrections for what makes real text easier than drawn numbers:
//   locality       tokens choose what their sequence chose just before. Of what the drawing misses,
//                  m of all, the cache misses m^(1 + locality / users): many sequences share one
//                  memory and leave less of each other's
//   likeness       n tokens of one prompt touch what n^likeness drawn ones do
// A prompt is new to the cache: it finds what is in memory, whatever that is, not the favourites.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/arch/model_config.h"
#include "engine/base/result.h"
#include "engine/experts/cache_policy.h"
#include "engine/experts/trace.h"

namespace sluice {

// With calibration. Fitted to replays of next-use on the demo model's texts, whose exponents are
// 1.36 to 1.59 for one stream and 1.15 to 1.3 for four, at 75 to 10% of the experts.
inline constexpr double kLocality = 0.5;
// Without: an expert of a layer is chosen exp(kTypicalDecay / experts) times as often as the next
// in rank. Together with kTypicalLocality half of the experts in memory give 87% hits and a quarter
// 65%; people report 80% for LRU at a half, from which next-use is 5 to 10 points away. The demo
// model has a decay of 1.1; random weights in OLMoE's shape, which follow their prompts more
// closely than real ones, hit 82% with 40% of the experts and 44% with 13%.
inline constexpr double kTypicalDecay = 1.2;
inline constexpr double kTypicalLocality = 1;
// 0.81 on prompts of 4 to 64 tokens of the demo model's texts, 0.56 to 0.66 on random weights in
// OLMoE's shape.
inline constexpr double kTypicalLikeness = 0.65;

// How a model's tokens use its experts, and how much of that is in memory.
class ExpertForecast {
 public:
  struct Step {
    double unique = 0;  // distinct (layer, expert) pairs of a step
    double hits = 0;    // of these, in memory
    double hit_rate() const { return unique > 0 ? hits / unique : 1; }
  };

  // frequency: [place] share of tokens that choose the expert; dense layers have 0.
  // resident_share: of the bytes of all experts, in [0, 1].
  ExpertForecast(std::vector<float> frequency, double resident_share);
  // Every sparse layer alike.
  static ExpertForecast Typical(const ModelConfig& config, double resident_share);
  // Replays the trace with `policy`, as if `users` (at least 1) sequences had decoded at once.
  // Errors: kInvalidArgument for a trace of a model of another shape or without decode steps, and
  // for an unknown policy.
  static Result<ExpertForecast> FromTrace(const Trace& trace, const ModelConfig& config,
                                          const std::string& policy, const ExpertPrior& prior,
                                          double resident_share, int users);

  // One token of each of `users` sequences; a forecast from a trace REQUIRES about those it was
  // made for.
  Step Decode(double users) const;
  // A step with `tokens` tokens of each of `prompts` prompts.
  Step Prefill(double tokens, double prompts) const;

 private:
  // `tokens` drawn ones.
  Step Draw(double tokens) const;

  std::vector<float> frequency_;  // [experts], descending
  double resident_share_ = 0;
  double locality_ = kLocality;
  double likeness_ = kTypicalLikeness;
  std::optional<double> decode_unique_;                       // replayed
  std::optional<double> decode_hit_rate_, prefill_hit_rate_;  // replayed
};

// The trace's sequences side by side: its decode steps become steps with one token of each of
// `users` sequences, its sequences following one another in each; prompts stay steps of their own.
// Fewer users decode where the trace ends. For tests.
Trace RetimeTrace(const Trace& trace, int users);

}  // namespace sluice
