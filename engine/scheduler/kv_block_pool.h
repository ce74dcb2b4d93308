// Which physical KvBlocks are free. Ids only: the model owns the memory behind them.
//
// A block is free, or held with a count of references; Allocate hands out the count 1. Counts above
// one are for blocks that several sequences read (a shared prefix). Everything is allocated at
// construction. One owner thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

class KvBlockPool {
 public:
  // Blocks 0 .. total - 1, all free. REQUIRES: total > 0.
  explicit KvBlockPool(int total);

  int total() const { return static_cast<int>(references_.size()); }
  int free() const { return static_cast<int>(free_.size()); }
  int used() const { return total() - free(); }
  int references(int32_t block) const;

  // A free block, now held once, or -1 when none is left. The block released last comes first: it
  // is the likeliest to be in a processor cache.
  int32_t Allocate();
  // One more holder. REQUIRES: held.
  void AddReference(int32_t block);
  // One holder less; the last one frees the block. REQUIRES: held.
  void Release(int32_t block);

  // Empty when sound, else one sentence: every block is either on the free list once or referenced.
  std::string CheckInvariants() const;

 private:
  std::vector<int32_t> free_;        // a stack
  std::vector<int32_t> references_;  // by block; 0: free
};

}  // namespace sluice
