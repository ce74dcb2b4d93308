#include "engine/scheduler/kv_block_pool.h"

#include "engine/base/check.h"

namespace sluice {

KvBlockPool::KvBlockPool(int total) {
  SLUICE_CHECK(total > 0);
  const auto size = static_cast<size_t>(total);
  references_.assign(size, 0);
  kept_.assign(size, 0);
  next_.assign(size, -1);
  previous_.assign(size, -1);
  free_.reserve(size);
  for (int32_t block = total - 1; block >= 0; --block) free_.push_back(block);
}

int KvBlockPool::references(int32_t block) const {
  SLUICE_CHECK(block >= 0 && block < total());
  return references_[static_cast<size_t>(block)];
}

bool KvBlockPool::kept(int32_t block) const {
  SLUICE_CHECK(block >= 0 && block < total());
  return kept_[static_cast<size_t>(block)] != 0;
}

void KvBlockPool::Unlink(int32_t block) {
  const auto at = static_cast<size_t>(block);
  (previous_[at] < 0 ? first_ : next_[static_cast<size_t>(previous_[at])]) = next_[at];
  (next_[at] < 0 ? last_ : previous_[static_cast<size_t>(next_[at])]) = previous_[at];
  next_[at] = previous_[at] = -1;
  --idle_;
}

int32_t KvBlockPool::Allocate() {
  int32_t block = first_;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (block >= 0) {
    Unlink(block);
    kept_[static_cast<size_t>(block)] = 0;
  } else {
    return -1;
  }
  references_[static_cast<size_t>(block)] = 1;
  return block;
}

std::vector<int32_t> KvBlockPool::KeptByRecency() const {
  std::vector<int32_t> blocks;
  for (int32_t block = last_; block >= 0; block = previous_[static_cast<size_t>(block)]) {
    blocks.push_back(block);
  }
  return blocks;
}

void KvBlockPool::Keep(int32_t block) {
  SLUICE_CHECK(references(block) > 0, "only a holder knows what the block holds");
  kept_[static_cast<size_t>(block)] = 1;
}

void KvBlockPool::AddReference(int32_t block) {
  if (references(block) == 0) {
    SLUICE_CHECK(kept(block), "a free block has nothing to share");
    Unlink(block);
  }
  ++references_[static_cast<size_t>(block)];
}

void KvBlockPool::Release(int32_t block) {
  SLUICE_CHECK(references(block) > 0, "released more often than held");
  const auto at = static_cast<size_t>(block);
  if (--references_[at] > 0) return;
  if (!kept_[at]) {
    free_.push_back(block);
    return;
  }
  previous_[at] = last_;
  (last_ < 0 ? first_ : next_[static_cast<size_t>(last_)]) = block;
  last_ = block;
  ++idle_;
}

std::string KvBlockPool::CheckInvariants() const {
  std::vector<char> listed(references_.size(), 0);
  const auto list = [&](int32_t block) -> std::string {
    if (block < 0 || block >= total()) return "a list holds an id outside the pool";
    const auto at = static_cast<size_t>(block);
    if (listed[at]) return "block " + std::to_string(block) + " is listed twice";
    if (references_[at] != 0) return "block " + std::to_string(block) + " is free and held";
    listed[at] = 1;
    return {};
  };
  for (int32_t block : free_) {
    if (std::string wrong = list(block); !wrong.empty()) return wrong;
    if (kept(block)) return "block " + std::to_string(block) + " is kept and forgotten";
  }
  int idle = 0;
  int32_t before = -1;
  for (int32_t block = first_; block >= 0; block = next_[static_cast<size_t>(block)]) {
    if (std::string wrong = list(block); !wrong.empty()) return wrong;
    if (!kept(block)) return "block " + std::to_string(block) + " waits but is not kept";
    if (previous_[static_cast<size_t>(block)] != before) return "the kept list is torn";
    before = block;
    ++idle;
  }
  if (idle != idle_) return "the kept list has lost count";
  for (size_t at = 0; at < references_.size(); ++at) {
    if (references_[at] < 0) return "block " + std::to_string(at) + " has a negative count";
    if (references_[at] == 0 && !listed[at]) {
      return "block " + std::to_string(at) + " is neither free nor held";
    }
  }
  return {};
}

}  // namespace sluice
