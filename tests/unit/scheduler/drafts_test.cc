// What a scheduler does with guesses of tokens to come (draft_source.h).
#include <algorithm>
#include <map>

#include "engine/scheduler/scheduler.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

// Guesses as many 9s as it may, at most `length` for each sequence.
struct Nines final : DraftSource {
  void Draft(std::span<const Sequence* const> decoders, std::span<const int> limits, int most,
             std::span<std::span<const int32_t>> drafts) override {
    asked = most;
    for (size_t i = 0; i < decoders.size(); ++i) {
      const int count = std::min({limits[i], most, length});
      most -= count;
      drafts[i] = std::span<const int32_t>(nines).first(static_cast<size_t>(count));
    }
  }
  std::vector<int32_t> nines = std::vector<int32_t>(64, 9);
  int length = 5;
  int asked = 0;
};

SchedulerOptions Small() {
  SchedulerOptions o;
  o.kv_blocks = 16;
  o.block_tokens = 4;
  o.max_running = 4;
  o.max_batch_tokens = 32;
  o.prefill_chunk = 32;
  return o;
}

SequenceSpec Spec(SequenceId id, int prompt, int max_tokens, std::vector<int32_t> endings = {}) {
  SequenceSpec spec;
  spec.id = id;
  spec.prompt.assign(static_cast<size_t>(prompt), 7);
  spec.max_tokens = max_tokens;
  spec.ending_ids = std::move(endings);
  return spec;
}

std::vector<SequenceEnd> Finish(Scheduler* s, const Batch& batch, int accepted, int32_t token = 1) {
  std::vector<ChunkResult> results(batch.chunks.size());
  for (size_t i = 0; i < results.size(); ++i) {
    results[i].token = token;
    results[i].accepted = std::min(accepted, batch.chunks[i].drafts);
  }
  std::vector<SequenceEnd> ends;
  s->Commit(results, &ends);
  REQUIRE(s->CheckInvariants() == "");
  return ends;
}

TEST_CASE("A decode carries its draft, and what was right of it is kept", "[scheduler][drafts]") {
  for (int accepted = 0; accepted <= 5; ++accepted) {
    SchedulerOptions options = Small();
    options.prefix_cache = true;
    Scheduler s(options);
    Nines nines;
    s.SetDraftSource(&nines);
    s.Add(Spec(1, 6, 30));
    const Batch& batch = s.Schedule();
    CHECK(batch.chunks[0].drafts == 0);  // a prompt
    Finish(&s, batch, 0);
    s.Schedule();
    REQUIRE(batch.chunks.size() == 1);
    const ScheduledChunk& chunk = batch.chunks[0];
    CHECK(std::vector<int32_t>(chunk.tokens.begin(), chunk.tokens.end()) ==
          std::vector<int32_t>{1, 9, 9, 9, 9, 9});
    CHECK(chunk.position == 6);
    CHECK(chunk.drafts == 5);
    CHECK(chunk.rows == RowsWanted::kAll);
    CHECK(chunk.samples);
    CHECK(chunk.sample_index == 1);
    CHECK(chunk.prompt_rows_begin == chunk.prompt_rows_end);
    CHECK(chunk.kv_blocks.size() == 3);
    CHECK(batch.tokens == 6);
    CHECK(batch.draft_tokens == 5);
    CHECK(batch.prompt_tokens == 0);
    Finish(&s, batch, accepted, 3);
    const Sequence& sequence = *s.Find(1);
    CHECK(sequence.computed == 7 + accepted);
    CHECK(sequence.size() == 8 + accepted);
    CHECK(sequence.tokens.back() == 3);
    CHECK(std::count(sequence.tokens.begin(), sequence.tokens.end(), 9) == accepted);
    // Blocks of wrong guesses are free, and none is known.
    CHECK(static_cast<int>(sequence.blocks.size()) == std::min(3, (8 + accepted + 3) / 4));
    CHECK(s.prefix_index().size() == (7 + accepted) / 4);
  }
}

TEST_CASE("A draft ends before max_tokens, and its sequence at max_tokens", "[scheduler][drafts]") {
  Scheduler s(Small());
  Nines nines;
  s.SetDraftSource(&nines);
  s.Add(Spec(1, 4, 4));
  const Batch& batch = s.Schedule();
  Finish(&s, batch, 0);
  s.Schedule();
  CHECK(batch.chunks[0].drafts == 2);
  const auto ends = Finish(&s, batch, 2);
  REQUIRE(ends.size() == 1);
  CHECK(ends[0].reason == EndReason::kLength);
  CHECK(s.pool().used() == 0);
}

