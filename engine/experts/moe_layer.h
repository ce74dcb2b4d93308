// The second half of a transformer layer: norm, then a mixture of experts or one dense SwiGLU,
// added to the residual stream. One MoeRunner serves all layers; it owns the buffers of a step.
//
// A token's output is the sum over its slots, in slot order: the chosen experts from the most to
// the least probable, then the shared expert. Routing is in F32 whatever the weights are. Experts
// are computed in the order in which their weights arrive, which changes no result.
//
// Tokens may accept less than that (quality.h): an expert shared by several tokens is then computed
// at the precision that the most demanding of them asks for, or better, so that what an exact token
// gets does not depend on its company. A token that does without an expert shares the weights of
// the others as the model's router would have with fewer experts: divided by their sum if it
// divides (RouterConfig::renormalize), otherwise as they are.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/arch/model_config.h"
#include "engine/base/result.h"
#include "engine/experts/expert_source.h"
#include "engine/experts/expert_weights.h"
#include "engine/experts/forward_observer.h"
#include "engine/experts/router.h"
#include "engine/tensor/backend.h"

namespace sluice {

// One layer's weights outside its routed experts. Views; the model's weights own the memory.
struct MoeWeights {
  const float* norm = nullptr;  // [hidden]
  PackedMatrix router;          // [num_experts, hidden] F32; empty: a dense layer
  ExpertWeights dense;          // dense layers only
  ExpertWeights shared;         // empty: no shared expert
  PackedMatrix shared_gate;     // [1, hidden] F32; empty: the shared expert has weight 1
};

// The tokens of a step, as one layer sees them.
struct LayerTokens {
  int count = 0;
  const int64_t* streams = nullptr;  // [count] names each token's sequence from step to step
  // [count] set to 1 for tokens that needed an expert that cannot be had: their results are
  // meaningless, those of all others are not touched by it. `error` receives the first reason.
  uint8_t* failed = nullptr;
  Error* error = nullptr;
  const QualitySettings* quality = nullptr;  // [count]; null: all are exact
  ExpertCounts* counts = nullptr;            // nullable [count], added to
};

struct MoeStats {
  int64_t assignments = 0;     // (token, routed expert) pairs
  int64_t unique_experts = 0;  // distinct routed experts computed
};

class MoeRunner {
 public:
  // `backend` and `observer` (nullable) outlive the runner. Memory for steps of up to max_tokens is
  // allocated here.
  static Result<MoeRunner> Create(Backend* backend, const ModelConfig& config, int max_tokens,
                                  ForwardObserver* observer = nullptr);

  // What Backend::Prepare must be told for this model's expert layers (the MLP fields only).
  static void AddLimits(const ModelConfig& config, int max_tokens, WorkspaceLimits* limits);

  // Weights of all layers in order, for looking ahead at their gates; they outlive the runner.
  // Without them no gate scores are given to expert sources.
  void SetLayers(std::vector<const MoeWeights*> layers) { layers_ = std::move(layers); }

  // hidden: [tokens.count, config.hidden], the residual stream, updated in place. Dense layers do
  // not use `experts`. Statistics are added to.
  void Run(int layer, const MoeWeights& weights, ExpertSource* experts, const LayerTokens& tokens,
           float* hidden, MoeStats* stats);

  // What qualities accept; the calibrated rules unless set.
  void SetQualityRules(const QualityRules& rules) { rules_ = rules; }

  size_t arena_bytes() const { return memory_.bytes(); }

 private:
  MoeRunner(Backend* backend, const ModelConfig& config, int max_tokens, ForwardObserver* observer);
  void RunDense(int layer, const MoeWeights& weights, int tokens, float* hidden);
  void Route(const MoeWeights& weights, int tokens, float* hidden);
  // Fills bits_ and kept_ids_ and takes dropped experts' weights away.
  void Grade(const LayerTokens& tokens);
  // Makes plan_ and demands_.
  void Plan(const LayerTokens& tokens);
  // Accepts less of the experts that the step's weight hardly falls on (QualityRule::tail_share).
  void GradeTail(const LayerTokens& tokens);
  // The tokens of a demand do without its expert.
  void Skip(int demand);
  // Scales the weights of tokens that do without some of their experts.
  void Reweigh(int tokens);
  void Count(const LayerTokens& tokens) const;
  // Gives `experts` the gate scores of the layers ahead.
  void LookAhead(int layer, ExpertSource* experts, const LayerTokens& tokens, const float* hidden);
  // Adds the group of demand `demand` to groups_.
  void AddGroup(int demand, const ExpertWeights& weights);
  // No output for the tokens of a demand whose expert cannot be had.
  void Fail(int demand, const Error& error, const LayerTokens& tokens);
  // Computes groups_ and tells the observer of them.
  void Compute(int layer);

  Backend* backend_;
  int hidden_;
  float norm_eps_;
  RouterConfig router_;
  int slots_;  // experts per token, and one for the shared expert
  int max_tokens_;

  DeviceBuffer memory_;
  float* normed_ = nullptr;              // [max_tokens, hidden]
  float* logits_ = nullptr;              // [max_tokens, num_experts]
  float* shared_logit_ = nullptr;        // [max_tokens]
  float* weights_ = nullptr;             // [max_tokens, slots]
  float* ones_ = nullptr;                // [max_tokens]
  float* outputs_ = nullptr;             // [max_tokens * slots, hidden]
  int32_t* ids_ = nullptr;               // [max_tokens, experts_per_token]
  int32_t* index_ = nullptr;             // [max_tokens, slots]
  int32_t* identity_ = nullptr;          // [max_tokens] 0, 1, 2, ...
  float* assignment_weights_ = nullptr;  // [max_tokens * slots], by assignment
  int32_t* ahead_ids_ = nullptr;         // [max_tokens, experts_per_token]
  float* ahead_logits_ = nullptr;        // [max_tokens, num_experts]
  float* ahead_weights_ = nullptr;       // [max_tokens, experts_per_token]
  // With tokens that are not exact:
  int32_t* kept_ids_ = nullptr;  // [max_tokens, experts_per_token] ids_, -1 where dropped
  int8_t* bits_ = nullptr;       // [max_tokens, experts_per_token] as quality.h; kDropped also for
                                 // those skipped
  RoutingPlan plan_;
  std::vector<const MoeWeights*> layers_;
  std::vector<ExpertDemand> demands_;  // of plan_.groups()
  QualityRules rules_ = DefaultQualityRules();
  bool graded_ = false;             // the open layer has tokens that are not exact
  bool reweigh_ = false;            // some of them do without an expert
  std::vector<uint8_t> degraded_;   // [demand], of the open layer
  std::vector<int> by_weight_;      // demands, the lightest first
  std::vector<MlpGroup> groups_;    // of one call of Backend::Mlp
  std::vector<int> group_experts_;  // [groups_.size()] index of the expert, -1: the shared one

  ForwardObserver* observer_;
  float* down_inputs_ = nullptr;  // as Backend::Mlp gives them; null without an observer
};

}  // namespace sluice
