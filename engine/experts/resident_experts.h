// All experts in memory for the life of the model: what checkpoints are served from.
#pragma once

#include <span>
#include <vector>

#include "engine/experts/expert_source.h"
#include "engine/experts/expert_weights.h"

namespace sluice {

class ResidentExperts final : public ExpertSource {
 public:
  ResidentExperts() = default;
  explicit ResidentExperts(ExpertSpace space)
      : space_(space), weights_(static_cast<size_t>(space.size())) {}

  const ExpertWeights& Lookup(ExpertId id) const { return weights_[Place(id)]; }
  // For the loader: the entry to fill. Entries never move.
  ExpertWeights& Entry(ExpertId id) { return weights_[Place(id)]; }

  void Begin(int layer, std::span<const ExpertDemand> demands,
             const RoutedTokens& /*routed*/) override {
    ready_.clear();
    for (size_t i = 0; i < demands.size(); ++i) {
      ready_.push_back({static_cast<int>(i), &Lookup({layer, demands[i].expert})});
    }
    handed_over_ = false;
  }
  std::span<const ReadyExpert> Next(bool /*wait*/) override {
    if (handed_over_) return {};
    handed_over_ = true;
    return ready_;
  }
  void End() override {}

 private:
  size_t Place(ExpertId id) const { return static_cast<size_t>(space_.place(id)); }

  ExpertSpace space_;
  std::vector<ExpertWeights> weights_;  // [place]; empty entries for dense layers
  std::vector<ReadyExpert> ready_;
  bool handed_over_ = true;
};

}  // namespace sluice
