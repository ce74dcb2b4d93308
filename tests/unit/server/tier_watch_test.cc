#include "server/commands/tier_watch.h"

#include <cerrno>
#include <cstdio>
#include <limits>
#include <string>

#include "tests/support/catch.h"
#include "tests/support/manual_clock.h"
#include "tests/unit/server/fakes.h"

namespace sluice::test {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

struct Watched {
  explicit Watched(std::optional<MemoryPressurePolicy> policy)
      : file(std::tmpfile()),
        log(LogLevel::kInfo, LogFormat::kText, file),
        watch(&engine, std::move(policy), log) {
    tiers.budget_bytes = 4096 * kMiB;
    tiers.least_budget_bytes = 1024 * kMiB;
    tiers.full_budget_bytes = 8192 * kMiB;
    tiers.links = {{}};
    tiers.links[0].name = "disk";
    tiers.links[0].method = "threads, direct";
    engine.SetTiers(tiers);
    signals.machine_bytes = 16384 * kMiB;
    signals.machine_available_bytes = signals.available_bytes = 8192 * kMiB;
    signals.limit_bytes = std::numeric_limits<uint64_t>::max();
  }
  ~Watched() { std::fclose(file); }

  void Tick(double stall_seconds = 0) {
    clock.Advance(1);
    signals.group_stall_seconds += stall_seconds;
    engine.SetTiers(tiers);
    watch.Tick(clock.Now(), [this] { return ++reads, signals; });
  }

  // How often a text is in the log.
  int Logged(const std::string& text) {
    std::string all;
    std::rewind(file);
    for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) all += static_cast<char>(c);
    int count = 0;
    for (size_t at = all.find(text); at != std::string::npos; at = all.find(text, at + 1)) ++count;
    return count;
  }

  std::FILE* const file;
  Logger log;
  FakeEngine engine;
  TierWatch watch;
  ExpertTierStats tiers;
  MemorySignals signals;
  ManualClock clock;
  int reads = 0;
};

TEST_CASE("A pack that was truncated or replaced is logged once", "[server][tiers]") {
  Watched w(std::nullopt);
  w.Tick();
  CHECK(w.Logged("pack") == 0);
  w.tiers.links[0].pack_truncated = true;
  w.Tick();
  w.Tick();
  CHECK(w.Logged("truncated under the server") == 1);
  CHECK(w.Logged("the old one is served on") == 0);
  w.tiers.links[0].pack_replaced = true;
  w.Tick();
  w.Tick();
  CHECK(w.Logged("the old one is served on") == 1);
  CHECK(w.Logged("truncated under the server") == 1);
  CHECK(w.reads == 0);
}

TEST_CASE("A mechanism that is switched off or on is logged once, with what was measured",
          "[server][tiers]") {
  Watched w(std::nullopt);
  w.tiers.guards.push_back({"prefetch", true, 0, 0, 0, "no trial yet"});
  w.Tick();
  CHECK(w.Logged("prefetch") == 0);
  w.tiers.guards[0] = {"prefetch", false, 0.75, 1, 40, "prefetch is switched off: 0.75x"};
  w.Tick();
  w.Tick();
  CHECK(w.Logged("does not pay and is off") == 1);
  CHECK(w.Logged("mechanism=prefetch cost_without_over_with=0.75 outcome=\"prefetch is switched "
                 "off: 0.75x\"") == 1);
  w.tiers.guards[0] = {"prefetch", true, 1.5, 2, 80, "prefetch is switched on: 1.5x"};
  w.Tick();
  w.Tick();
  CHECK(w.Logged("pays again and is on") == 1);
  w.watch.LogSummary();
  CHECK(w.Logged("what a mechanism was worth") == 1);
}

TEST_CASE("A trace of the traffic that is full or cannot be written is logged once",
          "[server][tiers]") {
  Watched w(std::nullopt);
  TraceWriter::Status status;
  w.watch.WatchTrace("day.trace", [&status] { return status; });
  w.Tick();
  CHECK(w.Logged("day.trace") == 0);
  status.full = true;
  status.bytes = 1000;
  w.Tick();
  w.Tick();
  CHECK(w.Logged("has reached trace_limit") == 1);
  status.error = ENOSPC;
  w.Tick();
  w.Tick();
  CHECK(w.Logged("cannot be written") == 1);
  w.watch.LogSummary();
  CHECK(w.Logged("trace=day.trace steps=0 lost_steps=0 bytes=1000") == 1);
}

TEST_CASE("The log says how experts are read, and at the end what came of it", "[server][tiers]") {
  Watched w(std::nullopt);
  w.watch.LogStart();
  CHECK(w.Logged("disk=\"threads, direct\" pressure=off") == 1);
  w.tiers.layers.resize(2);
  w.tiers.layers[0].hits = 30;
  w.tiers.layers[1].misses = 10;
  w.tiers.layers[1].bytes_read = 5000;
  w.tiers.layers[1].stall_seconds = 0.5;
  w.engine.SetTiers(w.tiers);
  w.watch.LogSummary();
  CHECK(w.Logged("demands=40 hit_rate=0.75 read_bytes=5000 stall_seconds=0.5") == 1);
}

TEST_CASE("Pressure lowers the engine's budget, one change at a time", "[server][tiers]") {
  Watched w(MemoryPressurePolicy(true));
  std::vector<uint64_t> asked;
  std::function<void(Result<>)> done;
  w.engine.on_budget = [&](uint64_t bytes, std::function<void(Result<>)> finish) {
    asked.push_back(bytes);
    done = std::move(finish);
  };
  // However long the engine takes, it is asked once.
  for (int i = 0; i < 20; ++i) w.Tick(0.5);
  REQUIRE(asked.size() == 1);
  CHECK(asked[0] == (4096 - 3072 / 8) * kMiB);
  CHECK(w.Logged("the memory budget was lowered") == 0);
  w.tiers.budget_bytes = asked[0];
  done({});
  w.Tick(0.5);
  CHECK(w.Logged("the memory budget was lowered reason=\"memory pressure") == 1);
  for (int i = 0; i < 20 && asked.size() < 2; ++i) w.Tick(0.5);
  REQUIRE(asked.size() == 2);
  done(InvalidArgument("it cannot be"));
  w.Tick(0.5);
  CHECK(w.Logged("it cannot be") == 1);
}

TEST_CASE("A model without tiers is left alone", "[server][tiers]") {
  Logger log(LogLevel::kOff, LogFormat::kText);
  FakeEngine engine;
  engine.on_budget = [](uint64_t, const std::function<void(Result<>)>&) { FAIL("nobody asked"); };
  TierWatch watch(&engine, MemoryPressurePolicy(true), log);
  int reads = 0;
  ManualClock clock;
  for (int i = 0; i < 5; ++i) {
    clock.Advance(1);
    watch.Tick(clock.Now(), [&] { return ++reads, MemorySignals(); });
  }
  watch.LogStart();
  watch.LogSummary();
  CHECK(reads == 0);
}

}  // namespace
}  // namespace sluice::test
