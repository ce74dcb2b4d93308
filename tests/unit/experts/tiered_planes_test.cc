// Planes held singly: reads of some, demands that accept few, and memory kept with them.
#include "tests/unit/experts/tier_rig.h"

namespace sluice {
namespace {

TEST_CASE("Of an expert whose low planes are here, only the high ones are read", "[tiers]") {
  ToldRig rig({1, 4});
  ExpertCache cache = rig.Cache(0);
  const size_t one = cache.whole_bytes(0);
  REQUIRE(cache.SetLimit(one));
  rig.Load(&cache, 2, 1);
  const std::byte* const low = cache.set_address(2, 0);
  rig.Start(std::move(cache));
  rig.tiers->BeginStep(1);
  rig.Begin(0, {2});
  REQUIRE_FALSE(rig.store->reads.empty());
  const ExpertRead& read = rig.store->reads.back();
  CHECK(read.ticket == 2);
  CHECK(read.first_set == 1);
  CHECK(read.end_set == 3);
  rig.store->Land(2, &rig.experts);
  const auto ready = rig.tiers->Next(true);
  REQUIRE(ready.size() == 1);
  CHECK(ready[0].weights->gate.nested.planes[0] == low);
  CHECK(rig.experts.Right(*ready[0].weights, 2, 3));
}

TEST_CASE("Low planes of experts that a layer waits for do not keep it from ever going on",
          "[tiers]") {
  ToldRig rig({1, 3});
  ExpertCache cache = rig.Cache(0);
  // Room for one whole expert, or for the lowest planes of two.
  REQUIRE(cache.SetLimit(cache.bytes(0, 0, 1) + cache.bytes(1, 0, 1)));
  REQUIRE(cache.whole_bytes(0) <= cache.slab().limit());
  for (const int place : {0, 1}) rig.Load(&cache, place, 1);
  rig.Start(std::move(cache));
  rig.tiers->BeginStep(1);
  rig.Begin(0, {0, 1});
  for (int left = 2; left > 0; --left) {
    REQUIRE_FALSE(rig.store->reads.empty());
    const uint64_t ticket = rig.store->reads.back().ticket;
    rig.store->Land(ticket, &rig.experts);
    const auto ready = rig.tiers->Next(true);
    REQUIRE(ready.size() == 1);
    REQUIRE(ready[0].weights != nullptr);
    CHECK(rig.experts.Right(*ready[0].weights, static_cast<int>(ticket), 3));
    if (left == 2) CHECK(rig.tiers->Next(false).empty());
  }
  CHECK(rig.tiers->Next(true).empty());
  rig.tiers->End();
}

// Lenient demands.

TEST_CASE("A demand that accepts few bits reads only their planes, and a later one the rest",
          "[tiers][quality]") {
  Rig rig({.fits = 16, .store = {.depth = 64, .held = true}});
  rig.tiers->BeginStep(1);
  rig.Begin(1, std::vector<ExpertDemand>{{2, 1, 1, 2}});
  const ExpertRead low = rig.store.submitted().back();
  CHECK(low.expert == ExpertId{1, 2});
  CHECK(low.first_set == 0);
  CHECK(low.end_set == 1);
  CHECK(low.urgency == kUrgencyDemand);
  rig.store.Land(10);
  Rig::Visit visit;
  CHECK(rig.Next(true, &visit) == Places{2});
  CHECK(visit.sets.at(2) == 1);
  rig.tiers->End();
  CHECK(rig.Counts(1).misses == 1);
  CHECK(rig.Counts(1).degraded_assignments == 1);
  CHECK(rig.Counts(1).planes_read == 1);

  // Enough of it is here: nothing is waited for.
  rig.Begin(1, std::vector<ExpertDemand>{{2, 3, 1, 2}});
  CHECK(rig.Next(false) == Places{2});
  rig.tiers->End();
  CHECK(rig.Counts(1).hits == 1);
  CHECK(rig.Counts(1).degraded_assignments == 4);

  rig.Begin(1, std::vector<ExpertDemand>{{2, 1, 1, kAllBits}});
  CHECK(rig.Next(false).empty());
  const ExpertRead rest = rig.store.submitted().back();
  CHECK(rest.expert == ExpertId{1, 2});
  CHECK(rest.first_set == 1);
  CHECK(rest.end_set == 3);
  rig.store.Land(10);
  CHECK(rig.Next(true) == Places{2});
  rig.tiers->End();
  CHECK(rig.Counts(1).misses == 2);
  CHECK(rig.Counts(1).degraded_assignments == 4);
}

TEST_CASE("An expert that is here whole is used whole, whatever is accepted", "[tiers][quality]") {
  Rig rig({.fits = 16});
  rig.Fill();
  rig.tiers->BeginStep(1);
  const Rig::Visit visit = rig.Demands(0, {{1, 2, 1, 2}, {4, 1, 1, kSkippable}});
  CHECK(visit.sets == std::map<int, int>{{1, 3}, {4, 3}});
  CHECK(visit.skipped.empty());
  CHECK(rig.Counts(0).degraded_assignments == 0);
}

TEST_CASE("What may be skipped is not waited for and not read", "[tiers][quality]") {
  Rig rig({.fits = 1, .read_ahead = false, .store = {.held = true}});
  rig.LandAll();
  REQUIRE(rig.Resident() == Places{0});
  rig.tiers->BeginStep(1);
  const size_t reads = rig.store.submitted().size();
  const Rig::Visit visit = rig.Demands(0, {{0, 1, 1, kSkippable}, {3, 2, 1, kSkippable}});
  CHECK(visit.came == Places{0});
  CHECK(visit.skipped == Places{3});
  CHECK(rig.store.submitted().size() == reads);
  CHECK(rig.Counts(0).degraded_assignments == 2);
  CHECK(rig.Counts(0).stall_seconds == 0);
}

TEST_CASE("A read ahead of few planes that a demand for all finds under way is completed",
          "[tiers][quality]") {
  Rig rig({.fits = 3, .lenient = true, .store = {.depth = 64, .held = true}});
  rig.LandAll();
  rig.predictor->plan[1] = {{5, 0.9f}};
  rig.tiers->BeginStep(1);
  rig.Begin(0, std::vector<ExpertDemand>{{0, 1, 1, 2}});
  while (rig.Next(false).empty()) rig.store.Land(0);
  rig.tiers->End();
  const ExpertRead ahead = rig.store.submitted().back();
  REQUIRE(ahead.expert == ExpertId{1, 5});
  CHECK(ahead.end_set == 1);
  rig.Begin(1, std::vector<ExpertDemand>{{5, 1, 1, kAllBits}});
  CHECK(rig.Counts(1).prefetch_late == 1);
  rig.store.Land(13);
  CHECK(rig.Next(false).empty());
  CHECK(rig.store.submitted().back().first_set == 1);
  CHECK(rig.store.submitted().back().end_set == 3);
  rig.store.Land(13);
  Rig::Visit visit;
  CHECK(rig.Next(true, &visit) == Places{5});
  CHECK(visit.sets.at(5) == 3);
  rig.tiers->End();
}

TEST_CASE("While low precision is accepted, more experts are kept with fewer planes",
          "[tiers][quality]") {
  Rig rig({.fits = 6, .read_ahead = false});
  rig.Fill();
  REQUIRE(rig.Resident().size() == 6);
  const auto low = [&] {
    int count = 0;
    for (int place = 0; place < 16; ++place) count += rig.tiers->cache().resident_sets(place) > 0;
    return count;
  };
  for (int step = 0; step < 200; ++step) {
    rig.tiers->BeginStep(1);
    for (const int layer : {0, 1}) rig.Demands(layer, {{(step * 3) % 8, 1, 1, 2}});
    rig.tiers->EndStep();
  }
  const int lenient = low();
  CHECK(lenient > 6);
  // Back to whole experts when nobody accepts less.
  for (int step = 0; step < 400; ++step) {
    rig.tiers->BeginStep(1);
    for (const int layer : {0, 1}) rig.Layer(layer, {(step * 3) % 8});
    rig.tiers->EndStep();
  }
  CHECK(low() <= 6);
  CHECK(static_cast<int>(rig.Resident().size()) == low());
}

TEST_CASE("Whatever is accepted, nobody gets less, and exact demands get everything",
          "[tiers][quality]") {
  for (const char* policy : {"lru", "arc", "next-use"}) {
    for (const bool mixed : {false, true}) {
      for (const double fits : {3.0, 6.5, 12.0}) {
        INFO(policy << ", mixed " << mixed << ", fits " << fits);
        Rig rig({.space = {3, 8},
                 .fits = mixed ? fits + 2 : fits,
                 .mixed = mixed,
                 .policy = policy,
                 .lenient = fits > 5,
                 .store = {.depth = 3, .seconds_per_read = 1e-3}});
        std::mt19937 random(7);
        int skipped = 0, low = 0;
        for (int step = 0; step < 150; ++step) {
          rig.tiers->BeginStep(1);
          for (int layer = 0; layer < 3; ++layer) {
            for (int e = 0; e < 8; ++e) {
              rig.predictor->plan[(layer + 1) % 3][e] = static_cast<float>(random() % 100) / 100;
            }
            std::vector<ExpertDemand> wanted;
            constexpr int8_t kBits[] = {kAllBits, 2, 3, kSkippable, 4};
            const size_t kinds = step / 30 % 2 == 0 ? 5 : 1;
            for (int e = 0; e < 8; ++e) {
              if (random() % 3 == 0) wanted.push_back({e, 1, 1, kBits[random() % kinds]});
            }
            if (wanted.empty()) continue;
            const Rig::Visit visit = rig.Demands(layer, wanted);
            CHECK(visit.failed.empty());
            skipped += static_cast<int>(visit.skipped.size());
            for (const ExpertDemand& demand : wanted) {
              const int place = rig.experts.space().place({layer, demand.expert});
              const auto sets = visit.sets.find(demand.expert);
              if (sets == visit.sets.end()) {
                CHECK(demand.least_bits == kSkippable);
              } else if (demand.least_bits == kAllBits) {
                CHECK(sets->second == rig.tiers->cache().whole_sets(place));
              } else {
                low += sets->second < rig.tiers->cache().whole_sets(place);
              }
            }
          }
          rig.tiers->EndStep();
          if (step % 7 == 0) rig.tiers->Background();
        }
        CHECK(skipped > 0);
        CHECK(low > 0);
        // Every read ahead has an end.
        rig.tiers->SetMemory(0);
        for (int layer = 0; layer < 3; ++layer) {
          const ExpertTierStats::Layer counts = rig.Counts(layer);
          CHECK(counts.prefetch_issued == counts.prefetch_used + counts.prefetch_late +
                                              counts.prefetch_wasted + counts.prefetch_cancelled);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice
