// The host tier: which experts are in memory, at which precision, and where. It holds the memory
// and the policy; it reads nothing (TieredExperts does) and knows no steps.
//
// An expert holds memory for its first `held` plane sets, of which `resident` have landed. Sets
// have a piece of the slab each, so that the high planes of an expert can go and its low ones stay
// (SetHighShare).
//
// Threads: one owner thread (the engine thread).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/experts/cache_policy.h"
#include "engine/experts/expert_id.h"
#include "engine/experts/expert_slab.h"
#include "engine/experts/expert_weights.h"
#include "engine/formats/pack.h"

namespace sluice {

// Why memory is wanted: what it may push out depends on it.
enum class CacheClaim {
  kDemand,     // a step waits: anything that is not pinned goes
  kPredicted,  // only what the policy thinks will be wanted later
  kFill,       // nothing: free memory only
};

class ExpertCache {
 public:
  // experts: [place], null where a layer is dense; they outlive the cache, as all that it is given
  // views of. expert_bits: as ModelOptions: what "whole" means.
  ExpertCache(ExpertSpace space, std::vector<const PackExpert*> experts, int expert_bits,
              ExpertSlab slab, std::unique_ptr<CachePolicy> policy);

  const ExpertSpace& space() const { return space_; }
  CachePolicy& policy() { return *policy_; }
  const ExpertSlab& slab() const { return slab_; }

  bool exists(int place) const { return entries_[place].pack != nullptr; }
  int whole_sets(int place) const { return entries_[place].whole; }
  int resident_sets(int place) const { return entries_[place].resident; }
  int held_sets(int place) const { return entries_[place].held; }
  bool whole(int place) const { return entries_[place].resident >= entries_[place].whole; }
  // Memory is held for bytes that have not landed.
  bool reading(int place) const { return entries_[place].held > entries_[place].resident; }
  // Of plane sets [first, end), as the slab counts them.
  size_t bytes(int place, int first, int end) const;
  size_t whole_bytes(int place) const { return bytes(place, 0, entries_[place].whole); }
  // The plane sets that give the most precision up to `bits` bits, at most the whole expert; 0 for
  // kSkippable.
  int SetsFor(int place, int bits) const;
  // Those that stay longest: of kLowBits.
  int low_sets(int place) const { return entries_[place].low; }
  // Every expert is whole: nothing will ever be read again (unless something is evicted).
  bool complete() const { return whole_count_ == expert_count_; }
  int expert_count() const { return expert_count_; }
  int whole_count() const { return whole_count_; }

  // The resident planes. REQUIRES resident_sets(place) > 0; valid until they change.
  const ExpertWeights& weights(int place) const { return entries_[place].weights; }

  // Gets memory for sets [held, end) of an expert, evicting others; false, with nothing changed for
  // this expert, when that cannot be had now. `layer`: where the step is. probability: of
  // kPredicted. REQUIRES: !reading(place), held_sets(place) < end.
  bool Claim(int place, int end, CacheClaim claim, int layer, float probability = 0);
  std::byte* set_address(int place, int set) const;

  // What was claimed has landed, or will not: its memory is free again.
  void Land(int place);
  void Abandon(int place);

  // Pinned experts are not evicted. Pins do not nest.
  void Pin(int place);
  void Unpin(int place);
  bool pinned(int place) const { return entries_[place].pinned; }

  // Down to the first `sets` sets (0: gone). REQUIRES: not pinned, not reading.
  void Evict(int place, int sets = 0);

  // Of the planes above low_sets. While those that are held take more than `share` of what they
  // would if everything held were whole, they leave first, the top plane of the policy's victim at
  // a time, and no expert leaves altogether (D2MoE's budget rule, as far as requests accept low
  // precision). 1, as at the start: experts leave whole.
  void SetHighShare(double share) { high_share_ = share; }

  // Raises the limit, or lowers it: the policy's victims leave, and what lies above moves to where
  // they were. False when something that is pinned or being read is in the way: nothing is changed
  // then.
  bool SetLimit(size_t bytes);

  // Slab bytes that the `count` largest experts of one layer take, in the layer where that is most:
  // less memory than this makes a layer wait for itself.
  size_t LargestLayer(int count) const;
  // Slab bytes of all experts, whole.
  size_t all_bytes() const { return all_bytes_; }

  uint64_t evictions() const { return evictions_; }

 private:
  static constexpr int kLowBits = 2;

  struct Entry {
    const PackExpert* pack = nullptr;
    uint8_t whole = 0;
    uint8_t low = 0;
    uint8_t resident = 0;
    uint8_t held = 0;
    bool pinned = false;
    std::array<size_t, kMaxPlanes> at{};  // in the slab, of held sets
    ExpertWeights weights;
  };

  void UpdateFlags(int place);
  void SetResident(int place, int sets);
  void FreeSets(int place, int first);
  bool AllocateSets(int place, int end);
  // Frees some memory for a claim; false when nothing may go for it.
  bool MakeRoom(int place, CacheClaim claim, int layer, float probability);
  // Slides experts together until there is a hole of `bytes`, where that moves little: planes that
  // were freed one by one leave holes that no low plane fits into. False: nothing was moved.
  bool Compact(size_t bytes);
  // Makes the slab's end free for SetLimit; as that.
  bool Shrink(size_t bytes);
  void TellCapacity();

  ExpertSpace space_;
  std::vector<Entry> entries_;
  ExpertSlab slab_;
  struct Held {
    int place, set;
    size_t bytes;
  };
  std::map<size_t, Held> by_address_;  // all held sets
  std::unique_ptr<CachePolicy> policy_;
  std::vector<uint8_t> evictable_;  // [place]
  std::vector<uint8_t> trimmable_;  // [place] evictable_ with planes above low_sets
  double high_share_ = 1;
  size_t high_bytes_ = 0;       // of all experts: planes above low_sets
  size_t held_high_bytes_ = 0;  // of these, held
  int expert_count_ = 0;
  int whole_count_ = 0;
  size_t all_bytes_ = 0;  // of all experts, whole
  uint64_t evictions_ = 0;
};

}  // namespace sluice
