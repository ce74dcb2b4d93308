#include "engine/runtime/engine_core.h"

#include <algorithm>

#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

TEST_CASE("A request gives max_tokens tokens, then ends with its usage", "[runtime]") {
  CoreHarness h;
  const auto sink = h.Submit(SimpleRequest(CountingPrompt(20), 5));
  REQUIRE(sink != nullptr);
  h.clock.Advance(2);
  REQUIRE(h.RunAll());
  CHECK(h.wrong == "");
  CHECK(sink->tokens.size() == 5);
  REQUIRE(sink->finished());
  CHECK_FALSE(sink->out_of_order);
  CHECK(sink->finish.reason == FinishReason::kLength);
  CHECK(sink->finish.stop_token == -1);
  CHECK(sink->finish.usage.prompt_tokens == 20);
  CHECK(sink->finish.usage.completion_tokens == 5);
  CHECK(sink->finish.usage.queue_seconds == Approx(2.0));
  CHECK(sink->finish.usage.decode_seconds == Approx(0.004));
  CHECK(h.core.Idle());
  const EngineStats stats = h.core.Stats();
  CHECK(stats.finished_length == 1);
  CHECK(stats.prompt_tokens == 20);
  CHECK(stats.generated_tokens == 5);
  CHECK(stats.steps == 5);
  CHECK(stats.kv_blocks_used == 0);
  CHECK(stats.running == 0);
}

TEST_CASE("An end-of-sequence or stop token ends the request and is delivered", "[runtime]") {
  FakeModelOptions fake;
  CoreHarness plain(fake);
  const auto free_run = plain.Submit(SimpleRequest(CountingPrompt(9), 12));
  REQUIRE(plain.RunAll());
  const std::vector<int32_t> ids = free_run->ids();

  GenerationRequest request = SimpleRequest(CountingPrompt(9), 12);
  const int32_t stop = ids[4];
  const auto first = static_cast<size_t>(std::find(ids.begin(), ids.end(), stop) - ids.begin());
  SECTION("as a stop token id") { request.stop_token_ids = {stop}; }
  SECTION("as the model's own end") {
    request.ignore_eos = false;
    fake.eos_ids = {stop};
  }
  CoreHarness h(fake);
  const auto sink = h.Submit(request);
  REQUIRE(h.RunAll());
  CHECK(sink->ids() == std::vector<int32_t>(ids.begin(), ids.begin() + first + 1));
  CHECK(sink->finish.reason == FinishReason::kStop);
  CHECK(sink->finish.stop_token == stop);
  CHECK(h.core.Stats().finished_stop == 1);
}

TEST_CASE("min_tokens holds back every ending token", "[runtime]") {
  FakeModelOptions fake;
  fake.eos_bonus = 100;  // every token would be the end
  CoreHarness h(fake);
  GenerationRequest request = SimpleRequest(CountingPrompt(4), 30);
  request.ignore_eos = false;
  const auto eager = h.Submit(request);
  request.min_tokens = 7;
  request.stop_token_ids = {40, 41};
  request.sampling.logit_bias = {{40, 99.0f}};
  const auto patient = h.Submit(request);
  REQUIRE(h.RunAll());
  CHECK(eager->ids() == std::vector<int32_t>{2});
  REQUIRE(patient->tokens.size() == 8);
  for (size_t i = 0; i < 7; ++i) {
    const int32_t id = patient->tokens[i].token;
    CHECK((id != 2 && id != 40 && id != 41));
  }
  CHECK(patient->finish.reason == FinishReason::kStop);
}

TEST_CASE("The tokens do not depend on how the prompt is chunked", "[runtime]") {
  FakeModelOptions fake;
  GenerationRequest request = SimpleRequest(CountingPrompt(150), 20);
  request.sampling.temperature = 0.9f;
  request.sampling.seed = 5;
  request.logprobs = 3;
  request.prompt_logprobs = 2;
  const std::string expected = BytesAlone(request, fake);
  for (int chunk : {1, 2, 3, 5, 15, 16, 17, 31, 64}) {
    for (int budget : {16, 17, 64}) {
      EngineOptions options;
      options.prefill_chunk = chunk;
      options.max_batch_tokens = budget;
      CoreHarness h(fake, options);
      const auto sink = h.Submit(request);
      REQUIRE(h.RunAll());
      CHECK(h.wrong == "");
      CHECK(Bytes(*sink) == expected);
    }
  }
}

