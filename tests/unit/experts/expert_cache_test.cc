#include "engine/experts/expert_cache.h"

#include <random>

#include "tests/support/catch.h"
#include "tests/unit/experts/tier_fixture.h"

namespace sluice {
namespace {

constexpr ExpertSpace kSpace = {2, 4};

struct Bench {
  explicit Bench(size_t limit_bytes, bool mixed = false, std::string_view policy_name = "lru",
                 int expert_bits = 0, ExpertSpace space = kSpace)
      : experts(space, mixed),
        owned(std::make_unique<CheckedPolicy>(policy_name, space)),
        policy(owned.get()),
        cache(space, experts.pointers(), expert_bits, TinySlab(limit_bytes), std::move(owned)) {}

  // Bytes of the kind of expert that is not mixed.
  static size_t OneExpert() {
    const TinyExperts one({1, 1});
    size_t bytes = 0;
    for (const PlaneSet& set : one.pack(0)->sets) bytes += set.bytes;
    return bytes;
  }
  // Writes what a read of the held sets would have.
  void Fill(int place) {
    for (int set = cache.resident_sets(place); set < cache.held_sets(place); ++set) {
      const auto bytes = experts.Contents(cache.space().id(place), set);
      std::memcpy(cache.set_address(place, set), bytes.data(), bytes.size());
    }
    cache.Land(place);
  }
  bool Load(int place, CacheClaim claim = CacheClaim::kDemand) {
    if (!cache.Claim(place, cache.whole_sets(place), claim, 0)) return false;
    Fill(place);
    return true;
  }
  std::vector<int> Inside() const {
    std::vector<int> places;
    for (int place = 0; place < cache.space().size(); ++place) {
      if (cache.held_sets(place) > 0) places.push_back(place);
    }
    return places;
  }

