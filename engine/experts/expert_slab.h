// The memory of the expert cache: one range of addresses, reserved once, of which `limit` bytes may
// be in use. Pieces of it are handed out by best fit and joined again when they come back; they
// move only when asked to, since reads in flight hold raw addresses into them.
//
// The range costs physical memory only where it was written, and gives it back where the limit is
// lowered. Huge pages are asked for: a step streams through all of it.
//
// Threads: one owner thread; the bytes themselves are anybody's who was handed them.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "engine/base/result.h"

namespace sluice {

class ExpertSlab {
 public:
  // `align`: of all pieces, a power of two of at least 64. `capacity`: the most that the limit can
  // ever be. Errors: kResourceExhausted when the system refuses so many addresses.
  static Result<ExpertSlab> Reserve(size_t capacity, size_t align);
  ExpertSlab(ExpertSlab&& other) noexcept;
  ExpertSlab& operator=(ExpertSlab&& other) noexcept;
  ~ExpertSlab();

  size_t capacity() const { return capacity_; }
  size_t limit() const { return limit_; }
  size_t used() const { return used_; }
  size_t free_bytes() const { return limit_ - used_; }
  size_t align() const { return align_; }

  // Bytes that a piece of `bytes` takes.
  size_t PieceBytes(size_t bytes) const;
  std::byte* at(size_t offset) const { return base_ + offset; }

  // Offset of a new piece, or nothing when no hole is large enough. REQUIRES: bytes > 0.
  std::optional<size_t> Allocate(size_t bytes);
  // `bytes` as in Allocate.
  void Free(size_t offset, size_t bytes);
  // Moves a piece and its contents to the beginning of the hole before it, which has `down` bytes.
  // REQUIRES: there is one, and nobody uses the address.
  void Slide(size_t offset, size_t bytes, size_t down);

  // Moves a piece and its contents into the smallest hole that takes it and ends at or below `end`;
  // its new offset, or nothing when there is none. REQUIRES: nobody uses the address.
  std::optional<size_t> MoveBelow(size_t offset, size_t bytes, size_t end);

  // Pieces must lie below the new limit (REQUIRES); memory above it goes back to the system.
  // Rounded down to the alignment.
  void SetLimit(size_t bytes);

 private:
  ExpertSlab(std::byte* base, size_t capacity, size_t align)
      : base_(base), capacity_(capacity), align_(align) {}
  void AddHole(size_t offset, size_t bytes);
  void RemoveHole(std::map<size_t, size_t>::iterator hole);

  std::byte* base_ = nullptr;
  size_t capacity_ = 0;
  size_t align_ = 0;
  size_t limit_ = 0;
  size_t used_ = 0;
  size_t touched_ = 0;                           // memory above was never written, or given back
  std::map<size_t, size_t> holes_;               // offset to bytes, none adjacent
  std::set<std::pair<size_t, size_t>> by_size_;  // (bytes, offset) of holes_
};

}  // namespace sluice
