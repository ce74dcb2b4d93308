#include "engine/experts/expert_slab.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include "engine/base/check.h"
#include "engine/tensor/device_buffer.h"

namespace sluice {

Result<ExpertSlab> ExpertSlab::Reserve(size_t capacity, size_t align) {
  SLUICE_CHECK(align >= 64 && (align & (align - 1)) == 0);
  capacity = AlignUp(std::max<size_t>(capacity, 1), kHugePageBytes);
  const size_t mapped = capacity + kHugePageBytes;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) {
    return ResourceExhausted("the system refused " + std::to_string(capacity) +
                             " bytes of address space for the expert cache: raise the limit on "
                             "virtual memory (ulimit -v)");
  }
  auto* start = static_cast<std::byte*>(raw);
  const auto address = reinterpret_cast<uintptr_t>(raw);
  const size_t head = AlignUp(address, kHugePageBytes) - address;
  if (head > 0) munmap(start, head);
  if (head < kHugePageBytes) munmap(start + head + capacity, kHugePageBytes - head);
  madvise(start + head, capacity, MADV_HUGEPAGE);  // A hint: without huge pages it is only slower.
  return ExpertSlab(start + head, capacity, align);
}

ExpertSlab::ExpertSlab(ExpertSlab&& other) noexcept { *this = std::move(other); }

ExpertSlab& ExpertSlab::operator=(ExpertSlab&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(capacity_, other.capacity_);
  std::swap(align_, other.align_);
  std::swap(limit_, other.limit_);
  std::swap(used_, other.used_);
  std::swap(touched_, other.touched_);
  holes_.swap(other.holes_);
  by_size_.swap(other.by_size_);
  return *this;
}

ExpertSlab::~ExpertSlab() {
  if (base_ != nullptr) munmap(base_, capacity_);
}

size_t ExpertSlab::PieceBytes(size_t bytes) const { return AlignUp(bytes, align_); }

void ExpertSlab::AddHole(size_t offset, size_t bytes) {
  if (bytes == 0) return;
  auto next = holes_.lower_bound(offset);
  if (next != holes_.begin()) {
    const auto before = std::prev(next);
    SLUICE_CHECK(before->first + before->second <= offset, "a piece was freed twice");
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
      RemoveHole(before);
    }
  }
  if (next != holes_.end()) {
    SLUICE_CHECK(offset + bytes <= next->first, "a piece was freed twice");
    if (offset + bytes == next->first) {
      bytes += next->second;
      RemoveHole(next);
    }
  }
  holes_.emplace(offset, bytes);
  by_size_.emplace(bytes, offset);
}

void ExpertSlab::RemoveHole(std::map<size_t, size_t>::iterator hole) {
  by_size_.erase({hole->second, hole->first});
  holes_.erase(hole);
}

std::optional<size_t> ExpertSlab::Allocate(size_t bytes) {
  SLUICE_CHECK(bytes > 0);
  bytes = PieceBytes(bytes);
  const auto best = by_size_.lower_bound({bytes, 0});
  if (best == by_size_.end()) return std::nullopt;
  const auto [hole_bytes, offset] = *best;
  RemoveHole(holes_.find(offset));
  // The rest of a hole has no hole beside it: it needs no joining.
  if (hole_bytes > bytes) {
    holes_.emplace(offset + bytes, hole_bytes - bytes);
    by_size_.emplace(hole_bytes - bytes, offset + bytes);
  }
  used_ += bytes;
  touched_ = std::max(touched_, offset + bytes);
  return offset;
}

void ExpertSlab::Free(size_t offset, size_t bytes) {
  bytes = PieceBytes(bytes);
  SLUICE_CHECK(used_ >= bytes && offset + bytes <= limit_);
  used_ -= bytes;
  AddHole(offset, bytes);
}

void ExpertSlab::Slide(size_t offset, size_t bytes, size_t down) {
  const size_t piece = PieceBytes(bytes);
  const size_t to = offset - down;
  const auto before = holes_.find(to);
  SLUICE_CHECK(before != holes_.end() && before->second == down, "no hole of this size before it");
  RemoveHole(before);
  std::memmove(base_ + to, base_ + offset, bytes);
  AddHole(to + piece, down);
}

std::optional<size_t> ExpertSlab::MoveBelow(size_t offset, size_t bytes, size_t end) {
  const size_t piece = PieceBytes(bytes);
  for (auto hole = by_size_.lower_bound({piece, 0}); hole != by_size_.end(); ++hole) {
    const auto [hole_bytes, to] = *hole;
    if (to + piece > end) continue;
    RemoveHole(holes_.find(to));
    if (hole_bytes > piece) AddHole(to + piece, hole_bytes - piece);
    std::memcpy(base_ + to, base_ + offset, bytes);
    touched_ = std::max(touched_, to + piece);
    AddHole(offset, piece);
    return to;
  }
  return std::nullopt;
}

void ExpertSlab::SetLimit(size_t bytes) {
  bytes = std::min(bytes, capacity_) / align_ * align_;
  if (bytes >= limit_) {
    const size_t from = limit_;
    limit_ = bytes;
    AddHole(from, bytes - from);
    return;
  }
  const size_t above = limit_ - bytes;
  // All above the new limit must be one hole's end.
  SLUICE_CHECK(!holes_.empty());
  const auto last = std::prev(holes_.end());
  const auto [offset, hole_bytes] = *last;
  SLUICE_CHECK(offset + hole_bytes == limit_ && hole_bytes >= above,
               "pieces above the new limit are in use");
  RemoveHole(last);
  limit_ = bytes;
  if (hole_bytes > above) AddHole(offset, hole_bytes - above);
  const size_t keep = AlignUp(bytes, 4096);
  if (touched_ > keep) madvise(base_ + keep, AlignUp(touched_, 4096) - keep, MADV_DONTNEED);
  touched_ = std::min(touched_, keep);
}

}  // namespace sluice
