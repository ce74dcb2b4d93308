// Who decodes together changes no token.
#include <algorithm>

#include "tests/unit/model/test_pack.h"
#include "tests/unit/runtime/core_harness.h"

namespace sluice {
namespace {

constexpr int kStreams = 6;

struct OrderRun {
  std::vector<std::string> bytes;  // of each stream
  AffinityStats stats;
};

OrderRun Generate(const testing::TestPack& pack, BatchOrder order, double max_delay_seconds) {
  const auto model = pack.Load();
  const testing::Budgets budgets(model.get());
  REQUIRE(model->SetMemoryBudget(budgets.At(0.3)).has_value());
  EngineOptions options;
  options.max_running = kStreams;
  options.batch_order = order;
  options.max_affinity_delay_seconds = max_delay_seconds;
  const SteadyClock clock;
  EngineCore core(model.get(), options, &clock);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < kStreams; ++i) {
    GenerationRequest request = SimpleRequest({}, 40);
    for (int t = 0; t < 3 + i; ++t) {
      request.prompt.push_back((31 * i + 7 * t + 5) % model->config().vocab);
    }
    request.logprobs = 1;
    REQUIRE(core.Reserve(static_cast<int64_t>(request.prompt.size())));
    sinks.push_back(std::make_shared<RecordingSink>());
    core.Add(static_cast<RequestId>(i + 1), request, sinks.back(), clock.Now());
  }
  while (core.Step()) REQUIRE(core.CheckInvariants() == "");
  OrderRun run;
  for (const auto& sink : sinks) {
    REQUIRE(sink->finish.reason == FinishReason::kLength);
    run.bytes.push_back(Bytes(*sink));
  }
  run.stats = core.Stats().affinity;
  return run;
}

TEST_CASE("Streams generate the same bytes in every batch order", "[runtime][affinity]") {
  const testing::TestPack pack("olmoe");
  const OrderRun plain = Generate(pack, BatchOrder::kFcfs, 1);
  CHECK(plain.stats.steps > 0);
  CHECK(plain.stats.chosen == plain.stats.candidates);
  uint64_t left_out = 0;
  for (const BatchOrder order :
       {BatchOrder::kLongestQueue, BatchOrder::kAffinity, BatchOrder::kAuto}) {
    for (const double delay : {0.001, 10.0}) {
      const OrderRun run = Generate(pack, order, delay);
      CHECK(run.bytes == plain.bytes);
      if (order == BatchOrder::kLongestQueue) left_out += run.stats.candidates - run.stats.chosen;
    }
  }
  // Or nothing was tested.
  CHECK(left_out > 0);
}

}  // namespace
}  // namespace sluice
