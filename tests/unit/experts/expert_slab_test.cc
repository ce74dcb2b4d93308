#include "engine/experts/expert_slab.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

constexpr size_t kPage = 4096;

ExpertSlab ReserveOrFail(size_t capacity, size_t align = kPage) {
  auto slab = ExpertSlab::Reserve(capacity, align);
  REQUIRE(slab);
  return std::move(*slab);
}

// What a slab promises, by looking at every piece.
class PlainSlab {
 public:
  explicit PlainSlab(size_t align) : align_(align) {}

  size_t Round(size_t bytes) const { return (bytes + align_ - 1) / align_ * align_; }
  // The lowest of the smallest holes that are large enough.
  std::optional<size_t> Allocate(size_t bytes) {
    bytes = Round(bytes);
    std::optional<size_t> best;
    size_t best_hole = 0, end = 0;
    const auto look = [&](size_t begin, size_t hole) {
      if (hole < bytes || (best && best_hole <= hole)) return;
      best = begin;
      best_hole = hole;
    };
    for (const auto& [offset, size] : pieces) {
      look(end, offset - end);
      end = offset + size;
    }
    look(end, limit - end);
    if (best) pieces[*best] = bytes;
    return best;
  }
  void Free(size_t offset) { pieces.erase(offset); }
  size_t used() const {
    size_t bytes = 0;
    for (const auto& [offset, size] : pieces) bytes += size;
    return bytes;
  }
  size_t top() const {
    return pieces.empty() ? 0 : pieces.rbegin()->first + pieces.rbegin()->second;
  }

  std::map<size_t, size_t> pieces;  // offset to bytes
  size_t limit = 0;

 private:
  size_t align_;
};

bool AllBytesAre(const ExpertSlab& slab, size_t offset, size_t bytes, int value) {
  const std::byte* start = slab.at(offset);
  return std::all_of(start, start + bytes,
                     [&](std::byte b) { return b == static_cast<std::byte>(value); });
}

TEST_CASE("A slab hands out nothing before it has a limit, and never more than it",
          "[expert_slab]") {
  ExpertSlab slab = ReserveOrFail(10 * kPage);
  CHECK_FALSE(slab.Allocate(1));
  slab.SetLimit(3 * kPage + 100);
  CHECK(slab.limit() == 3 * kPage);
  CHECK(slab.free_bytes() == 3 * kPage);
  CHECK(slab.Allocate(kPage + 1) == size_t{0});
  CHECK(slab.used() == 2 * kPage);
  CHECK_FALSE(slab.Allocate(kPage + 1));
  CHECK(slab.Allocate(kPage) == 2 * kPage);
  CHECK(slab.free_bytes() == 0);
  CHECK_FALSE(slab.Allocate(1));
}

TEST_CASE("Pieces of a slab start at its alignment", "[expert_slab]") {
  for (const size_t align : {size_t{64}, size_t{512}, kPage}) {
    ExpertSlab slab = ReserveOrFail(1 << 20, align);
    slab.SetLimit(1 << 20);
    for (const size_t bytes : {size_t{1}, align - 1, align, align + 1, size_t{5000}}) {
      CHECK(slab.PieceBytes(bytes) % align == 0);
      CHECK(slab.PieceBytes(bytes) - bytes < align);
      const auto offset = slab.Allocate(bytes);
      REQUIRE(offset);
      CHECK(reinterpret_cast<uintptr_t>(slab.at(*offset)) % align == 0);
    }
  }
}

TEST_CASE("A slab fills the smallest hole that is large enough, the lowest of equal ones",
          "[expert_slab]") {
  ExpertSlab slab = ReserveOrFail(64 * kPage);
  slab.SetLimit(20 * kPage);
  // Holes of 3, 2 and 2 pages with a page in use between them, then 10.
  std::vector<size_t> at;
  for (const size_t pages : {3, 1, 2, 1, 2, 1}) at.push_back(slab.Allocate(pages * kPage).value());
  slab.Free(at[0], 3 * kPage);
  slab.Free(at[4], 2 * kPage);
  slab.Free(at[2], 2 * kPage);
  CHECK(slab.Allocate(2 * kPage) == at[2]);
  CHECK(slab.Allocate(kPage) == at[4]);
  CHECK(slab.Allocate(kPage) == at[4] + kPage);
  CHECK(slab.Allocate(4 * kPage) == 10 * kPage);
  CHECK(slab.Allocate(3 * kPage) == at[0]);
}