TEST_CASE("A request may join and leave at any step without a trace in the others", "[runtime]") {
  GenerationRequest request = SimpleRequest(CountingPrompt(21), 12);
  request.sampling.temperature = 1;
  request.sampling.seed = 3;
  GenerationRequest guest = SimpleRequest(CountingPrompt(33, 50), 40);
  const std::string expected = BytesAlone(request, {});
  for (int join = 0; join < 13; ++join) {
    for (int stay : {1, 2, 5}) {
      EngineOptions options;
      options.prefill_chunk = 7;
      CoreHarness h({}, options);
      const auto sink = h.Submit(request);
      for (int i = 0; i < join; ++i) h.Step();
      const RequestId guest_id = h.next_id;
      const auto visitor = h.Submit(guest);
      for (int i = 0; i < stay; ++i) h.Step();
      h.core.Cancel(guest_id);
      REQUIRE(h.RunAll());
      CHECK(h.wrong == "");
      CHECK(Bytes(*sink) == expected);
      CHECK(visitor->finish.reason == FinishReason::kCancelled);
    }
  }
}

TEST_CASE("Cancel works in every state and frees the KV blocks at once", "[runtime]") {
  FakeModelOptions fake;
  fake.kv_blocks = 6;
  EngineOptions options;
  options.prefill_chunk = 16;
  CoreHarness h(fake, options);
  const RequestId id = h.next_id;
  const auto cancelled_after = [&](const std::shared_ptr<RecordingSink>& sink) {
    h.core.Cancel(id);
    CHECK(h.core.CheckInvariants() == "");
    CHECK(h.core.Stats().kv_blocks_used == 0);
    REQUIRE(sink->finished());
    CHECK(sink->finish.reason == FinishReason::kCancelled);
    CHECK(h.core.Idle());
    h.core.Cancel(id);  // twice is as good as once
    CHECK(sink->finish_calls == 1);
    CHECK(h.core.Stats().finished_cancelled == 1);
  };
  SECTION("waiting") { cancelled_after(h.Submit(SimpleRequest(CountingPrompt(50), 10))); }
  SECTION("in the middle of its prompt") {
    const auto sink = h.Submit(SimpleRequest(CountingPrompt(50), 10));
    h.Step();
    h.Step();
    CHECK(sink->tokens.empty());
    CHECK(h.core.Stats().kv_blocks_used == 4);
    cancelled_after(sink);
  }
  SECTION("decoding") {
    const auto sink = h.Submit(SimpleRequest(CountingPrompt(50), 10));
    for (int i = 0; i < 6; ++i) h.Step();
    CHECK(sink->tokens.size() == 3);
    cancelled_after(sink);
    CHECK(sink->finish.usage.completion_tokens == 3);
  }
  SECTION("preempted") {
    const auto older = h.Submit(SimpleRequest(CountingPrompt(30), 60));
    const RequestId younger_id = h.next_id;
    const auto younger = h.Submit(SimpleRequest(CountingPrompt(30, 9), 60));
    while (h.core.Stats().preemptions == 0) REQUIRE(h.Step());
    REQUIRE(h.core.scheduler().Find(younger_id)->state == SequenceState::kPreempted);
    h.core.Cancel(younger_id);
    CHECK(h.core.CheckInvariants() == "");
    CHECK(younger->finish.reason == FinishReason::kCancelled);
    CHECK(younger->finish.usage.preemptions == 1);
    REQUIRE(h.RunAll());
    CHECK(older->finish.reason == FinishReason::kLength);
  }
  SECTION("unknown") {
    h.core.Cancel(99);
    CHECK(h.core.Stats().finished_cancelled == 0);
  }
  CHECK(h.wrong == "");
}

