#include "engine/experts/moe_layer.h"

#include <algorithm>
#include <numeric>

#include "engine/base/check.h"
#include "engine/tensor/arena.h"

namespace sluice {
namespace {

bool HasSparseLayer(const ModelConfig& config) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [](const LayerConfig& layer) { return layer.sparse; });
}

bool HasDenseLayer(const ModelConfig& config) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [](const LayerConfig& layer) { return !layer.sparse; });
}

// Slots of a token's sum: at least one, for dense layers.
int Slots(const ModelConfig& config) {
  if (!HasSparseLayer(config)) return 1;
  return config.router.experts_per_token + (config.shared_intermediate > 0 ? 1 : 0);
}

}  // namespace

MoeRunner::MoeRunner(Backend* backend, const ModelConfig& config, int max_tokens,
                     ForwardObserver* observer)
    : backend_(backend),
      hidden_(config.hidden),
      norm_eps_(static_cast<float>(config.norm_eps)),
      router_(config.router),
      slots_(Slots(config)),
      max_tokens_(max_tokens),
      plan_(max_tokens, std::max(1, config.router.experts_per_token),
            std::max(1, config.router.num_experts)),
      observer_(observer) {
  groups_.reserve(config.router.num_experts + 1);
  group_experts_.reserve(config.router.num_experts + 1);
  demands_.reserve(config.router.num_experts);
}

void MoeRunner::AddLimits(const ModelConfig& config, int max_tokens, WorkspaceLimits* limits) {
  const int64_t tokens = max_tokens;
  if (HasSparseLayer(config)) {
    const int64_t routed = tokens * config.router.experts_per_token;
    limits->max_mlp_groups = std::max(limits->max_mlp_groups, config.router.num_experts + 1);
    limits->max_mlp_rows = std::max(limits->max_mlp_rows, tokens * Slots(config));
    limits->max_mlp_width =
        std::max({limits->max_mlp_width, config.expert_intermediate, config.shared_intermediate});
    limits->max_mlp_values =
        std::max(limits->max_mlp_values,
                 routed * config.expert_intermediate + tokens * config.shared_intermediate);
  }
  if (HasDenseLayer(config)) {
    limits->max_mlp_groups = std::max(limits->max_mlp_groups, 1);
    limits->max_mlp_rows = std::max(limits->max_mlp_rows, tokens);
    limits->max_mlp_width = std::max(limits->max_mlp_width, config.dense_intermediate);
    limits->max_mlp_values = std::max(limits->max_mlp_values, tokens * config.dense_intermediate);
  }
}

Result<MoeRunner> MoeRunner::Create(Backend* backend, const ModelConfig& config, int max_tokens,
                                    ForwardObserver* observer) {
  MoeRunner runner(backend, config, max_tokens, observer);
  const auto tokens = static_cast<size_t>(max_tokens);
  const auto slots = static_cast<size_t>(runner.slots_);
  const auto experts = static_cast<size_t>(config.router.num_experts);
  const auto hidden = static_cast<size_t>(config.hidden);
  ArenaLayout layout;
  layout.Add(&runner.normed_, tokens * hidden);
  layout.Add(&runner.logits_, tokens * experts);
  layout.Add(&runner.shared_logit_, tokens);
  layout.Add(&runner.weights_, tokens * slots);
  layout.Add(&runner.ones_, tokens);
  layout.Add(&runner.outputs_, tokens * slots * hidden);
  layout.Add(&runner.ids_, tokens * slots);
  layout.Add(&runner.index_, tokens * slots);
  layout.Add(&runner.identity_, tokens);
  layout.Add(&runner.assignment_weights_, tokens * slots);
  layout.Add(&runner.ahead_ids_, tokens * slots);
  layout.Add(&runner.ahead_logits_, tokens * experts);
  layout.Add(&runner.ahead_weights_, tokens * slots);
  if (observer != nullptr) {
    WorkspaceLimits limits;
    AddLimits(config, max_tokens, &limits);
    layout.Add(&runner.down_inputs_, static_cast<size_t>(limits.max_mlp_values));
  }
  auto memory = layout.Allocate(backend, "expert layer buffers");
  if (!memory) return memory.error();
  runner.memory_ = std::move(*memory);
  // A shared expert without a gate keeps the weight 1 that its slot has from here on.
  std::fill_n(runner.weights_, tokens * slots, 1.0f);
  std::fill_n(runner.ones_, tokens, 1.0f);
  std::iota(runner.identity_, runner.identity_ + tokens, 0);
  return runner;
}

void MoeRunner::Compute(int layer) {
  backend_->Mlp({.x = normed_,
                 .x_stride = hidden_,
                 .hidden = hidden_,
                 .groups = groups_,
                 .y = outputs_,
                 .down_inputs = down_inputs_});
  if (observer_ == nullptr) return;
  const float* down_inputs = down_inputs_;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const MlpGroup& group = groups_[g];
    observer_->OnExpert({.layer = layer,
                         .expert = group_experts_[g],
                         .count = group.count,
                         .hidden = hidden_,
                         .intermediate = group.gate.rows,
                         .x = normed_,
                         .rows = group.rows,
                         .down_inputs = down_inputs,
                         .outputs = outputs_ + group.first_output * hidden_,
                         .weights = assignment_weights_ + group.first_output});
    down_inputs += static_cast<ptrdiff_t>(group.count) * group.gate.rows;
  }
}

void MoeRunner::RunDense(int layer, const MoeWeights& weights, int tokens, float* hidden) {
  backend_->Linear({.x = hidden,
                    .x_stride = hidden_,
                    .tokens = tokens,
                    .cols = hidden_,
                    .norm_weight = weights.norm,
                    .norm_eps = norm_eps_,
                    .normed = normed_,
                    .outputs = {}});
  const MlpGroup group = {weights.dense.gate, weights.dense.up, weights.dense.down, nullptr,
                          tokens};
  backend_->Mlp({.x = normed_,
                 .x_stride = hidden_,
                 .hidden = hidden_,
                 .groups = {&group, 1},
                 .y = outputs_,
                 .down_inputs = down_inputs_});
  if (observer_ != nullptr) {
    observer_->OnExpert({.layer = layer,
                         .expert = -1,
                         .count = tokens,
                         .hidden = hidden_,
                         .intermediate = group.gate.rows,
                         .x = normed_,
                         .rows = nullptr,
                         .down_inputs = down_inputs_,
                         .outputs = outputs_,
                         .weights = ones_});
  }
  backend_->Combine({.y = outputs_,
                     .tokens = tokens,
                     .slots = 1,
                     .hidden = hidden_,
                     .index = identity_,
                     .weights = ones_,
                     .out = hidden});
}

void MoeRunner::Route(const MoeWeights& weights, int tokens, float* hidden) {
  const int k = router_.experts_per_token;
  const bool gated = static_cast<bool>(weights.shared_gate);
  const LinearOutput outputs[] = {
      {.weight = weights.router, .y = logits_, .y_stride = router_.num_experts},
      {.weight = weights.shared_gate, .y = shared_logit_, .y_stride = 1}};
  backend_->Linear({.x = hidden,
                    .x_stride = hidden_,
                    .tokens = tokens,
                    .cols = hidden_,
                    .norm_weight = weights.norm,
                    .norm_eps = norm_eps_,
                    .normed = normed_,
                    .outputs = {outputs, gated ? size_t{2} : size_t{1}}});
  backend_->TopK({.logits = logits_,
                  .stride = router_.num_experts,
                  .tokens = tokens,
                  .n = router_.num_experts,
                  .k = k,
                  .renormalize = router_.renormalize,
                  .ids = ids_,
                  .ids_stride = k,
                  .weights = weights_,
                  .weights_stride = slots_,
                  .gate = gated ? shared_logit_ : nullptr,
                  .gate_stride = 1});
  plan_.Build(ids_, k, tokens, index_, slots_);
  demands_.clear();
  for (const RoutingPlan::Group& group : plan_.groups()) {
    demands_.push_back({group.expert, group.count, 0});
  }
  // By assignment: its weight, for the observer; summed by expert, for the source.
  for (int t = 0; t < tokens; ++t) {
    for (int s = 0; s < slots_; ++s) {
      if (s >= k) index_[t * slots_ + s] = tokens * k + t;
      assignment_weights_[index_[t * slots_ + s]] = weights_[t * slots_ + s];
    }
  }
  for (size_t d = 0; d < demands_.size(); ++d) {
    const RoutingPlan::Group& group = plan_.groups()[d];
    for (int i = 0; i < group.count; ++i) {
      demands_[d].weight += assignment_weights_[group.begin + i];
    }
  }
}

