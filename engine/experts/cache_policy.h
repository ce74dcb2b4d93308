// Which expert leaves the cache when another needs its memory (SEAM). A policy keeps its own notes
// on the experts' use; the cache asks it for victims. It never sees bytes or addresses, so that
// recorded traces replay on the very same code (replay.h).
//
// Layers of a step run in order 0, 1, ..., layers - 1, then the next step begins: the experts of a
// layer are used together, once per step, and the time to the next use of a layer's experts is
// known from where the step is now.
//
// Threads: one owner thread. No call allocates once all experts were seen.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/experts/expert_id.h"

namespace sluice {

// An expert that a layer of a step was routed to.
struct ExpertUse {
  int expert = 0;    // index in the layer
  int tokens = 0;    // of the step that chose it
  float weight = 0;  // sum of their gate weights
  bool hit = false;  // all its bytes were resident when the layer asked
};

// What is known of all experts before the first step (from the pack's calibration); may be empty.
struct ExpertPrior {
  std::vector<float> frequency;  // [place] share of tokens that chose the expert
};

class CachePolicy {
 public:
  virtual ~CachePolicy() = default;

  // "lru", as settings and metrics call it.
  virtual std::string_view name() const = 0;

  // How many experts fit, on average; called at the start and whenever the budget changes.
  virtual void SetCapacity(int /*experts*/) {}

  // A layer of a step with `tokens` tokens used these experts (distinct, ascending). Called once
  // per layer and step, before its misses are inserted.
  virtual void OnLayer(int layer, int tokens, std::span<const ExpertUse> uses) = 0;
  // An expert's bytes get memory (its read may not have landed yet), and lose it.
  virtual void OnInsert(int place) = 0;
  virtual void OnEvict(int place) = 0;
  // Estimates, where somebody makes them, of how likely the next visit of `layer` uses each of its
  // experts: probability [experts_per_layer]. They hold until that visit.
  virtual void OnPredicted(int /*layer*/, std::span<const float> /*probability*/) {}

  // The expert that should leave first among those with evictable[place] != 0, all of them
  // inserted; -1 when there is none. `layer` is the layer that the step is at, and `incoming` the
  // place that the memory is for (a policy may keep shares per layer).
  virtual int Victim(int layer, int incoming, std::span<const uint8_t> evictable) = 0;

  // Whether it pays to give up `victim` for `incoming`, which was only predicted, with this
  // probability, for the next visit of its layer. Policies without an opinion say yes.
  virtual bool Prefers(int /*layer*/, int /*incoming*/, float /*probability*/, int /*victim*/) {
    return true;
  }
};

// "auto" and what CachePolicyNames lists. Errors: kInvalidArgument, listing the names.
Result<std::unique_ptr<CachePolicy>> MakeCachePolicy(std::string_view name, ExpertSpace space,
                                                     const ExpertPrior& prior);
std::span<const std::string_view> CachePolicyNames();

}  // namespace sluice
