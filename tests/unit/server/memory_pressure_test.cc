#include "server/system/memory_pressure.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/manual_clock.h"

namespace sluice {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// A machine of 16 GiB with half of it available, and a process that obeys the policy.
struct Machine {
  explicit Machine(bool automatic, uint64_t budget = 4096 * kMiB) : policy(automatic) {
    signals.machine_bytes = 16384 * kMiB;
    signals.machine_available_bytes = signals.available_bytes = 8192 * kMiB;
    signals.limit_bytes = kNoLimit;
    tiers.budget_bytes = budget;
    tiers.least_budget_bytes = 1024 * kMiB;
    tiers.full_budget_bytes = 6144 * kMiB;
    Fill();
    CHECK_FALSE(policy.Observe(clock.Now(), signals, tiers));
  }

  void Fill() {
    const uint64_t cache = std::min(tiers.budget_bytes, tiers.full_budget_bytes) - 512 * kMiB;
    tiers.tiers = {{"host", cache, cache}};
  }

  // Seconds of which `group` and `machine` are lost to waiting; the number of changes.
  int Run(int seconds, double group = 0, double machine = 0) {
    int changes = 0;
    for (int i = 0; i < seconds; ++i) {
      clock.Advance(1);
      signals.group_stall_seconds += group;
      signals.machine_stall_seconds += machine;
      const auto change = policy.Observe(clock.Now(), signals, tiers);
      if (!change) continue;
      ++changes;
      CHECK(change->bytes >= tiers.least_budget_bytes);
      CHECK_FALSE(change->reason.empty());
      reason = change->reason;
      if (refuse) continue;
      tiers.budget_bytes = change->bytes;
      Fill();
    }
    return changes;
  }

  uint64_t budget_mib() const { return tiers.budget_bytes / kMiB; }

