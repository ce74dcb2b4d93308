// The guard on made-up step costs: its time is what it is told.
#include "engine/experts/live_guard.h"

#include <cmath>
#include <functional>
#include <random>
#include <string>

#include "tests/support/catch.h"

namespace sluice {
namespace {

enum Kind { kDecode, kPrefill };

class World {
 public:
  // cost(on): seconds per decoded token; noise: standard deviation of its logarithm.
  explicit World(double noise, uint32_t seed = 1) : noise_(noise), random_(seed) {}

  void Run(LiveGuard* guard, int steps, const std::function<double(bool)>& cost) {
    for (int i = 0; i < steps; ++i) {
      const bool on = guard->on();
      (on ? steps_on : steps_off) += 1;
      guard->OnStep(kDecode, 1, Noisy(cost(on)));
    }
  }
  double Noisy(double seconds) {
    // One step in fifty is held up by something else.
    const double held_up = std::uniform_int_distribution<int>(0, 49)(random_) == 0 ? 8 : 1;
    return seconds * held_up * std::exp(noise_ * std::normal_distribution<double>()(random_));
  }

  int steps_on = 0;
  int steps_off = 0;

 private:
  double noise_;
  std::mt19937 random_;
};

double WorseOn(bool on) { return on ? 0.012 : 0.010; }
double BetterOn(bool on) { return on ? 0.010 : 0.013; }

}  // namespace

TEST_CASE("The guard finds the cheaper setting under noise, from either side", "[experts]") {
  for (const bool start : {false, true}) {
    for (uint32_t seed = 1; seed <= 20; ++seed) {
      INFO(start << " " << seed);
      World world(0.15, seed);
      LiveGuard better("prefetch", {}, start);
      world.Run(&better, 3000, BetterOn);
      CHECK(better.decided());
      CHECK(std::abs(better.gain() - 1.3) < 0.2);
      CHECK(better.decisions() == (start ? 0 : 1));
      LiveGuard worse("prefetch", {}, start);
      world.Run(&worse, 3000, WorseOn);
      CHECK(!worse.decided());
      CHECK(worse.decisions() == (start ? 1 : 0));
    }
  }
}

TEST_CASE("The worse setting gets a few percent of the steps", "[experts]") {
  World world(0.1);
  LiveGuard guard("prefetch", {}, true);
  world.Run(&guard, 20000, WorseOn);
  CHECK(guard.trials() >= 2);  // it keeps looking
  CHECK(world.steps_on < 20000 * 0.03);
}

TEST_CASE("A disastrous setting costs a few percent of the time", "[experts]") {
  World world(0.1);
  LiveGuard guard("prefetch", {}, false);
  const auto disaster = [](bool on) { return on ? 0.5 : 0.01; };
  double seconds = 0;
  for (int i = 0; i < 30000; ++i) {
    const double cost = disaster(guard.on());
    seconds += cost;
    guard.OnStep(kDecode, 1, cost);
  }
  CHECK(!guard.decided());
  CHECK(guard.trials() >= 2);
  CHECK(seconds < 30000 * 0.01 * 1.08);
}

TEST_CASE("The guard changes its mind when the world changes", "[experts]") {
  World world(0.1);
  LiveGuard guard("prefetch", {}, true);
  world.Run(&guard, 5000, BetterOn);
  REQUIRE(guard.decided());
  world.Run(&guard, 12000, WorseOn);
  CHECK(!guard.decided());
  CHECK(guard.decisions() == 1);
  CHECK(guard.decision().find("off") != std::string::npos);
  world.Run(&guard, 20000, BetterOn);
  CHECK(guard.decided());
  CHECK(guard.decisions() == 2);
}

TEST_CASE("Steps that became much dearer are a reason to look again at once", "[experts]") {
  World world(0.1);
  LiveGuard guard("prefetch", {}, true);
  world.Run(&guard, 8000, BetterOn);
  REQUIRE(guard.decided());
  const uint64_t trials = guard.trials();
  world.Run(&guard, 400, [](bool on) { return on ? 0.03 : 0.013; });
  CHECK(guard.trials() > trials);
  CHECK(!guard.decided());
}

TEST_CASE("Settings that cost the same do not alternate", "[experts]") {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    World world(0.3, seed);
    LiveGuard guard("prefetch", {}, true);
    world.Run(&guard, 30000, [](bool) { return 0.01; });
    CHECK(guard.decisions() <= 1);
  }
}

TEST_CASE("A world that keeps turning round is not followed at every turn", "[experts]") {
  World world(0.05);
  LiveGuard guard("prefetch", {}, true);
  for (int turn = 0; turn < 100; ++turn) world.Run(&guard, 150, turn % 2 ? WorseOn : BetterOn);
  CHECK(guard.decisions() <= 12);
}

TEST_CASE("Prefill and decode are compared with their like", "[experts]") {
  // The mechanism does nothing, but prompts happen to come in its windows.
  World world(0.02);
  LiveGuard guard("prefetch", {}, true);
  for (int i = 0; i < 4000; ++i) {
    const bool prompt = guard.on() ? i % 2 == 0 : i % 7 == 0;
    if (prompt) {
      guard.OnStep(kPrefill, 512, 512 * world.Noisy(0.001));
    } else {
      guard.OnStep(kDecode, 1, world.Noisy(0.02));
    }
  }
  CHECK(guard.decisions() == 0);
  CHECK(std::abs(guard.gain() - 1) < 0.03);
}

TEST_CASE("What cannot be compared changes nothing", "[experts]") {
  LiveGuard guard("prefetch", {}, true);
  int tokens = 0;
  for (int i = 0; i < 400; ++i) {
    // Never the same kind of step on both sides.
    guard.OnStep(guard.on() ? kDecode : kPrefill, 1 + tokens++ % 4, 0.01);
  }
  CHECK(guard.trials() >= 1);
  CHECK(guard.decided());
  CHECK(guard.gain() == 0);
  CHECK(guard.decision().find("could not be compared") != std::string::npos);
}

}  // namespace sluice
