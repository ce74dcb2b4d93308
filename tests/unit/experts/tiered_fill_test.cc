// The order in which free memory is filled with experts.
#include <memory>
#include <vector>

#include "engine/experts/tiered_experts.h"
#include "tests/support/catch.h"
#include "tests/support/fake_store.h"
#include "tests/support/manual_clock.h"
#include "tests/unit/experts/tier_fixture.h"

namespace sluice {
namespace {

constexpr ExpertSpace kSpace = {2, 2};
// Places that memory for `count` experts is filled with.
std::vector<int> Filled(const std::vector<int>& order, int count) {
  TinyExperts experts(kSpace);
  ManualClock clock;
  ExpertCache cache(kSpace, experts.pointers(), 0, TinySlab(),
                    std::make_unique<CheckedPolicy>("lru", kSpace));
  const size_t one = cache.whole_bytes(0);
  auto store = std::make_unique<FakeStore>(
      [&](ExpertId id, int set) { return experts.Contents(id, set); }, &clock, FakeStoreOptions{});
  TieredExperts tiered(std::move(cache), std::move(store), nullptr,
                       TieredOptions{.fill_order = order}, &clock);
  tiered.SetMemory(static_cast<size_t>(count) * one);
  while (tiered.Background()) continue;
  std::vector<int> places;
  for (int place = 0; place < kSpace.size(); ++place) {
    if (tiered.cache().whole(place)) places.push_back(place);
  }
  return places;
}

TEST_CASE("Free memory goes to the experts that come first in the fill order", "[experts]") {
  CHECK(Filled({3, 1, 2, 0}, 2) == std::vector<int>{1, 3});
  CHECK(Filled({3, 1, 2, 0}, 3) == std::vector<int>{1, 2, 3});
  CHECK(Filled({3, 1, 2, 0}, 4) == std::vector<int>{0, 1, 2, 3});
}

TEST_CASE("Without a fill order the first layers are filled first", "[experts]") {
  CHECK(Filled({}, 3) == std::vector<int>{0, 1, 2});
}

}  // namespace
}  // namespace sluice
