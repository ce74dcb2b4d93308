// Accounts share steps by what they were served; preempted sequences come back to stay.
#include <map>
#include <random>

#include "engine/scheduler/scheduler.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

SchedulerOptions Accounts(std::vector<double> weights) {
  SchedulerOptions o;
  o.kv_blocks = 400;
  o.block_tokens = 4;
  o.max_running = 8;
  o.max_batch_tokens = 32;
  o.prefill_chunk = 16;
  o.account_weights = std::move(weights);
  return o;
}

SequenceSpec Spec(SequenceId id, int account, int prompt, int max_tokens) {
  SequenceSpec spec;
  spec.id = id;
  spec.account = account;
  spec.prompt.assign(static_cast<size_t>(prompt), 7);
  spec.max_tokens = max_tokens;
  spec.arrival = TimePoint(std::chrono::milliseconds(id));
  return spec;
}

// Runs a step; tokens of each account are added to `served`.
void Step(Scheduler* s, std::map<int, int>* served = nullptr) {
  const Batch& batch = s->Schedule();
  for (const ScheduledChunk& chunk : batch.chunks) {
    if (served == nullptr) break;
    (*served)[s->Find(chunk.id)->spec.account] += static_cast<int>(chunk.tokens.size());
  }
  if (batch.chunks.empty()) return;
  std::vector<ChunkResult> results(batch.chunks.size());
  for (ChunkResult& result : results) result.token = 1;
  std::vector<SequenceEnd> ends;
  s->Commit(results, &ends);
  REQUIRE(s->CheckInvariants() == "");
}

TEST_CASE("A single prompt goes before the hundred that another account queued",
          "[scheduler][fairness]") {
  Scheduler s(Accounts({1, 1}));
  for (SequenceId id = 1; id <= 100; ++id) s.Add(Spec(id, 0, 60, 2));
  for (int i = 0; i < 10; ++i) Step(&s);
  s.Add(Spec(200, 1, 16, 3));
  // In the very next step, its whole prompt.
  Step(&s);
  REQUIRE(s.Find(200) != nullptr);
  CHECK(s.Find(200)->generated() == 1);
  Step(&s);
  Step(&s);
  CHECK(s.Find(200) == nullptr);
}

TEST_CASE("All places taken by one account: another gets one at once", "[scheduler][fairness]") {
  Scheduler s(Accounts({1, 1}));
  for (SequenceId id = 1; id <= 12; ++id) s.Add(Spec(id, 0, 4, 50));
  for (int i = 0; i < 6; ++i) Step(&s);
  REQUIRE(s.running() == 8);
  s.Add(Spec(200, 1, 8, 50));
  const Batch& batch = s.Schedule();
  CHECK(batch.preempted == std::vector<SequenceId>{8});  // the last in rank
  CHECK(s.Find(200)->state == SequenceState::kRunning);
  std::vector<ChunkResult> results(batch.chunks.size());
  for (ChunkResult& result : results) result.token = 1;
  std::vector<SequenceEnd> ends;
  s.Commit(results, &ends);
  CHECK(s.CheckInvariants() == "");
  // Its share is half of the places, and no more than that is taken from the other.
  for (SequenceId id = 201; id <= 210; ++id) s.Add(Spec(id, 1, 4, 50));
  for (int i = 0; i < 20; ++i) Step(&s);
  int theirs = 0;
  for (SequenceId id = 200; id <= 210; ++id) {
    const Sequence* sequence = s.Find(id);
    theirs += sequence != nullptr && sequence->state == SequenceState::kRunning;
  }
  CHECK(theirs == 4);
  while (!s.empty()) Step(&s);
}

TEST_CASE("Blocks held by one account are given up for another's prompt, or none is preempted",
          "[scheduler][fairness]") {
  SchedulerOptions options = Accounts({1, 1});
  options.kv_blocks = 40;
  Scheduler s(options);
  for (SequenceId id = 1; id <= 4; ++id) s.Add(Spec(id, 0, 30, 10));  // eight blocks each, and more
  for (int i = 0; i < 8; ++i) Step(&s);
  REQUIRE(s.running() == 4);
  SECTION("it fits when one gives way") {
    s.Add(Spec(200, 1, 20, 4));
    Step(&s);
    CHECK(s.Find(200)->state == SequenceState::kRunning);
    CHECK(s.Find(4)->state == SequenceState::kPreempted);
    CHECK(s.Find(3)->state == SequenceState::kRunning);
  }
  SECTION("it does not fit beside the one that the other may keep") {
    s.Add(Spec(200, 1, 130, 4));
    Step(&s);
    CHECK(s.running() == 4);
  }
  while (!s.empty()) Step(&s);
  CHECK(s.pool().used() == 0);
}