  TinyExperts experts;
  std::unique_ptr<CheckedPolicy> owned;
  CheckedPolicy* policy;
  ExpertCache cache;
};

using Places = std::vector<int>;

TEST_CASE("A claimed expert is being read until it lands, and then it is whole", "[expert_cache]") {
  Bench bench(8 * Bench::OneExpert());
  ExpertCache& cache = bench.cache;
  CHECK(cache.expert_count() == 8);
  CHECK(cache.whole_sets(3) == 3);
  CHECK_FALSE(cache.whole(3));
  REQUIRE(cache.Claim(3, 3, CacheClaim::kDemand, 0));
  CHECK(cache.reading(3));
  CHECK(cache.resident_sets(3) == 0);
  CHECK(cache.slab().used() == Bench::OneExpert());
  bench.Fill(3);
  CHECK(cache.whole(3));
  CHECK_FALSE(cache.reading(3));
  CHECK(cache.whole_count() == 1);
  CHECK(bench.experts.Right(cache.weights(3), 3, 3));
}

TEST_CASE("An abandoned claim leaves nothing behind", "[expert_cache]") {
  Bench bench(8 * Bench::OneExpert());
  REQUIRE(bench.cache.Claim(3, 3, CacheClaim::kDemand, 0));
  bench.cache.Abandon(3);
  CHECK(bench.cache.slab().used() == 0);
  CHECK(bench.cache.held_sets(3) == 0);
  CHECK_FALSE(bench.policy->inside(3));
  CHECK(bench.cache.evictions() == 0);
}

TEST_CASE("A cache is complete when every expert is whole", "[expert_cache]") {
  Bench bench(8 * Bench::OneExpert());
  CHECK(bench.cache.all_bytes() == 8 * Bench::OneExpert());
  for (int place = 0; place < 8; ++place) {
    CHECK_FALSE(bench.cache.complete());
    REQUIRE(bench.Load(place, CacheClaim::kFill));
  }
  CHECK(bench.cache.complete());
  bench.cache.Evict(5, 2);
  CHECK_FALSE(bench.cache.complete());
  CHECK(bench.cache.whole_count() == 7);
}

TEST_CASE("Dense layers have no experts and count for nothing", "[expert_cache]") {
  TinyExperts experts({3, 4}, false, {1});
  auto policy = std::make_unique<CheckedPolicy>("lru", experts.space());
  const CheckedPolicy* told = policy.get();
  const ExpertCache cache(experts.space(), experts.pointers(), 0, TinySlab(4 * Bench::OneExpert()),
                          std::move(policy));
  CHECK(cache.expert_count() == 8);
  CHECK_FALSE(cache.exists(4));
  CHECK(cache.exists(8));
  CHECK(told->capacity == 4);
  CHECK(cache.LargestLayer(3) == 3 * Bench::OneExpert());
  CHECK(cache.LargestLayer(30) == 4 * Bench::OneExpert());
}

TEST_CASE("A demand pushes out what the policy names, never what is pinned or being read",
          "[expert_cache]") {
  Bench bench(3 * Bench::OneExpert());
  ExpertCache& cache = bench.cache;
  for (const int place : {0, 1}) REQUIRE(bench.Load(place));
  REQUIRE(cache.Claim(2, 3, CacheClaim::kDemand, 0));
  cache.Pin(0);
  REQUIRE(bench.Load(3));
  CHECK(bench.Inside() == Places{0, 2, 3});
  CHECK(cache.evictions() == 1);
  cache.Pin(3);
  CHECK_FALSE(cache.Claim(4, 3, CacheClaim::kDemand, 0));
  CHECK(bench.Inside() == Places{0, 2, 3});
  cache.Unpin(0);
  REQUIRE(bench.Load(4));
  CHECK(bench.Inside() == Places{2, 3, 4});
  bench.Fill(2);
  CHECK(bench.experts.Right(cache.weights(3), 3, 3));
}

TEST_CASE("A prediction pushes out only what the policy likes less, a fill nothing",
          "[expert_cache]") {
  Bench bench(2 * Bench::OneExpert());
  for (const int place : {0, 1}) REQUIRE(bench.Load(place, CacheClaim::kFill));
  CHECK_FALSE(bench.Load(2, CacheClaim::kFill));
  bench.policy->prefers_all = false;
  CHECK_FALSE(bench.Load(2, CacheClaim::kPredicted));
  CHECK(bench.Inside() == Places{0, 1});
  CHECK(bench.cache.slab().used() == 2 * Bench::OneExpert());
  bench.policy->prefers_all = true;
  CHECK(bench.Load(2, CacheClaim::kPredicted));
  CHECK(bench.Inside().size() == 2);
  CHECK(bench.cache.whole(2));
}

TEST_CASE("High planes can go and come back while the low ones stay where they are",
          "[expert_cache]") {
  Bench bench(8 * Bench::OneExpert());
  ExpertCache& cache = bench.cache;
  REQUIRE(bench.Load(6));
  const std::byte* const low = cache.set_address(6, 0);
  for (const int sets : {2, 1}) {
    cache.Evict(6, sets);
    CHECK(cache.resident_sets(6) == sets);
    CHECK(cache.held_sets(6) == sets);
    CHECK(cache.slab().used() == cache.bytes(6, 0, sets));
    CHECK(bench.experts.Right(cache.weights(6), 6, sets));
    CHECK(bench.policy->inside(6));
  }
  REQUIRE(cache.Claim(6, 3, CacheClaim::kDemand, 0));
  CHECK(cache.reading(6));
  CHECK(cache.resident_sets(6) == 1);
  CHECK(bench.experts.Right(cache.weights(6), 6, 1));  // usable while the rest comes
  SECTION("landing") {
    bench.Fill(6);
    CHECK(bench.experts.Right(cache.weights(6), 6, 3));
  }
  SECTION("abandoned") {
    cache.Abandon(6);
    CHECK(cache.held_sets(6) == 1);
    CHECK(cache.slab().used() == cache.bytes(6, 0, 1));
    CHECK(bench.policy->inside(6));
    CHECK(bench.experts.Right(cache.weights(6), 6, 1));
  }
  CHECK(cache.set_address(6, 0) == low);
}

TEST_CASE("Beyond their share, the high planes of the coldest experts go before any expert",
          "[expert_cache]") {
  Bench probe(0);
  const size_t low = probe.cache.bytes(4, 0, 1);
  Bench bench(4 * Bench::OneExpert() + low);
  ExpertCache& cache = bench.cache;
  for (const int place : {0, 1, 2, 3}) REQUIRE(bench.Load(place));
  REQUIRE(cache.low_sets(0) == 1);
  REQUIRE(cache.Claim(4, 1, CacheClaim::kDemand, 0));
  bench.Fill(4);
  const std::vector<ExpertUse> uses = {{0, 1, 1, true}, {2, 1, 1, true}, {3, 1, 1, true}};
  bench.policy->OnLayer(0, 1, uses);  // lru: expert 1 is the coldest
  cache.SetHighShare(0);
  REQUIRE(cache.Claim(4, 2, CacheClaim::kDemand, 0));
  bench.Fill(4);
  CHECK(bench.Inside() == Places{0, 1, 2, 3, 4});
  CHECK(cache.resident_sets(1) == 2);
  CHECK(bench.experts.Right(cache.weights(1), 1, 2));
  REQUIRE(cache.Claim(4, 3, CacheClaim::kDemand, 0));
  bench.Fill(4);
  CHECK(cache.resident_sets(1) == 1);
  CHECK(cache.resident_sets(0) + cache.resident_sets(2) + cache.resident_sets(3) == 9);
  // When all may be kept, experts go whole.
  cache.SetHighShare(1);
  REQUIRE(cache.Claim(5, 1, CacheClaim::kDemand, 0));
  bench.Fill(5);
  CHECK(bench.Inside() == Places{0, 2, 3, 4, 5});
}

TEST_CASE("Memory of planes that went one by one is joined for low planes", "[expert_cache]") {
  for (const bool mixed : {false, true}) {
    Bench bench((mixed ? 6 : 4) * Bench::OneExpert(), mixed);
    ExpertCache& cache = bench.cache;
    for (const int place : {0, 2, 4, 6}) REQUIRE(bench.Load(place));
    const Places before = bench.Inside();
    cache.SetHighShare(0);
    REQUIRE(cache.Claim(3, 1, CacheClaim::kDemand, 0));
    bench.Fill(3);
    Places after = before;
    after.push_back(3);
    std::sort(after.begin(), after.end());
    CHECK(bench.Inside() == after);
    for (const int place : after) {
      CHECK(bench.experts.Right(cache.weights(place), place, cache.resident_sets(place)));
    }
    CHECK(cache.slab().used() <= cache.slab().limit());
  }
}

TEST_CASE("Experts that are pinned or being read stay where they are while others are moved",
          "[expert_cache]") {
  Bench bench(4 * Bench::OneExpert());
  ExpertCache& cache = bench.cache;
  for (const int place : {0, 1, 2}) REQUIRE(bench.Load(place));
  cache.Pin(1);
  REQUIRE(cache.Claim(3, 3, CacheClaim::kDemand, 0));
  const std::byte* const pinned = cache.set_address(1, 0);
  const std::byte* const reading = cache.set_address(3, 2);
  cache.SetHighShare(0);
  for (const int place : {4, 5, 6, 7}) {
    if (cache.Claim(place, 1, CacheClaim::kDemand, 0)) bench.Fill(place);
    CHECK(cache.set_address(1, 0) == pinned);
    CHECK(cache.set_address(3, 2) == reading);
    CHECK(bench.experts.Right(cache.weights(1), 1, 3));
  }
  bench.Fill(3);
  CHECK(bench.experts.Right(cache.weights(3), 3, 3));
}

TEST_CASE("An expert that grows does not push out its own low planes", "[expert_cache]") {
  Bench bench(0);
  ExpertCache& cache = bench.cache;
  // Room for the lowest planes of two experts, or for one whole expert.
  REQUIRE(cache.SetLimit(2 * cache.bytes(0, 0, 1)));
  REQUIRE(bench.Load(0));
  cache.Evict(0, 1);
  REQUIRE(cache.Claim(1, 1, CacheClaim::kFill, 0));
  bench.Fill(1);
  cache.Pin(1);
  CHECK_FALSE(cache.Claim(0, 3, CacheClaim::kDemand, 0));
  CHECK(cache.resident_sets(0) == 1);
  CHECK(bench.experts.Right(cache.weights(0), 0, 1));
  cache.Unpin(1);
  REQUIRE(cache.Claim(0, 3, CacheClaim::kDemand, 0));
  bench.Fill(0);
  CHECK(bench.Inside() == Places{0});
}

TEST_CASE("Memory for the largest expert is enough for each of them, in any order",
          "[expert_cache]") {
  Bench bench(0, true);
  ExpertCache& cache = bench.cache;
  REQUIRE(cache.SetLimit(cache.LargestLayer(1)));
  std::mt19937 random(11);
  for (int i = 0; i < 500; ++i) {
    const int place = static_cast<int>(random() % 8);
    if (!cache.whole(place)) REQUIRE(bench.Load(place));
    CHECK(bench.experts.Right(cache.weights(place), place, cache.whole_sets(place)));
  }
}

TEST_CASE("At a lower precision, an expert is whole with fewer planes", "[expert_cache]") {
  Bench bench(1 << 16, true, "lru", 3);
  // Experts of 4, 2, 8 and 3 bits take turns.
  CHECK(bench.cache.whole_sets(0) == 2);
  CHECK(bench.cache.whole_sets(1) == 1);
  CHECK(bench.cache.whole_sets(2) == 2);
  CHECK(bench.cache.whole_sets(3) == 2);
  for (int place = 0; place < 8; ++place) REQUIRE(bench.Load(place, CacheClaim::kFill));
  CHECK(bench.cache.complete());
  CHECK(bench.cache.slab().used() == bench.cache.all_bytes());
}

TEST_CASE("A lowered limit waits for reads and pins above it; the policy says who stays",
          "[expert_cache]") {
  const size_t one = Bench::OneExpert();
  Bench bench(4 * one);
  ExpertCache& cache = bench.cache;
  for (const int place : {0, 1, 2}) REQUIRE(bench.Load(place));
  REQUIRE(cache.Claim(3, 3, CacheClaim::kDemand, 0));
  CHECK_FALSE(cache.SetLimit(3 * one));
  CHECK(cache.slab().limit() == 4 * one);
  CHECK(bench.Inside() == Places{0, 1, 2, 3});
  bench.Fill(3);
  cache.Pin(2);
  CHECK_FALSE(cache.SetLimit(2 * one));
  CHECK(bench.Inside() == Places{0, 1, 2, 3});
  // 0 is used last: 1 leaves, and 3, which lies above, moves.
  const std::vector<ExpertUse> use = {{0, 1, 1, true}};
  bench.policy->OnLayer(0, 1, use);
  CHECK(cache.SetLimit(3 * one));
  CHECK(bench.Inside() == Places{0, 2, 3});
  CHECK(bench.policy->capacity == 3);
  for (const int place : {0, 2, 3}) CHECK(bench.experts.Right(cache.weights(place), place, 3));
  cache.Unpin(2);
  CHECK(cache.SetLimit(one + one / 2));
  CHECK(bench.Inside() == Places{0});
  CHECK(bench.experts.Right(cache.weights(0), 0, 3));
  CHECK(cache.SetLimit(0));
  CHECK(bench.Inside().empty());
  CHECK(bench.policy->capacity == 0);
  CHECK_FALSE(bench.Load(0));
  CHECK(cache.SetLimit(8 * one));
  for (int place = 0; place < 8; ++place) REQUIRE(bench.Load(place, CacheClaim::kFill));
  for (int place = 0; place < 8; ++place) {
    CHECK(bench.experts.Right(cache.weights(place), place, 3));
  }
}

TEST_CASE("Whatever is done to a cache, its experts keep their bytes and its counts agree",
          "[expert_cache]") {
  constexpr ExpertSpace kLarge = {4, 8};
  for (const std::string_view name : CachePolicyNames()) {
    for (const bool mixed : {false, true}) {
      INFO(name << (mixed ? ", mixed sizes" : ""));
      Bench bench(0, mixed, name, 0, kLarge);
      ExpertCache& cache = bench.cache;
      const size_t all = cache.all_bytes();
      std::mt19937 random(7);
      cache.SetLimit(all / 2);
      int pins = 0;
      for (int i = 0; i < 4000; ++i) {
        if (i % 400 == 200) cache.SetHighShare(static_cast<double>(random() % 3) / 2);
        const int place = static_cast<int>(random() % kLarge.size());
        const int what = static_cast<int>(random() % 100);
        if (what < 50) {
          if (cache.reading(place)) {
            what % 8 == 0 ? cache.Abandon(place) : bench.Fill(place);
          } else if (!cache.whole(place)) {
            const int held = cache.held_sets(place);
            const int end =
                held + 1 + static_cast<int>(random() % (cache.whole_sets(place) - held));
            const auto claim = static_cast<CacheClaim>(random() % 3);
            const int layer = static_cast<int>(random() % kLarge.layers);
            const bool got = cache.Claim(place, end, claim, layer, 0.5f);
            REQUIRE(cache.held_sets(place) == (got ? end : held));
          }
        } else if (what < 60) {
          const bool pin = !cache.pinned(place) && pins < 5;
          pins += pin ? 1 : cache.pinned(place) ? -1 : 0;
          pin ? cache.Pin(place) : cache.Unpin(place);
        } else if (what < 75) {
          const int held = cache.held_sets(place);
          if (held > 0 && !cache.reading(place) && !cache.pinned(place)) {
            cache.Evict(place, static_cast<int>(random() % held));
          }
        } else if (what < 80) {
          const size_t before = cache.slab().limit();
          const size_t bytes = random() % (all + all / 8);
          const bool done = cache.SetLimit(bytes);
          REQUIRE(cache.slab().limit() == (done ? bytes / 64 * 64 : before));
        } else {
          std::vector<ExpertUse> uses;
          const int layer = static_cast<int>(random() % kLarge.layers);
          for (int e = 0; e < kLarge.experts_per_layer; ++e) {
            if (random() % 3 == 0) uses.push_back({e, 1, 1, cache.whole(kLarge.place({layer, e}))});
          }
          if (!uses.empty()) bench.policy->OnLayer(layer, 1, uses);
        }
        size_t used = 0;
        int whole = 0;
        for (int p = 0; p < kLarge.size(); ++p) {
          used += cache.bytes(p, 0, cache.held_sets(p));
          whole += cache.whole(p);
          REQUIRE(bench.policy->inside(p) == (cache.held_sets(p) > 0));
        }
        REQUIRE(cache.slab().used() == used);
        REQUIRE(used <= cache.slab().limit());
        REQUIRE(cache.whole_count() == whole);
        REQUIRE((cache.resident_sets(place) == 0 ||
                 bench.experts.Right(cache.weights(place), place, cache.resident_sets(place))));
      }
      CHECK(cache.evictions() > 50);
      for (int place = 0; place < kLarge.size(); ++place) {
        const int sets = cache.resident_sets(place);
        CHECK((sets == 0 || bench.experts.Right(cache.weights(place), place, sets)));
      }
    }
  }
}

}  // namespace
}  // namespace sluice
