// Drafts change how many steps a text takes, and nothing that a client can see.
#include <algorithm>
#include <map>

#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

FakeModelOptions Repetitive() {
  FakeModelOptions fake;
  fake.period = 5;
  fake.kv_blocks = 256;
  return fake;
}

EngineOptions With(Speculation speculation) {
  EngineOptions options;
  options.speculation = speculation;
  return options;
}

std::vector<int32_t> Periodic(int size, int period, int first = 3) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < size; ++i) prompt.push_back(first + (i % period) * 11 % 80);
  return prompt;
}

// Requests that differ in all that decides a token.
std::vector<GenerationRequest> Varied() {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 24; ++i) {
    GenerationRequest request = SimpleRequest(Periodic(3 + 5 * (i % 6), 5, 3 + i % 7), 40 + i);
    request.logprobs = i % 4 - 1;
    SamplingParams& sampling = request.sampling;
    if (i % 3 > 0) {
      sampling.temperature = 0.5f * static_cast<float>(i % 3);
      sampling.seed = static_cast<uint64_t>(100 + i);
    }
    if (i % 5 == 1) sampling.repetition_penalty = 1.3f;
    if (i % 5 == 2) {
      sampling.frequency_penalty = 0.3f;
      sampling.presence_penalty = 0.2f;
    }
    if (i % 5 == 3) sampling.top_p = 0.9f;
    if (i % 7 == 2) sampling.logit_bias = {{17, 3.0f}, {25, -4.0f}};
    request.ignore_eos = i % 2 == 0;
    if (i % 4 == 1) request.min_tokens = 12;
    // Among the tokens that repeat.
    if (i % 6 == 5) request.stop_token_ids = {request.prompt[2]};
    if (i % 8 == 3) request.prompt_logprobs = 1;
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Outcome {
  std::vector<std::string> bytes;
  EngineStats stats;
};

Outcome RunVaried(const FakeModelOptions& fake, EngineOptions options, int company) {
  options.max_running = company;
  CoreHarness harness(fake, options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const GenerationRequest& request : Varied()) {
    sinks.push_back(harness.Submit(request));
    REQUIRE(sinks.back() != nullptr);
  }
  REQUIRE(harness.RunAll());
  CHECK(harness.wrong == "");
  Outcome outcome;
  for (const auto& sink : sinks) {
    CHECK(sink->finished());
    CHECK_FALSE(sink->out_of_order);
    CHECK(sink->finish.usage.completion_tokens == static_cast<int>(sink->tokens.size()));
    outcome.bytes.push_back(Bytes(*sink));
  }
  outcome.stats = harness.core.Stats();
  CHECK(outcome.stats.kv_blocks_used == 0);
  return outcome;
}

TEST_CASE("Answers are the same bytes with drafts, however tokens are chosen and in any company",
          "[runtime][speculation]") {
  FakeModelOptions fake = Repetitive();
  fake.eos_bonus = 2;
  const Outcome plain = RunVaried(fake, With(Speculation::kOff), 1);
  CHECK(plain.stats.speculation.drafted_tokens == 0);
  for (const Speculation setting : {Speculation::kNgram, Speculation::kAuto}) {
    for (const int company : {1, 3, 8}) {
      INFO("company " << company);
      const Outcome drafted = RunVaried(fake, With(setting), company);
      CHECK(drafted.bytes == plain.bytes);
      CHECK(drafted.stats.generated_tokens == plain.stats.generated_tokens);
      CHECK(drafted.stats.prompt_tokens == plain.stats.prompt_tokens);
      CHECK(drafted.stats.speculation.accepted_tokens <= drafted.stats.speculation.drafted_tokens);
      // Or nothing was tested: some are right, some are wrong.
      if (setting == Speculation::kNgram) {
        CHECK(drafted.stats.speculation.accepted_tokens > 100);
        CHECK(drafted.stats.speculation.accepted_tokens < drafted.stats.speculation.drafted_tokens);
      }
    }
  }
}

TEST_CASE("A text that repeats takes fewer steps", "[runtime][speculation]") {
  FakeModelOptions fake = Repetitive();
  fake.period_bonus = 100;
  std::map<Speculation, EngineStats> stats;
  for (const Speculation setting : {Speculation::kOff, Speculation::kNgram}) {
    CoreHarness harness(fake, With(setting));
    const auto sink = harness.Submit(SimpleRequest(Periodic(20, 5), 200));
    REQUIRE(harness.RunAll());
    CHECK(harness.wrong == "");
    CHECK(sink->tokens.size() == 200);
    stats[setting] = harness.core.Stats();
  }
  CHECK(stats[Speculation::kOff].steps == 200);
  // Whole drafts are right, but for the last, which max_tokens cuts.
  CHECK(stats[Speculation::kNgram].steps < 20);
  const SpeculationStats& drafts = stats[Speculation::kNgram].speculation;
  CHECK(drafts.accepted_tokens == drafts.drafted_tokens);
  CHECK(drafts.accepted_tokens + stats[Speculation::kNgram].steps == 200);
}

TEST_CASE("A text that never repeats gets few drafts", "[runtime][speculation]") {
  CoreHarness harness({.kv_blocks = 512}, With(Speculation::kNgram));
  // The same pairs come again and again, and go on otherwise.
  GenerationRequest request = SimpleRequest(CountingPrompt(40), 3000);
  request.sampling.temperature = 1;
  request.sampling.seed = 5;
  for (int32_t token = 10; token < 97; ++token) request.sampling.logit_bias.push_back({token, -50});
  const auto sink = harness.Submit(request);
  REQUIRE(harness.RunAll());
  CHECK(harness.wrong == "");
  const EngineStats stats = harness.core.Stats();
  CHECK(stats.speculation.drafted_tokens > 0);
  CHECK(stats.speculation.drafted_tokens < 300);
}

TEST_CASE("Preemption loses no token of drafts", "[runtime][speculation]") {
  FakeModelOptions fake = Repetitive();
  const Outcome plain = RunVaried(fake, With(Speculation::kOff), 1);
  for (const bool prefix_cache : {false, true}) {
    fake.kv_blocks = 14;
    EngineOptions options = With(Speculation::kNgram);
    options.prefix_cache = prefix_cache;
    const Outcome drafted = RunVaried(fake, options, 8);
    CHECK(drafted.stats.preemptions > 0);
    CHECK(drafted.stats.speculation.accepted_tokens > 0);
    CHECK(drafted.bytes == plain.bytes);
  }
}

TEST_CASE("The prefix cache never knows a wrong guess", "[runtime][speculation][prefix]") {
  // The model checks what is in every block that a later request takes over.
  FakeModelOptions fake = Repetitive();
  fake.period_bonus = 4;  // many guesses are wrong
  for (const Speculation setting : {Speculation::kOff, Speculation::kNgram}) {
    CoreHarness harness(fake, With(setting));
    std::vector<int32_t> talk = Periodic(20, 5);
    int cached = 0;
    for (int turn = 0; turn < 6; ++turn) {
      GenerationRequest request = SimpleRequest(talk, 37);
      request.sampling.temperature = 1;
      request.sampling.seed = 9;
      const auto sink = harness.Submit(request);
      REQUIRE(harness.RunAll());
      CHECK(harness.wrong == "");
      const std::vector<int32_t> answer = sink->ids();
      talk.insert(talk.end(), answer.begin(), answer.end());
      talk.push_back(50 + turn);
      cached += sink->finish.usage.cached_tokens;
    }
    CHECK(cached == 16 * (0 + 3 + 5 + 8 + 10 + 13));
  }
}

TEST_CASE("A cancel between drafted steps frees everything", "[runtime][speculation]") {
  FakeModelOptions fake = Repetitive();
  const GenerationRequest other = SimpleRequest(Periodic(9, 5, 30), 60);
  const std::string expected = BytesAlone(other, fake);
  for (int steps = 1; steps < 12; ++steps) {
    CoreHarness harness(fake, With(Speculation::kNgram));
    const auto cancelled = harness.Submit(SimpleRequest(Periodic(20, 5), 200));
    const auto kept = harness.Submit(other);
    for (int i = 0; i < steps; ++i) REQUIRE(harness.Step());
    harness.core.Cancel(1);
    CHECK(cancelled->finish.reason == FinishReason::kCancelled);
    CHECK(cancelled->finish.usage.completion_tokens == static_cast<int>(cancelled->tokens.size()));
    REQUIRE(harness.RunAll());
    CHECK(harness.wrong == "");
    CHECK(Bytes(*kept) == expected);
    CHECK(harness.core.Stats().kv_blocks_used == 0);
  }
}

TEST_CASE("Rows that are not numbers end a request where they would without drafts",
          "[runtime][speculation]") {
  FakeModelOptions fake = Repetitive();
  fake.period_bonus = 100;
  // Periodic text: the poison comes once a period, from the sequence itself.
  const GenerationRequest poisoned = SimpleRequest({3, 14, 25, 36}, 60);
  fake.poison_token = -1;
  CoreHarness healthy(fake);
  const auto whole = healthy.Submit(poisoned);
  REQUIRE(healthy.RunAll());
  const std::vector<int32_t> ids = whole->ids();
  fake.poison_token = ids[40];
  std::string without;
  for (const Speculation setting : {Speculation::kOff, Speculation::kNgram}) {
    CoreHarness harness(fake, With(setting));
    const auto sink = harness.Submit(poisoned);
    REQUIRE(harness.RunAll());
    CHECK(harness.wrong == "");
    CHECK(sink->finish.reason == FinishReason::kError);
    if (setting == Speculation::kOff) without = Bytes(*sink);
    CHECK(Bytes(*sink) == without);
    CHECK_FALSE(sink->finish.error.message.empty());
  }
}

TEST_CASE("Requests that accept less than exact weights get no drafts", "[runtime][speculation]") {
  FakeModelOptions fake = Repetitive();
  CoreHarness harness(fake, With(Speculation::kNgram));
  GenerationRequest request = SimpleRequest(Periodic(20, 5), 60);
  request.quality.quality = Quality::kBalanced;
  const auto sink = harness.Submit(request);
  REQUIRE(harness.RunAll());
  CHECK(harness.core.Stats().speculation.drafted_tokens == 0);
}

TEST_CASE("Drafts leave prompts their rows and tokens", "[runtime][speculation]") {
  FakeModelOptions fake = Repetitive();
  fake.period_bonus = 100;
  fake.max_batch_tokens = 32;
  CoreHarness harness(fake, With(Speculation::kNgram));
  std::vector<std::shared_ptr<RecordingSink>> streams;
  for (int i = 0; i < 6; ++i) {
    streams.push_back(harness.Submit(SimpleRequest(Periodic(20, 5, 3 + i), 400)));
  }
  for (int i = 0; i < 20; ++i) REQUIRE(harness.Step());
  GenerationRequest scored = SimpleRequest(CountingPrompt(100), 4);
  scored.prompt_logprobs = 0;
  const auto sink = harness.Submit(scored);
  int steps = 0;
  while (!sink->finished()) {
    REQUIRE(harness.Step());
    ++steps;
  }
  // Half of what 6 decodes leave of 32 tokens is the prompt's.
  CHECK(steps <= 100 / 13 + 2 + 4);
  REQUIRE(harness.RunAll());
  CHECK(harness.wrong == "");
}

}  // namespace
}  // namespace sluice
