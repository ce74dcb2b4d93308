#include "engine/scheduler/scheduler.h"

#include <map>
#include <random>

#include "tests/support/catch.h"

namespace sluice {
namespace {

SchedulerOptions Small() {
  SchedulerOptions o;
  o.kv_blocks = 8;
  o.block_tokens = 4;
  o.max_running = 4;
  o.max_batch_tokens = 16;
  o.prefill_chunk = 8;
  o.ageing_seconds = 10;
  return o;
}

SequenceSpec Spec(SequenceId id, int prompt, int max_tokens, double arrival = 0, int priority = 0) {
  SequenceSpec spec;
  spec.id = id;
  spec.prompt.assign(static_cast<size_t>(prompt), 7);
  spec.max_tokens = max_tokens;
  spec.priority = priority;
  spec.arrival = TimePoint(std::chrono::milliseconds(static_cast<int64_t>(arrival * 1000)));
  return spec;
}

// Commits `token` for every chunk that samples; returns what ended.
std::vector<SequenceEnd> Finish(Scheduler* scheduler, const Batch& batch, int32_t token = 1) {
  std::vector<ChunkResult> results(batch.chunks.size());
  for (ChunkResult& result : results) result.token = token;
  std::vector<SequenceEnd> ends;
  scheduler->Commit(results, &ends);
  REQUIRE(scheduler->CheckInvariants() == "");
  return ends;
}

std::vector<SequenceId> Ids(const Batch& batch) {
  std::vector<SequenceId> ids;
  for (const ScheduledChunk& chunk : batch.chunks) ids.push_back(chunk.id);
  return ids;
}

TEST_CASE("Decodes come first, then prompts in chunks within the budget", "[scheduler]") {
  SchedulerOptions options = Small();
  options.kv_blocks = 40;
  Scheduler s(options);
  s.Add(Spec(1, 4, 10));
  const Batch& batch = s.Schedule();
  REQUIRE(batch.chunks.size() == 1);
  CHECK(batch.chunks[0].samples);
  CHECK(batch.first_scheduled == std::vector<SequenceId>{1});
  Finish(&s, batch);
  s.Add(Spec(2, 20, 10));
  s.Add(Spec(3, 20, 10));
  s.Add(Spec(4, 20, 10));
  s.Schedule();
  CHECK(Ids(batch) == std::vector<SequenceId>{1, 2, 3});
  CHECK(batch.tokens == 16);
  CHECK(batch.chunks[0].tokens.size() == 1);
  CHECK(batch.chunks[0].position == 4);
  CHECK(batch.chunks[0].sample_index == 1);
  CHECK(batch.chunks[0].kv_blocks.size() == 2);
  CHECK(batch.chunks[1].tokens.size() == 8);
  CHECK(batch.chunks[1].rows == RowsWanted::kNone);
  CHECK_FALSE(batch.chunks[1].samples);
  CHECK(batch.chunks[2].tokens.size() == 7);
  CHECK(batch.chunks[2].kv_blocks.size() == 2);
  Finish(&s, batch);
  s.Schedule();
  CHECK(Ids(batch) == std::vector<SequenceId>{1, 2, 3});
  CHECK(batch.chunks[1].position == 8);
  CHECK(batch.chunks[2].position == 7);
  Finish(&s, batch);
  s.Schedule();
  CHECK(Ids(batch) == std::vector<SequenceId>{1, 2, 3, 4});
  CHECK(batch.chunks[1].tokens.size() == 4);
  CHECK(batch.chunks[1].samples);
  CHECK(batch.chunks[1].rows == RowsWanted::kLast);
  CHECK(batch.chunks[3].tokens.size() == 5);
  Finish(&s, batch);
}

TEST_CASE("The running set is bounded", "[scheduler]") {
  Scheduler s(Small());
  for (SequenceId id = 1; id <= 6; ++id) s.Add(Spec(id, 1, 2));
  const Batch& batch = s.Schedule();
  CHECK(s.running() == 4);
  CHECK(s.waiting() == 2);
  CHECK(Ids(batch) == std::vector<SequenceId>{1, 2, 3, 4});
  Finish(&s, batch);
}

TEST_CASE("The head of the line is not overtaken for want of blocks", "[scheduler]") {
  Scheduler s(Small());
  s.Add(Spec(1, 15, 5));
  Finish(&s, s.Schedule());
  s.Add(Spec(2, 20, 4));  // six blocks with its next token: four are free
  s.Add(Spec(3, 1, 1));   // would fit
  const Batch& batch = s.Schedule();
  CHECK(Ids(batch) == std::vector<SequenceId>{1});
  Finish(&s, batch);
  CHECK(s.Cancel(2));
  s.Schedule();
  CHECK(Ids(batch) == std::vector<SequenceId>{1, 3});
  Finish(&s, batch);
}

TEST_CASE("A newcomer leaves a spare block for each that runs", "[scheduler]") {
  Scheduler s(Small());
  s.Add(Spec(1, 7, 20));
  Finish(&s, s.Schedule());  // holds two of eight blocks
  s.Add(Spec(2, 20, 3));     // needs six, and one is to stay free
  Finish(&s, s.Schedule());
  CHECK(s.Find(2)->state == SequenceState::kWaiting);
  CHECK(s.Cancel(2));
  s.Add(Spec(3, 15, 3));  // four; the first has grown to three, so five are free
  Finish(&s, s.Schedule());
  CHECK(s.Find(3)->state == SequenceState::kRunning);
}

TEST_CASE("When blocks run out the last in rank gives way and comes back whole", "[scheduler]") {
  Scheduler s(Small());
  s.Add(Spec(1, 12, 16, 0));
  s.Add(Spec(2, 10, 16, 1));
  int steps = 0;
  const Batch* batch = nullptr;
  do {
    batch = &s.Schedule();
    if (batch->preempted.empty()) Finish(&s, *batch);
    REQUIRE(++steps < 40);
  } while (batch->preempted.empty());
  CHECK(batch->preempted == std::vector<SequenceId>{2});
  CHECK(Ids(*batch) == std::vector<SequenceId>{1});
  const Sequence* second = s.Find(2);
  CHECK(second->state == SequenceState::kPreempted);
  CHECK(second->blocks.empty());
  CHECK(second->computed == 0);
  CHECK(second->preemptions == 1);
  const int kept = second->size();
  CHECK(kept > 10);
  Finish(&s, *batch);
  // It waits until all of its tokens and one more fit, then computes them again from the start.
  while (s.Find(1) != nullptr) {
    CHECK(s.Find(2)->state == SequenceState::kPreempted);
    Finish(&s, s.Schedule());
  }
  batch = &s.Schedule();
  CHECK(batch->first_scheduled.empty());
  REQUIRE(Ids(*batch) == std::vector<SequenceId>{2});
  CHECK(batch->chunks[0].position == 0);
  CHECK(batch->chunks[0].tokens.size() == 8);
  Finish(&s, *batch);
  batch = &s.Schedule();
  CHECK(batch->chunks[0].position == 8);
  Finish(&s, *batch);
  while (s.Find(2)->computed + 1 < kept) Finish(&s, s.Schedule());
  while (!s.empty()) Finish(&s, s.Schedule());
  CHECK(s.pool().used() == 0);
}

TEST_CASE("The lowest priority is preempted even when it came first", "[scheduler]") {
  Scheduler s(Small());
  s.Add(Spec(1, 4, 16, 0, -1));
  s.Add(Spec(2, 4, 16, 1, 2));
  s.Add(Spec(3, 4, 16, 2, 0));
  std::vector<SequenceId> preempted;
  while (!s.empty()) {
    const Batch& batch = s.Schedule();
    preempted.insert(preempted.end(), batch.preempted.begin(), batch.preempted.end());
    Finish(&s, batch);
  }
  REQUIRE_FALSE(preempted.empty());
  CHECK(preempted[0] == 1);
  for (SequenceId id : preempted) CHECK(id != 2);
}

TEST_CASE("Prompt rows are asked for once, in any chunking and after preemption", "[scheduler]") {
  SchedulerOptions options = Small();
  options.prefill_chunk = 3;
  Scheduler s(options);
  SequenceSpec first = Spec(1, 9, 14, 0);
  SequenceSpec second = Spec(2, 12, 6, 1);
  first.prompt_rows = second.prompt_rows = true;
  s.Add(first);
  s.Add(second);
  std::map<SequenceId, int> next_row;
  int preemptions = 0, rows_beyond_need = 0;
  while (!s.empty()) {
    const Batch& batch = s.Schedule();
    preemptions += static_cast<int>(batch.preempted.size());
    for (const ScheduledChunk& chunk : batch.chunks) {
      if (chunk.rows != RowsWanted::kAll) {
        CHECK(chunk.prompt_rows_begin == chunk.prompt_rows_end);
        continue;
      }
      CHECK(chunk.position + chunk.prompt_rows_begin == next_row[chunk.id]);
      CHECK(chunk.prompt_rows_end > chunk.prompt_rows_begin);
      CHECK(chunk.prompt_rows_end <= static_cast<int>(chunk.tokens.size()));
      next_row[chunk.id] = chunk.position + chunk.prompt_rows_end;
      rows_beyond_need += next_row[chunk.id] > (chunk.id == 1 ? 8 : 11);
    }
    Finish(&s, batch);
  }
  CHECK(preemptions > 0);
  CHECK(next_row[1] == 8);
  CHECK(next_row[2] == 11);
  CHECK(rows_beyond_need == 0);
}

TEST_CASE("A sequence preempted in the middle of its prompt repeats no prompt row", "[scheduler]") {
  SchedulerOptions options = Small();
  options.prefill_chunk = 1;
  Scheduler s(options);
  s.Add(Spec(1, 3, 25, 0));
  while (s.Find(1)->size() < 12) Finish(&s, s.Schedule());
  SequenceSpec spec = Spec(2, 12, 2, 1);
  spec.prompt_rows = true;
  s.Add(spec);
  int preempted_after_rows = -1, next_row = 0;
  while (!s.empty()) {
    const Batch& batch = s.Schedule();
    if (!batch.preempted.empty()) {
      CHECK(batch.preempted == std::vector<SequenceId>{2});
      preempted_after_rows = next_row;
    }
    for (const ScheduledChunk& chunk : batch.chunks) {
      if (chunk.rows != RowsWanted::kAll) continue;
      CHECK(chunk.position + chunk.prompt_rows_begin == next_row);
      next_row = chunk.position + chunk.prompt_rows_end;
    }
    Finish(&s, batch);
  }
  CHECK(preempted_after_rows > 0);
  CHECK(preempted_after_rows < 11);
  CHECK(next_row == 11);
}

TEST_CASE("Sequences end by an ending token, by length, by failure and by max_tokens 0",
          "[scheduler]") {
  Scheduler s(Small());
  SequenceSpec stops = Spec(1, 3, 5);
  stops.ending_ids = {9, 1};
  s.Add(stops);
  auto ends = Finish(&s, s.Schedule());
  REQUIRE(ends.size() == 1);
  CHECK(ends[0].reason == EndReason::kStop);

  s.Add(Spec(2, 3, 1));
  ends = Finish(&s, s.Schedule());
  REQUIRE(ends.size() == 1);
  CHECK(ends[0].reason == EndReason::kLength);

  s.Add(Spec(3, 10, 0));
  CHECK(Finish(&s, s.Schedule()).empty());
  const Batch& last = s.Schedule();
  CHECK_FALSE(last.chunks[0].samples);
  CHECK(last.chunks[0].rows == RowsWanted::kNone);
  ends = Finish(&s, last);
  REQUIRE(ends.size() == 1);
  CHECK(ends[0].reason == EndReason::kLength);

  s.Add(Spec(4, 3, 5));
  s.Add(Spec(5, 3, 5));
  CHECK(s.Schedule().chunks.size() == 2);
  std::vector<ChunkResult> results(2);
  results[0].failed = true;
  results[1].token = 2;
  s.Commit(results, &ends);
  REQUIRE(ends.size() == 1);
  CHECK(ends[0].id == 4);
  CHECK(ends[0].reason == EndReason::kFailed);
  CHECK(s.Find(4) == nullptr);
  CHECK(s.Find(5) != nullptr);
  CHECK(s.CheckInvariants() == "");
}

TEST_CASE("CanEverRun knows the pool", "[scheduler]") {
  const Scheduler s(Small());  // 32 tokens
  CHECK(s.CanEverRun(30, 2));
  CHECK_FALSE(s.CanEverRun(30, 3));
  CHECK_FALSE(s.CanEverRun(int64_t{1} << 40, 0));
}

TEST_CASE("An idle scheduler gives an empty batch that needs no commit", "[scheduler]") {
  Scheduler s(Small());
  CHECK(s.Schedule().chunks.empty());
  CHECK(s.Schedule().chunks.empty());
  CHECK_FALSE(s.Cancel(1));
}

TEST_CASE("A low priority under a stream of higher ones is served after p times the ageing",
          "[scheduler]") {
  SchedulerOptions options = Small();
  options.max_running = 1;
  options.ageing_seconds = 1;
  Scheduler s(options);
  s.Add(Spec(1000, 1, 1, 0, 0));
  double served_at = -1;
  // One newcomer of priority 5 per step of half a second: without ageing it would never run.
  for (int step = 0; step < 40 && served_at < 0; ++step) {
    s.Add(Spec(static_cast<SequenceId>(step + 1), 1, 1, 0.5 * step, 5));
    Finish(&s, s.Schedule());
    if (s.Find(1000) == nullptr) served_at = 0.5 * step;
  }
  CHECK(served_at >= 5);
  CHECK(served_at <= 5.5);
}

TEST_CASE("Random workloads end, keep the invariants and let nobody starve", "[scheduler]") {
  uint64_t preemptions = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    const auto below = [&random](int n) {
      return static_cast<int>(random() % static_cast<uint32_t>(n));
    };
    SchedulerOptions options;
    options.kv_blocks = 2 + below(10);
    options.block_tokens = 1 + below(5);
    options.max_running = 1 + below(8);
    options.max_batch_tokens = options.max_running + below(20);
    options.prefill_chunk = 1 + below(12);
    options.ageing_seconds = 0.5;
    Scheduler s(options);
    const int room = options.kv_blocks * options.block_tokens;
    SequenceId next = 1;
    int64_t most_steps = 0;
    for (int step = 0; step < 300 || !s.empty(); ++step) {
      if (step < 300 && below(3) == 0) {
        const int prompt = 1 + below(room), generate = below(room - prompt + 1);
        SequenceSpec spec = Spec(next++, prompt, generate, step * 0.1, below(5) - 2);
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
  }
  CHECK(preemptions > 100);
}

}  // namespace
}  // namespace sluice
