#include "engine/experts/tiered_experts.h"

#include <random>

#include "tests/support/catch.h"
#include "tests/unit/experts/tier_rig.h"

namespace sluice {
namespace {

TEST_CASE("The first visit of an expert misses, the next hits", "[tiers]") {
  Rig rig({.fits = 16, .store = {.depth = 64, .held = true}});
  rig.tiers->BeginStep(1);
  rig.Begin(1, Places{2, 5});
  CHECK(rig.Next(false).empty());
  rig.store.Land(10);
  rig.store.Land(13);
  CHECK(rig.Next(true) == Places{2, 5});
  CHECK(rig.Counts(1).pinned == 2);
  CHECK(rig.Next(true).empty());
  rig.tiers->End();
  rig.tiers->EndStep();
  CHECK(rig.Counts(1).pinned == 0);
  CHECK(rig.Counts(1).misses == 2);
  CHECK(rig.Counts(1).hits == 0);
  CHECK(rig.Counts(1).planes_read == 6);
  CHECK(rig.Counts(1).bytes_read == 2 * rig.one);
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(1, {2, 5}).came == Places{2, 5});
  CHECK(rig.Counts(1).misses == 2);
  CHECK(rig.Counts(1).hits == 2);
  CHECK(rig.policy->last_uses.at(0).hit);
  const ExpertTierStats stats = rig.tiers->stats();
  CHECK(stats.links.at(0).demand_bytes == 2 * rig.one);
  CHECK(stats.tiers.at(0).capacity_bytes == 16 * rig.one);
}

TEST_CASE("What is resident is handed over while the rest is read", "[tiers]") {
  Rig rig({.fits = 8, .store = {.held = true}});
  rig.LandAll();
  CHECK(rig.Resident() == Places{0, 1, 2, 3, 4, 5, 6, 7});
  rig.tiers->BeginStep(1);
  rig.Begin(1, Places{4});
  rig.store.Land(12);
  CHECK(rig.Next(true) == Places{4});
  rig.tiers->End();
  rig.tiers->BeginStep(1);
  rig.Begin(1, Places{3, 4, 6});
  CHECK(rig.store.Pending() == Tickets{11, 14});
  CHECK(rig.Next(true) == Places{4});
  CHECK(rig.Next(false).empty());
  rig.store.Land(14);
  CHECK(rig.Next(true) == Places{6});
  rig.store.Land(11);
  CHECK(rig.Next(true) == Places{3});
  CHECK(rig.Next(true).empty());
  rig.tiers->End();
}

TEST_CASE("Of what is missing, the experts that most tokens wait for are read first", "[tiers]") {
  Rig rig({.fits = 8, .store = {.held = true}});
  rig.LandAll();
  rig.tiers->BeginStep(5);
  rig.Begin(1, {{1, 1, 1}, {3, 4, 1}, {5, 2, 1}, {7, 4, 1}});
  CHECK(rig.store.Pending() == Tickets{11, 15, 13, 9});
  for (const int place : {11, 15, 13, 9}) rig.store.Land(place);
  CHECK(rig.Next(true) == Places{3, 7, 5, 1});
  rig.tiers->End();
}

TEST_CASE("A layer that needs more than the cache holds is served in waves", "[tiers]") {
  const Places everything = {0, 1, 2, 3, 4, 5, 6, 7};
  for (const std::string_view policy : CachePolicyNames()) {
    for (const double fits : {1.0, 2.5, 7.0, 8.0, 15.0}) {
      for (const int depth : {1, 3}) {
        INFO(policy << ", " << fits << " fit, depth " << depth);
        Rig rig({.fits = fits,
                 .policy = std::string(policy),
                 .store = {.depth = depth, .seconds_per_read = 0.01}});
        for (int step = 0; step < 3; ++step) {
          rig.tiers->BeginStep(4);
          for (const int layer : {0, 1}) {
            CHECK(rig.Sorted(layer, everything) == everything);
          }
          rig.tiers->EndStep();
        }
        const auto counts = rig.Counts(0);
        CHECK(counts.hits + counts.misses == 24);
        CHECK(counts.misses >= static_cast<uint64_t>(std::max(0.0, 8 - fits)));
      }
    }
  }
}

TEST_CASE("One expert's memory is enough for experts of mixed sizes", "[tiers]") {
  Rig rig({.mixed = true, .store = {.depth = 2, .seconds_per_read = 0.01}});
  const Places everything = {0, 1, 2, 3, 4, 5, 6, 7};
  rig.tiers->SetMemory(rig.tiers->cache().LargestLayer(1));
  for (int step = 0; step < 3; ++step) {
    rig.tiers->BeginStep(4);
    for (const int layer : {0, 1}) {
      CHECK(rig.Sorted(layer, everything) == everything);
    }
    rig.tiers->EndStep();
  }
}

TEST_CASE("Without memory for an expert its tokens fail, until there is some", "[tiers]") {
  Rig rig({.fits = 0.5});
  rig.tiers->BeginStep(1);
  const Rig::Visit visit = rig.Layer(0, {1, 6});
  CHECK(visit.came.empty());
  REQUIRE(visit.failed.size() == 2);
  CHECK(visit.failed.at(6).code == ErrorCode::kResourceExhausted);
  rig.tiers->EndStep();
  rig.tiers->SetMemory(rig.one);
  rig.tiers->BeginStep(1);
  CHECK(rig.Sorted(0, {1, 6}) == Places{1, 6});
  CHECK(rig.tiers->stats().links.at(0).failures == 2);
}

TEST_CASE("A predicted expert that landed in time is a hit", "[tiers]") {
  Rig rig({.fits = 8, .store = {.held = true}});
  rig.LandAll();
  rig.predictor->plan[1] = {{3, 0.9f}};
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(0, {0, 1}).came == Places{0, 1});
  CHECK(rig.store.Pending() == Tickets{11});
  rig.store.Land(11);
  CHECK(rig.Layer(1, {3}).came == Places{3});
  CHECK(rig.Counts(1).hits == 1);
  CHECK(rig.Counts(1).prefetch_issued == 1);
  CHECK(rig.Counts(1).prefetch_used == 1);
  CHECK(rig.tiers->stats().links.at(0).prefetch_bytes == 9 * rig.one);  // fills are ahead, too
  // Once used it is an expert like any other.
  CHECK(rig.Layer(1, {3}).came == Places{3});
  CHECK(rig.Counts(1).prefetch_used == 1);
  CHECK(rig.Counts(1).hits == 2);
}

