// The prefix cache changes no byte of any answer: real (tiny) models and the checking fake.
#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

// The fake model checks every key that a sequence reads: a wrong block is caught at once.
TEST_CASE("Answers are the same bytes with the prefix cache, at every block boundary",
          "[runtime][prefix]") {
  EngineOptions options;
  options.prefill_chunk = 24;
  CoreHarness warm({}, options);
  for (int size : {15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 100}) {
    INFO(size);
    GenerationRequest request = SimpleRequest(CountingPrompt(size), 20);
    request.sampling.temperature = 1;
    request.sampling.seed = 3;
    request.logprobs = 2;
    const std::string alone = BytesAlone(request, {});
    for (int again = 0; again < 2; ++again) {
      const auto sink = warm.Submit(request);
      REQUIRE(warm.RunAll());
      CHECK(warm.wrong == "");
      CHECK(Bytes(*sink) == alone);
      if (again == 1) CHECK(sink->finish.usage.cached_tokens == (size - 1) / 16 * 16);
      CHECK(sink->finish.usage.prompt_tokens == size);
    }
  }
  const EngineStats stats = warm.core.Stats();
  CHECK(stats.kv_blocks_used == 0);
  CHECK(stats.kv_blocks_cached > 0);
  CHECK(stats.prefix_hit_tokens > 0);
  CHECK(stats.prefix_queried_tokens > stats.prefix_hit_tokens);
}

TEST_CASE("The prefix cache can be switched off", "[runtime][prefix]") {
  EngineOptions options;
  options.prefix_cache = false;
  CoreHarness h({}, options);
  const GenerationRequest request = SimpleRequest(CountingPrompt(40), 3);
  for (int i = 0; i < 2; ++i) {
    const auto sink = h.Submit(request);
    REQUIRE(h.RunAll());
    CHECK(sink->finish.usage.cached_tokens == 0);
  }
  CHECK(h.core.Stats().kv_blocks_cached == 0);
  CHECK(h.core.Stats().prefix_queried_tokens == 0);
}

TEST_CASE("A request cancelled in the middle of its prompt leaves only what it computed",
          "[runtime][prefix]") {
  EngineOptions options;
  options.prefill_chunk = 20;
  CoreHarness h({}, options);
  const GenerationRequest request = SimpleRequest(CountingPrompt(90), 10);
  const RequestId id = h.next_id;
  h.Submit(request);
  h.Step();
  h.Step();  // 40 tokens: two full blocks
  h.core.Cancel(id);
  CHECK(h.core.CheckInvariants() == "");
  const auto sink = h.Submit(request);
  REQUIRE(h.RunAll());
  CHECK(h.wrong == "");
  CHECK(sink->finish.usage.cached_tokens == 32);
  CHECK(Bytes(*sink) == BytesAlone(request, {}));
}

constexpr int kTurns = 3;
constexpr int kTalks = 5;

// Talks that share a beginning; every turn repeats the turn before and its answer.
std::vector<std::string> Talk(Model* model, bool prefix_cache, int company, EngineStats* stats) {
  EngineOptions options;
  options.max_running = company;
  options.prefill_chunk = 21;
  options.prefix_cache = prefix_cache;
  const ManualClock clock;
  EngineCore core(model, options, &clock);
  const int vocab = model->config().vocab;
  std::vector<std::vector<int32_t>> prompts(kTalks);
  for (int t = 0; t < kTalks; ++t) {
    for (int i = 0; i < 37; ++i) prompts[static_cast<size_t>(t)].push_back((3 + 5 * i) % vocab);
    for (int i = 0; i < 2 + 7 * t; ++i) {
      prompts[static_cast<size_t>(t)].push_back((11 * t + 3 * i) % vocab);
    }
  }
  std::vector<std::string> bytes;
  RequestId id = 1;
  for (int turn = 0; turn < kTurns; ++turn) {
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (int t = 0; t < kTalks; ++t) {
      GenerationRequest request = SimpleRequest(prompts[static_cast<size_t>(t)], 14 + t);
      request.sampling.temperature = t % 2 == 0 ? 0.0f : 1.0f;
      request.sampling.seed = static_cast<uint64_t>(t);
      request.logprobs = 1;
      request.prompt_logprobs = t == 3 ? 1 : -1;
      REQUIRE(core.Validate(request).has_value());
      REQUIRE(core.Reserve(static_cast<int64_t>(request.prompt.size())));
      sinks.push_back(std::make_shared<RecordingSink>());
      core.Add(id++, request, sinks.back(), clock.Now());
    }
    while (core.Step()) REQUIRE(core.CheckInvariants() == "");
    for (int t = 0; t < kTalks; ++t) {
      const auto& sink = sinks[static_cast<size_t>(t)];
      REQUIRE(sink->finished());
      bytes.push_back(Bytes(*sink));
      auto& prompt = prompts[static_cast<size_t>(t)];
      const auto answer = sink->ids();
      prompt.insert(prompt.end(), answer.begin(), answer.end());
      prompt.push_back(turn);
    }
  }
  CHECK(core.Stats().kv_blocks_used == 0);
  *stats = core.Stats();
  return bytes;
}

TEST_CASE("A model's talks are the same bytes with and without the prefix cache",
          "[runtime][prefix]") {
  for (const char* name : {"qwen3_moe", "mixtral", "olmoe"}) {
    INFO(name);
    ModelOptions options;
    options.threads = 1;
    options.max_batch_tokens = 128;
    options.max_sequences = 16;
    for (int kv_blocks : {128, 8}) {
      options.kv_blocks = kv_blocks;
      auto model = Model::Load(std::string(SLUICE_TEST_DATA) + "/models/" + name, options);
      if (!model) FAIL(model.error().message);
      EngineStats stats;
      const std::vector<std::string> expected = Talk(model->get(), false, 1, &stats);
      for (int company : {1, 2, kTalks}) {
        INFO("company " << company << ", blocks " << kv_blocks);
        CHECK(Talk(model->get(), true, company, &stats) == expected);
        CHECK(stats.prefix_hit_tokens > 0);
        if (kv_blocks == 8) CHECK(stats.prefix_evicted_blocks > 0);
        if (kv_blocks == 8 && company == kTalks) CHECK(stats.preemptions > 0);
      }
    }
  }
}

}  // namespace
}  // namespace sluice
