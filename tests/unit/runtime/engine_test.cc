// The engine with its thread. Tests wait for events, never for time.
#include "engine/runtime/engine.h"

#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "engine/runtime/collector.h"
#include "tests/support/catch.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

// Holds the engine thread inside Forward until it is opened.
class Gate {
 public:
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void WaitForArrival() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return arrived_ > 0; });
  }
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  bool open_ = false;
};

std::string Bytes(const Collector& collector) {
  std::string out;
  AppendBytes(collector.prompt(), &out);
  out += '|';
  AppendBytes(collector.tokens(), &out);
  return out;
}

struct Gated {
  explicit Gated(const EngineOptions& options = {}, FakeModelOptions fake = {}) {
    auto model = std::make_unique<FakeModel>(fake);
    model->set_on_forward([this](std::span<const SequenceChunk>) { gate.Pass(); });
    engine = Engine::Start(std::move(model), options);
  }
  std::shared_ptr<Collector> Submit(const GenerationRequest& request, RequestId* id = nullptr) {
    auto sink = std::make_shared<Collector>();
    const Result<RequestId> submitted = engine->Submit(request, sink);
    if (!submitted) return nullptr;
    if (id != nullptr) *id = *submitted;
    return sink;
  }

  Gate gate;
  std::unique_ptr<Engine> engine;
};

TEST_CASE("Many threads submit and cancel, and every request ends once", "[runtime]") {
  FakeModelOptions fake;
  fake.kv_blocks = 24;
  EngineOptions options;
  options.max_queue = 1000;
  options.prefill_chunk = 16;
  auto owned = std::make_unique<FakeModel>(fake);
  const FakeModel* model = owned.get();
  const std::unique_ptr<Engine> engine = Engine::Start(std::move(owned), options);
  constexpr int kThreads = 4, kEach = 25;
  std::vector<std::vector<std::shared_ptr<Collector>>> sinks(kThreads);
  std::vector<std::vector<GenerationRequest>> requests(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        GenerationRequest request = SimpleRequest(CountingPrompt(10 + i, 9 * t), 20);
        request.sampling.temperature = 1;
        request.sampling.seed = static_cast<uint64_t>(100 * t + i);
        auto sink = std::make_shared<Collector>();
        const Result<RequestId> id = engine->Submit(request, sink);
        if (!id) return;
        if (i % 5 == 4) engine->Cancel(*id);
        requests[static_cast<size_t>(t)].push_back(request);
        sinks[static_cast<size_t>(t)].push_back(sink);
        (void)engine->Stats();
        (void)engine->LastPulse();
        (void)engine->Idle();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int t = 0; t < kThreads; ++t) {
    REQUIRE(sinks[static_cast<size_t>(t)].size() == kEach);
    for (size_t i = 0; i < kEach; ++i) {
      const Collector& sink = *sinks[static_cast<size_t>(t)][i];
      const Finish& finish = sinks[static_cast<size_t>(t)][i]->Wait();
      const GenerationRequest& request = requests[static_cast<size_t>(t)][i];
      if (finish.reason == FinishReason::kCancelled) continue;
      CHECK(finish.reason == FinishReason::kLength);
      const std::string alone = BytesAlone(request, fake);
      CHECK(Bytes(sink) == alone.substr(0, alone.rfind('|')));
    }
  }
  engine->BeginDrain();
  while (!engine->Idle()) std::this_thread::yield();
  const EngineStats stats = engine->Stats();
  CHECK(stats.finished_length + stats.finished_cancelled == kThreads * kEach);
  CHECK(stats.finished_length >= kThreads * kEach * 4 / 5);
  CHECK(stats.kv_blocks_used == 0);
  CHECK(stats.running == 0);
  CHECK(stats.waiting == 0);
  CHECK(model->violation() == "");
}

