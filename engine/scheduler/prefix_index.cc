#include "engine/scheduler/prefix_index.h"

#include <algorithm>
#include <bit>

#include "engine/base/check.h"

namespace sluice {
namespace {

// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
// generators", 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

}  // namespace

PrefixIndex::PrefixIndex(int blocks, int block_tokens) : block_tokens_(block_tokens) {
  SLUICE_CHECK(blocks > 0 && block_tokens > 0);
  const auto count = static_cast<size_t>(blocks);
  nodes_.resize(count);
  tokens_.resize(count * static_cast<size_t>(block_tokens));
  buckets_.assign(std::bit_ceil(count), -1);
}

bool PrefixIndex::Contains(int32_t block) const {
  SLUICE_CHECK(block >= 0 && static_cast<size_t>(block) < nodes_.size());
  return node(block).present;
}

uint64_t PrefixIndex::Hash(uint64_t key, int32_t parent, std::span<const int32_t> tokens) const {
  SLUICE_CHECK(tokens.size() == static_cast<size_t>(block_tokens_), "full blocks only");
  SLUICE_CHECK(parent < 0 || Contains(parent), "the block before must be known");
  uint64_t hash = parent < 0 ? Mix(key + 0x9E3779B97F4A7C15ull) : node(parent).hash;
  for (int32_t token : tokens) {
    hash = Mix((hash + 0x9E3779B97F4A7C15ull) ^ static_cast<uint32_t>(token));
  }
  return hash;
}

int32_t PrefixIndex::Find(uint64_t key, int32_t parent, std::span<const int32_t> tokens) const {
  const uint64_t hash = Hash(key, parent, tokens);
  int32_t block = buckets_[hash & (buckets_.size() - 1)];
  for (; block >= 0; block = node(block).next) {
    const Node& found = node(block);
    if (found.hash != hash || found.parent != parent) continue;
    if (parent < 0 && found.key != key) continue;
    const auto held = this->tokens(block);
    if (std::equal(held.begin(), held.end(), tokens.begin())) return block;
  }
  return -1;
}

void PrefixIndex::Insert(uint64_t key, int32_t parent, std::span<const int32_t> tokens,
                         int32_t block) {
  SLUICE_CHECK(!Contains(block) && Find(key, parent, tokens) < 0, "it is known already");
  Node& added = node(block);
  added.hash = Hash(key, parent, tokens);
  added.key = parent < 0 ? key : node(parent).key;
  added.parent = parent;
  added.children = 0;
  added.present = true;
  added.next = bucket(added.hash);
  bucket(added.hash) = block;
  if (parent >= 0) ++node(parent).children;
  std::copy(tokens.begin(), tokens.end(),
            tokens_.begin() + static_cast<ptrdiff_t>(block) * block_tokens_);
  ++size_;
}

void PrefixIndex::Erase(int32_t block) {
  SLUICE_CHECK(Contains(block) && node(block).children == 0, "children go first");
  Node& erased = node(block);
  int32_t* link = &bucket(erased.hash);
  while (*link != block) link = &node(*link).next;
  *link = erased.next;
  if (erased.parent >= 0) --node(erased.parent).children;
  erased = Node{};
  --size_;
}

std::span<const int32_t> PrefixIndex::tokens(int32_t block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block) * static_cast<size_t>(block_tokens_),
                                    static_cast<size_t>(block_tokens_));
}

int32_t PrefixIndex::parent(int32_t block) const { return node(block).parent; }

uint64_t PrefixIndex::key(int32_t block) const { return node(block).key; }

std::string PrefixIndex::CheckInvariants() const {
  int present = 0;
  std::vector<int> children(nodes_.size(), 0);
  for (size_t at = 0; at < nodes_.size(); ++at) {
    if (!nodes_[at].present) continue;
    ++present;
    const auto block = static_cast<int32_t>(at);
    const int32_t parent = nodes_[at].parent;
    if (parent >= 0 && !Contains(parent)) return "a block outlived the block before it";
    if (parent >= 0) ++children[static_cast<size_t>(parent)];
    if (Find(nodes_[at].key, parent, tokens(block)) != block) {
      return "block " + std::to_string(block) + " cannot be found";
    }
  }
  if (present != size_) return "the index has lost count";
  for (size_t at = 0; at < nodes_.size(); ++at) {
    if (nodes_[at].children != children[at]) return "a block has lost count of its children";
  }
  return {};
}

}  // namespace sluice