TEST_CASE("A predicted read that is late becomes a demand, ahead of all predictions", "[tiers]") {
  Rig rig({.fits = 8, .store = {.held = true}});
  rig.LandAll();
  rig.predictor->plan[1] = {{3, 0.9f}, {4, 0.8f}};
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(0, {0, 1}).came == Places{0, 1});
  CHECK(rig.store.Pending() == Tickets{11, 12});
  const size_t submitted = rig.store.submitted().size();
  rig.Begin(1, Places{2, 4});
  CHECK(rig.store.Pending() == Tickets{11, 12, 10});  // 11 is under way
  CHECK(rig.store.submitted().size() == submitted + 1);
  CHECK(rig.Counts(1).prefetch_late == 1);
  CHECK(rig.Counts(1).misses == 2);
  rig.store.Land(12);
  CHECK(rig.Next(true) == Places{4});
  rig.store.Land(10);
  CHECK(rig.Next(true) == Places{2});
  rig.tiers->End();
  CHECK(rig.Counts(1).prefetch_used == 0);
  CHECK(rig.Counts(1).prefetch_cancelled == 0);
}

TEST_CASE("Predictions that did not come true are withdrawn when their layer is reached",
          "[tiers]") {
  Rig rig({.fits = 8, .store = {.held = true}});
  rig.LandAll();
  rig.predictor->plan[1] = {{2, 0.9f}, {3, 0.8f}};
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(0, {0, 1}).came == Places{0, 1});
  CHECK(rig.store.Pending() == Tickets{10, 11});
  rig.predictor->plan.clear();
  rig.Begin(1, Places{5});
  CHECK(rig.store.cancelled() == Tickets{11});
  CHECK(rig.Counts(1).prefetch_cancelled == 1);
  CHECK(rig.tiers->cache().held_sets(11) == 0);
  rig.store.Land(13);
  CHECK(rig.Next(true) == Places{5});
  rig.tiers->End();
  // What could not be withdrawn is used when it is wanted after all.
  rig.store.Land(10);
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(1, {2}).came == Places{2});
  CHECK(rig.Counts(1).prefetch_used == 1);
  CHECK(rig.Counts(1).prefetch_issued == 2);
}

