// Expert stores for tests of what sits above them.
//
// FakeStore keeps experts in memory. Reads start in order of urgency, `depth` at a time, and each
// takes `seconds_per_read` of a manual clock, one after the other; Collect(wait) moves the clock to
// the next landing. With `held`, nothing lands but by Land, in the test's order.
//
// FaultyStore passes reads on to another store and spoils some reports: an expert's nth read fails,
// leaves wrong bytes behind, or is held back until Release.
//
// Threads: one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/experts/expert_store.h"
#include "tests/support/manual_clock.h"

namespace sluice {

struct FakeStoreOptions {
  int depth = 1;
  double seconds_per_read = 0;
  bool held = false;
};

class FakeStore final : public ExpertStore {
 public:
  // The bytes of a plane set of an expert; valid until the next call.
  using Contents = std::function<std::span<const std::byte>(ExpertId expert, int set)>;

  FakeStore(Contents contents, ManualClock* clock, const FakeStoreOptions& options);

  void Submit(const ExpertRead& read) override;
  void SetUrgency(uint64_t ticket, int urgency) override;
  bool Cancel(uint64_t ticket) override;
  // REQUIRES, when `wait` and held: something that Land has landed.
  void Collect(bool wait, std::vector<LandedRead>* landed) override;
  ExpertStoreStats stats() const override { return stats_; }

  // REQUIRES: submitted and not yet landed. Lands although others are more urgent.
  void Land(uint64_t ticket);
  // Tickets not yet landed: those under way, then the queue in its order.
  std::vector<uint64_t> Pending() const;
  // All reads ever submitted, as they were then.
  const std::vector<ExpertRead>& submitted() const { return submitted_; }
  // Tickets that Cancel took back.
  const std::vector<uint64_t>& cancelled() const { return cancelled_; }

 private:
  struct Flight {
    ExpertRead read;
    std::chrono::steady_clock::time_point end;
  };

  void Start();
  void Fill(const ExpertRead& read);

  const Contents contents_;
  ManualClock* const clock_;
  const FakeStoreOptions options_;
  std::map<std::pair<int, uint64_t>, ExpertRead> queue_;  // by urgency, order of Submit
  std::vector<Flight> flights_;                           // by end
  std::vector<LandedRead> landed_;
  std::vector<ExpertRead> submitted_;
  std::vector<uint64_t> cancelled_;
  std::chrono::steady_clock::time_point device_free_;
  ExpertStoreStats stats_;
};

class FaultyStore final : public ExpertStore {
 public:
  // `store` must outlive this.
  explicit FaultyStore(ExpertStore* store) : store_(store) {}

  // Reads number `nth` (from 0, counted per expert from the first Submit) and the `times - 1`
  // after it are reported with `error`; their bytes did arrive.
  void Fail(ExpertId expert, int nth, int times, Error error);
  // The same, with the wrong bytes in memory and kCorrupt.
  void WrongBytes(ExpertId expert, int nth, int times);
  // The nth read is reported only after Release, however often Collect is called.
  void Stall(ExpertId expert, int nth);
  void Release();

  void Submit(const ExpertRead& read) override;
  void SetUrgency(uint64_t ticket, int urgency) override;
  bool Cancel(uint64_t ticket) override;
  // REQUIRES, when `wait`: something that is not stalled.
  void Collect(bool wait, std::vector<LandedRead>* landed) override;
  ExpertStoreStats stats() const override;

 private:
  struct Fault {
    ExpertId expert;
    int begin, end;  // reads of the expert
    bool stall = false;
    bool wrong_bytes = false;
    Error error;
  };
  struct Submitted {
    ExpertRead read;
    const Fault* fault = nullptr;
  };

  ExpertStore* const store_;
  std::vector<std::unique_ptr<Fault>> faults_;
  std::map<std::pair<int, int>, int> reads_;  // by layer and index
  std::map<uint64_t, Submitted> pending_;     // by ticket
  std::vector<LandedRead> stalled_;
  std::vector<LandedRead> released_;
  uint64_t failures_ = 0;
};

}  // namespace sluice
