// Experts of a few hundred bytes whose contents are known, and a policy that checks its caller: for
// tests of the tiers above a store.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/experts/cache_policy.h"
#include "engine/experts/expert_cache.h"
#include "engine/experts/expert_slab.h"
#include "engine/formats/pack.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {

// Experts of three plane sets (4 bits). Mixed: those of 2, 3, 4 and 8 bits and several widths take
// turns. Layers named in `dense` have none.
class TinyExperts {
 public:
  static constexpr size_t kAlign = 64;

  explicit TinyExperts(ExpertSpace space, bool mixed = false, std::set<int> dense = {})
      : space_(space), packs_(static_cast<size_t>(space.size())) {
    for (int place = 0; place < space.size(); ++place) {
      if (dense.count(space.id(place).layer) > 0) continue;
      constexpr int kBits[] = {4, 2, 8, 3};
      packs_[place] = std::make_unique<PackExpert>(
          Make(mixed ? kBits[place % 4] : 4, mixed ? 32 * (1 + place % 3) : 32));
    }
  }

  ExpertSpace space() const { return space_; }
  const PackExpert* pack(int place) const { return packs_[place].get(); }
  std::vector<const PackExpert*> pointers() const {
    std::vector<const PackExpert*> pointers;
    for (const auto& pack : packs_) pointers.push_back(pack.get());
    return pointers;
  }
  // What belongs at byte i of a plane set.
  static std::byte ByteAt(int place, int set, size_t i) {
    return static_cast<std::byte>(place * 37 + set * 101 + static_cast<int>(i) * 7 + 1);
  }
  // For FakeStore.
  std::span<const std::byte> Contents(ExpertId id, int set) {
    const int place = space_.place(id);
    contents_.resize(packs_[place]->sets[set].bytes);
    for (size_t i = 0; i < contents_.size(); ++i) contents_[i] = ByteAt(place, set, i);
    return contents_;
  }
  // Whether these weights are the first `sets` plane sets of the expert, byte for byte.
  bool Right(const ExpertWeights& weights, int place, int sets) const {
    const PackExpert& pack = *packs_[place];
    const PackedMatrix* matrices[] = {&weights.gate, &weights.up, &weights.down};
    const WeightLayout* layouts[] = {&pack.gate, &pack.up, &pack.down};
    for (int projection = 0; projection < 3; ++projection) {
      if (matrices[projection]->nested.count != std::min(sets, layouts[projection]->planes())) {
        return false;
      }
      for (int plane = 0; plane < matrices[projection]->nested.count; ++plane) {
        const size_t from = pack.PlaneOffset(projection, plane);
        const std::byte* bytes = matrices[projection]->nested.planes[plane];
        for (size_t i = 0; i < layouts[projection]->plane_bytes(plane); ++i) {
          if (bytes[i] != ByteAt(place, plane, from + i)) return false;
        }
      }
    }
    return true;
  }

 private:
  static PackExpert Make(int bits, int cols) {
    const auto layout = [&](int r, int c) {
      WeightLayout made;
      made.form = WeightForm::kNested;
      made.nested = {ScaleKind::kF16, 32, static_cast<uint8_t>(bits)};
      made.rows = r;
      made.cols = c;
      return made;
    };
    PackExpert expert;
    expert.gate = expert.up = layout(16, cols);
    expert.down = layout(cols, 32);
    for (int set = 0; set < expert.gate.planes(); ++set) {
      const size_t bytes = expert.PlaneOffset(2, set) + expert.down.plane_bytes(set);
      expert.sets.push_back({(bytes + kAlign - 1) / kAlign * kAlign, 0});
    }
    return expert;
  }

  ExpertSpace space_;
  std::vector<std::unique_ptr<PackExpert>> packs_;
  std::vector<std::byte> contents_;
};

// Passes everything on to a real policy, and checks what the cache says and asks.
class CheckedPolicy final : public CachePolicy {
 public:
  CheckedPolicy(std::string_view name, ExpertSpace space) : inside_(space.size(), 0) {
    auto made = MakeCachePolicy(name, space, {});
    REQUIRE(made);
    policy_ = std::move(*made);
  }
  std::string_view name() const override { return policy_->name(); }
  void SetCapacity(int experts) override {
    capacity = experts;
    policy_->SetCapacity(experts);
  }
  void OnLayer(int layer, int tokens, std::span<const ExpertUse> uses) override {
    for (size_t i = 1; i < uses.size(); ++i) REQUIRE(uses[i - 1].expert < uses[i].expert);
    last_uses.assign(uses.begin(), uses.end());
    policy_->OnLayer(layer, tokens, uses);
  }
  void OnInsert(int place) override {
    REQUIRE(inside_[place] == 0);
    inside_[place] = 1;
    policy_->OnInsert(place);
  }
  void OnEvict(int place) override {
    REQUIRE(inside_[place] == 1);
    inside_[place] = 0;
    policy_->OnEvict(place);
  }
  void OnPredicted(int layer, std::span<const float> probability) override {
    policy_->OnPredicted(layer, probability);
  }
  int Victim(int layer, int incoming, std::span<const uint8_t> evictable) override {
    REQUIRE(evictable.size() == inside_.size());
    REQUIRE(evictable[incoming] == 0);
    for (size_t i = 0; i < evictable.size(); ++i) {
      if (evictable[i] != 0) REQUIRE(inside_[i] == 1);
    }
    return policy_->Victim(layer, incoming, evictable);
  }
  bool Prefers(int layer, int incoming, float probability, int victim) override {
    return prefers_all ? policy_->Prefers(layer, incoming, probability, victim) : false;
  }

  bool inside(int place) const { return inside_[place] != 0; }
  bool prefers_all = true;  // off: no prediction is worth an expert
  int capacity = 0;
  std::vector<ExpertUse> last_uses;

 private:
  std::vector<uint8_t> inside_;
  std::unique_ptr<CachePolicy> policy_;
};

inline ExpertSlab TinySlab(size_t limit = 0) {
  auto slab = ExpertSlab::Reserve(1 << 20, TinyExperts::kAlign);
  REQUIRE(slab);
  slab->SetLimit(limit);
  return std::move(*slab);
}

}  // namespace sluice
