#include "engine/runtime/ngram_index.h"

#include <algorithm>
#include <bit>

namespace sluice {
namespace {

constexpr size_t kLeastHeads = 64;

// Tokens before `a` and before `b` that agree, those two included.
int Agreement(std::span<const int32_t> tokens, int a, int b) {
  int length = 0;
  while (length < NgramIndex::kMostMatch && length <= std::min(a, b) &&
         tokens[static_cast<size_t>(a - length)] == tokens[static_cast<size_t>(b - length)]) {
    ++length;
  }
  return length;
}

}  // namespace

uint32_t NgramIndex::Hash(int32_t before, int32_t last) {
  uint64_t key = (uint64_t{static_cast<uint32_t>(before)} << 32) | static_cast<uint32_t>(last);
  key *= 0x9E3779B97F4A7C15ull;
  return static_cast<uint32_t>(key >> 32);
}

void NgramIndex::Insert(std::span<const int32_t> tokens, int position) {
  const auto at = static_cast<size_t>(position);
  int32_t& head = heads_[Hash(tokens[at - 1], tokens[at]) & (heads_.size() - 1)];
  previous_[at] = head;
  head = position;
}

void NgramIndex::Grow(std::span<const int32_t> tokens) {
  heads_.assign(std::bit_ceil(std::max(kLeastHeads, tokens.size() + 1)), -1);
  for (size_t i = 1; i < previous_.size(); ++i) Insert(tokens, static_cast<int>(i));
}

NgramIndex::Match NgramIndex::Find(std::span<const int32_t> tokens) {
  if (tokens.size() > heads_.size()) Grow(tokens);
  const size_t begin = std::max<size_t>(previous_.size(), 1);
  previous_.resize(tokens.size(), -1);
  for (size_t i = begin; i < tokens.size(); ++i) Insert(tokens, static_cast<int>(i));
  Match best;
  if (tokens.size() < kLeastMatch) return best;
  const int last = static_cast<int>(tokens.size()) - 1;
  int candidate = previous_[static_cast<size_t>(last)];
  for (int i = 0; i < kCandidates && candidate >= 0; ++i) {
    const int length = Agreement(tokens, candidate, last);
    if (length >= kLeastMatch && length > best.length) best = {length, candidate + 1};
    if (best.length == kMostMatch) break;
    candidate = previous_[static_cast<size_t>(candidate)];
  }
  return best;
}

}  // namespace sluice
