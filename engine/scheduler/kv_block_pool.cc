#include "engine/scheduler/kv_block_pool.h"

#include "engine/base/check.h"

namespace sluice {

KvBlockPool::KvBlockPool(int total) {
  SLUICE_CHECK(total > 0);
  references_.assign(static_cast<size_t>(total), 0);
  free_.reserve(static_cast<size_t>(total));
  for (int32_t block = total - 1; block >= 0; --block) free_.push_back(block);
}

int KvBlockPool::references(int32_t block) const {
  SLUICE_CHECK(block >= 0 && block < total());
  return references_[static_cast<size_t>(block)];
}

int32_t KvBlockPool::Allocate() {
  if (free_.empty()) return -1;
  const int32_t block = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(block)] = 1;
  return block;
}

void KvBlockPool::AddReference(int32_t block) {
  SLUICE_CHECK(references(block) > 0, "a free block has no holder to share with");
  ++references_[static_cast<size_t>(block)];
}

void KvBlockPool::Release(int32_t block) {
  SLUICE_CHECK(references(block) > 0, "released more often than held");
  if (--references_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

std::string KvBlockPool::CheckInvariants() const {
  std::vector<char> listed(references_.size(), 0);
  for (int32_t block : free_) {
    if (block < 0 || block >= total()) return "the free list holds an id outside the pool";
    const auto at = static_cast<size_t>(block);
    if (listed[at]) return "block " + std::to_string(block) + " is on the free list twice";
    if (references_[at] != 0) return "block " + std::to_string(block) + " is free and held";
    listed[at] = 1;
  }
  for (size_t at = 0; at < references_.size(); ++at) {
    if (references_[at] < 0) return "block " + std::to_string(at) + " has a negative count";
    if (references_[at] == 0 && !listed[at]) {
      return "block " + std::to_string(at) + " is neither free nor held";
    }
  }
  return {};
}

}  // namespace sluice
