// What the engine adds to a step beside the model: run by hand with `test_runtime [overhead]`.
// Prints; asserts nothing about time.
#include <chrono>
#include <cstdio>

#include "engine/runtime/engine_core.h"
#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

// Logits are ready before the step, so a step costs what the engine costs.
class InstantModel final : public Model {
 public:
  explicit InstantModel(int vocab) {
    config_.vocab = vocab;
    config_.max_positions = 1 << 20;
    options_.kv_blocks = 1 << 14;
    logits_.resize(static_cast<size_t>(vocab) * 64);
    uint64_t state = 1;
    for (float& x : logits_) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const float u = static_cast<float>(state >> 40) * 0x1.0p-24f;
      x = 12.0f * u * u * u;  // a few likely tokens and a long tail
    }
  }
  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_; }
  DType weight_dtype() const override { return DType::kF32; }
  const char* isa() const override { return "instant"; }
  ModelFootprint footprint() const override { return {}; }
  std::span<const float> Forward(std::span<const SequenceChunk>) override { return logits_; }
  const ForwardStats& last_stats() const override { return stats_; }

 private:
  ModelConfig config_;
  ModelOptions options_;
  ForwardStats stats_;
  std::vector<float> logits_;
};

struct CountingSink final : OutputSink {
  void OnToken(TokenOutput) override { ++tokens; }
  void OnFinish(Finish) override {}
  int64_t tokens = 0;
};

void Measure(const char* name, int vocab, int streams, const SamplingParams& sampling,
             int logprobs = -1) {
  InstantModel model(vocab);
  const SteadyClock clock;
  EngineCore core(&model, {}, &clock);
  const auto sink = std::make_shared<CountingSink>();
  const int steps = vocab > 10000 ? 300 : 5000;
  for (int i = 0; i < streams; ++i) {
    GenerationRequest request = SimpleRequest(CountingPrompt(16), steps + 10);
    request.sampling = sampling;
    request.logprobs = logprobs;
    REQUIRE(core.Validate(request).has_value());
    REQUIRE(core.Reserve(static_cast<int64_t>(request.prompt.size())));
    core.Add(static_cast<RequestId>(i + 1), request, sink, clock.Now());
  }
  core.Step();
  const TimePoint begin = clock.Now();
  for (int i = 0; i < steps; ++i) core.Step();
  const double us = std::chrono::duration<double, std::micro>(clock.Now() - begin).count() / steps;
  std::printf("%-28s vocab %6d  streams %2d  %8.2f us per step\n", name, vocab, streams, us);
  CHECK(sink->tokens == static_cast<int64_t>(streams) * (steps + 1));
}

TEST_CASE("Engine overhead per step", "[.overhead]") {
  for (int vocab : {1024, 4096, 32000, 151936}) {
    for (int streams : {1, 16}) {
      SamplingParams s;
      s.temperature = 0;
      Measure("greedy", vocab, streams, s);
      s.temperature = 1;
      Measure("temperature", vocab, streams, s);
      s.top_k = 50;
      Measure("top_k 50", vocab, streams, s);
      s.top_k = 0;
      s.top_p = 0.9f;
      Measure("top_p 0.9", vocab, streams, s);
      s.top_k = 50;
      s.repetition_penalty = 1.1f;
      Measure("top_k, top_p, penalties", vocab, streams, s);
      s = {};
      s.min_p = 0.05f;
      Measure("min_p", vocab, streams, s);
      s.min_p = 0;
      s.typical_p = 0.9f;
      Measure("typical_p", vocab, streams, s);
      s = {};
      s.temperature = 0;
      Measure("greedy, logprobs 5", vocab, streams, s, 5);
    }
  }
}

}  // namespace
}  // namespace sluice
