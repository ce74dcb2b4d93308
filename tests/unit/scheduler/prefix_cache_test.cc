// The scheduler's side of the prefix cache: who begins with whose blocks.
#include <random>

#include "engine/scheduler/scheduler.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

SchedulerOptions Cached() {
  SchedulerOptions o;
  o.kv_blocks = 16;
  o.block_tokens = 4;
  o.max_running = 4;
  o.max_batch_tokens = 64;
  o.prefill_chunk = 32;
  o.prefix_cache = true;
  return o;
}

// Prompts of one `family` begin alike; `size` tokens.
SequenceSpec Spec(SequenceId id, int size, int max_tokens, int family = 0) {
  SequenceSpec spec;
  spec.id = id;
  for (int i = 0; i < size; ++i) spec.prompt.push_back(100 * family + i);
  spec.max_tokens = max_tokens;
  spec.arrival = TimePoint(std::chrono::milliseconds(id));
  return spec;
}

std::vector<SequenceEnd> Finish(Scheduler* scheduler, const Batch& batch, int32_t token = 1) {
  std::vector<ChunkResult> results(batch.chunks.size());
  for (ChunkResult& result : results) result.token = token;
  std::vector<SequenceEnd> ends;
  scheduler->Commit(results, &ends);
  REQUIRE(scheduler->CheckInvariants() == "");
  return ends;
}

void RunAll(Scheduler* scheduler) {
  while (!scheduler->empty()) Finish(scheduler, scheduler->Schedule());
}

TEST_CASE("A prompt begins with the full blocks that an earlier one left", "[scheduler][prefix]") {
  // Of 12 tokens the last block is needed for its row: two blocks are found, as for 9 to 11.
  for (const auto& [size, known] : {std::pair{12, 8}, {13, 12}, {9, 8}, {8, 4}, {4, 0}, {3, 0}}) {
    INFO(size);
    Scheduler s(Cached());
    s.Add(Spec(1, 14, 3));
    RunAll(&s);
    CHECK(s.pool().used() == 0);
    CHECK(s.pool().idle_kept() == 4);  // 14 prompt tokens and two generated ones were computed
    s.Add(Spec(2, size, 1));
    const Batch& batch = s.Schedule();
    REQUIRE(batch.chunks.size() == 1);
    CHECK(batch.chunks[0].position == known);
    CHECK(static_cast<int>(batch.chunks[0].tokens.size()) == size - known);
    CHECK(batch.chunks[0].cached_tokens == known);
    CHECK(batch.chunks[0].samples);
    Finish(&s, batch);
    CHECK(s.prefix_stats().queried_tokens == 14u + static_cast<uint64_t>(size));
    CHECK(s.prefix_stats().hit_tokens == static_cast<uint64_t>(known));
  }
}

TEST_CASE("An answer is found when the next turn repeats it", "[scheduler][prefix]") {
  Scheduler s(Cached());
  s.Add(Spec(1, 6, 7));
  RunAll(&s);  // computed 6 + 6 tokens; the last one generated was not
  SequenceSpec next = Spec(2, 6, 1);
  next.prompt.insert(next.prompt.end(), 9, 1);
  s.Add(next);
  CHECK(s.Schedule().chunks[0].position == 12);
}

TEST_CASE("Other tokens, another order or another key find nothing", "[scheduler][prefix]") {
  Scheduler s(Cached());
  s.Add(Spec(1, 13, 1));
  RunAll(&s);
  SequenceSpec spec = Spec(2, 13, 1);
  SECTION("the first token differs") { spec.prompt[0] = 77; }
  SECTION("blocks in another order") {
    std::rotate(spec.prompt.begin(), spec.prompt.begin() + 4, spec.prompt.end());
  }
  SECTION("another key") { spec.prefix_key = 9; }
  s.Add(spec);
  CHECK(s.Schedule().chunks[0].position == 0);
}

TEST_CASE("With the cache off nothing is kept", "[scheduler][prefix]") {
  SchedulerOptions options = Cached();
  options.prefix_cache = false;
  Scheduler s(options);
  s.Add(Spec(1, 13, 1));
  RunAll(&s);
  CHECK(s.pool().idle_kept() == 0);
  s.Add(Spec(2, 13, 1));
  CHECK(s.Schedule().chunks[0].position == 0);
}

TEST_CASE("Sequences that run together share blocks, and each frees them once",
          "[scheduler][prefix]") {
  Scheduler s(Cached());
  s.Add(Spec(1, 12, 8));
  Finish(&s, s.Schedule());
  s.Add(Spec(2, 12, 8));
  const Batch& batch = s.Schedule();
  REQUIRE(batch.chunks.size() == 2);
  CHECK(batch.chunks[1].position == 8);
  CHECK(batch.chunks[1].kv_blocks[1] == batch.chunks[0].kv_blocks[1]);
  CHECK(batch.chunks[1].kv_blocks[2] != batch.chunks[0].kv_blocks[2]);
  const int used = s.pool().used();
  Finish(&s, batch);
  // Both have computed tokens 8 to 11: one of the two blocks is kept for both.
  CHECK(s.pool().used() == used - 1);
  CHECK(s.Cancel(1));
  CHECK(s.CheckInvariants() == "");
  RunAll(&s);
  CHECK(s.pool().used() == 0);
}

