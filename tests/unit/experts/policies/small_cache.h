// A cache of whole experts that does what its policy says, for tests of policies.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "engine/experts/cache_policy.h"
#include "tests/support/catch.h"

namespace sluice {

class SmallCache {
 public:
  SmallCache(ExpertSpace space, CachePolicy* policy, int capacity)
      : space_(space), policy_(policy), capacity_(capacity), resident_(space.size(), 0) {
    policy_->SetCapacity(capacity);
  }

  // A layer uses experts, `counts` tokens each (empty: one each). Returns how many were resident.
  int Visit(int layer, const std::set<int>& experts, int tokens = 1, std::vector<int> counts = {}) {
    std::vector<ExpertUse> uses;
    int hits = 0;
    for (const int e : experts) {
      const bool hit = resident_[space_.place({layer, e})] != 0;
      hits += hit;
      uses.push_back({e, counts.empty() ? 1 : counts[uses.size()], 1, hit});
    }
    policy_->OnLayer(layer, tokens, uses);
    for (const ExpertUse& use : uses) {
      if (!use.hit) Insert(layer, space_.place({layer, use.expert}), experts, layer);
    }
    return hits;
  }
  // Gives memory to an expert; nothing of `pinned` in `pinned_layer` may leave.
  void Insert(int now, int place, const std::set<int>& pinned = {}, int pinned_layer = 0) {
    if (size() >= capacity_) {
      std::vector<uint8_t> evictable = resident_;
      for (const int e : pinned) evictable[space_.place({pinned_layer, e})] = 0;
      const int victim = policy_->Victim(now, place, evictable);
      REQUIRE(victim >= 0);
      REQUIRE(evictable[victim] != 0);
      resident_[victim] = 0;
      evicted_.push_back(victim);
      policy_->OnEvict(victim);
    }
    resident_[place] = 1;
    policy_->OnInsert(place);
  }

  int size() const {
    int n = 0;
    for (const uint8_t r : resident_) n += r;
    return n;
  }
  bool Has(int layer, int expert) const { return resident_[space_.place({layer, expert})] != 0; }
  std::vector<uint8_t> resident() const { return resident_; }
  // Places in the order in which they left, since the last call.
  std::vector<int> TakeEvicted() { return std::exchange(evicted_, {}); }

 private:
  ExpertSpace space_;
  CachePolicy* policy_;
  int capacity_;
  std::vector<uint8_t> resident_;
  std::vector<int> evicted_;
};

}  // namespace sluice
