#include <algorithm>
#include <cstdint>

#include "engine/experts/policies/policies.h"

namespace sluice {
namespace {

// Where an expert's name is. Its order within the list is its stamp, the oldest first.
enum class List : uint8_t { kNone, kT1, kT2, kB1, kB2 };

// One layer's cache, in the paper's letters: c is its share, p the target size of T1.
struct LayerLists {
  int c = 0;
  float p = 0;
  int t1 = 0, t2 = 0, b1 = 0, b2 = 0;  // sizes

  int resident() const { return t1 + t2; }
  int& size(List list) {
    switch (list) {
      case List::kT1:
        return t1;
      case List::kT2:
        return t2;
      case List::kB1:
        return b1;
      default:
        return b2;
    }
  }
};

class ArcPolicy final : public CachePolicy {
 public:
  ArcPolicy(ExpertSpace space, LayerShares shares)
      : space_(space),
        shares_(shares),
        layers_(space.layers),
        list_(space.size(), List::kNone),
        used_(space.size(), 0),
        stamp_(space.size(), 0) {
    SetCapacity(space.size());
  }

  std::string_view name() const override {
    return shares_ == LayerShares::kEqual ? "arc" : "shallow";
  }

  void SetCapacity(int experts) override {
    const std::vector<int> shares = ComputeLayerShares(space_, shares_, experts);
    for (int l = 0; l < space_.layers; ++l) {
      layers_[l].c = shares[l];
      layers_[l].p = std::min(layers_[l].p, static_cast<float>(shares[l]));
      ForgetGhosts(l);
    }
  }

  void OnLayer(int layer, int, std::span<const ExpertUse> uses) override {
    ++now_;
    LayerLists& lists = layers_[layer];
    const float c = static_cast<float>(lists.c);
    for (const ExpertUse& use : uses) {
      const int place = space_.place({layer, use.expert});
      switch (list_[place]) {
        case List::kT1:
          // An expert that was read ahead has its first use here.
          Move(place, used_[place] != 0 ? List::kT2 : List::kT1);
          break;
        case List::kT2:
          Move(place, List::kT2);
          break;
        case List::kB1:
          lists.p = std::min(c, lists.p + std::max(1.0F, Ratio(lists.b2, lists.b1)));
          break;
        case List::kB2:
          lists.p = std::max(0.0F, lists.p - std::max(1.0F, Ratio(lists.b1, lists.b2)));
          break;
        case List::kNone:
          break;
      }
      used_[place] = 1;
      stamp_[place] = now_;
    }
  }

  void OnInsert(int place) override {
    const bool ghost = list_[place] == List::kB1 || list_[place] == List::kB2;
    const bool demanded = stamp_[place] == now_ && used_[place] != 0;
    // Read ahead: it has no use yet, and even a ghost is new again.
    if (!demanded) used_[place] = 0;
    Move(place, ghost && demanded ? List::kT2 : List::kT1);
    ForgetGhosts(space_.id(place).layer);
  }

  void OnEvict(int place) override {
    const bool from_t1 = list_[place] == List::kT1;
    const int64_t stamp = stamp_[place];
    if (from_t1 && used_[place] == 0) {
      Move(place, List::kNone);  // never used: no history
    } else {
      Move(place, from_t1 ? List::kB1 : List::kB2);
    }
    stamp_[place] = stamp;  // ghosts keep the order of their lists
  }

  int Victim(int, int incoming, std::span<const uint8_t> evictable) override {
    SLUICE_CHECK(static_cast<int>(evictable.size()) == space_.size());
    const int own = space_.id(incoming).layer;
    if (layers_[own].resident() >= layers_[own].c) {
      const int victim = Replace(own, incoming, evictable);
      if (victim >= 0) return victim;
    }
    // From the layer furthest above its share that has something to give.
    tried_.assign(space_.layers, 0);
    for (int round = 0; round < space_.layers; ++round) {
      int most = -1;
      for (int l = 0; l < space_.layers; ++l) {
        if (tried_[l] != 0) continue;
        if (most < 0 || Excess(l) > Excess(most)) most = l;
      }
      tried_[most] = 1;
      const int victim = Replace(most, incoming, evictable);
      if (victim >= 0) return victim;
    }
    return -1;
  }