TEST_CASE("A preempted request resumes and gives the same tokens", "[runtime]") {
  FakeModelOptions fake;
  fake.kv_blocks = 8;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 4; ++i) {
    GenerationRequest request = SimpleRequest(CountingPrompt(20 + i, 11 * i), 60);
    request.sampling.temperature = 0.8f;
    request.sampling.repetition_penalty = 1.1f;
    request.sampling.frequency_penalty = 0.3f;
    request.sampling.seed = static_cast<uint64_t>(i);
    request.logprobs = 1;
    request.prompt_logprobs = i % 2 == 0 ? 0 : -1;
    requests.push_back(request);
  }
  EngineOptions options;
  options.prefill_chunk = 9;
  CoreHarness h(fake, options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const auto& request : requests) sinks.push_back(h.Submit(request));
  REQUIRE(h.RunAll());
  CHECK(h.wrong == "");
  CHECK(h.core.Stats().preemptions > 0);
  int preemptions = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    CHECK(Bytes(*sinks[i]) == BytesAlone(requests[i], fake));
    CHECK_FALSE(sinks[i]->out_of_order);
    preemptions += sinks[i]->finish.usage.preemptions;
  }
  CHECK(static_cast<uint64_t>(preemptions) == h.core.Stats().preemptions);
  CHECK(sinks[0]->finish.usage.preemptions == 0);
}

TEST_CASE("Log-probabilities are the log-softmax of the raw logits", "[runtime]") {
  CoreHarness h;
  GenerationRequest request = SimpleRequest(CountingPrompt(20), 6);
  request.logprobs = 4;
  request.prompt_logprobs = 4;
  request.sampling.logit_bias = {{50, 20.0f}};  // forces a choice that is not the likeliest
  const auto sink = h.Submit(request);
  REQUIRE(h.RunAll());
  REQUIRE(sink->prompt_calls == 1);
  REQUIRE(sink->prompt.size() == 20);
  CHECK(sink->prompt[0].logprob == 0);
  CHECK(sink->prompt[0].top.empty());
  for (size_t i = 0; i < sink->prompt.size(); ++i) {
    CHECK(sink->prompt[i].token == request.prompt[i]);
    if (i > 0) CHECK(sink->prompt[i].top.size() == 4);
    if (i > 0) CHECK(sink->prompt[i].logprob <= sink->prompt[i].top[0].logprob);
  }
  for (const TokenOutput& t : sink->tokens) {
    CHECK(t.token == 50);
    REQUIRE(t.top.size() == 4);
    CHECK(t.top[0].logprob >= t.top[1].logprob);
    CHECK(t.logprob < 0);
    CHECK(t.top[0].logprob > -5.0f);
  }
}

TEST_CASE("max_tokens 0 scores the prompt and generates nothing", "[runtime]") {
  GenerationRequest request = SimpleRequest(CountingPrompt(40), 0);
  request.prompt_logprobs = 1;
  EngineOptions options;
  options.prefill_chunk = 13;
  CoreHarness h({}, options);
  const auto sink = h.Submit(request);
  REQUIRE(h.RunAll());
  CHECK(h.wrong == "");
  CHECK(sink->prompt.size() == 40);
  CHECK(sink->tokens.empty());
  CHECK(sink->finish.reason == FinishReason::kLength);
  CHECK(sink->finish.usage.completion_tokens == 0);

  request.max_tokens = 1;
  CoreHarness other;
  const auto longer = other.Submit(request);
  REQUIRE(other.RunAll());
  std::string a, b;
  AppendBytes(sink->prompt, &a);
  AppendBytes(longer->prompt, &b);
  CHECK(a == b);

  request = SimpleRequest({5}, 0);
  request.prompt_logprobs = 0;
  const auto single = h.Submit(request);
  REQUIRE(h.RunAll());
  CHECK(single->prompt.size() == 1);
  CHECK(single->finished());
  CHECK(h.wrong == "");
}

