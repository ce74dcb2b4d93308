#include "engine/scheduler/prefix_index.h"

#include <map>
#include <random>
#include <vector>

#include "tests/support/catch.h"

namespace sluice {
namespace {

using Tokens = std::vector<int32_t>;

TEST_CASE("A block is found by its tokens, what is before it, and the key", "[scheduler][prefix]") {
  PrefixIndex index(8, 2);
  index.Insert(0, -1, Tokens{1, 2}, 5);
  index.Insert(0, 5, Tokens{3, 4}, 6);
  index.Insert(7, -1, Tokens{1, 2}, 2);
  CHECK(index.CheckInvariants() == "");
  CHECK(index.size() == 3);
  CHECK(index.Find(0, -1, Tokens{1, 2}) == 5);
  CHECK(index.Find(0, 5, Tokens{3, 4}) == 6);
  CHECK(index.Find(7, -1, Tokens{1, 2}) == 2);
  CHECK(index.key(6) == 0);
  CHECK(index.parent(6) == 5);
  // Other tokens, the same tokens elsewhere, another key.
  CHECK(index.Find(0, -1, Tokens{2, 1}) == -1);
  CHECK(index.Find(0, -1, Tokens{3, 4}) == -1);
  CHECK(index.Find(0, 5, Tokens{1, 2}) == -1);
  CHECK(index.Find(7, 2, Tokens{3, 4}) == -1);
  CHECK(index.Find(8, -1, Tokens{1, 2}) == -1);
  index.Erase(6);
  index.Erase(5);
  CHECK(index.Find(0, -1, Tokens{1, 2}) == -1);
  CHECK(index.Find(7, -1, Tokens{1, 2}) == 2);
  CHECK(index.CheckInvariants() == "");
}

TEST_CASE("A full index of few tokens finds every block and no other", "[scheduler][prefix]") {
  // Two values of a token and chains up to the pool's size: buckets hold several blocks.
  constexpr int kBlocks = 64;
  std::mt19937 random(1);
  PrefixIndex index(kBlocks, 3);
  std::map<Tokens, int32_t> known;  // the whole prefix of each block
  std::vector<Tokens> prefixes(kBlocks);
  for (int round = 0; round < 2000; ++round) {
    const auto block = static_cast<int32_t>(random() % kBlocks);
    if (index.Contains(block)) {
      const auto& prefix = prefixes[static_cast<size_t>(block)];
      const bool leaf = std::none_of(known.begin(), known.end(), [&](const auto& entry) {
        return entry.first.size() == prefix.size() + 3 &&
               std::equal(prefix.begin(), prefix.end(), entry.first.begin());
      });
      if (!leaf) continue;
      known.erase(prefix);
      index.Erase(block);
    } else {
      Tokens prefix;
      int32_t parent = -1;
      if (!known.empty() && random() % 4 != 0) {
        auto it = known.begin();
        std::advance(it, static_cast<ptrdiff_t>(random() % known.size()));
        prefix = it->first;
        parent = it->second;
      }
      const Tokens tokens = {static_cast<int32_t>(random() % 2), 1,
                             static_cast<int32_t>(random() % 2)};
      prefix.insert(prefix.end(), tokens.begin(), tokens.end());
      const auto it = known.find(prefix);
      REQUIRE(index.Find(3, parent, tokens) == (it == known.end() ? -1 : it->second));
      if (it != known.end()) continue;
      index.Insert(3, parent, tokens, block);
      known[prefix] = block;
      prefixes[static_cast<size_t>(block)] = prefix;
    }
    REQUIRE(index.size() == static_cast<int>(known.size()));
  }
  CHECK(index.CheckInvariants() == "");
}

}  // namespace
}  // namespace sluice