 private:
  static float Ratio(int a, int b) { return static_cast<float>(a) / static_cast<float>(b); }
  int Excess(int layer) const { return layers_[layer].resident() - layers_[layer].c; }

  void Move(int place, List to) {
    LayerLists& lists = layers_[space_.id(place).layer];
    if (list_[place] != List::kNone) --lists.size(list_[place]);
    if (to != List::kNone) ++lists.size(to);
    list_[place] = to;
    stamp_[place] = now_;
  }

  // REPLACE of the paper: the oldest of T1 or of T2; of the other when it has none to give.
  int Replace(int layer, int incoming, std::span<const uint8_t> evictable) const {
    const LayerLists& lists = layers_[layer];
    const float t1 = static_cast<float>(lists.t1);
    const bool first =
        lists.t1 >= 1 && (t1 > lists.p || (list_[incoming] == List::kB2 &&
                                           space_.id(incoming).layer == layer && t1 == lists.p));
    const int victim = Oldest(layer, first ? List::kT1 : List::kT2, evictable);
    return victim >= 0 ? victim : Oldest(layer, first ? List::kT2 : List::kT1, evictable);
  }

  // evictable: empty means all.
  int Oldest(int layer, List list, std::span<const uint8_t> evictable) const {
    const int first = layer * space_.experts_per_layer;
    int oldest = -1;
    for (int place = first; place < first + space_.experts_per_layer; ++place) {
      if (list_[place] != list || (!evictable.empty() && evictable[place] == 0)) continue;
      if (oldest < 0 || stamp_[place] < stamp_[oldest]) oldest = place;
    }
    return oldest;
  }

  // |T1| + |B1| <= c and all four <= 2c, as far as ghosts can keep it.
  void ForgetGhosts(int layer) {
    LayerLists& lists = layers_[layer];
    while (lists.b1 > 0 && lists.t1 + lists.b1 > lists.c) Forget(Oldest(layer, List::kB1, {}));
    while (lists.b2 > 0 && lists.t1 + lists.t2 + lists.b1 + lists.b2 > 2 * lists.c) {
      Forget(Oldest(layer, List::kB2, {}));
    }
  }
  void Forget(int place) {
    Move(place, List::kNone);
    used_[place] = 0;
    stamp_[place] = 0;
  }

  ExpertSpace space_;
  LayerShares shares_;
  std::vector<LayerLists> layers_;
  int64_t now_ = 0;             // visits of layers so far
  std::vector<List> list_;      // [place]
  std::vector<uint8_t> used_;   // [place] since it came to be in the lists
  std::vector<int64_t> stamp_;  // [place] when it was used or inserted
  std::vector<uint8_t> tried_;  // [layer] scratch
};

}  // namespace

std::vector<int> ComputeLayerShares(ExpertSpace space, LayerShares shares, int capacity) {
  constexpr int kShallowLayers = 4;
  capacity = std::clamp(capacity, 0, space.size());
  int whole = 0;
  if (shares == LayerShares::kShallow) {
    whole = std::min({kShallowLayers, space.layers, capacity / 2 / space.experts_per_layer});
  }
  std::vector<int> result(space.layers, space.experts_per_layer);
  const int rest = capacity - whole * space.experts_per_layer;
  const int others = space.layers - whole;
  for (int i = 0; i < others; ++i) {
    result[whole + i] = rest / others + (i < rest % others ? 1 : 0);
  }
  return result;
}

std::unique_ptr<CachePolicy> MakeArcPolicy(ExpertSpace space, LayerShares shares) {
  return std::make_unique<ArcPolicy>(space, shares);
}

}  // namespace sluice