TEST_CASE("A prediction makes no room that a demand lacks", "[tiers]") {
  // All memory is taken by predicted reads when the layer asks.
  Rig rig({.space = {3, 8}, .fits = 2, .store = {.held = true}});
  rig.LandAll();
  rig.predictor->plan[2] = {{2, 0.9f}, {3, 0.8f}};
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(0, {0, 1}).came == Places{0, 1});
  CHECK(rig.store.Pending() == Tickets{18, 19});
  rig.Begin(1, Places{4, 5});
  // 18 is under way; the memory of 19 serves the first.
  CHECK(rig.store.cancelled() == Tickets{19});
  CHECK(rig.store.Pending() == Tickets{18, 12});
  rig.store.Land(12);
  CHECK(rig.Next(true) == Places{4});
  CHECK(rig.Next(false).empty());
  rig.store.Land(13);
  CHECK(rig.Next(true) == Places{5});
  rig.tiers->End();
}

TEST_CASE("A failing read fails only the expert that it is for, and is tried again next time",
          "[tiers]") {
  Rig rig({.fits = 8, .store = {.depth = 4, .seconds_per_read = 0.01}});
  rig.Fill();
  rig.faulty->Fail({1, 2}, 0, 1, Corrupt("expert 2 of layer 1 of x.sluice is damaged"));
  rig.tiers->BeginStep(1);
  Rig::Visit visit = rig.Layer(1, {1, 2, 3});
  std::sort(visit.came.begin(), visit.came.end());
  CHECK(visit.came == Places{1, 3});
  REQUIRE(visit.failed.count(2) == 1);
  CHECK(visit.failed.at(2).code == ErrorCode::kCorrupt);
  CHECK(visit.failed.at(2).message == "expert 2 of layer 1 of x.sluice is damaged");
  CHECK_FALSE(rig.tiers->cache().whole(10));
  CHECK(rig.tiers->stats().links.at(0).failures == 1);
  CHECK(rig.Sorted(1, {1, 2, 3}) == Places{1, 2, 3});
}

TEST_CASE("A read ahead that fails costs nobody anything", "[tiers]") {
  Rig rig({.fits = 8, .store = {.held = true}});
  rig.LandAll();
  rig.faulty->WrongBytes({1, 3}, 0, 1);
  rig.predictor->plan[1] = {{3, 0.9f}};
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(0, {0, 1}).came == Places{0, 1});
  REQUIRE(rig.store.Pending() == Tickets{11});
  rig.store.Land(11);
  rig.predictor->plan.clear();
  rig.Begin(1, Places{3});
  CHECK(rig.Counts(1).prefetch_wasted == 1);
  rig.store.Land(11);
  CHECK(rig.Next(true) == Places{3});
  rig.tiers->End();
  CHECK(rig.tiers->stats().links.at(0).failures == 0);
}

TEST_CASE("A stalled read delays its expert and no other", "[tiers]") {
  Rig rig({.fits = 8, .store = {.depth = 2, .seconds_per_read = 0.01}});
  rig.Fill();
  rig.faulty->Stall({1, 4}, 0);
  rig.tiers->BeginStep(1);
  rig.Begin(1, Places{2, 4, 6});
  CHECK(rig.Next(true) == Places{2});
  CHECK(rig.Next(true) == Places{6});
  rig.clock.Advance(5);
  CHECK(rig.Next(false).empty());
  rig.faulty->Release();
  CHECK(rig.Next(true) == Places{4});
  CHECK(rig.Next(true).empty());
  rig.tiers->End();
}

