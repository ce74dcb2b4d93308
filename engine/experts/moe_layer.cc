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
  if (observer != nullptr) {
    WorkspaceLimits limits;
    AddLimits(config, max_tokens, &limits);
    layout.Add(&runner.down_inputs_, static_cast<size_t>(limits.max_mlp_values));
    runner.observed_weights_.resize(tokens * slots);
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

void MoeRunner::Observe(int layer, int tokens) {
  for (int t = 0; t < tokens; ++t) {
    for (int s = 0; s < slots_; ++s) {
      observed_weights_[index_[t * slots_ + s]] = weights_[t * slots_ + s];
    }
  }
  ptrdiff_t assignment = 0;
  const float* down_inputs = down_inputs_;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const MlpGroup& group = groups_[g];
    const bool routed = g < plan_.groups().size();
    observer_->OnExpert({.layer = layer,
                         .expert = routed ? plan_.groups()[g].expert : -1,
                         .count = group.count,
                         .hidden = hidden_,
                         .intermediate = group.gate.rows,
                         .x = normed_,
                         .rows = group.rows,
                         .down_inputs = down_inputs,
                         .outputs = outputs_ + assignment * hidden_,
                         .weights = observed_weights_.data() + assignment});
    assignment += group.count;
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

void MoeRunner::Run(int layer, const MoeWeights& weights, const ResidentExperts& experts,
                    int tokens, float* hidden, MoeStats* stats) {
  SLUICE_CHECK(tokens >= 1 && tokens <= max_tokens_);
  if (!weights.router) return RunDense(layer, weights, tokens, hidden);

  const int k = router_.experts_per_token;
  const bool shared = static_cast<bool>(weights.shared);
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
  groups_.clear();
  for (const RoutingPlan::Group& group : plan_.groups()) {
    const ExpertWeights& expert = experts.Lookup({layer, group.expert});
    groups_.push_back(
        {expert.gate, expert.up, expert.down, plan_.rows() + group.begin, group.count});
  }
  if (shared) {
    groups_.push_back(
        {weights.shared.gate, weights.shared.up, weights.shared.down, nullptr, tokens});
    for (int t = 0; t < tokens; ++t) index_[t * slots_ + k] = tokens * k + t;
  }
  backend_->Mlp({.x = normed_,
                 .x_stride = hidden_,
                 .hidden = hidden_,
                 .groups = groups_,
                 .y = outputs_,
                 .down_inputs = down_inputs_});
  if (observer_ != nullptr) Observe(layer, tokens);
  backend_->Combine({.y = outputs_,
                     .tokens = tokens,
                     .slots = slots_,
                     .hidden = hidden_,
                     .index = index_,
                     .weights = weights_,
                     .out = hidden});
  stats->assignments += static_cast<int64_t>(tokens) * k;
  stats->unique_experts += static_cast<int64_t>(plan_.groups().size());
}

}  // namespace sluice
