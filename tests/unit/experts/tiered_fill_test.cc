// The order in which free memory is filled with experts.
#include <memory>
#include <vector>

#include "engine/experts/tiered_experts.h"
#include "tests/support/catch.h"
#include "tests/support/fake_store.h"
#include "tests/support/manual_clock.h"
#include "tests/unit/experts/tier_rig.h"

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

TEST_CASE("Free memory fills from the first layer on, after all demands", "[tiers]") {
  Rig rig({.fits = 11, .store = {.held = true}});
  CHECK(rig.store.Pending() == Tickets{0, 1, 2, 3});
  rig.tiers->BeginStep(1);
  rig.Begin(1, Places{7});
  CHECK(rig.store.Pending() == Tickets{0, 15, 1, 2, 3});  // 0 is under way
  rig.store.Land(15);
  CHECK(rig.Next(true) == Places{7});
  rig.tiers->End();
  rig.tiers->EndStep();
  rig.LandAll();
  CHECK(rig.Resident() == Places{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15});
  CHECK_FALSE(rig.tiers->Background());
  rig.tiers->SetMemory(13 * rig.one);
  rig.tiers->Background();
  rig.LandAll();
  CHECK(rig.Resident() == Places{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15});
}

TEST_CASE("Free memory fills with what an earlier run used most", "[tiers]") {
  Rig rig({.fits = 5, .store = {.held = true}});
  std::vector<float> heat(static_cast<size_t>(rig.experts.space().size()), 0.5f);
  heat[12] = 9;
  heat[3] = 8;
  heat[7] = 7;
  heat.push_back(1);
  rig.tiers->SetFillOrder(heat);  // of another model
  CHECK(rig.store.Pending() == Tickets{0, 1, 2, 3});
  heat.pop_back();
  rig.tiers->SetFillOrder(heat);
  rig.LandAll();
  // 0 was under way.
  CHECK(rig.Resident() == Places{0, 1, 3, 7, 12});
}

TEST_CASE("A demand for an expert that is being filled waits for that read", "[tiers]") {
  Rig rig({.fits = 16, .store = {.held = true}});
  rig.tiers->BeginStep(1);
  rig.Begin(0, Places{2});
  CHECK(rig.store.Pending() == Tickets{0, 2, 1, 3});
  rig.store.Land(2);
  CHECK(rig.Next(true) == Places{2});
  CHECK(rig.Next(true).empty());
  rig.tiers->End();
  CHECK(rig.Counts(0).misses == 1);
  CHECK(rig.Counts(0).prefetch_late == 0);
}

}  // namespace
}  // namespace sluice
