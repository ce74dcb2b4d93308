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
  degraded_.reserve(config.router.num_experts);
  by_weight_.reserve(config.router.num_experts);
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
  layout.Add(&runner.kept_ids_, tokens * slots);
  layout.Add(&runner.bits_, tokens * slots);
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
}

void MoeRunner::Grade(const LayerTokens& tokens) {
  const int k = router_.experts_per_token;
  const auto experts = static_cast<size_t>(k);
  for (int t = 0; t < tokens.count; ++t) {
    const ptrdiff_t first = static_cast<ptrdiff_t>(t) * k;
    float* weights = weights_ + static_cast<ptrdiff_t>(t) * slots_;
    GradeExperts(tokens.quality[t], rules_, {weights, experts}, {bits_ + first, experts});
    for (int s = 0; s < k; ++s) {
      const bool dropped = bits_[first + s] == kDropped;
      kept_ids_[first + s] = dropped ? -1 : ids_[first + s];
      if (!dropped) continue;
      weights[s] = 0;
      reweigh_ = true;
    }
  }
}

void MoeRunner::Plan(const LayerTokens& tokens) {
  const int k = router_.experts_per_token;
  plan_.Build(graded_ ? kept_ids_ : ids_, k, tokens.count, index_, slots_);
  demands_.clear();
  for (const RoutingPlan::Group& group : plan_.groups()) {
    demands_.push_back({group.expert, group.count, 0, graded_ ? kSkippable : kAllBits});
  }
  // By assignment: its weight, for the observer; summed by expert, for the source.
  for (int t = 0; t < tokens.count; ++t) {
    for (int s = 0; s < slots_; ++s) {
      if (s >= k) index_[t * slots_ + s] = tokens.count * k + t;
      if (graded_ && s < k && bits_[t * k + s] == kDropped) continue;
      assignment_weights_[index_[t * slots_ + s]] = weights_[t * slots_ + s];
    }
  }
  for (size_t d = 0; d < demands_.size(); ++d) {
    const RoutingPlan::Group& group = plan_.groups()[d];
    for (int i = 0; i < group.count; ++i) {
      demands_[d].weight += assignment_weights_[group.begin + i];
    }
  }
  if (!graded_) return;
  // The most demanding token decides.
  for (size_t d = 0; d < demands_.size(); ++d) {
    const RoutingPlan::Group& group = plan_.groups()[d];
    for (int i = 0; i < group.count; ++i) {
      const ptrdiff_t token = plan_.rows()[group.begin + i];
      const int32_t* chosen = ids_ + token * k;
      const auto slot = std::find(chosen, chosen + k, group.expert) - chosen;
      demands_[d].least_bits = std::max(demands_[d].least_bits, bits_[token * k + slot]);
    }
  }
  GradeTail(tokens);
}

void MoeRunner::GradeTail(const LayerTokens& tokens) {
  if (tokens.count == 1) return;
  by_weight_.resize(demands_.size());
  std::iota(by_weight_.begin(), by_weight_.end(), 0);
  std::sort(by_weight_.begin(), by_weight_.end(), [&](int a, int b) {
    return demands_[a].weight != demands_[b].weight ? demands_[a].weight < demands_[b].weight
                                                    : a < b;
  });
  float sum = 0;
  for (const ExpertDemand& demand : demands_) sum += demand.weight;
  float before = 0;
  for (const int d : by_weight_) {
    before += demands_[d].weight;
    const RoutingPlan::Group& group = plan_.groups()[d];
    int8_t least = kSkippable;
    for (int i = 0; i < group.count; ++i) {
      const QualityRule& rule = rules_.of(tokens.quality[plan_.rows()[group.begin + i]].quality);
      least = std::max(least, before <= rule.tail_share * sum ? rule.tail_bits : kAllBits);
    }
    demands_[d].least_bits = std::min(demands_[d].least_bits, least);
  }
}

void MoeRunner::Skip(int demand) {
  const int k = router_.experts_per_token;
  const RoutingPlan::Group& group = plan_.groups()[demand];
  for (int i = 0; i < group.count; ++i) {
    const ptrdiff_t token = plan_.rows()[group.begin + i];
    const int32_t* chosen = ids_ + token * k;
    const auto slot = std::find(chosen, chosen + k, group.expert) - chosen;
    bits_[token * k + slot] = kDropped;
    weights_[token * slots_ + slot] = 0;
    // A row that is computed: the first expert of a token is never skipped.
    index_[token * slots_ + slot] = index_[token * slots_];
  }
  reweigh_ = true;
}

void MoeRunner::Reweigh(int tokens) {
  if (!router_.renormalize) return;
  const int k = router_.experts_per_token;
  for (int t = 0; t < tokens; ++t) {
    const int8_t* bits = bits_ + static_cast<ptrdiff_t>(t) * k;
    if (std::find(bits, bits + k, kDropped) == bits + k) continue;
    float* weights = weights_ + static_cast<ptrdiff_t>(t) * slots_;
    const float sum = std::accumulate(weights, weights + k, 0.0f);
    for (int s = 0; s < k; ++s) weights[s] /= sum;
  }
}

void MoeRunner::Count(const LayerTokens& tokens) const {
  const int k = router_.experts_per_token;
  for (int t = 0; t < tokens.count; ++t) {
    tokens.counts[t].assignments += k;
    if (!graded_) continue;
    const int8_t* bits = bits_ + static_cast<ptrdiff_t>(t) * k;
    tokens.counts[t].skipped += std::count(bits, bits + k, kDropped);
  }
  for (size_t d = 0; d < degraded_.size(); ++d) {
    if (degraded_[d] == 0) continue;
    const RoutingPlan::Group& group = plan_.groups()[d];
    for (int i = 0; i < group.count; ++i) {
      ++tokens.counts[plan_.rows()[group.begin + i]].degraded;
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
  graded_ = tokens.quality != nullptr;
  reweigh_ = false;
  if (graded_) Grade(tokens);
  Plan(tokens);
  degraded_.assign(graded_ ? demands_.size() : 0, uint8_t{0});
  experts->Begin(layer, demands_, {tokens.count, k, ids_, tokens.streams, weights_, slots_});
  LookAhead(layer, experts, tokens, hidden);
  // The shared expert is always here: it is computed with the first that are, or while they come.
  bool shared = static_cast<bool>(weights.shared);
  size_t skipped = 0;
  for (;;) {
    const std::span<const ReadyExpert> ready = experts->Next(/*wait=*/!shared);
    if (ready.empty() && !shared) break;
    groups_.clear();
    group_experts_.clear();
    for (const ReadyExpert& expert : ready) {
      if (expert.weights != nullptr) {
        SLUICE_CHECK(!expert.degraded || graded_);
        if (expert.degraded) degraded_[expert.demand] = 1;
        AddGroup(expert.demand, *expert.weights);
      } else if (expert.skipped()) {
        Skip(expert.demand);
        ++skipped;
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
  if (reweigh_) Reweigh(tokens.count);
  if (tokens.counts != nullptr) Count(tokens);
  backend_->Combine({.y = outputs_,
                     .tokens = tokens.count,
                     .slots = slots_,
                     .hidden = hidden_,
                     .index = index_,
                     .weights = weights_,
                     .out = hidden});
  stats->assignments += static_cast<int64_t>(tokens.count) * k;
  stats->unique_experts += static_cast<int64_t>(plan_.groups().size() - skipped);
}

}  // namespace sluice