TEST_CASE("A full queue refuses, and takes again once there is room", "[runtime]") {
  EngineOptions options;
  options.max_queue = 3;
  options.max_running = 1;
  Gated g(options);
  const auto first = g.Submit(SimpleRequest({5}, 2));
  g.gate.WaitForArrival();
  std::vector<std::shared_ptr<Collector>> sinks;
  RequestId last = 0;
  for (int i = 0; i < 3; ++i) sinks.push_back(g.Submit(SimpleRequest({6 + i}, 2), &last));
  CHECK(g.engine->Stats().waiting == 3);
  CHECK(g.engine->Stats().running == 1);
  const auto refused = g.engine->Submit(SimpleRequest({9}, 2), std::make_shared<Collector>());
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(refused.error().message.find("3 requests") != std::string::npos);
  g.gate.Open();
  for (const auto& sink : sinks) CHECK(sink->Wait().reason == FinishReason::kLength);
  CHECK(g.Submit(SimpleRequest({9}, 2)) != nullptr);
}

TEST_CASE("A bad request is refused before it is queued", "[runtime]") {
  const auto engine = Engine::Start(std::make_unique<FakeModel>(FakeModelOptions{}), {});
  const auto refused =
      engine->Submit(SimpleRequest(CountingPrompt(2000), 2000), std::make_shared<Collector>());
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  CHECK(refused.error().message.find("4000") != std::string::npos);
  CHECK(refused.error().message.find("1024") != std::string::npos);
  CHECK(engine->max_context() == 1024);
  CHECK(engine->Idle());
}

TEST_CASE("Draining finishes what runs and refuses what is new", "[runtime]") {
  Gated g;
  const auto running = g.Submit(SimpleRequest(CountingPrompt(5), 4));
  g.gate.WaitForArrival();
  const auto queued = g.Submit(SimpleRequest(CountingPrompt(6), 4));
  g.engine->BeginDrain();
  CHECK_FALSE(g.engine->Idle());
  const auto refused = g.engine->Submit(SimpleRequest({9}, 2), std::make_shared<Collector>());
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::kUnavailable);
  g.gate.Open();
  CHECK(running->Wait().reason == FinishReason::kLength);
  CHECK(queued->Wait().reason == FinishReason::kLength);
  while (!g.engine->Idle()) std::this_thread::yield();
}

TEST_CASE("A cancel that races its submission still ends the request", "[runtime]") {
  Gated g;
  const auto running = g.Submit(SimpleRequest(CountingPrompt(5), 4));
  g.gate.WaitForArrival();
  RequestId id = 0;
  const auto queued = g.Submit(SimpleRequest(CountingPrompt(6), 4), &id);
  g.engine->Cancel(id);
  g.engine->Cancel(id);
  g.engine->Cancel(id + 1000);
  g.gate.Open();
  CHECK(queued->Wait().reason == FinishReason::kCancelled);
  CHECK(queued->tokens().empty());
  CHECK(running->Wait().reason == FinishReason::kLength);
}

TEST_CASE("A sink may cancel its own request", "[runtime]") {
  struct SelfCancelling final : OutputSink {
    void OnToken(TokenOutput) override {
      if (++tokens == 3) engine->Cancel(id.load());
    }
    void OnFinish(Finish f) override {
      std::lock_guard<std::mutex> lock(mutex);
      finish = std::move(f);
      finished = true;
      done.notify_all();
    }
    Engine* engine = nullptr;
    std::atomic<RequestId> id{0};
    int tokens = 0;
    std::mutex mutex;
    std::condition_variable done;
    bool finished = false;
    Finish finish;
  };
  Gated g;
  const auto sink = std::make_shared<SelfCancelling>();
  sink->engine = g.engine.get();
  const auto id = g.engine->Submit(SimpleRequest(CountingPrompt(5), 100), sink);
  REQUIRE(id.has_value());
  sink->id = *id;
  g.gate.Open();
  std::unique_lock<std::mutex> lock(sink->mutex);
  sink->done.wait(lock, [&] { return sink->finished; });
  CHECK(sink->finish.reason == FinishReason::kCancelled);
  CHECK(sink->tokens == 3);
  CHECK(sink->finish.usage.completion_tokens == 3);
}