  ManualClock clock;
  MemorySignals signals;
  ExpertTierStats tiers;
  MemoryPressurePolicy policy;
  std::string reason;
  bool refuse = false;
};

TEST_CASE("Without pressure the budget stays", "[server][pressure]") {
  Machine m(true);
  CHECK(m.Run(1000, 0.005, 0.005) == 0);
}

TEST_CASE("A short stall is no pressure, a lasting one lowers the budget step by step",
          "[server][pressure]") {
  Machine m(true);
  CHECK(m.Run(2, 0.5) == 0);
  CHECK(m.Run(1, 0.05) == 0);
  CHECK(m.Run(2, 0.5) == 0);
  CHECK(m.Run(1, 0.5) == 1);
  CHECK(m.budget_mib() == 4096 - (4096 - 1024) / 8);
  CHECK(m.reason.find("50%") != std::string::npos);
  // The next step waits for the effect of this one.
  CHECK(m.Run(2, 0.5) == 0);
  CHECK(m.Run(1, 0.5) == 1);
  // As long as it takes, but never below the least; then there is nothing left to give.
  m.Run(600, 0.5);
  CHECK(m.budget_mib() == 1024);
  CHECK(m.Run(100, 0.5) == 0);
}

TEST_CASE("Another group's pressure counts only when the machine is short", "[server][pressure]") {
  Machine m(true);
  CHECK(m.Run(60, 0, 0.9) == 0);
  m.signals.machine_available_bytes = m.signals.available_bytes = 1024 * kMiB;
  CHECK(m.Run(6, 0, 0.9) > 0);
  CHECK(m.budget_mib() < 4096);
}

TEST_CASE("Memory that is nearly gone is pressure without the kernel's counting",
          "[server][pressure]") {
  Machine m(true);
  m.signals.available_bytes = 200 * kMiB;
  CHECK(m.Run(4) == 1);
  CHECK(m.reason.find("200 MiB") != std::string::npos);
}

TEST_CASE("What the cache does not hold is given up before what it holds", "[server][pressure]") {
  Machine m(true, 15360 * kMiB);  // more than all experts need
  m.tiers.tiers[0].used_bytes -= 2048 * kMiB;
  CHECK(m.Run(3, 0.5) == 1);
  // All experts take 6144; 4096 of the budget are in use.
  CHECK(m.budget_mib() == 4096 - (4096 - 1024) / 8);
}

TEST_CASE("After calm the budget rises slowly to where it was", "[server][pressure]") {
  Machine m(true);
  m.Run(3, 0.5);
  REQUIRE(m.budget_mib() == 3712);
  CHECK(m.Run(29) == 0);
  CHECK(m.Run(1) == 1);
  CHECK(m.budget_mib() == 3712 + (4096 - 1024) / 16);
  CHECK(m.Run(9) == 0);
  CHECK(m.Run(1) == 1);
  CHECK(m.budget_mib() == 4096);
  CHECK(m.Run(1000) == 0);
}

TEST_CASE("The budget does not rise into memory that is not there", "[server][pressure]") {
  Machine m(true);
  m.Run(3, 0.5);
  m.signals.available_bytes = 300 * kMiB;
  CHECK(m.Run(300) == 0);
  m.signals.available_bytes = 3000 * kMiB;
  CHECK(m.Run(1) == 1);
}

TEST_CASE("A rise that brought the pressure back is tried again later and later",
          "[server][pressure]") {
  Machine m(true);
  m.Run(3, 0.5);
  // Pressure whenever the budget is above where it settled.
  const uint64_t fits = m.tiers.budget_bytes;
  std::vector<int> waits;
  int waited = 0;
  for (int i = 0; i < 4000; ++i) {
    const uint64_t before = m.tiers.budget_bytes;
    m.Run(1, m.tiers.budget_bytes > fits ? 0.5 : 0.0);
    ++waited;
    if (m.tiers.budget_bytes > before) {
      waits.push_back(waited);
      waited = 0;
    }
  }
  // Some rises follow one another, up to where it hurts.
  std::erase_if(waits, [](int wait) { return wait <= 10; });
  REQUIRE(waits.size() >= 6);
  CHECK(waits.size() < 12);
  for (size_t i = 1; i < 5; ++i) CHECK(waits[i] > 1.7 * waits[i - 1]);
  CHECK(*std::max_element(waits.begin(), waits.end()) <= 620);
}

TEST_CASE("What an operator sets is what the budget rises to", "[server][pressure]") {
  Machine m(false);
  m.Run(3, 0.5);
  m.tiers.budget_bytes = 3000 * kMiB;
  m.Fill();
  CHECK(m.Run(500) == 0);
  m.Run(3, 0.5);
  CHECK(m.budget_mib() < 3000);
  m.Run(500);
  CHECK(m.budget_mib() == 3000);
}

TEST_CASE("A refused change is not taken for an operator's", "[server][pressure]") {
  Machine m(true);
  m.Run(3, 0.5);
  m.refuse = true;
  CHECK(m.Run(3, 0.5) == 1);
  m.refuse = false;
  m.Run(600);
  CHECK(m.budget_mib() == 4096);
}

TEST_CASE("A lowered limit is heeded at once, a raised one by automatic budgets only",
          "[server][pressure]") {
  for (const bool automatic : {true, false}) {
    Machine m(automatic);
    m.signals.limit_bytes = 3200 * kMiB;
    CHECK(m.Run(1) == 1);
    CHECK(m.budget_mib() == 3000);
    CHECK(m.Run(200) == 0);
    // Lower than the least: the least is what remains.
    m.signals.limit_bytes = 512 * kMiB;
    CHECK(m.Run(1) == 1);
    CHECK(m.budget_mib() == 1024);
    m.signals.limit_bytes = kNoLimit;
    m.signals.available_bytes = 8192 * kMiB;
    m.Run(1000);
    CHECK(m.budget_mib() == (automatic ? 15 * 1024 : 4096));
  }
}

}  // namespace
}  // namespace sluice