TEST_CASE("A token that ends the sequence after right guesses ends it", "[scheduler][drafts]") {
  Scheduler s(Small());
  Nines nines;
  s.SetDraftSource(&nines);
  s.Add(Spec(1, 4, 20, {2}));
  const Batch& batch = s.Schedule();
  Finish(&s, batch, 0);
  s.Schedule();
  const auto ends = Finish(&s, batch, 3, 2);
  REQUIRE(ends.size() == 1);
  CHECK(ends[0].reason == EndReason::kStop);
  CHECK(s.empty());
}

TEST_CASE("Nobody gives way to a draft, and no newcomer waits for one", "[scheduler][drafts]") {
  SchedulerOptions options = Small();
  options.kv_blocks = 5;
  Scheduler s(options);
  Nines nines;
  nines.length = 9;
  s.SetDraftSource(&nines);
  s.Add(Spec(1, 4, 12));
  const Batch& batch = s.Schedule();
  Finish(&s, batch, 0);
  s.Add(Spec(2, 7, 2));
  s.Schedule();
  // The prompt's two blocks and its spare one come first; of five, one is left for the guesses.
  REQUIRE(batch.chunks.size() == 2);
  CHECK(batch.preempted.empty());
  CHECK(batch.chunks[0].drafts == 7);
  CHECK(batch.chunks[1].tokens.size() == 7);
  Finish(&s, batch, 0);
  s.Schedule();
  CHECK(batch.preempted.empty());
  Finish(&s, batch, 9);
}

TEST_CASE("Drafts leave half of a step's tokens and rows to prompts", "[scheduler][drafts]") {
  SchedulerOptions options = Small();
  options.max_rows = options.max_running + 6;
  Scheduler s(options);
  Nines nines;
  nines.length = 20;
  s.SetDraftSource(&nines);
  s.Add(Spec(1, 4, 30));
  const Batch& batch = s.Schedule();
  Finish(&s, batch, 0);
  SequenceSpec scored = Spec(2, 12, 2);
  scored.prompt_rows = true;
  s.Add(scored);
  s.Schedule();
  CHECK(nines.asked == 3);
  REQUIRE(batch.chunks.size() == 2);
  CHECK(batch.chunks[0].drafts == 3);
  CHECK(batch.chunks[1].tokens.size() == 3);
  Finish(&s, batch, 0);
}

TEST_CASE("Only tokens that were right are charged to an account", "[scheduler][drafts]") {
  // Two accounts, one of which has drafts that are always wrong: neither is behind for it.
  struct ForFirst final : DraftSource {
    void Draft(std::span<const Sequence* const> decoders, std::span<const int> limits, int most,
               std::span<std::span<const int32_t>> drafts) override {
      for (size_t i = 0; i < decoders.size(); ++i) {
        if (decoders[i]->spec.account != 0) continue;
        const int count = std::min({limits[i], most, 4});
        drafts[i] = std::span<const int32_t>(nines).first(static_cast<size_t>(count));
        most -= count;
      }
    }
    std::vector<int32_t> nines = std::vector<int32_t>(4, 9);
  };
  for (const bool drafted : {false, true}) {
    SchedulerOptions options = Small();
    options.kv_blocks = 64;
    options.account_weights = {1, 1};
    options.max_running = 2;
    Scheduler s(options);
    ForFirst drafts;
    if (drafted) s.SetDraftSource(&drafts);
    s.Add(Spec(1, 4, 12));
    SequenceSpec other = Spec(2, 4, 12);
    other.account = 1;
    s.Add(other);
    const Batch& batch = s.Schedule();
    for (int i = 0; i < 6; ++i) {
      Finish(&s, batch, 0);
      s.Schedule();
      CHECK(batch.chunks.size() == 2);
    }
    Finish(&s, batch, 0);
    // As much was served to both: the first come is first.
    s.Cancel(1);
    s.Cancel(2);
    SequenceSpec later = Spec(3, 4, 4);
    later.account = 1;
    later.arrival = TimePoint(std::chrono::seconds(2));
    s.Add(later);
    SequenceSpec sooner = Spec(4, 4, 4);
    sooner.arrival = TimePoint(std::chrono::seconds(1));
    s.Add(sooner);
    s.Schedule();
    REQUIRE(batch.chunks.size() == 2);
    CHECK(batch.chunks[0].id == 4);
    Finish(&s, batch, 0);
  }
}

}  // namespace
}  // namespace sluice
