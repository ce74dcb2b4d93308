#include "engine/sampling/token_counts.h"

namespace sluice {
namespace {

size_t HashToken(int32_t token) {
  return static_cast<size_t>(
      (static_cast<uint64_t>(static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull) >> 20);
}

}  // namespace

TokenCounts::Entry& TokenCounts::Find(int32_t token) {
  if (2 * (entries_.size() + 1) > index_.size()) Grow();
  const size_t mask = index_.size() - 1;
  size_t at = HashToken(token) & mask;
  while (index_[at] >= 0) {
    Entry& entry = entries_[static_cast<size_t>(index_[at])];
    if (entry.token == token) return entry;
    at = (at + 1) & mask;
  }
  index_[at] = static_cast<int32_t>(entries_.size());
  return entries_.emplace_back(Entry{token, 0});
}

void TokenCounts::Grow() {
  index_.assign(index_.empty() ? 64 : index_.size() * 2, -1);
  const size_t mask = index_.size() - 1;
  for (size_t e = 0; e < entries_.size(); ++e) {
    size_t at = HashToken(entries_[e].token) & mask;
    while (index_[at] >= 0) at = (at + 1) & mask;
    index_[at] = static_cast<int32_t>(e);
  }
}

}  // namespace sluice
