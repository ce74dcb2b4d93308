#include <algorithm>

#include "engine/experts/policies/policies.h"
#include "engine/experts/policies/scan.h"

namespace sluice {
namespace {

class LruPolicy final : public CachePolicy {
 public:
  explicit LruPolicy(ExpertSpace space) : space_(space), last_use_(space.size(), 0) {}

  std::string_view name() const override { return "lru"; }

  void OnLayer(int layer, int, std::span<const ExpertUse> uses) override {
    ++now_;
    for (const ExpertUse& use : uses) last_use_[space_.place({layer, use.expert})] = now_;
  }
  void OnInsert(int place) override { last_use_[place] = now_; }
  void OnEvict(int) override {}

  int Victim(int, int, std::span<const uint8_t> evictable) override {
    return LeastEvictable<int64_t>(last_use_, evictable);
  }

 private:
  ExpertSpace space_;
  int64_t now_ = 0;                // visits of layers so far
  std::vector<int64_t> last_use_;  // [place]
};

// Keys are staleness and distance of the layer in one number, larger for what should stay.
class LeastStalePolicy final : public CachePolicy {
 public:
  explicit LeastStalePolicy(ExpertSpace space)
      : space_(space),
        visits_(space.layers, 0),
        last_visit_(space.size(), 0),
        keys_(space.size(), 0) {}

  std::string_view name() const override { return "least-stale"; }

  void OnLayer(int layer, int, std::span<const ExpertUse> uses) override {
    ++visits_[layer];
    for (const ExpertUse& use : uses) {
      last_visit_[space_.place({layer, use.expert})] = visits_[layer];
    }
  }
  void OnInsert(int place) override {
    // Read ahead: as fresh as if the visit before had used it.
    int64_t& last = last_visit_[place];
    last = std::max(last, visits_[space_.id(place).layer]);
  }
  void OnEvict(int) override {}

  int Victim(int layer, int, std::span<const uint8_t> evictable) override {
    const int experts = space_.experts_per_layer;
    for (int l = 0; l < space_.layers; ++l) {
      const int64_t distance = l > layer ? l - layer : l - layer + space_.layers;
      for (int e = 0; e < experts; ++e) {
        const size_t place = static_cast<size_t>(l) * experts + e;
        keys_[place] = (last_visit_[place] - visits_[l]) * (2 * space_.layers) - distance;
      }
    }
    return LeastEvictable<int64_t>(keys_, evictable);
  }

 private:
  ExpertSpace space_;
  std::vector<int64_t> visits_;      // [layer]
  std::vector<int64_t> last_visit_;  // [place] of its layer, that used it
  std::vector<int64_t> keys_;        // [place] scratch
};

}  // namespace

std::unique_ptr<CachePolicy> MakeLruPolicy(ExpertSpace space) {
  return std::make_unique<LruPolicy>(space);
}

std::unique_ptr<CachePolicy> MakeLeastStalePolicy(ExpertSpace space) {
  return std::make_unique<LeastStalePolicy>(space);
}

}  // namespace sluice