TEST_CASE("Logits that are not numbers end that request alone", "[runtime]") {
  FakeModelOptions fake;
  fake.poison_token = 90;
  CoreHarness h(fake);
  GenerationRequest healthy = SimpleRequest(CountingPrompt(10), 8);
  healthy.sampling.logit_bias = {{90, -100.0f}};
  GenerationRequest poisoned = SimpleRequest({5, 90, 6}, 8);
  GenerationRequest scored = poisoned;
  scored.prompt_logprobs = 0;
  const auto a = h.Submit(healthy);
  const auto b = h.Submit(poisoned);
  const auto c = h.Submit(scored);
  REQUIRE(h.RunAll());
  CHECK(h.wrong == "");
  CHECK(a->finish.reason == FinishReason::kLength);
  CHECK(Bytes(*a) == BytesAlone(healthy, {}));
  for (const auto& sink : {b, c}) {
    REQUIRE(sink->finished());
    CHECK(sink->finish.reason == FinishReason::kError);
    CHECK(sink->finish.error.code == ErrorCode::kInternal);
    CHECK(sink->finish.error.message.find("not finite") != std::string::npos);
    CHECK(sink->tokens.empty());
  }
  CHECK(c->prompt_calls == 0);
  CHECK(h.core.Stats().finished_error == 2);
  CHECK(h.core.Stats().kv_blocks_used == 0);
}

TEST_CASE("A request that can never run is refused with the counts", "[runtime]") {
  FakeModelOptions fake;
  fake.kv_blocks = 4;  // 64 tokens
  const CoreHarness h(fake);
  CHECK(h.core.max_context() == 64);
  CHECK(h.core.Validate(SimpleRequest(CountingPrompt(60), 4)).has_value());
  const Result<> refused = h.core.Validate(SimpleRequest(CountingPrompt(60), 5));
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  for (const char* count : {"60", "5", "65", "64"}) {
    CHECK(refused.error().message.find(count) != std::string::npos);
  }
  CHECK_FALSE(h.core.Validate(SimpleRequest(CountingPrompt(60), 2147483647)).has_value());
  CHECK_FALSE(h.core.Validate(SimpleRequest({}, 5)).has_value());
  CHECK_FALSE(h.core.Validate(SimpleRequest({1, 97}, 5)).has_value());
  CHECK_FALSE(h.core.Validate(SimpleRequest({-1}, 5)).has_value());
  CHECK_FALSE(h.core.Validate(SimpleRequest({1}, -1)).has_value());
  GenerationRequest request = SimpleRequest({1}, 5);
  request.min_tokens = 6;
  CHECK_FALSE(h.core.Validate(request).has_value());
  request.min_tokens = 0;
  request.stop_token_ids = {97};
  CHECK_FALSE(h.core.Validate(request).has_value());
  request.stop_token_ids.clear();
  request.prompt_logprobs = kMaxTopLogprobs + 1;
  CHECK_FALSE(h.core.Validate(request).has_value());
  request.prompt_logprobs = kMaxTopLogprobs;
  CHECK(h.core.Validate(request).has_value());
  request.sampling.top_p = 0;
  CHECK_FALSE(h.core.Validate(request).has_value());
}

TEST_CASE("A request that fills the whole pool runs to its end", "[runtime]") {
  FakeModelOptions fake;
  fake.kv_blocks = 4;
  CoreHarness h(fake);
  const auto a = h.Submit(SimpleRequest(CountingPrompt(34), 30));
  const auto b = h.Submit(SimpleRequest(CountingPrompt(64), 0));
  const auto c = h.Submit(SimpleRequest(CountingPrompt(1), 63));
  REQUIRE(h.RunAll());
  CHECK(h.wrong == "");
  CHECK(a->tokens.size() == 30);
  CHECK(b->finished());
  CHECK(c->tokens.size() == 63);
}

TEST_CASE("The waiting line is bounded and a place is free once its holder runs", "[runtime]") {
  EngineOptions options;
  options.max_queue = 2;
  options.max_running = 1;
  CoreHarness h({}, options);
  const auto a = h.Submit(SimpleRequest({5}, 3));
  const auto b = h.Submit(SimpleRequest({6}, 3));
  REQUIRE(a != nullptr);
  REQUIRE(b != nullptr);
  CHECK(h.Submit(SimpleRequest({7}, 3)) == nullptr);
  h.Step();
  const RequestId third = h.next_id;
  CHECK(h.Submit(SimpleRequest({7}, 3)) != nullptr);
  CHECK(h.Submit(SimpleRequest({8}, 3)) == nullptr);
  h.core.Cancel(third);
  CHECK(h.Submit(SimpleRequest({8}, 3)) != nullptr);
  CHECK(h.core.Stats().waiting == 2);
  REQUIRE(h.RunAll());
  CHECK(h.core.Idle());
  CHECK(h.wrong == "");
}