TEST_CASE("Destroying the engine cancels everything, queued or running", "[runtime]") {
  FakeModelOptions fake;
  fake.kv_blocks = 4096;
  fake.max_context = 65536;
  EngineOptions options;
  options.max_running = 1;
  std::vector<std::shared_ptr<Collector>> sinks;
  Gated g(options, fake);
  // Far more work than can be done between the two last lines of this block.
  for (int i = 0; i < 6; ++i) sinks.push_back(g.Submit(SimpleRequest(CountingPrompt(5), 60000)));
  g.gate.WaitForArrival();
  g.gate.Open();
  g.engine.reset();
  for (const auto& sink : sinks) CHECK(sink->Wait().reason == FinishReason::kCancelled);
}

TEST_CASE("The engine drops its reference to a sink after OnFinish", "[runtime]") {
  const auto engine = Engine::Start(std::make_unique<FakeModel>(FakeModelOptions{}), {});
  auto sink = std::make_shared<Collector>();
  const std::weak_ptr<Collector> watch = sink;
  REQUIRE(engine->Submit(SimpleRequest({5}, 2), sink).has_value());
  sink->Wait();
  sink.reset();
  while (!engine->Idle()) std::this_thread::yield();
  CHECK(watch.expired());
}

TEST_CASE("The pulse moves with every turn of the loop", "[runtime]") {
  const auto engine = Engine::Start(std::make_unique<FakeModel>(FakeModelOptions{}), {});
  const auto before = engine->LastPulse();
  CHECK(before.time_since_epoch().count() > 0);
  auto sink = std::make_shared<Collector>();
  REQUIRE(engine->Submit(SimpleRequest({5}, 5), sink).has_value());
  sink->Wait();
  // Five steps of one token each: at least four turns ended before the last token was delivered.
  CHECK(engine->LastPulse() > before);
}

TEST_CASE("The budget changes between two steps of a running request", "[runtime][tiers]") {
  FakeModelOptions fake;
  fake.least_budget = 1000;
  const std::string undisturbed = BytesAlone(SimpleRequest(CountingPrompt(9), 200), fake);
  auto engine = Engine::Start(std::make_unique<FakeModel>(fake), {});
  const auto sink = std::make_shared<Collector>();
  REQUIRE(engine->Submit(SimpleRequest(CountingPrompt(9), 200), sink).has_value());
  for (uint64_t bytes : {5000u, 999u, 2000u}) {
    std::promise<Result<>> outcome;
    engine->SetMemoryBudget(bytes, [&](Result<> set) { outcome.set_value(std::move(set)); });
    const Result<> set = outcome.get_future().get();
    CHECK(static_cast<bool>(set) == (bytes >= 1000));
    CHECK(engine->Stats().expert_tiers->budget_bytes == (bytes >= 1000 ? bytes : 5000));
  }
  CHECK(sink->Wait().reason == FinishReason::kLength);
  CHECK(undisturbed.starts_with(Bytes(*sink)));
}

TEST_CASE("A budget that was asked for too late is answered, not forgotten", "[runtime][tiers]") {
  std::promise<Result<>> outcome;
  Gated held;
  const auto sink = held.Submit(SimpleRequest({3}, 5));
  REQUIRE(sink != nullptr);
  held.gate.WaitForArrival();
  held.engine->SetMemoryBudget(5000, [&](Result<> set) { outcome.set_value(std::move(set)); });
  held.gate.Open();
  held.engine.reset();
  const Result<> set = outcome.get_future().get();
  REQUIRE_FALSE(set.has_value());
  // The fake has no tiers; or the engine was stopped before it looked.
  CHECK((set.error().code == ErrorCode::kUnsupported || set.error().code == ErrorCode::kCancelled));
}

}  // namespace
}  // namespace sluice
