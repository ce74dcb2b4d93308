// A TieredExperts over tiny experts, a store in memory and predictions that the test plans; and one
// over a store that the test speaks for. Both check what they are handed.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/experts/tiered_experts.h"
#include "tests/support/catch.h"
#include "tests/support/fake_store.h"
#include "tests/support/manual_clock.h"
#include "tests/unit/experts/tier_fixture.h"

namespace sluice {

using Places = std::vector<int>;
using Tickets = std::vector<uint64_t>;

// Says what the test planned; without a plan for a layer, nothing is likely.
class PlannedPredictor final : public ExpertPredictor {
 public:
  explicit PlannedPredictor(ExpertSpace space) : space_(space) {}
  std::string_view name() const override { return "planned"; }
  int horizon(int /*tokens*/) const override { return 2; }
  void OnScores(int /*layer*/, int /*distance*/, const GateScores& /*scores*/) override {}
  void OnRouted(int layer, const RoutedTokens& /*routed*/) override { routed.push_back(layer); }
  void Estimate(int layer, int /*tokens*/, std::span<float> probability) override {
    REQUIRE(probability.size() == static_cast<size_t>(space_.experts_per_layer));
    std::fill(probability.begin(), probability.end(), 0.0f);
    for (const auto& [expert, likely] : plan[layer]) probability[expert] = likely;
  }
  PredictorStats stats() const override { return {}; }

  std::map<int, std::map<int, float>> plan;  // by layer and expert
  std::vector<int> routed;

 private:
  ExpertSpace space_;
};

struct RigOptions {
  ExpertSpace space = {2, 8};
  double fits = 0;  // experts; for mixed sizes: of the average size
  bool mixed = false;
  std::string policy = "lru";
  bool keep = true;
  bool read_ahead = true;
  bool lenient = false;
  FakeStoreOptions store = {};
};

struct Rig {
  explicit Rig(const RigOptions& options)
      : experts(options.space, options.mixed),
        store([this](ExpertId id, int set) { return experts.Contents(id, set); }, &clock,
              options.store) {
    auto policy = std::make_unique<CheckedPolicy>(options.policy, options.space);
    this->policy = policy.get();
    ExpertCache cache(options.space, experts.pointers(), 0, TinySlab(), std::move(policy));
    one = cache.all_bytes() / static_cast<size_t>(options.space.size());
    REQUIRE(cache.SetLimit(static_cast<size_t>(options.fits * static_cast<double>(one))));
    auto owned_store = std::make_unique<FaultyStore>(&store);
    faulty = owned_store.get();
    auto owned_predictor = std::make_unique<PlannedPredictor>(options.space);
    predictor = owned_predictor.get();
    tiers = std::make_unique<TieredExperts>(
        std::move(cache), std::move(owned_store), std::move(owned_predictor),
        TieredOptions{
            .keep = options.keep, .read_ahead = options.read_ahead, .lenient = options.lenient},
        &clock);
  }

  // What a layer was given: experts in the order in which they came, failed ones with their error.
  struct Visit {
    Places came;
    std::map<int, Error> failed;
    std::map<int, int> sets;  // by expert that came: plane sets
    Places skipped;
  };
  void Begin(int layer, std::vector<ExpertDemand> wanted) {
    demands = std::move(wanted);
    ids.clear();
    for (const ExpertDemand& d : demands) ids.push_back(d.expert);
    open_layer = layer;
    tiers->Begin(layer, demands, {1, static_cast<int>(ids.size()), ids.data(), &stream});
  }
  void Begin(int layer, const Places& wanted) {
    std::vector<ExpertDemand> list;
    for (const int expert : wanted) list.push_back({expert, 1, 1});
    Begin(layer, list);
  }
  Places Next(bool wait, Visit* visit = nullptr) {
    Places came;
    for (const ReadyExpert& ready : tiers->Next(wait)) {
      const int expert = demands.at(ready.demand).expert;
      const int place = experts.space().place({open_layer, expert});
      if (ready.skipped()) {
        CHECK(demands.at(ready.demand).least_bits == kSkippable);
        if (visit != nullptr) visit->skipped.push_back(expert);
        continue;
      }
      if (ready.weights == nullptr) {
        REQUIRE(ready.error != nullptr);
        if (visit != nullptr) visit->failed[expert] = *ready.error;
        continue;
      }
      const int sets = tiers->cache().resident_sets(place);
      CHECK(sets >= tiers->cache().SetsFor(place, demands.at(ready.demand).least_bits));
      CHECK(ready.degraded == (sets < tiers->cache().whole_sets(place)));
      CHECK(experts.Right(*ready.weights, place, sets));
      if (visit != nullptr) visit->sets[expert] = sets;
      came.push_back(expert);
    }
    return came;
  }
  Visit Layer(int layer, const Places& wanted) {
    std::vector<ExpertDemand> list;
    for (const int expert : wanted) list.push_back({expert, 1, 1});
    return Demands(layer, std::move(list));
  }
  Visit Demands(int layer, std::vector<ExpertDemand> wanted) {
    Visit visit;
    const size_t count = wanted.size();
    Begin(layer, std::move(wanted));
    for (size_t left = count; left > 0;) {
      const size_t before = visit.failed.size() + visit.skipped.size();
      const Places came = Next(true, &visit);
      visit.came.insert(visit.came.end(), came.begin(), came.end());
      const size_t handed_over = came.size() + visit.failed.size() + visit.skipped.size() - before;
      REQUIRE(handed_over > 0);
      REQUIRE(handed_over <= left);
      REQUIRE(tiers->cache().slab().used() <= tiers->cache().slab().limit());
      left -= handed_over;
    }
    CHECK(Next(true).empty());
    tiers->End();
    return visit;
  }
  Places Sorted(int layer, const Places& wanted) {
    Visit visit = Layer(layer, wanted);
    std::sort(visit.came.begin(), visit.came.end());
    return visit.came;
  }
  // Of a held store: lands all there is until nothing is left to read, then collects it.
  void LandAll() {
    do {
      for (const uint64_t ticket : store.Pending()) store.Land(ticket);
    } while (tiers->Background());
  }
  void Fill() {
    while (tiers->Background()) {
    }
  }
  Places Resident() const {
    Places places;
    for (int place = 0; place < experts.space().size(); ++place) {
      if (tiers->cache().whole(place)) places.push_back(place);
    }
    return places;
  }
  ExpertTierStats::Layer Counts(int layer) const { return tiers->stats().layers.at(layer); }

