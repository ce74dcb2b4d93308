// The optimum on a window of a running engine's demands.
#include "engine/experts/live_optimum.h"

#include <vector>

#include "tests/support/catch.h"

namespace sluice {
namespace {

// One layer of 4 experts of 100 bytes.
struct Engine {
  explicit Engine(size_t window_demands) : optimum({1, 4}, {100}, window_demands) {}

  void Step(std::vector<ExpertUse> uses) {
    optimum.OnLayer(0, {}, uses);
    optimum.EndStep();
  }
  LiveOptimum::Rates After(uint64_t capacity_bytes) {
    optimum.Latest(capacity_bytes);
    return optimum.Wait();
  }

  LiveOptimum optimum;
};

ExpertUse Use(int expert, bool hit) { return {expert, 1, 1.0F, hit}; }

TEST_CASE("Nothing is known of the optimum before the first step", "[optimum]") {
  Engine engine(100);
  const LiveOptimum::Rates rates = engine.After(200);
  CHECK(rates.optimal < 0);
  CHECK(rates.hits < 0);
}

TEST_CASE("The optimum hits where LRU misses, and real hits are counted on the same window",
          "[optimum]") {
  Engine engine(100);
  // Three experts in turns and room for two: LRU would miss every time, the best choice keeps one
  // for good and hits it and, in every other round, a second one.
  for (int i = 0; i < 60; ++i) engine.Step({Use(i % 3, i % 6 == 0)});
  const LiveOptimum::Rates rates = engine.After(200);
  CHECK(rates.demands == 60);
  CHECK(rates.hits == Approx(1.0 / 6));
  CHECK(rates.optimal == Approx(0.5).epsilon(0.05));
  // All of them fit: what the window asks for first counts as being there, too.
  CHECK(engine.After(400).optimal == 1);
  CHECK(engine.After(0).optimal == 0);
}

TEST_CASE("Only the last demands are looked at", "[optimum]") {
  Engine engine(30);
  for (int i = 0; i < 500; ++i) engine.Step({Use(i % 4, false)});
  for (int i = 0; i < 30; ++i) engine.Step({Use(1, true)});
  const LiveOptimum::Rates rates = engine.After(100);
  CHECK(rates.demands == 30);
  CHECK(rates.hits == 1);
  CHECK(rates.optimal == 1);
}

TEST_CASE("A step longer than the window is looked at alone", "[optimum]") {
  Engine engine(2);
  engine.Step({Use(0, false)});
  engine.Step({Use(0, true), Use(1, true), Use(2, false)});
  CHECK(engine.After(400).demands == 3);
}

}  // namespace
}  // namespace sluice
