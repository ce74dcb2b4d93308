// Random workloads against tiny block pools. After every step all invariants hold; at the end all
// blocks are free and each request gave, to the bit, what it gives when it runs alone.
#include <map>
#include <random>

#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int Below(int n) { return static_cast<int>(engine_() % static_cast<uint32_t>(n)); }
  int Between(int low, int high) { return low + Below(high - low + 1); }
  bool OneIn(int n) { return Below(n) == 0; }

 private:
  std::mt19937 engine_;
};

GenerationRequest RandomRequest(Random* random, int max_total) {
  GenerationRequest r;
  r.max_tokens = random->Between(0, max_total / 2);
  r.min_tokens = random->OneIn(4) ? random->Below(r.max_tokens + 1) : 0;
  const int prompt = random->Between(1, max_total - r.max_tokens);
  r.prompt = CountingPrompt(prompt, random->Below(90));
  r.ignore_eos = random->OneIn(2);
  r.priority = random->OneIn(3) ? random->Between(-2, 2) : 0;
  if (random->OneIn(3)) r.stop_token_ids = {random->Below(97), random->Below(97)};
  if (random->OneIn(3)) r.logprobs = random->Below(4);
  if (random->OneIn(3)) r.prompt_logprobs = random->Below(3);
  SamplingParams& s = r.sampling;
  s.seed = static_cast<uint64_t>(random->Below(1000));
  s.temperature = random->OneIn(3) ? 0.0f : 0.7f;
  if (random->OneIn(3)) s.top_k = random->Between(1, 50);
  if (random->OneIn(3)) s.top_p = 0.8f;
  if (random->OneIn(4)) s.min_p = 0.05f;
  if (random->OneIn(4)) s.typical_p = 0.9f;
  if (random->OneIn(3)) s.repetition_penalty = 1.2f;
  if (random->OneIn(3)) s.frequency_penalty = 0.5f;
  if (random->OneIn(3)) s.presence_penalty = -0.5f;
  if (random->OneIn(4)) s.logit_bias = {{random->Below(97), 2.0f}};
  return r;
}

struct Tracked {
  GenerationRequest request;
  std::shared_ptr<RecordingSink> sink;
  bool cancelled = false;
};

// A cancelled request gave a prefix of what it gives alone.
bool IsPrefix(const RecordingSink& part, const std::string& whole) {
  std::string prompt, tokens;
  AppendBytes(part.prompt, &prompt);
  AppendBytes(part.tokens, &tokens);
  const size_t bar = whole.find('|');
  return (part.prompt_calls == 0 || whole.compare(0, bar, prompt) == 0) &&
         whole.compare(bar + 1, tokens.size(), tokens) == 0;
}

struct Totals {
  uint64_t preemptions = 0;
  int cancelled = 0, finished = 0;
};

void RunWorkload(uint32_t seed, Totals* totals) {
  Random random(seed);
  FakeModelOptions fake;
  fake.kv_blocks = random.Between(3, 14);
  fake.max_batch_tokens = random.Between(4, 64);
  fake.max_sequences = random.Between(1, 12);
  fake.eos_bonus = 2;
  EngineOptions options;
  options.max_batch_tokens = random.Between(4, 64);
  options.max_running = random.Between(1, 12);
  options.prefill_chunk = random.Between(1, 40);
  options.ageing_seconds = 0.05;
  options.account_weights = {1, 2, 0.5};
  options.prefix_cache = !random.OneIn(4);
  options.max_decode_stall_seconds = random.OneIn(3) ? 0 : 0.001 * random.Between(1, 30);
  CoreHarness h(fake, options);
  // Steps of random speed: prompts are cut in all ways.
  h.model.set_on_forward([&](std::span<const SequenceChunk> chunks) {
    for (const SequenceChunk& chunk : chunks) {
      h.clock.Advance(0.0001 * random.Between(1, 10) * static_cast<double>(chunk.tokens.size()));
    }
  });
  std::map<RequestId, Tracked> all;
  const int max_total = h.core.max_context();
  for (int step = 0; step < 150; ++step) {
    for (int n = random.OneIn(3) ? random.Between(1, 4) : 0; n > 0; --n) {
      Tracked tracked;
      tracked.request = RandomRequest(&random, random.OneIn(4) ? max_total : max_total / 2);
      tracked.request.account = random.Below(3);
      const RequestId id = h.next_id;
      tracked.sink = h.Submit(tracked.request);
      REQUIRE(tracked.sink != nullptr);
      all.emplace(id, std::move(tracked));
    }
    if (random.OneIn(8) && h.next_id > 1) {
      const auto id = static_cast<RequestId>(random.Between(1, static_cast<int>(h.next_id) - 1));
      Tracked& tracked = all.at(id);
      tracked.cancelled = tracked.cancelled || !tracked.sink->finished();
      h.core.Cancel(id);
      REQUIRE(h.core.CheckInvariants() == "");
    }
    h.Step();
    REQUIRE(h.wrong == "");
  }
  REQUIRE(h.RunAll());
  REQUIRE(h.wrong == "");
  CHECK(h.core.Idle());
  CHECK(h.core.scheduler().empty());
  CHECK(h.core.scheduler().pool().used() == 0);
  for (const auto& [id, tracked] : all) {
    REQUIRE(tracked.sink->finished());
    CHECK_FALSE(tracked.sink->out_of_order);
    FakeModelOptions roomy = fake;
    roomy.max_batch_tokens = 64;
    GenerationRequest request = tracked.request;
    request.account = 0;
    const std::string alone = BytesAlone(request, roomy);
    if (tracked.cancelled) {
      CHECK(tracked.sink->finish.reason == FinishReason::kCancelled);
      CHECK(IsPrefix(*tracked.sink, alone));
      ++totals->cancelled;
    } else {
      CHECK(Bytes(*tracked.sink) == alone);
      ++totals->finished;
    }
  }
  totals->preemptions += h.core.Stats().preemptions;
}

TEST_CASE("Random workloads keep every invariant and every byte", "[runtime]") {
  Totals totals;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    RunWorkload(seed, &totals);
  }
  // The workloads are worth their time only while they reach these states.
  CHECK(totals.preemptions > 100);
  CHECK(totals.cancelled > 200);
  CHECK(totals.finished > 1000);
}

}  // namespace
}  // namespace sluice