  ManualClock clock;
  TinyExperts experts;
  FakeStore store;
  FaultyStore* faulty;
  PlannedPredictor* predictor;
  CheckedPolicy* policy;
  size_t one = 0;  // bytes of an expert, the average
  std::unique_ptr<TieredExperts> tiers;
  std::vector<ExpertDemand> demands;
  std::vector<int32_t> ids;
  int64_t stream = 1;
  int open_layer = 0;
};

// Reports what the test says; every read is under way from the start.
class ToldStore final : public ExpertStore {
 public:
  void Submit(const ExpertRead& read) override { reads.push_back(read); }
  void SetUrgency(uint64_t ticket, int urgency) override {
    if (urgency == kUrgencyDemand) hurried.push_back(ticket);
  }
  bool Cancel(uint64_t /*ticket*/) override { return false; }
  void Collect(bool wait, std::vector<LandedRead>* landed) override {
    if (wait) REQUIRE_FALSE(reports.empty());
    landed->insert(landed->end(), reports.begin(), reports.end());
    reports.clear();
  }
  ExpertStoreStats stats() const override { return {}; }
  void Land(uint64_t ticket, TinyExperts* experts) {
    const auto read = std::find_if(reads.rbegin(), reads.rend(),
                                   [&](const ExpertRead& r) { return r.ticket == ticket; });
    REQUIRE(read != reads.rend());
    for (int set = read->first_set; set < read->end_set; ++set) {
      const auto bytes = experts->Contents(read->expert, set);
      std::memcpy(read->destination[set], bytes.data(), bytes.size());
    }
    reports.push_back({ticket, true, {}});
  }

  std::vector<ExpertRead> reads;
  Tickets hurried;
  std::vector<LandedRead> reports;
};

// A cache over experts that the test fills, and a store that it speaks for.
struct ToldRig {
  explicit ToldRig(ExpertSpace space) : experts(space) {}
  ExpertCache Cache(size_t limit) const {
    return ExpertCache(experts.space(), experts.pointers(), 0, TinySlab(limit),
                       std::make_unique<CheckedPolicy>("lru", experts.space()));
  }
  void Start(ExpertCache cache) {
    auto owned_store = std::make_unique<ToldStore>();
    store = owned_store.get();
    auto owned_predictor = std::make_unique<PlannedPredictor>(experts.space());
    predictor = owned_predictor.get();
    tiers = std::make_unique<TieredExperts>(std::move(cache), std::move(owned_store),
                                            std::move(owned_predictor), TieredOptions{}, &clock);
  }
  void Load(ExpertCache* cache, int place, int sets) {
    REQUIRE(cache->Claim(place, sets, CacheClaim::kFill, 0));
    for (int set = 0; set < sets; ++set) {
      const auto bytes = experts.Contents(experts.space().id(place), set);
      std::memcpy(cache->set_address(place, set), bytes.data(), bytes.size());
    }
    cache->Land(place);
  }
  void Begin(int layer, const Places& wanted) {
    demands.clear();
    for (const int expert : wanted) demands.push_back({expert, 1, 1});
    ids.assign(wanted.begin(), wanted.end());
    tiers->Begin(layer, demands, {1, static_cast<int>(ids.size()), ids.data(), &stream});
  }

  ManualClock clock;
  TinyExperts experts;
  ToldStore* store = nullptr;
  PlannedPredictor* predictor = nullptr;
  std::unique_ptr<TieredExperts> tiers;
  std::vector<ExpertDemand> demands;
  std::vector<int32_t> ids;
  int64_t stream = 1;
};

}  // namespace sluice
