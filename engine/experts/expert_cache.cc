#include "engine/experts/expert_cache.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/experts/pack_expert.h"
#include "engine/experts/quality.h"

namespace sluice {

ExpertCache::ExpertCache(ExpertSpace space, std::vector<const PackExpert*> experts, int expert_bits,
                         ExpertSlab slab, std::unique_ptr<CachePolicy> policy)
    : space_(space),
      entries_(static_cast<size_t>(space.size())),
      slab_(std::move(slab)),
      policy_(std::move(policy)),
      evictable_(entries_.size()),
      trimmable_(entries_.size()) {
  SLUICE_CHECK(experts.size() == entries_.size());
  for (int place = 0; place < space_.size(); ++place) {
    Entry& entry = entries_[place];
    entry.pack = experts[place];
    if (entry.pack == nullptr) continue;
    entry.whole = static_cast<uint8_t>(PlaneSetsFor(*entry.pack, expert_bits));
    entry.low = static_cast<uint8_t>(SetsFor(place, kLowBits));
    ++expert_count_;
    all_bytes_ += whole_bytes(place);
    high_bytes_ += bytes(place, entry.low, entry.whole);
  }
  TellCapacity();
}

size_t ExpertCache::bytes(int place, int first, int end) const {
  const Entry& entry = entries_[place];
  size_t total = 0;
  for (int set = first; set < end; ++set) total += slab_.PieceBytes(entry.pack->sets[set].bytes);
  return total;
}

int ExpertCache::SetsFor(int place, int bits) const {
  const Entry& entry = entries_[place];
  if (bits >= kAllBits) return entry.whole;
  if (bits <= kSkippable) return 0;
  return std::min(int{entry.whole}, static_cast<int>(PlaneSetsFor(*entry.pack, bits)));
}

void ExpertCache::TellCapacity() {
  if (expert_count_ == 0) return;
  const double share = static_cast<double>(slab_.limit()) / static_cast<double>(all_bytes_);
  policy_->SetCapacity(std::min(expert_count_, static_cast<int>(share * expert_count_)));
}

void ExpertCache::UpdateFlags(int place) {
  const Entry& entry = entries_[place];
  evictable_[place] = entry.held > 0 && entry.held == entry.resident && !entry.pinned;
  trimmable_[place] = evictable_[place] != 0 && entry.held > entry.low;
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
    by_address_.erase(entry.at[set]);
    if (set >= entry.low) held_high_bytes_ -= bytes(place, set, set + 1);
  }
  entry.held = static_cast<uint8_t>(first);
}

bool ExpertCache::AllocateSets(int place, int end) {
  Entry& entry = entries_[place];
  for (int set = entry.held; set < end; ++set) {
    const auto offset = slab_.Allocate(entry.pack->sets[set].bytes);
    if (!offset) return false;
    entry.at[set] = *offset;
    by_address_[*offset] = {place, set, bytes(place, set, set + 1)};
    if (set >= entry.low) held_high_bytes_ += bytes(place, set, set + 1);
    entry.held = static_cast<uint8_t>(set + 1);
  }
  return true;
}

bool ExpertCache::Claim(int place, int end, CacheClaim claim, int layer, float probability) {
  Entry& entry = entries_[place];
  SLUICE_CHECK(!reading(place) && entry.held < end && end <= entry.whole);
  const int before = entry.held;
  // Growing must not push out its own low planes.
  evictable_[place] = trimmable_[place] = 0;
  while (!AllocateSets(place, end)) {
    // What did fit goes back first: in the middle of a hole that grows, it would split it.
    FreeSets(place, before);
    if (high_share_ < 1 && Compact(bytes(place, before, end))) continue;
    if (!MakeRoom(place, claim, layer, probability)) {
      UpdateFlags(place);
      return false;
    }
  }
  if (before == 0) policy_->OnInsert(place);
  UpdateFlags(place);
  return true;
}

bool ExpertCache::MakeRoom(int place, CacheClaim claim, int layer, float probability) {
  if (claim == CacheClaim::kFill) return false;
  int victim = -1;
  int sets = 0;  // that stay
  if (high_share_ < 1) {
    const double share = static_cast<double>(high_bytes_) / static_cast<double>(all_bytes_);
    const double most = high_share_ * share * static_cast<double>(slab_.used());
    if (static_cast<double>(held_high_bytes_) > most) {
      victim = policy_->Victim(layer, place, trimmable_);
      if (victim >= 0) sets = entries_[victim].held - 1;
    }
  }
  if (victim < 0) victim = policy_->Victim(layer, place, evictable_);
  if (victim < 0) return false;
  if (claim == CacheClaim::kPredicted && !policy_->Prefers(layer, place, probability, victim)) {
    return false;
  }
  Evict(victim, sets);
  return true;
}

