#include <algorithm>

#include "engine/experts/policies/policies.h"
#include "engine/experts/policies/scan.h"

namespace sluice {
namespace {

constexpr float kPredicted = 0.5F;

class LookAheadPolicy final : public CachePolicy {
 public:
  explicit LookAheadPolicy(ExpertSpace space)
      : space_(space),
        last_use_(space.size(), 0),
        predicted_(space.size(), 0),
        keys_(space.size(), 0) {}

  std::string_view name() const override { return "look-ahead"; }

  void OnLayer(int layer, int, std::span<const ExpertUse> uses) override {
    ++now_;
    const auto first = predicted_.begin() + space_.place({layer, 0});
    std::fill(first, first + space_.experts_per_layer, uint8_t{0});
    for (const ExpertUse& use : uses) last_use_[space_.place({layer, use.expert})] = now_;
  }
  void OnInsert(int place) override { last_use_[place] = now_; }
  void OnEvict(int) override {}

  void OnPredicted(int layer, std::span<const float> probability) override {
    SLUICE_CHECK(static_cast<int>(probability.size()) == space_.experts_per_layer);
    const int first = space_.place({layer, 0});
    for (int e = 0; e < space_.experts_per_layer; ++e) {
      predicted_[first + e] = probability[e] >= kPredicted ? 1 : 0;
    }
  }

  int Victim(int layer, int, std::span<const uint8_t> evictable) override {
    // Time to the next use, negated: predicted ones in (-2 layers, 0), the others before all those.
    for (int l = 0; l < space_.layers; ++l) {
      const int64_t predicted_key = -Distance(layer, l);
      for (int e = 0; e < space_.experts_per_layer; ++e) {
        const size_t place = static_cast<size_t>(l) * space_.experts_per_layer + e;
        keys_[place] = predicted_[place] != 0 ? predicted_key : last_use_[place] - kNever;
      }
    }
    return LeastEvictable<int64_t>(keys_, evictable);
  }

  bool Prefers(int layer, int incoming, float probability, int victim) override {
    if (probability < kPredicted) return false;
    if (predicted_[victim] == 0) return true;
    return Distance(layer, space_.id(incoming).layer) < Distance(layer, space_.id(victim).layer);
  }

 private:
  static constexpr int64_t kNever = int64_t{1} << 60;

  int64_t Distance(int now, int layer) const {
    return layer > now ? layer - now : layer - now + space_.layers;
  }

  ExpertSpace space_;
  int64_t now_ = 0;
  std::vector<int64_t> last_use_;   // [place]
  std::vector<uint8_t> predicted_;  // [place] for the next visit of its layer
  std::vector<int64_t> keys_;       // [place] scratch
};

}  // namespace

std::unique_ptr<CachePolicy> MakeLookAheadPolicy(ExpertSpace space) {
  return std::make_unique<LookAheadPolicy>(space);
}

}  // namespace sluice
