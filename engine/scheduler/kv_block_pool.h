// Which physical KvBlocks are free. Ids only: the model owns the memory behind them.
//
// A block is held with a count of references, or free. Allocate hands out the count 1; counts above
// one are for blocks that several sequences read (a shared prefix). A held block may be kept: when
// its last holder lets go it is free like any other, but what it holds stays until the pool has no
// block left that nobody kept; then the one that was let go first is handed out. Until then it can
// be held again. Everything is allocated at construction. One owner thread.
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
  // Those that nobody holds: what Allocate can still give.
  int free() const { return static_cast<int>(free_.size()) + idle_; }
  int used() const { return total() - free(); }
  // Of the free ones: kept, not yet handed out again.
  int idle_kept() const { return idle_; }
  int references(int32_t block) const;
  bool kept(int32_t block) const;

  // A free block, now held once and no longer kept, or -1 when none is left. Of blocks that nobody
  // kept the one released last comes first: it is the likeliest to be in a processor cache.
  int32_t Allocate();
  // The block that Allocate would take from those kept, when no other is left; -1: none is kept and
  // free.
  int32_t oldest_kept() const { return first_; }
  // Blocks that are kept and free, the one let go last first.
  std::vector<int32_t> KeptByRecency() const;
  // From now on its content outlives its holders. REQUIRES: held.
  void Keep(int32_t block);
  // One more holder. REQUIRES: held or kept.
  void AddReference(int32_t block);
  // One holder less; the last one frees the block. REQUIRES: held.
  void Release(int32_t block);

  // Empty when sound, else one sentence: every block is held, or on exactly one of the two lists.
  std::string CheckInvariants() const;

 private:
  void Unlink(int32_t block);

  std::vector<int32_t> free_;        // a stack: free and not kept
  std::vector<int32_t> references_;  // by block; 0: free
  std::vector<uint8_t> kept_;        // by block
  // Free and kept, linked in the order of release.
  std::vector<int32_t> next_, previous_;  // by block; -1: none
  int32_t first_ = -1, last_ = -1;
  int idle_ = 0;  // their number
};

}  // namespace sluice
