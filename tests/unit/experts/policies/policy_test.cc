// What all policies promise, and each against a plain model of itself.
#include <cmath>
#include <map>
#include <random>

#include "engine/experts/policies/policies.h"
#include "tests/support/result.h"
#include "tests/unit/experts/policies/small_cache.h"

namespace sluice {
namespace {

std::unique_ptr<CachePolicy> Make(std::string_view name, ExpertSpace space) {
  Result<std::unique_ptr<CachePolicy>> policy = MakeCachePolicy(name, space, {});
  REQUIRE(policy);
  return std::move(*policy);
}

// Distinct experts of a layer; low numbers are likelier.
std::set<int> SkewedExperts(std::mt19937& random, int experts, int count) {
  std::set<int> chosen;
  std::uniform_real_distribution<double> uniform(0, 1);
  while (static_cast<int>(chosen.size()) < count) {
    const double u = uniform(random);
    chosen.insert(static_cast<int>(u * u * experts));
  }
  return chosen;
}

// Hits of a scan that uses all experts of all layers, step after step, after `warm` steps.
int ScanHits(CachePolicy* policy, ExpertSpace space, int capacity, int warm, int steps) {
  SmallCache cache(space, policy, capacity);
  std::set<int> all;
  for (int e = 0; e < space.experts_per_layer; ++e) all.insert(e);
  int hits = 0;
  for (int step = 0; step < warm + steps; ++step) {
    for (int l = 0; l < space.layers; ++l) {
      const int visit = cache.Visit(l, all, 16, std::vector<int>(space.experts_per_layer, 4));
      if (step >= warm) hits += visit;
    }
  }
  return hits;
}

}  // namespace

TEST_CASE("Every named policy is made and is called what it was asked by", "[policy]") {
  for (const std::string_view name : CachePolicyNames()) {
    const std::unique_ptr<CachePolicy> policy = Make(name, {2, 4});
    if (name != "auto") CHECK(policy->name() == name);
  }
  const auto unknown = MakeCachePolicy("mru", {2, 4}, {});
  REQUIRE(!unknown);
  CHECK(unknown.error().code == ErrorCode::kInvalidArgument);
  CHECK(unknown.error().message.find("least-stale") != std::string::npos);
}

TEST_CASE("Every policy gives up only what may be evicted, whatever happens", "[policy]") {
  const ExpertSpace space{3, 37};  // no multiple of the scan's width
  for (const std::string_view name : CachePolicyNames()) {
    const std::unique_ptr<CachePolicy> policy = Make(name, space);
    std::mt19937 random(7);
    for (const int capacity : {4, 10, 60, 111}) {
      SmallCache cache(space, policy.get(), capacity);
      for (int step = 0; step < 60; ++step) {
        for (int l = 0; l < space.layers; ++l) {
          if (step % 3 == 0) {
            std::vector<float> probability(space.experts_per_layer, 0.01F);
            for (const int e : SkewedExperts(random, 37, 4)) probability[e] = 0.9F;
            policy->OnPredicted((l + 1) % space.layers, probability);
          }
          cache.Visit(l, SkewedExperts(random, 37, 4));  // requires a valid victim
          CHECK(cache.size() <= capacity);
        }
      }
      const std::vector<uint8_t> none(space.size(), 0);
      CHECK(policy->Victim(0, 5, none) == -1);
      std::vector<uint8_t> one = none;
      for (int i = 0; i < space.size(); ++i) {
        if (cache.resident()[i] == 0) continue;
        one[i] = 1;
        CHECK(policy->Victim(2, 5, one) == i);
        break;
      }
      for (int i = 0; i < space.size(); ++i) {
        if (cache.resident()[i] != 0) policy->OnEvict(i);
      }
    }
  }
}

TEST_CASE("LRU evicts by last use, as a list kept by hand does", "[policy]") {
  const ExpertSpace space{2, 12};
  const std::unique_ptr<CachePolicy> policy = Make("lru", space);
  SmallCache cache(space, policy.get(), 9);
  std::mt19937 random(1);
  std::map<int, int> last_use;  // of residents
  int now = 0;
  for (int step = 0; step < 200; ++step) {
    for (int l = 0; l < space.layers; ++l) {
      const std::set<int> experts = SkewedExperts(random, 12, 3);
      ++now;
      std::vector<int> expected, missing;
      for (const int e : experts) {
        const int place = space.place({l, e});
        if (last_use.contains(place)) {
          last_use[place] = now;
        } else {
          missing.push_back(place);
        }
      }
      for (const int place : missing) {
        if (last_use.size() == 9) {
          int oldest = -1;
          for (const auto& [candidate, used] : last_use) {
            if (used != now && (oldest < 0 || used < last_use[oldest])) oldest = candidate;
          }
          expected.push_back(oldest);
          last_use.erase(oldest);
        }
        last_use[place] = now;
      }
      cache.Visit(l, experts);
      CHECK(cache.TakeEvicted() == expected);
    }
  }
}

TEST_CASE("LFU evicts by faded counts, as doubles kept by hand say", "[policy]") {
  const ExpertSpace space{2, 12};
  LfuOptions options;
  options.half_life_tokens = 5;
  const std::unique_ptr<CachePolicy> policy = MakeLfuPolicy(space, {}, options);
  SmallCache cache(space, policy.get(), 9);
  std::mt19937 random(2);
  std::vector<double> count(space.size(), 0);
  for (int step = 0; step < 600; ++step) {  // long enough for the weights to be rescaled
    const int tokens = step % 7 == 0 ? 3 : 1;
    for (int l = 0; l < space.layers; ++l) {
      const std::set<int> experts = SkewedExperts(random, 12, 3);
      std::vector<int> counts;
      std::set<int> pinned;
      for (const int e : experts) {
        counts.push_back(1 + (e + step) % tokens);
        pinned.insert(space.place({l, e}));
        count[space.place({l, e})] += counts.back();
      }
      const std::vector<uint8_t> before = cache.resident();
      cache.Visit(l, experts, tokens, counts);
      for (const int victim : cache.TakeEvicted()) {
        for (int other = 0; other < space.size(); ++other) {
          if (before[other] != 0 && cache.resident()[other] != 0 && !pinned.contains(other)) {
            CHECK(count[victim] <= count[other] * (1 + 1e-4));
          }
        }
      }
    }
    for (double& c : count) c *= std::exp2(-tokens / 5.0);
  }
}

TEST_CASE("Least-stale keeps what the step is about to reach, where LRU evicts it", "[policy]") {
  const ExpertSpace space{4, 4};
  for (const std::string_view name : {"lru", "least-stale"}) {
    const std::unique_ptr<CachePolicy> policy = Make(name, space);
    SmallCache cache(space, policy.get(), 8);
    for (int l = 0; l < 4; ++l) cache.Visit(l, {0, 1});
    cache.Visit(0, {0, 2});  // one miss
    // Layer 1 comes next; expert 1 of layer 0 was passed by.
    CHECK(cache.TakeEvicted() == std::vector<int>{space.place({0, 1})});
    cache.Visit(1, {2, 3});
    const std::vector<int> evicted = cache.TakeEvicted();
    if (name == "lru") {
      // Its own two of the step before, and then (a third miss) layer 2's, used next.
      CHECK(evicted == std::vector<int>{space.place({1, 0}), space.place({1, 1})});
      cache.Visit(2, {0, 1, 3});
      CHECK(cache.TakeEvicted() == std::vector<int>{space.place({3, 0})});
    } else {
      CHECK(evicted == std::vector<int>{space.place({1, 0}), space.place({1, 1})});
      cache.Visit(2, {0, 1, 3});
      // Nobody is stale any more: layer 1 comes last.
      CHECK(cache.TakeEvicted() == std::vector<int>{space.place({1, 2})});
    }
  }
}

TEST_CASE("Look-ahead evicts the furthest predicted use, and first what nobody predicts",
          "[policy]") {
  const ExpertSpace space{3, 4};
  const std::unique_ptr<CachePolicy> policy = Make("look-ahead", space);
  SmallCache cache(space, policy.get(), 6);
  for (int l = 0; l < 3; ++l) cache.Visit(l, {0, 1});
  policy->OnPredicted(0, std::vector<float>{1, 1, 0, 0});
  policy->OnPredicted(1, std::vector<float>{0.9F, 0.1F, 0, 0});
  policy->OnPredicted(2, std::vector<float>{1, 1, 0, 0});
  std::vector<uint8_t> evictable = cache.resident();
  const auto next = [&](int layer) {
    const int victim = policy->Victim(layer, 11, evictable);
    evictable[victim] = 0;
    return victim;
  };
  // At layer 0: its own experts come last, layer 1's first.
  CHECK(next(0) == space.place({1, 1}));  // not predicted
  CHECK(next(0) == space.place({0, 0}));
  CHECK(next(0) == space.place({0, 1}));
  CHECK(next(0) == space.place({2, 0}));
  CHECK(next(0) == space.place({2, 1}));
  CHECK(next(0) == space.place({1, 0}));
  CHECK(policy->Prefers(0, space.place({1, 3}), 0.8F, space.place({2, 0})));
  CHECK_FALSE(policy->Prefers(0, space.place({2, 3}), 0.8F, space.place({1, 0})));
  CHECK_FALSE(policy->Prefers(0, space.place({1, 3}), 0.2F, space.place({1, 1})));
}

TEST_CASE("LRU falls off a cliff on scans larger than the cache; next-use does not", "[policy]") {
  const ExpertSpace space{6, 8};
  for (const int capacity : {12, 24, 36, 40}) {
    const auto lru = Make("lru", space);
    CHECK(ScanHits(lru.get(), space, capacity, 3, 10) == 0);
    // Belady on a scan of n with room for c, when the m experts of the layer at work must be
    // there together: c - m others stay from one round to the next, of n - m.
    const auto next_use = Make("next-use", space);
    const int hits = ScanHits(next_use.get(), space, capacity, 3, 10);
    CHECK(hits >= 10 * (capacity - space.experts_per_layer));
  }
}

}  // namespace sluice