void MoeRunner::LookAhead(int layer, ExpertSource* experts, const LayerTokens& tokens,
                          const float* hidden) {
  const int n = router_.num_experts;
  const int last = std::min(layer + experts->horizon(), static_cast<int>(layers_.size()) - 1);
  for (int ahead = layer + 1; ahead <= last; ++ahead) {
    const MoeWeights& weights = *layers_[ahead];
    if (!weights.router) continue;
    const LinearOutput output = {.weight = weights.router, .y = ahead_logits_, .y_stride = n};
    backend_->Linear({.x = hidden,
                      .x_stride = hidden_,
                      .tokens = tokens.count,
                      .cols = hidden_,
                      .norm_weight = weights.norm,
                      .norm_eps = norm_eps_,
                      .normed = nullptr,
                      .outputs = {&output, 1}});
    backend_->TopK({.logits = ahead_logits_,
                    .stride = n,
                    .tokens = tokens.count,
                    .n = n,
                    .k = router_.experts_per_token,
                    .ids = ahead_ids_,
                    .ids_stride = router_.experts_per_token,
                    .weights = ahead_weights_,
                    .weights_stride = router_.experts_per_token});
    experts->Predict(ahead, ahead - layer, {tokens.count, n, ahead_logits_, tokens.streams});
  }
}

void MoeRunner::AddGroup(int demand, const ExpertWeights& weights) {
  const RoutingPlan::Group& group = plan_.groups()[demand];
  groups_.push_back({weights.gate, weights.up, weights.down, plan_.rows() + group.begin,
                     group.count, group.begin});
  group_experts_.push_back(group.expert);
}

void MoeRunner::Fail(int demand, const Error& error, const LayerTokens& tokens) {
  const RoutingPlan::Group& group = plan_.groups()[demand];
  std::fill_n(outputs_ + static_cast<ptrdiff_t>(group.begin) * hidden_,
              static_cast<ptrdiff_t>(group.count) * hidden_, 0.0f);
  for (int i = 0; i < group.count; ++i) tokens.failed[plan_.rows()[group.begin + i]] = 1;
  if (tokens.error->message.empty()) *tokens.error = error;
}

void MoeRunner::Run(int layer, const MoeWeights& weights, ExpertSource* experts,
                    const LayerTokens& tokens, float* hidden, MoeStats* stats) {
  SLUICE_CHECK(tokens.count >= 1 && tokens.count <= max_tokens_);
  if (!weights.router) return RunDense(layer, weights, tokens.count, hidden);

  const int k = router_.experts_per_token;
  Route(weights, tokens.count, hidden);
  experts->Begin(layer, demands_, {tokens.count, k, ids_, tokens.streams, weights_, slots_});
  LookAhead(layer, experts, tokens, hidden);
  // The shared expert is always here: it is computed with the first that are, or while they come.
  bool shared = static_cast<bool>(weights.shared);
  for (;;) {
    const std::span<const ReadyExpert> ready = experts->Next(/*wait=*/!shared);
    if (ready.empty() && !shared) break;
    groups_.clear();
    group_experts_.clear();
    for (const ReadyExpert& expert : ready) {
      if (expert.weights != nullptr) {
        AddGroup(expert.demand, *expert.weights);
      } else {
        Fail(expert.demand, *expert.error, tokens);
      }
    }
    if (shared) {
      groups_.push_back({weights.shared.gate, weights.shared.up, weights.shared.down, nullptr,
                         tokens.count, int64_t{tokens.count} * k});
      group_experts_.push_back(-1);
      shared = false;
    }
    if (!groups_.empty()) Compute(layer);
  }
  experts->End();
  backend_->Combine({.y = outputs_,
                     .tokens = tokens.count,
                     .slots = slots_,
                     .hidden = hidden_,
                     .index = index_,
                     .weights = weights_,
                     .out = hidden});
  stats->assignments += static_cast<int64_t>(tokens.count) * k;
  stats->unique_experts += static_cast<int64_t>(plan_.groups().size());
}

}  // namespace sluice
