// How many experts a step is expected to touch, and to find in memory.
#include "engine/runtime/expert_forecast.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

ModelConfig Config(int layers, int experts, int per_token) {
  ModelConfig config;
  config.layers.resize(static_cast<size_t>(layers));
  config.router.num_experts = experts;
  config.router.experts_per_token = per_token;
  return config;
}

// One layer of 4 experts, one per token. A prompt of 4 tokens that all choose expert 0 or 1, then
// tokens of one stream that choose 0, 1, 0, 1, ...
Trace AlternatingTrace(int decode_steps) {
  Trace trace;
  trace.model.space = {1, 4};
  trace.model.experts_per_token = 1;
  trace.model.expert_bytes = {100};
  const auto step = [&](std::vector<int32_t> ids) {
    trace.events.push_back({Trace::Kind::kVisit, static_cast<int64_t>(trace.visits.size())});
    trace.visits.push_back({0, static_cast<int>(ids.size()), trace.ids.size()});
    for (const int32_t id : ids) {
      trace.ids.push_back(id);
      trace.weights.push_back(1);
      trace.streams.push_back(7);
    }
    trace.events.push_back({Trace::Kind::kStepEnd, 0});
    ++trace.steps;
  };
  step({0, 1, 1, 0});
  for (int i = 0; i < decode_steps; ++i) step({i % 2});
  return trace;
}

TEST_CASE("Typical experts: a few of a layer do most of the work", "[plan]") {
  ModelConfig config = Config(3, 8, 2);
  config.layers[0].sparse = false;
  const ExpertForecast half = ExpertForecast::Typical(config, 0.5);
  CHECK(half.Decode(1).unique == Approx(2 * 2));
  CHECK(half.Decode(1).hit_rate() > 0.8);
  CHECK(half.Decode(1).hit_rate() < 1);
  CHECK(ExpertForecast::Typical(config, 0.25).Decode(1).hit_rate() < half.Decode(1).hit_rate());
  // More users touch more, and the favourites are a smaller part of it.
  CHECK(half.Decode(4).unique > half.Decode(1).unique);
  CHECK(half.Decode(4).hit_rate() < half.Decode(1).hit_rate());
  // A long prompt touches all and finds what there is; two touch more than one.
  CHECK(half.Prefill(1000, 1).unique == Approx(16).epsilon(0.01));
  CHECK(half.Prefill(1000, 1).hit_rate() == Approx(0.5));
  CHECK(half.Prefill(4, 2).unique > half.Prefill(4, 1).unique);
  CHECK(ExpertForecast::Typical(config, 1).Decode(5).hit_rate() == Approx(1));
}

TEST_CASE("A model without experts misses none", "[plan]") {
  const ExpertForecast forecast = ExpertForecast::Typical(Config(2, 0, 0), 1);
  CHECK(forecast.Decode(4).unique == 0);
  CHECK(forecast.Decode(4).hit_rate() == 1);
}

TEST_CASE("The most frequent experts are the ones in memory", "[plan]") {
  // One and a half of four fit: all of the first and half of the second.
  const ExpertForecast forecast({0.1F, 0.5F, 0.1F, 0.3F}, 0.375);
  CHECK(forecast.Decode(1).unique == Approx(1));
  CHECK(forecast.Decode(1).hits == Approx(1 - std::pow(0.35, 1.5)));
}

TEST_CASE("A trace gives the hit rate of its decode steps and what its prompts touch", "[plan]") {
  const Trace trace = AlternatingTrace(40);
  const ModelConfig config = Config(1, 4, 1);
  const auto half = ExpertForecast::FromTrace(trace, config, "lru", {}, 0.5, 1);
  REQUIRE(half);
  // Both experts that are ever used fit.
  CHECK(half->Decode(1).hit_rate() == Approx(1));
  CHECK(half->Decode(1).unique == Approx(1));
  // A prompt touches no third expert, however long it is.
  CHECK(half->Prefill(4, 1).unique == Approx(2).epsilon(0.25));
  CHECK(half->Prefill(640, 1).unique == Approx(2).epsilon(0.01));

  // With room for one expert LRU misses every time.
  const auto one = ExpertForecast::FromTrace(trace, config, "lru", {}, 0.25, 1);
  REQUIRE(one);
  CHECK(one->Decode(1).hit_rate() == 0);
}

TEST_CASE("A trace of one sequence at a time tells of several at once", "[plan]") {
  // Four users, each a quarter of the sequence: two of its tokens in a row, one of each expert.
  Trace trace = AlternatingTrace(8);
  const Trace timed = RetimeTrace(trace, 4);
  CHECK(timed.steps == 1 + 2);
  REQUIRE(timed.visits.size() == 3);
  CHECK(timed.visits[0].tokens == 4);  // the prompt, as it was
  CHECK(timed.visits[1].tokens == 4);
  const RoutedTokens first = timed.routed(timed.visits[1]), second = timed.routed(timed.visits[2]);
  CHECK(std::vector<int32_t>(first.ids, first.ids + 4) == std::vector<int32_t>{0, 0, 0, 0});
  CHECK(std::vector<int32_t>(second.ids, second.ids + 4) == std::vector<int32_t>{1, 1, 1, 1});
  CHECK(std::vector<int64_t>(first.streams, first.streams + 4) == std::vector<int64_t>{0, 1, 2, 3});
  // With one user it is as it was.
  const Trace same = RetimeTrace(trace, 1);
  CHECK(same.steps == trace.steps);
  CHECK(same.visits.size() == trace.visits.size());

  const auto forecast = ExpertForecast::FromTrace(trace, Config(1, 4, 1), "lru", {}, 0.25, 4);
  REQUIRE(forecast);
  CHECK(forecast->Decode(4).unique == Approx(1));
  // Of the two steps one finds what the prompt left.
  CHECK(forecast->Decode(4).hit_rate() == Approx(0.5));
}

TEST_CASE("A trace of another model, or of prompts alone, is refused", "[plan]") {
  const auto other =
      ExpertForecast::FromTrace(AlternatingTrace(4), Config(1, 8, 1), "lru", {}, 0.5, 1);
  REQUIRE(other.has_error());
  CHECK(other.error().code == ErrorCode::kInvalidArgument);
  CHECK(other.error().message.find("1 layers of 4 experts") != std::string::npos);
  const auto prompts =
      ExpertForecast::FromTrace(AlternatingTrace(0), Config(1, 4, 1), "lru", {}, 0.5, 1);
  REQUIRE(prompts.has_error());
  CHECK(prompts.error().message.find("decode step") != std::string::npos);
  const auto policy =
      ExpertForecast::FromTrace(AlternatingTrace(4), Config(1, 4, 1), "magic", {}, 0.5, 1);
  REQUIRE(policy.has_error());
  CHECK(policy.error().message.find("magic") != std::string::npos);
}

}  // namespace
}  // namespace sluice