TEST_CASE("The waiting line is bounded by its prompts' tokens, but for a single one", "[runtime]") {
  EngineOptions options;
  options.max_queue_tokens = 100;
  options.max_running = 1;
  CoreHarness h({}, options);
  REQUIRE(h.Submit(SimpleRequest(CountingPrompt(300), 3)) != nullptr);  // nobody else waits
  h.Step();                                                             // 64 tokens of it: it runs
  CHECK(h.core.Stats().queued_tokens == 0);
  REQUIRE(h.Submit(SimpleRequest(CountingPrompt(60), 3)) != nullptr);
  CHECK(h.Submit(SimpleRequest(CountingPrompt(41), 3)) == nullptr);
  const RequestId third = h.next_id;
  REQUIRE(h.Submit(SimpleRequest(CountingPrompt(40), 3)) != nullptr);
  CHECK(h.core.Stats().queued_requests == 2);
  CHECK(h.core.Stats().queued_tokens == 100);
  CHECK(h.Submit(SimpleRequest({5}, 3)) == nullptr);
  h.core.Cancel(third);
  CHECK(h.core.Stats().queued_tokens == 60);
  CHECK(h.Submit(SimpleRequest(CountingPrompt(40), 3)) != nullptr);
  REQUIRE(h.RunAll());
  CHECK(h.core.Stats().queued_requests == 0);
  CHECK(h.core.Stats().queued_tokens == 0);
  CHECK(h.core.Idle());
}

TEST_CASE("When to try again is told from the rate at which requests begin", "[runtime]") {
  EngineOptions options;
  options.max_running = 1;
  CoreHarness h({}, options);
  CHECK(RetryAfterSeconds(h.core.Stats()) == 1);
  h.model.set_on_forward([&](std::span<const SequenceChunk>) { h.clock.Advance(0.5); });
  for (int i = 0; i < 60; ++i) REQUIRE(h.Submit(SimpleRequest({5, 6}, 4)) != nullptr);
  for (int i = 0; i < 80; ++i) REQUIRE(h.Step());
  // One begins every two seconds; twenty have, forty wait.
  const EngineStats stats = h.core.Stats();
  CHECK(stats.queued_requests == 40);
  CHECK(stats.begun_per_second == Approx(0.5).epsilon(0.1));
  CHECK(RetryAfterSeconds(stats) >= 72);
  CHECK(RetryAfterSeconds(stats) <= 88);
}

TEST_CASE("A request of an account that does not exist is refused", "[runtime]") {
  EngineOptions options;
  options.account_weights = {1, 2};
  const CoreHarness h({}, options);
  GenerationRequest request = SimpleRequest({5}, 3);
  request.account = 1;
  CHECK(h.core.Validate(request).has_value());
  for (int account : {2, -1}) {
    request.account = account;
    CHECK_FALSE(h.core.Validate(request).has_value());
  }
}

TEST_CASE("Priorities order the line and ageing overtakes them", "[runtime]") {
  EngineOptions options;
  options.max_running = 1;
  options.ageing_seconds = 10;
  CoreHarness h({}, options);
  const auto submit = [&h](int priority) {
    GenerationRequest request = SimpleRequest({5, 6}, 1);
    request.priority = priority;
    return h.Submit(request);
  };
  SECTION("higher first, then first come") {
    const auto low = submit(0), low2 = submit(0), high = submit(3);
    h.Step();
    CHECK(high->finished());
    CHECK_FALSE(low->finished());
    h.Step();
    CHECK(low->finished());
    CHECK_FALSE(low2->finished());
  }
  SECTION("a waiter is not overtaken by priority alone for ever") {
    const auto low = submit(0);
    h.clock.Advance(29);
    const auto high = submit(3);
    h.Step();
    CHECK(high->finished());
    CHECK_FALSE(low->finished());
    h.clock.Advance(2);
    const auto late_high = submit(3);
    h.Step();
    CHECK(low->finished());
    CHECK_FALSE(late_high->finished());
  }
}