TEST_CASE("A read that was withdrawn too late and then demanded is read again", "[tiers]") {
  ToldRig rig({2, 2});
  ExpertCache cache = rig.Cache(0);
  const size_t one = cache.whole_bytes(0);
  REQUIRE(cache.SetLimit(3 * one));
  rig.Load(&cache, 0, 3);
  rig.Load(&cache, 1, 3);
  rig.Load(&cache, 2, 3);
  rig.Start(std::move(cache));
  rig.predictor->plan[1] = {{1, 0.9f}};
  rig.tiers->BeginStep(1);
  rig.Begin(0, {0});
  CHECK(rig.tiers->Next(true).size() == 1);
  CHECK(rig.tiers->Next(true).empty());
  rig.tiers->End();
  REQUIRE(rig.store->reads.size() == 1);
  CHECK(rig.store->reads[0].ticket == 3);
  // Its layer is visited without it (a Cancel that comes too late), then with it.
  rig.predictor->plan.clear();
  rig.Begin(1, {0});
  CHECK(rig.tiers->Next(true).size() == 1);
  CHECK(rig.tiers->Next(true).empty());
  rig.tiers->End();
  rig.Begin(1, {1});
  CHECK(rig.store->hurried == Tickets{3});
  rig.store->reports.push_back({3, false, Cancelled("withdrawn")});
  CHECK(rig.tiers->Next(false).empty());
  REQUIRE(rig.store->reads.size() == 2);
  CHECK(rig.store->reads[1].ticket == 3);
  CHECK(rig.store->reads[1].urgency == kUrgencyDemand);
  rig.store->Land(3, &rig.experts);
  const auto ready = rig.tiers->Next(true);
  REQUIRE(ready.size() == 1);
  REQUIRE(ready[0].weights != nullptr);
  CHECK(rig.experts.Right(*ready[0].weights, 3, 3));
  CHECK(rig.tiers->Next(true).empty());
  rig.tiers->End();
  CHECK(rig.tiers->stats().links[0].failures == 0);
}

TEST_CASE("Nothing is read or looked ahead for once every expert is resident", "[tiers]") {
  Rig rig({.fits = 16});
  CHECK(rig.tiers->horizon() == 2);
  rig.Fill();
  CHECK(rig.tiers->cache().complete());
  CHECK(rig.tiers->horizon() == 0);
  const size_t reads = rig.store.submitted().size();
  CHECK(reads == 16);
  rig.predictor->plan[1] = {{3, 0.9f}};
  for (int step = 0; step < 3; ++step) {
    rig.tiers->BeginStep(1);
    for (const int layer : {0, 1}) CHECK(rig.Layer(layer, {1, 3}).came == Places{1, 3});
    rig.tiers->EndStep();
  }
  CHECK(rig.store.submitted().size() == reads);
  CHECK(rig.Counts(0).hits + rig.Counts(1).hits == 12);
}

TEST_CASE("On demand, nothing outlives its layer and nothing is read before it is asked for",
          "[tiers]") {
  Rig rig({.fits = 16, .keep = false});
  rig.predictor->plan[1] = {{3, 0.9f}};
  CHECK(rig.tiers->horizon() == 0);
  CHECK_FALSE(rig.tiers->Background());
  for (int step = 0; step < 3; ++step) {
    rig.tiers->BeginStep(1);
    for (const int layer : {0, 1}) {
      CHECK(rig.Sorted(layer, {1, 3, 4}) == Places{1, 3, 4});
      CHECK(rig.tiers->cache().slab().used() == 0);
    }
    rig.tiers->EndStep();
  }
  CHECK(rig.store.submitted().size() == 18);
  for (const int layer : {0, 1}) {
    CHECK(rig.Counts(layer).misses == 9);
    CHECK(rig.Counts(layer).hits == 0);
    CHECK(rig.Counts(layer).prefetch_issued == 0);
  }
}

