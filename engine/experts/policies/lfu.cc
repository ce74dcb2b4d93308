#include <cmath>

#include "engine/experts/policies/policies.h"
#include "engine/experts/policies/scan.h"

namespace sluice {
namespace {

// Instead of fading all counts, new uses weigh more and more; all are scaled down before the weight
// overflows.
class LfuPolicy final : public CachePolicy {
 public:
  LfuPolicy(ExpertSpace space, const ExpertPrior& prior, const LfuOptions& options)
      : space_(space), half_life_(options.half_life_tokens), counts_(space.size(), 0) {
    SLUICE_CHECK(half_life_ > 0);
    if (prior.frequency.empty()) return;
    SLUICE_CHECK(prior.frequency.size() == counts_.size());
    // As if one half-life of tokens had been seen.
    for (size_t i = 0; i < counts_.size(); ++i) counts_[i] = prior.frequency[i] * half_life_;
  }

  std::string_view name() const override { return "lfu"; }

  void OnLayer(int layer, int tokens, std::span<const ExpertUse> uses) override {
    if (layer <= layer_) Age(step_tokens_);
    layer_ = layer;
    step_tokens_ = tokens;
    for (const ExpertUse& use : uses) {
      counts_[space_.place({layer, use.expert})] += weight_ * static_cast<float>(use.tokens);
    }
  }
  void OnInsert(int) override {}
  void OnEvict(int) override {}

  int Victim(int, int, std::span<const uint8_t> evictable) override {
    return LeastEvictable<float>(counts_, evictable);
  }

 private:
  void Age(int tokens) {
    weight_ *= std::exp2(static_cast<float>(tokens) / half_life_);
    if (weight_ < 0x1p60F) return;
    for (float& count : counts_) count /= weight_;
    weight_ = 1;
  }

  ExpertSpace space_;
  float half_life_;
  int layer_ = -1;  // visited last
  int step_tokens_ = 0;
  float weight_ = 1;           // of a use now
  std::vector<float> counts_;  // [place]
};

}  // namespace

std::unique_ptr<CachePolicy> MakeLfuPolicy(ExpertSpace space, const ExpertPrior& prior,
                                           const LfuOptions& options) {
  return std::make_unique<LfuPolicy>(space, prior, options);
}

}  // namespace sluice
