#include "engine/experts/expert_cache.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/experts/pack_expert.h"

namespace sluice {

ExpertCache::ExpertCache(ExpertSpace space, std::vector<const PackExpert*> experts, int expert_bits,
                         ExpertSlab slab, std::unique_ptr<CachePolicy> policy)
    : space_(space),
      entries_(static_cast<size_t>(space.size())),
      slab_(std::move(slab)),
      policy_(std::move(policy)),
      evictable_(entries_.size()) {
  SLUICE_CHECK(experts.size() == entries_.size());
  for (int place = 0; place < space_.size(); ++place) {
    Entry& entry = entries_[place];
    entry.pack = experts[place];
    if (entry.pack == nullptr) continue;
    entry.whole = static_cast<uint8_t>(PlaneSetsFor(*entry.pack, expert_bits));
    ++expert_count_;
    all_bytes_ += whole_bytes(place);
  }
  TellCapacity();
}

size_t ExpertCache::bytes(int place, int first, int end) const {
  const Entry& entry = entries_[place];
  size_t total = 0;
  for (int set = first; set < end; ++set) total += slab_.PieceBytes(entry.pack->sets[set].bytes);
  return total;
}

void ExpertCache::TellCapacity() {
  if (expert_count_ == 0) return;
  const double share = static_cast<double>(slab_.limit()) / static_cast<double>(all_bytes_);
  policy_->SetCapacity(std::min(expert_count_, static_cast<int>(share * expert_count_)));
}

void ExpertCache::UpdateFlags(int place) {
  const Entry& entry = entries_[place];
  evictable_[place] = entry.held > 0 && entry.held == entry.resident && !entry.pinned;
}

void ExpertCache::SetResident(int place, int sets) {
  Entry& entry = entries_[place];
  whole_count_ -= entry.resident >= entry.whole;
  entry.resident = static_cast<uint8_t>(sets);
  whole_count_ += entry.resident >= entry.whole;
  entry.weights = {};
  if (sets == 0) return;
  std::array<const std::byte*, kMaxPlanes> starts{};
  for (int set = 0; set < sets; ++set) starts[set] = slab_.at(entry.at[set]);
  entry.weights = ViewExpert(*entry.pack, {starts.data(), static_cast<size_t>(sets)});
}

void ExpertCache::FreeSets(int place, int first) {
  Entry& entry = entries_[place];
  for (int set = first; set < entry.held; ++set) {
    slab_.Free(entry.at[set], entry.pack->sets[set].bytes);
  }
  entry.held = static_cast<uint8_t>(first);
}

bool ExpertCache::AllocateSets(int place, int end) {
  Entry& entry = entries_[place];
  for (int set = entry.held; set < end; ++set) {
    const auto offset = slab_.Allocate(entry.pack->sets[set].bytes);
    if (!offset) return false;
    entry.at[set] = *offset;
    entry.held = static_cast<uint8_t>(set + 1);
  }
  return true;
}

bool ExpertCache::Claim(int place, int end, CacheClaim claim, int layer, float probability) {
  Entry& entry = entries_[place];
  SLUICE_CHECK(!reading(place) && entry.held < end && end <= entry.whole);
  const int before = entry.held;
  evictable_[place] = 0;  // growing must not push out its own low planes
  while (!AllocateSets(place, end)) {
    int victim = -1;
    if (claim != CacheClaim::kFill) victim = policy_->Victim(layer, place, evictable_);
    if (victim >= 0 && claim == CacheClaim::kPredicted &&
        !policy_->Prefers(layer, place, probability, victim)) {
      victim = -1;
    }
    if (victim < 0) {
      FreeSets(place, before);
      UpdateFlags(place);
      return false;
    }
    // What did fit goes back first: in the middle of a hole that grows, it would split it.
    FreeSets(place, before);
    Evict(victim);
  }
  if (before == 0) policy_->OnInsert(place);
  UpdateFlags(place);
  return true;
}

std::byte* ExpertCache::set_address(int place, int set) const {
  const Entry& entry = entries_[place];
  SLUICE_CHECK(set < entry.held);
  return slab_.at(entry.at[set]);
}

void ExpertCache::Land(int place) {
  SetResident(place, entries_[place].held);
  UpdateFlags(place);
}

void ExpertCache::Abandon(int place) {
  Entry& entry = entries_[place];
  SLUICE_CHECK(reading(place));
  FreeSets(place, entry.resident);
  if (entry.held == 0) policy_->OnEvict(place);
  UpdateFlags(place);
}

void ExpertCache::Pin(int place) {
  entries_[place].pinned = true;
  UpdateFlags(place);
}

void ExpertCache::Unpin(int place) {
  entries_[place].pinned = false;
  UpdateFlags(place);
}

void ExpertCache::Evict(int place, int sets) {
  Entry& entry = entries_[place];
  SLUICE_CHECK(!entry.pinned && !reading(place) && sets < entry.held);
  SetResident(place, sets);
  FreeSets(place, sets);
  if (sets == 0) policy_->OnEvict(place);
  ++evictions_;
  UpdateFlags(place);
}

bool ExpertCache::SetLimit(size_t bytes) {
  bytes = bytes / slab_.align() * slab_.align();
  if (bytes < slab_.limit()) {
    const auto reaches_above = [&](int place) {
      const Entry& entry = entries_[place];
      for (int set = 0; set < entry.held; ++set) {
        if (entry.at[set] + slab_.PieceBytes(entry.pack->sets[set].bytes) > bytes) return true;
      }
      return false;
    };
    std::vector<int> above;
    for (int place = 0; place < space_.size(); ++place) {
      if (!reaches_above(place)) continue;
      if (!evictable_[place]) return false;
      above.push_back(place);
    }
    for (const int place : above) Evict(place);
  }
  slab_.SetLimit(bytes);
  TellCapacity();
  return true;
}

size_t ExpertCache::LargestLayer(int count) const {
  size_t largest = 0;
  std::vector<size_t> layer_bytes;
  for (int layer = 0; layer < space_.layers; ++layer) {
    layer_bytes.clear();
    for (int index = 0; index < space_.experts_per_layer; ++index) {
      const int place = space_.place({layer, index});
      if (exists(place)) layer_bytes.push_back(whole_bytes(place));
    }
    std::sort(layer_bytes.begin(), layer_bytes.end(), std::greater<>());
    layer_bytes.resize(std::min(layer_bytes.size(), static_cast<size_t>(count)));
    largest = std::max(largest, std::accumulate(layer_bytes.begin(), layer_bytes.end(), size_t{0}));
  }
  return largest;
}

}  // namespace sluice