TEST_CASE("Without reads ahead, predictions are not asked for", "[tiers]") {
  Rig rig({.fits = 8, .read_ahead = false, .store = {.held = true}});
  rig.LandAll();
  rig.predictor->plan[1] = {{3, 0.9f}};
  CHECK(rig.tiers->horizon() == 0);
  rig.tiers->BeginStep(1);
  CHECK(rig.Layer(0, {0, 1}).came == Places{0, 1});
  CHECK(rig.store.Pending().empty());
}

TEST_CASE("Lowering the memory evicts at once and ends reads that nobody waits for", "[tiers]") {
  Rig rig({.fits = 16, .store = {.depth = 2, .seconds_per_read = 0.5}});
  CHECK(rig.store.Pending().size() == 4);
  rig.tiers->SetMemory(3 * rig.one);
  CHECK(rig.tiers->cache().slab().limit() == 3 * rig.one);
  CHECK(rig.tiers->cache().slab().used() <= 3 * rig.one);
  rig.tiers->SetMemory(0);
  CHECK(rig.tiers->cache().slab().used() == 0);
  CHECK(rig.Resident().empty());
  rig.tiers->SetMemory(5 * rig.one);
  rig.Fill();
  CHECK(rig.Resident() == Places{0, 1, 2, 3, 4});
}

TEST_CASE("Heat and levels of the statistics say what is used and where it is", "[tiers]") {
  Rig rig({.fits = 16});
  for (int step = 0; step < 512; ++step) {
    rig.tiers->BeginStep(1);
    rig.Layer(1, step == 0 ? Places{2, 4} : Places{4});
    rig.tiers->EndStep();
  }
  rig.Fill();
  const ExpertTierStats stats = rig.tiers->stats();
  CHECK(stats.experts_per_layer == 8);
  CHECK(stats.heat.at(10) == Approx(0.25).epsilon(0.01));  // two half-lives ago
  CHECK(stats.heat.at(12) == Approx(0.75 / (1 - std::exp2(-1.0 / 256))).epsilon(0.01));
  CHECK(stats.heat.at(3) == 0);
  CHECK(stats.resident_planes.at(12) == 3);
  CHECK(stats.layers.at(0).resident == 8);
  CHECK(stats.layers.at(1).resident == 8);
  CHECK(stats.tiers.at(0).used_bytes == 16 * rig.one);
}