TEST_CASE("CancelAll ends everything that is unfinished", "[runtime]") {
  CoreHarness h;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 20; ++i) sinks.push_back(h.Submit(SimpleRequest(CountingPrompt(9, i), 50)));
  h.Step();
  h.Step();
  h.core.CancelAll();
  CHECK(h.core.CheckInvariants() == "");
  CHECK(h.core.Idle());
  CHECK_FALSE(h.Step());
  for (const auto& sink : sinks) {
    CHECK(sink->finished());
    CHECK(sink->finish.reason == FinishReason::kCancelled);
  }
  CHECK(h.core.Stats().kv_blocks_used == 0);
}

TEST_CASE("The observer sees every step's tokens and sequences", "[runtime]") {
  FakeModel model({});
  ManualClock clock;
  std::vector<std::pair<int, int>> seen;
  EngineCore core(&model, {}, &clock, [&seen](int tokens, int sequences, double) {
    seen.push_back({tokens, sequences});
  });
  for (int i = 0; i < 2; ++i) {
    const GenerationRequest request = SimpleRequest(CountingPrompt(10), 2);
    REQUIRE(core.Validate(request).has_value());
    REQUIRE(core.Reserve(static_cast<int64_t>(request.prompt.size())));
    core.Add(static_cast<RequestId>(i + 1), request, std::make_shared<RecordingSink>(),
             clock.Now());
  }
  while (core.Step()) {
  }
  CHECK(seen == std::vector<std::pair<int, int>>{{20, 2}, {2, 2}});
}

TEST_CASE("What the tiers did is told a fifth of a second later at most", "[runtime][tiers]") {
  FakeModelOptions fake;
  fake.least_budget = 1000;
  CoreHarness h(fake);
  const auto reads = [&] { return h.core.Stats().expert_tiers->links[0].reads; };
  REQUIRE(h.core.Stats().expert_tiers != nullptr);
  REQUIRE(h.Submit(SimpleRequest({3, 4}, 500)) != nullptr);
  // A millisecond each: not one snapshot per step.
  const int before = h.model.snapshots();
  for (int i = 0; i < 199; ++i) REQUIRE(h.Step());
  CHECK(h.model.snapshots() == before);
  CHECK(reads() == 0);
  REQUIRE(h.Step());
  REQUIRE(h.Step());
  CHECK(h.model.snapshots() == before + 1);
  CHECK(reads() == 201);
  // When the steps end, the last of them are told at once, and nothing more after that.
  REQUIRE(h.RunAll());
  CHECK_FALSE(h.core.Background());
  CHECK(reads() == 500);
  const int settled = h.model.snapshots();
  CHECK_FALSE(h.core.Background());
  CHECK(h.model.snapshots() == settled);
  h.model.set_background_work(3);
  CHECK(h.core.Background());
  CHECK(h.core.Background());
  CHECK_FALSE(h.core.Background());
  CHECK(reads() == 503);
}

TEST_CASE("A model without tiers has none in its statistics and no budget", "[runtime][tiers]") {
  CoreHarness h;
  CHECK(h.core.Stats().expert_tiers == nullptr);
  const Result<> set = h.core.SetMemoryBudget(1 << 20);
  REQUIRE_FALSE(set.has_value());
  CHECK(set.error().code == ErrorCode::kUnsupported);
}

TEST_CASE("A new budget shows at once, a refused one changes nothing", "[runtime][tiers]") {
  FakeModelOptions fake;
  fake.least_budget = 1000;
  CoreHarness h(fake);
  REQUIRE(h.core.SetMemoryBudget(5000).has_value());
  CHECK(h.core.Stats().expert_tiers->budget_bytes == 5000);
  const Result<> refused = h.core.SetMemoryBudget(999);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  CHECK(h.core.Stats().expert_tiers->budget_bytes == 5000);
}

}  // namespace
}  // namespace sluice
