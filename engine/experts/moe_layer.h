// The second half of a transformer layer: norm, then a mixture of experts or one dense SwiGLU,
// added to the residual stream. One MoeRunner serves all layers; it owns the buffers of a step.
//
// A token's output is the sum over its slots, in slot order: the chosen experts from the most to
// the least probable, then the shared expert. Routing is in F32 whatever the weights are.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/arch/model_config.h"
#include "engine/base/result.h"
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

struct MoeStats {
  int64_t assignments = 0;     // (token, routed expert) pairs
  int64_t unique_experts = 0;  // distinct routed experts touched
};

class MoeRunner {
 public:
  // `backend` and `observer` (nullable) outlive the runner. Memory for steps of up to max_tokens is
  // allocated here.
  static Result<MoeRunner> Create(Backend* backend, const ModelConfig& config, int max_tokens,
                                  ForwardObserver* observer = nullptr);

  // What Backend::Prepare must be told for this model's expert layers (the MLP fields only).
  static void AddLimits(const ModelConfig& config, int max_tokens, WorkspaceLimits* limits);

  // hidden: [tokens, config.hidden], the residual stream, updated in place. `experts` is asked for
  // (layer, index); not used by dense layers. Statistics are added to.
  void Run(int layer, const MoeWeights& weights, const ResidentExperts& experts, int tokens,
           float* hidden, MoeStats* stats);

  size_t arena_bytes() const { return memory_.bytes(); }

 private:
  MoeRunner(Backend* backend, const ModelConfig& config, int max_tokens, ForwardObserver* observer);
  void RunDense(int layer, const MoeWeights& weights, int tokens, float* hidden);
  // Tells the observer of all groups of a sparse layer's step.
  void Observe(int layer, int tokens);

  Backend* backend_;
  int hidden_;
  float norm_eps_;
  RouterConfig router_;
  int slots_;  // experts per token, and one for the shared expert
  int max_tokens_;

  DeviceBuffer memory_;
  float* normed_ = nullptr;        // [max_tokens, hidden]
  float* logits_ = nullptr;        // [max_tokens, num_experts]
  float* shared_logit_ = nullptr;  // [max_tokens]
  float* weights_ = nullptr;       // [max_tokens, slots]
  float* ones_ = nullptr;          // [max_tokens]
  float* outputs_ = nullptr;       // [max_tokens * slots, hidden]
  int32_t* ids_ = nullptr;         // [max_tokens, experts_per_token]
  int32_t* index_ = nullptr;       // [max_tokens, slots]
  int32_t* identity_ = nullptr;    // [max_tokens] 0, 1, 2, ...
  RoutingPlan plan_;
  std::vector<MlpGroup> groups_;

  ForwardObserver* observer_;
  float* down_inputs_ = nullptr;         // as Backend::Mlp gives them; null without an observer
  std::vector<float> observed_weights_;  // [max_tokens * slots], by assignment
};

}  // namespace sluice
