// The cache policies (cache_policy.h), one by one. MakeCachePolicy picks by name; tests, tuning and
// policies built on others come here.
//
// All keep a key per place, so that a victim is found by one pass over the places (scan.h).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/experts/cache_policy.h"

namespace sluice {

// "lru": the expert whose last use, or insertion, is longest ago. Experts used by one visit of a
// layer count as used together; the lower place goes first.
//
// With a cache smaller than the experts of one step and steps that use the same experts again, LRU
// evicts every expert just before it is used: no hits at all.
std::unique_ptr<CachePolicy> MakeLruPolicy(ExpertSpace space);

// "lfu": the expert with the fewest uses, counted by tokens, old ones fading by half every
// half_life_tokens tokens. Equally used: the lower place goes first.
struct LfuOptions {
  float half_life_tokens = 256;
};
std::unique_ptr<CachePolicy> MakeLfuPolicy(ExpertSpace space, const ExpertPrior& prior,
                                           const LfuOptions& options = {});

// "least-stale": after SpecMD (Hoang et al., 2026), as we read it. An expert is stale when the
// latest visit of its layer passed it by, the more so the more visits did. The stalest goes first;
// among equally stale ones the one whose layer comes last, so that what the step is about to reach
// stays.
std::unique_ptr<CachePolicy> MakeLeastStalePolicy(ExpertSpace space);

// "arc": one adaptive replacement cache per layer (Megiddo and Modha, FAST 2003): T1 holds experts
// used once since they came, T2 those used again, B1 and B2 the names of those evicted from them;
// being used while in B1 or B2 moves the target size of T1. Layers have equal shares of the
// capacity; when memory is needed for a layer below its share, the layer furthest above its own
// gives it.
//
// "shallow": the same with the shares of Fate (techniques.md, section 1): the first layers, at most
// four, have room for all their experts while that takes no more than half the capacity; the others
// share the rest equally.
enum class LayerShares { kEqual, kShallow };
std::unique_ptr<CachePolicy> MakeArcPolicy(ExpertSpace space, LayerShares shares);
// Experts that each layer may keep: [layers], with the sum min(capacity, space.size()).
std::vector<int> ComputeLayerShares(ExpertSpace space, LayerShares shares, int capacity);

// "look-ahead": Belady's rule on what is predicted (Read-ME): the furthest predicted next use goes
// first. Experts predicted for the next visit of their layer (probability at least a half) are used
// when the step reaches that layer; the others are used later than all of them, the longest unused
// one last.
std::unique_ptr<CachePolicy> MakeLookAheadPolicy(ExpertSpace space);

// "next-use": keeps what will be used soonest. Each expert has a value, the expected discount of
// its next use: a use now is worth 1, one that is one step (a cycle over the layers) away G =
// e^(-1/H), one that is d layers away G^(d / layers). With p the probability that a visit of its
// layer uses the expert, V = p + (1 - p) G V is its value at a visit; the expert with the least
// G^(d / layers) V goes first, d the layers until its own comes (a whole cycle for the layer that
// the step is at). What is predicted for the coming visit replaces p for that visit only.
//
//   decode: p is small, the distance hardly matters: the least frequently used goes (LFU)
//   cyclic scans, as in long prefills: p is 1, the furthest layer goes (Belady, no cliff)
//   good predictions: the furthest predicted use goes (look-ahead)
//
// The discount and not the expected time, since that is ruled by the tail: an expert used now with
// probability a half and then never again is worth keeping, and its expected time is infinite.
//
// Where nothing is predicted p is learned: a table counts, over all layers, how often a visit used
// an expert whose slow rate of use was so high and whose last use was so many visits ago. So it
// follows skew where there is skew, recency where there is locality, and V is the expected discount
// along the ages to come. Steps that use most experts anyway (more tokens than experts per expert
// chosen) tell nothing of ages; where those are expected, p is 1 - (1 - rate)^n for steps of n
// tokens, with the rate from counts that fade fast, on top of ones that fade slowly, on top of the
// prior: each estimate counts as so many tokens of the one above it.
//
// n is the smaller of the last two steps' tokens, since one chunk of a prompt makes no scan. H is
// how many steps an expert stays in the cache, by Little's law: capacity over insertions per step,
// measured. None of the constants is critical: config/policies/README.md.
struct NextUseOptions {
  float fast_half_life_tokens = 8;
  float slow_half_life_tokens = 512;
  float fast_weight_tokens = 8;   // what the slow rate counts for beside the fast counts
  float prior_weight_tokens = 8;  // what the prior counts for beside the slow counts
  float table_keep = 0.998F;      // of what the table knows, from step to step
  float least_horizon_steps = 2;  // bounds of H
  float most_horizon_steps = 256;
};
std::unique_ptr<CachePolicy> MakeNextUsePolicy(ExpertSpace space, const ExpertPrior& prior,
                                               const NextUseOptions& options = {});

}  // namespace sluice
