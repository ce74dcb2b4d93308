// Long prompts among streams, on a clock that the model moves: how long streams wait, and that
// their tokens and the prompt's do not depend on it.
#include <algorithm>

#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

constexpr int kStreams = 7;

struct GapSink final : OutputSink {
  explicit GapSink(const Clock* c) : clock(c) {}
  void OnToken(TokenOutput token) override {
    const TimePoint now = clock->Now();
    if (!ids.empty()) {
      longest = std::max(longest, std::chrono::duration<double>(now - last).count());
    }
    last = now;
    ids.push_back(token.token);
  }
  void OnFinish(Finish f) override { finish = std::move(f); }

  const Clock* clock;
  std::vector<int32_t> ids;
  TimePoint last;
  double longest = 0;
  Finish finish;
};

struct Streams {
  Streams(double bound, double per_token) {
    FakeModelOptions fake;
    fake.kv_blocks = 2048;
    fake.max_batch_tokens = 512;
    fake.max_context = 8192;
    model = std::make_unique<FakeModel>(fake);
    EngineOptions options;
    options.max_decode_stall_seconds = bound;
    core = std::make_unique<EngineCore>(model.get(), options, &clock);
    model->set_on_forward([this, per_token](std::span<const SequenceChunk> chunks) {
      for (const SequenceChunk& chunk : chunks) {
        clock.Advance(per_token * static_cast<double>(chunk.tokens.size()));
      }
    });
  }
  std::shared_ptr<GapSink> Submit(const GenerationRequest& request) {
    REQUIRE(core->Validate(request).has_value());
    REQUIRE(core->Reserve(static_cast<int64_t>(request.prompt.size())));
    auto sink = std::make_shared<GapSink>(&clock);
    core->Add(next++, request, sink, clock.Now());
    return sink;
  }

  ManualClock clock;
  std::unique_ptr<FakeModel> model;
  std::unique_ptr<EngineCore> core;
  RequestId next = 1;
};

TEST_CASE("A prompt of 4096 tokens leaves no gap above the bound and one step, and no other token",
          "[runtime][stall]") {
  constexpr double kPerToken = 0.001, kDecodeStep = kStreams * kPerToken;
  const auto run = [&](double bound, std::vector<std::vector<int32_t>>* ids) {
    Streams s(bound, kPerToken);
    std::vector<std::shared_ptr<GapSink>> sinks;
    for (int i = 0; i < kStreams; ++i) {
      GenerationRequest request = SimpleRequest(CountingPrompt(30 + i, 5 * i), 600);
      request.sampling.temperature = 1;
      request.sampling.seed = static_cast<uint64_t>(i);
      sinks.push_back(s.Submit(request));
    }
    for (int i = 0; i < 20; ++i) s.core->Step();
    for (const auto& sink : sinks) sink->longest = 0;
    const auto guest = s.Submit(SimpleRequest(CountingPrompt(4096), 5));
    while (s.core->Step()) REQUIRE(s.core->CheckInvariants() == "");
    CHECK(s.model->violation() == "");
    double longest = 0;
    for (const auto& sink : sinks) {
      longest = std::max(longest, sink->longest);
      ids->push_back(sink->ids);
    }
    ids->push_back(guest->ids);
    // While the guest's prompt was computed, not merely after the streams were done.
    CHECK(guest->finish.usage.prefill_seconds < 8);
    return longest;
  };
  std::vector<std::vector<int32_t>> bounded, unbounded, tight;
  CHECK(run(0.25, &bounded) <= 0.25 + kDecodeStep + 1e-9);
  CHECK(run(0.02, &tight) <= 0.02 + kDecodeStep + 1e-9);
  CHECK(run(0, &unbounded) > 0.5);
  CHECK(bounded == unbounded);
  CHECK(tight == unbounded);
}

TEST_CASE("Steps over the bound are counted", "[runtime][stall]") {
  Streams s(0.01, 0.0001);
  const auto stream = s.Submit(SimpleRequest(CountingPrompt(20), 1000));
  s.Submit(SimpleRequest(CountingPrompt(3000, 7), 5));
  for (int i = 0; i < 8; ++i) s.core->Step();
  CHECK(s.core->Stats().decode_stalls == 0);
  s.model->set_on_forward([&](std::span<const SequenceChunk> chunks) {
    for (const auto& chunk : chunks)
      s.clock.Advance(0.01 * static_cast<double>(chunk.tokens.size()));
  });
  s.core->Step();
  CHECK(s.core->Stats().decode_stalls == 1);
}

}  // namespace
}  // namespace sluice