TEST_CASE("Accounts that always have prompts get tokens by their weights",
          "[scheduler][fairness]") {
  Scheduler s(Accounts({1, 3}));
  SequenceId next = 1;
  std::map<int, int> served;
  // The heavier one's prompts are shorter: tokens count, not requests.
  while (next <= 300) s.Add(Spec(next++, 0, 40, 2));
  while (next <= 1400) s.Add(Spec(next++, 1, 10, 2));
  for (int i = 0; i < 300; ++i) Step(&s, &served);
  const double ratio = static_cast<double>(served[1]) / served[0];
  CHECK(ratio > 2.7);
  CHECK(ratio < 3.3);
}

TEST_CASE("An account that was away has saved nothing", "[scheduler][fairness]") {
  Scheduler s(Accounts({1, 1}));
  SequenceId next = 1;
  const auto fill = [&](int account) { s.Add(Spec(next++, account, 30, 2)); };
  for (int i = 0; i < 100; ++i) {
    while (s.waiting() < 4) fill(0);
    Step(&s);
  }
  std::map<int, int> served;
  for (int i = 0; i < 6; ++i) fill(1);
  for (int i = 0; i < 60; ++i) {
    fill(0);
    fill(1);
    Step(&s, &served);
  }
  const double ratio = static_cast<double>(served[1]) / served[0];
  CHECK(ratio > 0.8);
  CHECK(ratio < 1.25);
}

TEST_CASE("A preempted sequence waits until all that it may generate fits, and stays",
          "[scheduler][fairness]") {
  SchedulerOptions options = Accounts({1});
  options.kv_blocks = 10;
  Scheduler s(options);
  s.Add(Spec(1, 0, 8, 20));
  s.Add(Spec(2, 0, 8, 20));
  while (s.Find(2)->preemptions == 0) Step(&s);
  // Seven blocks are promised; two sequences would need fourteen.
  while (s.Find(1) != nullptr) {
    CHECK(s.Find(2)->state == SequenceState::kPreempted);
    Step(&s);
  }
  Step(&s);
  CHECK(s.Find(2)->promised);
  s.Add(Spec(3, 0, 4, 30));  // takes what is not promised, and gives way itself
  while (s.Find(2) != nullptr) {
    CHECK(s.Find(2)->state == SequenceState::kRunning);
    Step(&s);
  }
  while (!s.empty()) Step(&s);
}

TEST_CASE("Random workloads of several accounts end, and nobody is preempted twice",
          "[scheduler][fairness]") {
  uint64_t preemptions = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    const auto below = [&random](int n) {
      return static_cast<int>(random() % static_cast<uint32_t>(n));
    };
    SchedulerOptions options;
    options.kv_blocks = 2 + below(20);
    options.block_tokens = 1 + below(5);
    options.max_running = 1 + below(8);
    options.max_batch_tokens = options.max_running + below(20);
    options.prefill_chunk = 1 + below(12);
    options.prefix_cache = below(2) == 0;
    options.account_weights = {1, 0.5 + below(4), 1};
    options.max_decode_stall_seconds = below(2) == 0 ? 0 : 0.01;
    Scheduler s(options);
    const int room = options.kv_blocks * options.block_tokens;
    SequenceId next = 1;
    int64_t most_steps = 0;
    for (int step = 0; step < 300 || !s.empty(); ++step) {
      if (step < 300 && below(3) == 0) {
        const int prompt = 1 + below(room), generate = below(room - prompt + 1);
        SequenceSpec spec = Spec(next++, below(3), prompt, generate);
        spec.prompt_rows = below(6) == 0;
        spec.priority = below(5) - 2;
        spec.ending_ids = {3};
        most_steps += (prompt + generate) * (generate + 2);
        s.Add(spec);
      }
      if (below(12) == 0) s.Cancel(1 + random() % next);
      REQUIRE(s.CheckInvariants() == "");
      const Batch& batch = s.Schedule();
      if (batch.chunks.empty()) continue;
      REQUIRE(batch.tokens <= options.max_batch_tokens);
      preemptions += batch.preempted.size();
      std::vector<ChunkResult> results(batch.chunks.size());
      for (ChunkResult& result : results) {
        result.token = below(30);
        result.failed = below(200) == 0;
      }
      std::vector<SequenceEnd> ends;
      s.Commit(results, &ends);
      s.ObserveStep(0.001 * below(20));
      REQUIRE(s.CheckInvariants() == "");
      REQUIRE(step < 300 + most_steps);
    }
    CHECK(s.pool().used() == 0);
  }
  CHECK(preemptions > 100);
}

}  // namespace
}  // namespace sluice
