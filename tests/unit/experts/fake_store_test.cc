// The fakes keep the contract that they stand in for.
#include "tests/support/fake_store.h"

#include "tests/support/catch.h"

namespace sluice {
namespace {

// Two plane sets of one byte, and room for the sets of eight reads.
struct Bench {
  explicit Bench(const FakeStoreOptions& options)
      : store(
            [this](ExpertId id, int set) {
              value = static_cast<std::byte>(id.layer * 100 + id.index * 10 + set);
              return std::span<const std::byte>(&value, 1);
            },
            &clock, options) {}
  ExpertRead Read(uint64_t ticket, int urgency) {
    ExpertRead read;
    read.ticket = ticket;
    read.expert = {1, static_cast<int>(ticket)};
    read.end_set = 2;
    read.destination = {&memory[ticket][0], &memory[ticket][1]};
    read.urgency = urgency;
    return read;
  }
  bool Arrived(uint64_t ticket) const {
    const auto first = static_cast<std::byte>(100 + ticket * 10);
    return memory[ticket][0] == first && memory[ticket][1] == (first | std::byte{1});
  }
  std::byte value{};
  std::byte memory[8][2] = {};
  ManualClock clock;
  FakeStore store;
};

std::vector<uint64_t> Tickets(ExpertStore* store, bool wait) {
  std::vector<LandedRead> landed;
  store->Collect(wait, &landed);
  std::vector<uint64_t> tickets;
  for (const LandedRead& l : landed) tickets.push_back(l.ticket);
  return tickets;
}

using List = std::vector<uint64_t>;

TEST_CASE("The fake store lands reads by urgency, each in its time", "[fake_store]") {
  Bench bench({.depth = 1, .seconds_per_read = 0.5});
  bench.store.Submit(bench.Read(1, kUrgencyPredicted));  // starts at once
  bench.store.Submit(bench.Read(2, kUrgencyPredicted));
  bench.store.Submit(bench.Read(4, kUrgencyPredicted));
  bench.store.Submit(bench.Read(6, kUrgencyDemand));
  bench.store.SetUrgency(4, kUrgencyDemand);
  CHECK(bench.store.Pending() == List{1, 4, 6, 2});
  CHECK(Tickets(&bench.store, false).empty());
  bench.clock.Advance(0.25);
  CHECK(Tickets(&bench.store, false).empty());
  CHECK(Tickets(&bench.store, true) == List{1});
  CHECK(bench.Arrived(1));
  CHECK_FALSE(bench.Arrived(4));
  CHECK_FALSE(bench.store.Cancel(4));  // under way
  CHECK(bench.store.Cancel(2));
  CHECK(bench.store.cancelled() == List{2});
  CHECK(Tickets(&bench.store, true) == List{4});
  CHECK(Tickets(&bench.store, true) == List{6});
  CHECK(bench.store.stats().reads == 3);
  CHECK(bench.store.stats().bytes == 6);
}

TEST_CASE("A held fake store lands what the test says", "[fake_store]") {
  Bench bench({.held = true});
  for (uint64_t t = 0; t < 4; t += 2) bench.store.Submit(bench.Read(t, kUrgencyDemand));
  bench.store.Land(2);
  CHECK(Tickets(&bench.store, true) == List{2});
  CHECK(bench.Arrived(2));
  CHECK(Tickets(&bench.store, false).empty());
  bench.store.Land(0);
  CHECK(Tickets(&bench.store, true) == List{0});
}

TEST_CASE("The faulty store spoils the reads that it is told to", "[fake_store]") {
  Bench bench({.depth = 8});
  FaultyStore faulty(&bench.store);
  std::vector<LandedRead> landed;
  SECTION("by failing them") {
    faulty.Fail({1, 2}, 1, 2, IoError("a bad sector"));
    for (int read = 0; read < 4; ++read) {
      faulty.Submit(bench.Read(2, kUrgencyDemand));
      landed.clear();
      faulty.Collect(true, &landed);
      CHECK(landed.at(0).ok == (read == 0 || read == 3));
    }
    CHECK(faulty.stats().failures == 2);
  }
  SECTION("by spoiling their bytes") {
    faulty.WrongBytes({1, 2}, 0, 1);
    faulty.Submit(bench.Read(2, kUrgencyDemand));
    faulty.Collect(true, &landed);
    CHECK_FALSE(landed.at(0).ok);
    CHECK(landed.at(0).error.code == ErrorCode::kCorrupt);
    CHECK_FALSE(bench.Arrived(2));
  }
  SECTION("by holding them back") {
    faulty.Stall({1, 2}, 0);
    faulty.Submit(bench.Read(2, kUrgencyDemand));
    faulty.Submit(bench.Read(4, kUrgencyDemand));
    CHECK(Tickets(&faulty, true) == List{4});
    CHECK(Tickets(&faulty, false).empty());
    faulty.Release();
    CHECK(Tickets(&faulty, true) == List{2});
    CHECK(bench.Arrived(2));
  }
}

}  // namespace
}  // namespace sluice
