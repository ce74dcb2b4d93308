// Which KvBlock holds the keys and values of which tokens: a tree of full blocks, so that a
// sequence can begin with the blocks of another one that began alike. Ids only.
//
// A node is a KvBlock together with the tokens that it holds; its parent is the block before it.
// What a block holds depends on all tokens before it, so the same tokens under another parent are
// another node. Roots also carry a key: whatever else decides the values (the quality setting, the
// model's precision where that can change). Nothing is ever found under another key.
//
// Lookups hash, and then compare all tokens and the parent: a collision costs time, never a wrong
// block. Everything is allocated at construction: 4 * block_tokens + 33 bytes or so for each block
// of the pool. Who may read a block and when it may be reused is KvBlockPool's business; a node is
// erased only after its children. One owner thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sluice {

class PrefixIndex {
 public:
  // For blocks 0 .. blocks - 1 of block_tokens tokens each. REQUIRES: both > 0.
  PrefixIndex(int blocks, int block_tokens);

  int size() const { return size_; }
  bool Contains(int32_t block) const;

  // The block that holds `tokens` after `parent` (-1: they begin a sequence of this key), or -1.
  // `key` matters for roots only. REQUIRES: block_tokens tokens; a parent that is contained.
  int32_t Find(uint64_t key, int32_t parent, std::span<const int32_t> tokens) const;
  // REQUIRES: as Find, which gives -1; `block` is not contained.
  void Insert(uint64_t key, int32_t parent, std::span<const int32_t> tokens, int32_t block);
  // REQUIRES: contained, without children.
  void Erase(int32_t block);

  // What was inserted. REQUIRES: contained.
  std::span<const int32_t> tokens(int32_t block) const;
  int32_t parent(int32_t block) const;
  uint64_t key(int32_t block) const;  // of its root

  // Empty when sound, else a sentence. Takes time in proportion to all blocks.
  std::string CheckInvariants() const;

 private:
  struct Node {
    uint64_t hash = 0;  // of the key and all tokens up to this block's last
    uint64_t key = 0;
    int32_t parent = -1;
    int32_t next = -1;  // in the same bucket
    int children = 0;
    bool present = false;
  };
  Node& node(int32_t block) { return nodes_[static_cast<size_t>(block)]; }
  const Node& node(int32_t block) const { return nodes_[static_cast<size_t>(block)]; }
  uint64_t Hash(uint64_t key, int32_t parent, std::span<const int32_t> tokens) const;
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }

  const int block_tokens_;
  std::vector<Node> nodes_;       // by block
  std::vector<int32_t> tokens_;   // [block][block_tokens]
  std::vector<int32_t> buckets_;  // a power of two; the first block of each, or -1
  int size_ = 0;
};

}  // namespace sluice