TEST_CASE("Through any traffic every expert is right and every read ahead has one end", "[tiers]") {
  constexpr ExpertSpace kSpace = {4, 8};
  for (const std::string_view policy : CachePolicyNames()) {
    for (const bool mixed : {false, true}) {
      for (const int depth : {1, 4}) {
        INFO(policy << (mixed ? ", mixed" : "") << ", depth " << depth);
        Rig rig({.space = kSpace,
                 .fits = 10,
                 .mixed = mixed,
                 .policy = std::string(policy),
                 .store = {.depth = depth, .seconds_per_read = 0.01}});
        std::mt19937 random(static_cast<unsigned>(depth));
        const size_t all = rig.tiers->cache().all_bytes();
        const size_t least = rig.tiers->cache().LargestLayer(1);
        uint64_t demanded = 0;
        for (int step = 0; step < 150; ++step) {
          rig.tiers->BeginStep(2);
          for (int layer = 0; layer < kSpace.layers; ++layer) {
            for (int ahead = 0; ahead < kSpace.layers; ++ahead) {
              for (int e = 0; e < kSpace.experts_per_layer; ++e) {
                rig.predictor->plan[ahead][e] = static_cast<float>(random() % 100) / 100;
              }
            }
            Places wanted;
            const auto likely = static_cast<unsigned>(step) / 40 + layer;
            for (int e = 0; e < kSpace.experts_per_layer; ++e) {
              if (random() % 8 < (e % 4 == static_cast<int>(likely % 4) ? 6 : 1))
                wanted.push_back(e);
            }
            if (wanted.empty()) wanted.push_back(static_cast<int>(random() % 8));
            demanded += wanted.size();
            REQUIRE(rig.Sorted(layer, wanted) == wanted);
            rig.clock.Advance(static_cast<double>(random() % 40) / 1000);
          }
          rig.tiers->EndStep();
          if (random() % 8 == 0) rig.tiers->Background();
          if (random() % 10 == 0) rig.tiers->SetMemory(least + random() % (all - least));
        }
        rig.tiers->SetMemory(0);
        const ExpertTierStats stats = rig.tiers->stats();
        uint64_t hits = 0, misses = 0, bytes = 0, used = 0, late = 0, wasted = 0, cancelled = 0;
        for (const ExpertTierStats::Layer& layer : stats.layers) {
          hits += layer.hits;
          misses += layer.misses;
          bytes += layer.bytes_read;
          used += layer.prefetch_used;
          late += layer.prefetch_late;
          wasted += layer.prefetch_wasted;
          cancelled += layer.prefetch_cancelled;
          CHECK(layer.prefetch_issued == layer.prefetch_used + layer.prefetch_late +
                                             layer.prefetch_wasted + layer.prefetch_cancelled);
        }
        CHECK(hits + misses == demanded);
        CHECK(hits > 0);
        // Each kind of end came about.
        CHECK(std::min({used, late, wasted, cancelled}) > 0);
        CHECK(stats.links.at(0).demand_bytes + stats.links.at(0).prefetch_bytes == bytes);
        CHECK(rig.store.stats().bytes == bytes);
        CHECK(stats.links.at(0).failures == 0);
      }
    }
  }
}

TEST_CASE("Through failing reads every expert that comes is right, and all come in the end",
          "[tiers]") {
  constexpr ExpertSpace kSpace = {3, 8};
  Rig rig({.space = kSpace, .fits = 9, .store = {.depth = 2, .seconds_per_read = 0.01}});
  std::mt19937 random(5);
  for (int layer = 0; layer < 3; ++layer) {
    for (int e = 0; e < 8; ++e) {
      for (int nth = static_cast<int>(random() % 4); nth < 12; nth += 2 + random() % 5) {
        rig.faulty->Fail({layer, e}, nth, 1, IoError("a bad sector"));
      }
    }
  }
  size_t failures = 0;
  for (int step = 0; step < 300; ++step) {
    for (int layer = 0; layer < 3; ++layer) {
      for (int e = 0; e < 8; ++e) {
        rig.predictor->plan[layer][e] = static_cast<float>(random() % 100) / 100;
      }
    }
    rig.tiers->BeginStep(1);
    for (int layer = 0; layer < 3; ++layer) {
      Places wanted;
      for (int e = 0; e < 8; ++e) {
        if (random() % 3 == 0) wanted.push_back(e);
      }
      if (wanted.empty()) continue;
      const Rig::Visit visit = rig.Layer(layer, wanted);
      CHECK(visit.came.size() + visit.failed.size() == wanted.size());
      for (const auto& [expert, error] : visit.failed) CHECK(error.message == "a bad sector");
      failures += visit.failed.size();
      if (step > 250) CHECK(visit.failed.empty());
      rig.clock.Advance(static_cast<double>(random() % 30) / 1000);
    }
    rig.tiers->EndStep();
  }
  CHECK(failures > 0);
  CHECK(rig.tiers->stats().links.at(0).failures == failures);
  rig.tiers->SetMemory(0);
  for (const ExpertTierStats::Layer& layer : rig.tiers->stats().layers) {
    CHECK(layer.prefetch_issued == layer.prefetch_used + layer.prefetch_late +
                                       layer.prefetch_wasted + layer.prefetch_cancelled);
  }
}

}  // namespace
}  // namespace sluice