bool ExpertCache::Compact(size_t wanted) {
  constexpr size_t kMostMoved = 4;  // times what is wanted
  if (slab_.free_bytes() < wanted) return false;
  // The run of neighbouring sets that may move, with the holes between and beside them, which frees
  // enough and moves least. [begin, end) slides along the addresses.
  auto begin = by_address_.begin(), end = begin, best_begin = by_address_.end(), best_end = end;
  size_t from = 0;   // where the run's first hole begins
  size_t moved = 0;  // bytes of its sets
  size_t least = kMostMoved * wanted + 1;
  const auto hole_end = [&](auto next) {
    return next == by_address_.end() ? slab_.limit() : next->first;
  };
  for (;;) {
    const size_t free = hole_end(end) - from - moved;
    if (free >= wanted && begin != end) {
      if (moved < least) {
        least = moved;
        best_begin = begin;
        best_end = end;
      }
      from = begin->first + begin->second.bytes;
      moved -= begin->second.bytes;
      ++begin;
      continue;
    }
    if (end == by_address_.end()) break;
    const Entry& entry = entries_[end->second.place];
    if (entry.pinned || entry.held > entry.resident) {
      from = end->first + end->second.bytes;
      begin = ++end;
      moved = 0;
      continue;
    }
    moved += end->second.bytes;
    ++end;
  }
  if (best_begin == by_address_.end()) return false;

  std::vector<Held> run;
  size_t at = 0;
  if (best_begin != by_address_.begin()) {
    const auto before = std::prev(best_begin);
    at = before->first + before->second.bytes;
  }
  for (auto it = best_begin; it != best_end; ++it) run.push_back(it->second);
  by_address_.erase(best_begin, best_end);
  for (const Held& held : run) {
    Entry& entry = entries_[held.place];
    size_t& place_at = entry.at[held.set];
    if (place_at > at) slab_.Slide(place_at, held.bytes, place_at - at);
    place_at = at;
    by_address_[at] = held;
    at += held.bytes;
    SetResident(held.place, entry.resident);
  }
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

bool ExpertCache::Shrink(size_t bytes) {
  size_t fixed = 0;
  for (const auto& [offset, held] : by_address_) {
    if (evictable_[held.place] != 0) continue;
    if (offset + held.bytes > bytes) return false;
    fixed += held.bytes;
  }
  if (fixed > bytes) return false;
  while (slab_.used() > bytes) {
    // Policies want to know for whom: for one that cannot leave itself.
    auto incoming = std::find(evictable_.begin(), evictable_.end(), uint8_t{0});
    if (incoming == evictable_.end()) incoming = evictable_.begin();
    const bool could_leave = std::exchange(*incoming, uint8_t{0}) != 0;
    const auto place = static_cast<int>(incoming - evictable_.begin());
    int victim = policy_->Victim(/*layer=*/0, place, evictable_);
    if (could_leave) *incoming = 1;
    if (victim < 0) victim = place;  // it is the last
    Evict(victim);
  }
  std::vector<Held> above;
  for (auto it = by_address_.rbegin(); it != by_address_.rend(); ++it) {
    if (it->first + it->second.bytes <= bytes) break;
    above.push_back(it->second);
  }
  for (const Held& piece : above) {
    Entry& entry = entries_[piece.place];
    if (piece.set >= entry.held) continue;  // gone with a lower set of its expert
    const size_t from = entry.at[piece.set];
    const size_t set_bytes = entry.pack->sets[piece.set].bytes;
    const std::optional<size_t> to = slab_.MoveBelow(from, set_bytes, bytes);
    if (!to) {
      Evict(piece.place, piece.set);
      continue;
    }
    by_address_.erase(from);
    by_address_[*to] = piece;
    entry.at[piece.set] = *to;
    SetResident(piece.place, entry.resident);
  }
  return true;
}

bool ExpertCache::SetLimit(size_t bytes) {
  bytes = bytes / slab_.align() * slab_.align();
  if (bytes < slab_.limit() && !Shrink(bytes)) return false;
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