TEST_CASE("Candidates of one prompt compute it once", "[scheduler][prefix]") {
  SchedulerOptions options = Cached();
  options.kv_blocks = 64;
  options.prefill_chunk = 12;
  Scheduler s(options);
  for (SequenceId id = 1; id <= 4; ++id) s.Add(Spec(id, 30, 2));
  s.Add(Spec(5, 6, 2, /*family=*/1));
  int prompt_tokens = 0;
  bool first = true;
  while (!s.empty()) {
    const Batch& batch = s.Schedule();
    if (first) {
      // The others wait for the first one's blocks; who begins otherwise does not wait.
      REQUIRE(batch.chunks.size() == 2);
      CHECK(batch.chunks[0].id == 1);
      CHECK(batch.chunks[1].id == 5);
      first = false;
    }
    for (const ScheduledChunk& chunk : batch.chunks) {
      if (chunk.sample_index == 0) prompt_tokens += static_cast<int>(chunk.tokens.size());
    }
    Finish(&s, batch);
  }
  // The first computes 30, the others what is behind the last full block.
  CHECK(prompt_tokens == 30 + 6 + 3 * 2);
}

TEST_CASE("Who waits for another's blocks goes on alone when the other is cancelled or fails",
          "[scheduler][prefix]") {
  SchedulerOptions options = Cached();
  options.prefill_chunk = 8;
  Scheduler s(options);
  s.Add(Spec(1, 21, 2));
  s.Add(Spec(2, 21, 2));
  Finish(&s, s.Schedule());
  const Batch& batch = s.Schedule();
  REQUIRE(batch.chunks.size() == 1);
  SECTION("cancelled between steps") {
    Finish(&s, batch);
    CHECK(s.Cancel(1));
    s.Schedule();
    REQUIRE(batch.chunks.size() == 1);
    CHECK(batch.chunks[0].id == 2);
    CHECK(batch.chunks[0].position == 16);
  }
  SECTION("failed: its last chunk is not known") {
    std::vector<ChunkResult> results(1);
    results[0].failed = true;
    std::vector<SequenceEnd> ends;
    s.Commit(results, &ends);
    CHECK(s.CheckInvariants() == "");
    s.Schedule();
    REQUIRE(batch.chunks.size() == 1);
    CHECK(batch.chunks[0].id == 2);
    CHECK(batch.chunks[0].position == 8);
  }
  Finish(&s, batch);
  RunAll(&s);
}

TEST_CASE("The pool takes kept blocks back, the end of a prefix first", "[scheduler][prefix]") {
  Scheduler s(Cached());  // 16 blocks
  s.Add(Spec(1, 33, 0, 0));
  RunAll(&s);
  s.Add(Spec(2, 17, 0, 1));
  RunAll(&s);
  CHECK(s.pool().idle_kept() == 12);
  // Seven blocks: four were never kept, three are the first family's last ones.
  s.Add(Spec(3, 28, 0, 2));
  Finish(&s, s.Schedule());
  CHECK(s.prefix_stats().evicted_blocks == 3);
  s.Add(Spec(4, 33, 0, 0));
  CHECK(s.Schedule().chunks[0].position == 20);
}

TEST_CASE("A preempted sequence comes back to its own blocks if nobody took them",
          "[scheduler][prefix]") {
  SchedulerOptions options = Cached();
  options.kv_blocks = 8;
  Scheduler s(options);
  s.Add(Spec(1, 10, 20, 0));
  s.Add(Spec(2, 10, 20, 1));
  while (s.Find(2)->preemptions == 0) Finish(&s, s.Schedule());
  CHECK(s.Cancel(1));
  const int size = s.Find(2)->size();
  const Batch& batch = s.Schedule();
  CHECK(batch.chunks[0].position > 0);
  CHECK(batch.chunks[0].position + static_cast<int>(batch.chunks[0].tokens.size()) == size);
  CHECK(batch.chunks[0].cached_tokens == 0);  // its own work is no hit
  Finish(&s, batch);
  RunAll(&s);
}

TEST_CASE("Rows of prompt tokens that are wanted are computed", "[scheduler][prefix]") {
  Scheduler s(Cached());
  s.Add(Spec(1, 13, 1));
  RunAll(&s);
  SequenceSpec scored = Spec(2, 13, 1);
  scored.prompt_rows = true;
  s.Add(scored);
  const Batch& batch = s.Schedule();
  CHECK(batch.chunks[0].position == 0);
  CHECK(batch.chunks[0].prompt_rows_end == 12);
  Finish(&s, batch);
}

TEST_CASE("Random workloads of few prefixes keep the invariants", "[scheduler][prefix]") {
  uint64_t hits = 0, evicted = 0, preemptions = 0;
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
    options.prefix_cache = true;
    Scheduler s(options);
    const int room = options.kv_blocks * options.block_tokens;
    SequenceId next = 1;
    int64_t most_steps = 0;
    for (int step = 0; step < 300 || !s.empty(); ++step) {
      if (step < 300 && below(3) == 0) {
        const int prompt = 1 + below(room), generate = below(room - prompt + 1);
        SequenceSpec spec = Spec(next++, prompt, generate, below(3));
        spec.prompt_rows = below(6) == 0;
        spec.prefix_key = static_cast<uint64_t>(below(2));
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
      REQUIRE(s.CheckInvariants() == "");
      REQUIRE(step < 300 + most_steps);
    }
    CHECK(s.pool().used() == 0);
    hits += s.prefix_stats().hit_tokens;
    evicted += s.prefix_stats().evicted_blocks;
  }
  CHECK(hits > 1000);
  CHECK(evicted > 1000);
  CHECK(preemptions > 100);
}

}  // namespace
}  // namespace sluice