TEST_CASE("Neighbouring holes of a slab join, whichever comes free first", "[expert_slab]") {
  std::vector<int> order = {0, 1, 2, 3};
  do {
    ExpertSlab slab = ReserveOrFail(4 * kPage);
    slab.SetLimit(4 * kPage);
    std::vector<size_t> at;
    for (int i = 0; i < 4; ++i) at.push_back(slab.Allocate(kPage).value());
    for (const int i : order) slab.Free(at[i], kPage);
    CHECK(slab.used() == 0);
    CHECK(slab.Allocate(4 * kPage) == size_t{0});
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("Memory above a lowered limit goes back to the system; what lies below stays",
          "[expert_slab]") {
  ExpertSlab slab = ReserveOrFail(64 * kPage, 512);
  slab.SetLimit(64 * kPage);
  const size_t low = slab.Allocate(2 * kPage + 512).value();
  const size_t high = slab.Allocate(8 * kPage).value();
  std::memset(slab.at(low), 1, 2 * kPage + 512);
  std::memset(slab.at(high), 2, 8 * kPage);
  slab.Free(high, 8 * kPage);
  slab.SetLimit(2 * kPage + 512);  // within a page that is in use
  CHECK(slab.free_bytes() == 0);
  CHECK(AllBytesAre(slab, low, 2 * kPage + 512, 1));
  slab.SetLimit(64 * kPage);
  CHECK(slab.Allocate(8 * kPage) == high);
  // The first page above was shared with what stayed; the others were given back.
  CHECK(AllBytesAre(slab, 3 * kPage, 7 * kPage, 0));
}

TEST_CASE("A slab's limit stops at its capacity", "[expert_slab]") {
  ExpertSlab slab = ReserveOrFail(5 * kPage);
  CHECK(slab.capacity() >= 5 * kPage);
  slab.SetLimit(slab.capacity() + kPage);
  CHECK(slab.limit() == slab.capacity());
  CHECK(slab.Allocate(slab.capacity()) == size_t{0});
}

TEST_CASE("A slab that was moved keeps its pieces", "[expert_slab]") {
  ExpertSlab first = ReserveOrFail(8 * kPage);
  first.SetLimit(4 * kPage);
  const size_t offset = first.Allocate(kPage).value();
  std::byte* const address = first.at(offset);
  ExpertSlab second = std::move(first);
  CHECK(second.at(offset) == address);
  CHECK(second.used() == kPage);
  second.Free(offset, kPage);
  CHECK(second.Allocate(4 * kPage) == size_t{0});
}

TEST_CASE("A slab does what a plain list of pieces does, through any sequence", "[expert_slab]") {
  for (const size_t align : {size_t{512}, kPage}) {
    for (unsigned seed = 1; seed <= 20; ++seed) {
      INFO("align " << align << ", seed " << seed);
      std::mt19937 random(seed);
      const size_t capacity = 256 * kPage;
      ExpertSlab slab = ReserveOrFail(capacity, align);
      PlainSlab plain(align);
      std::map<size_t, std::pair<size_t, int>> live;  // offset: bytes asked for, value
      for (int i = 0; i < 600; ++i) {
        const int what = static_cast<int>(random() % 20);
        if (what < 10) {
          const size_t bytes = 1 + random() % (8 * kPage);
          const auto offset = slab.Allocate(bytes);
          REQUIRE(offset == plain.Allocate(bytes));
          if (offset) {
            const int value = 1 + i % 255;
            live[*offset] = {bytes, value};
            std::memset(slab.at(*offset), value, bytes);
          }
        } else if (what < 18) {
          if (live.empty()) continue;
          auto it = live.begin();
          std::advance(it, random() % live.size());
          const auto [offset, piece] = *it;
          REQUIRE(AllBytesAre(slab, offset, piece.first, piece.second));
          slab.Free(offset, piece.first);
          plain.Free(offset);
          live.erase(it);
        } else {
          const size_t least = plain.top();
          const size_t bytes = least + random() % (capacity - least + 1);
          slab.SetLimit(bytes);
          plain.limit = bytes / align * align;
        }
        REQUIRE(slab.limit() == plain.limit);
        REQUIRE(slab.used() == plain.used());
      }
      for (const auto& [offset, piece] : live) {
        CHECK(AllBytesAre(slab, offset, piece.first, piece.second));
      }
    }
  }
}

TEST_CASE("A piece slides to the beginning of the hole before it with its bytes", "[slab]") {
  ExpertSlab slab = ReserveOrFail(16 * kPage);
  slab.SetLimit(8 * kPage);
  const size_t first = *slab.Allocate(2 * kPage);
  const size_t second = *slab.Allocate(3 * kPage);
  std::memset(slab.at(second), 7, 3 * kPage);
  std::memset(slab.at(second) + 2 * kPage, 9, kPage);
  slab.Free(first, 2 * kPage);
  REQUIRE(!slab.Allocate(4 * kPage));
  slab.Slide(second, 3 * kPage, 2 * kPage);
  CHECK(AllBytesAre(slab, 0, 2 * kPage, 7));
  CHECK(AllBytesAre(slab, 2 * kPage, kPage, 9));
  CHECK(slab.used() == 3 * kPage);
  // The holes on both sides of where it was are one.
  const auto large = slab.Allocate(5 * kPage);
  REQUIRE(large.has_value());
  CHECK(*large == 3 * kPage);
  CHECK(slab.free_bytes() == 0);
}

TEST_CASE("A piece moves below a bound with its contents, into the smallest hole that takes it",
          "[slab]") {
  auto slab = ExpertSlab::Reserve(64 * kPage, 64);
  REQUIRE(slab);
  slab->SetLimit(16 * kPage);
  std::vector<size_t> at;
  for (int i = 0; i < 8; ++i) at.push_back(*slab->Allocate(2 * kPage));
  std::memset(slab->at(at[7]), 7, 2 * kPage);
  CHECK_FALSE(slab->MoveBelow(at[7], 2 * kPage, 8 * kPage));
  slab->Free(at[0], 2 * kPage);
  slab->Free(at[1], 2 * kPage);
  slab->Free(at[3], 2 * kPage);
  CHECK_FALSE(slab->MoveBelow(at[7], 2 * kPage, kPage));
  const size_t used = slab->used();
  CHECK(slab->MoveBelow(at[7], 2 * kPage, 8 * kPage) == at[3]);
  CHECK(slab->used() == used);
  for (size_t i = 0; i < 2 * kPage; ++i) REQUIRE(slab->at(at[3])[i] == std::byte{7});
  slab->SetLimit(14 * kPage);
  CHECK(slab->free_bytes() == 4 * kPage);
}

}  // namespace
}  // namespace sluice
