#include "engine/experts/replay.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <set>

#include "engine/experts/replay_disk.h"
#include "engine/experts/synthetic_trace.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

Trace EmptyTrace(ExpertSpace space, int k, uint64_t bytes = 100) {
  Trace trace;
  trace.model.space = space;
  trace.model.experts_per_token = k;
  trace.model.expert_bytes = {bytes};
  return trace;
}

// One token's visit.
void AddVisit(Trace& trace, int layer, const std::vector<int32_t>& experts) {
  trace.events.push_back({Trace::Kind::kVisit, static_cast<int64_t>(trace.visits.size())});
  trace.visits.push_back({layer, 1, trace.streams.size()});
  trace.streams.push_back(0);
  trace.ids.insert(trace.ids.end(), experts.begin(), experts.end());
  trace.weights.insert(trace.weights.end(), experts.size(), 1.0F);
}
void AddPrediction(Trace& trace, int layer, const std::map<int32_t, float>& named) {
  trace.events.push_back(
      {Trace::Kind::kPrediction, static_cast<int64_t>(trace.predictions.size())});
  trace.predictions.push_back({layer, 0, trace.predicted.size(), static_cast<int>(named.size())});
  for (const auto& [expert, p] : named) {
    trace.predicted_ids.push_back(expert);
    trace.predicted.push_back(p);
  }
}
void EndStep(Trace& trace) {
  trace.events.push_back({Trace::Kind::kStepEnd, 0});
  ++trace.steps;
}

ReplayResult MustReplay(const Trace& trace, const ReplayOptions& options) {
  const Result<ReplayResult> result = Replay(trace, options);
  REQUIRE(result);
  return *result;
}

// Most hits that any choice of victims can have, by trying all: after a visit the cache holds what
// the visit used and any of what it held before.
int MostHits(const Trace& trace, size_t v, const std::set<int>& cache, size_t capacity,
             std::map<std::pair<size_t, std::set<int>>, int>& known) {
  if (v == trace.visits.size()) return 0;
  const auto key = std::make_pair(v, cache);
  if (const auto it = known.find(key); it != known.end()) return it->second;
  std::set<int> wanted;
  const int k = trace.model.experts_per_token;
  for (int i = 0; i < k; ++i) {
    wanted.insert(trace.model.space.place(
        {trace.visits[v].layer, trace.ids[trace.visits[v].first_token * static_cast<size_t>(k) +
                                          static_cast<size_t>(i)]}));
  }
  int hits = 0;
  std::vector<int> others;
  for (const int place : cache) {
    if (wanted.contains(place)) {
      ++hits;
    } else {
      others.push_back(place);
    }
  }
  int best = 0;
  for (unsigned kept = 0; kept < (1U << others.size()); ++kept) {
    std::set<int> after = wanted;
    for (size_t i = 0; i < others.size(); ++i) {
      if ((kept >> i & 1U) != 0) after.insert(others[i]);
    }
    if (after.size() > capacity) continue;
    best = std::max(best, MostHits(trace, v + 1, after, capacity, known));
  }
  return known[key] = hits + best;
}

Trace Synthetic(SyntheticTraceOptions options) {
  const auto path =
      std::filesystem::temp_directory_path() / ("sluice_replay_test_" + std::to_string(getpid()));
  if (options.model.expert_bytes.empty()) options.model.expert_bytes = {1000};
  REQUIRE(WriteSyntheticTrace(path, options));
  Result<Trace> trace = ReadTrace(path);
  std::filesystem::remove(path);
  REQUIRE(trace);
  return std::move(*trace);
}

}  // namespace

TEST_CASE("The optimum of a replay is what trying everything finds", "[replay]") {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    const ExpertSpace space{2, 5};
    Trace trace = EmptyTrace(space, 2);
    for (int step = 0; step < 5; ++step) {
      for (int l = 0; l < 2; ++l) {
        const int a = static_cast<int>(random() % 5);
        AddVisit(trace, l, {a, (a + 1 + static_cast<int>(random() % 4)) % 5});
      }
      EndStep(trace);
    }
    for (int capacity = 2; capacity <= 6; ++capacity) {
      ReplayOptions options;
      options.policy = "optimal";
      options.budget = capacity / 10.0;
      std::map<std::pair<size_t, std::set<int>>, int> known;
      CHECK(MustReplay(trace, options).hits ==
            MostHits(trace, 0, {}, static_cast<size_t>(capacity), known));
    }
  }
}

TEST_CASE("No policy beats the optimum, and nobody reads more than without a cache", "[replay]") {
  for (const double locality : {0.0, 0.8}) {
    SyntheticTraceOptions options;
    options.model.space = {5, 20};
    options.model.experts_per_token = 3;
    options.documents = 2;
    options.prompt_tokens = 12;
    options.decode_tokens = 60;
    options.skew = 0.8;
    options.locality = locality;
    const Trace trace = Synthetic(options);
    for (const double budget : {0.05, 0.1, 0.25, 0.5, 0.75, 1.0}) {
      ReplayOptions replay;
      replay.budget = budget;
      replay.policy = "optimal";
      const ReplayResult best = MustReplay(trace, replay);
      replay.policy = "none";
      const ReplayResult none = MustReplay(trace, replay);
      CHECK(none.hits == 0);
      CHECK(none.bytes_read == none.wanted * 1000);
      for (const std::string_view name : CachePolicyNames()) {
        INFO(name << " at " << budget);
        replay.policy = name;
        const ReplayResult result = MustReplay(trace, replay);
        CHECK(result.wanted == best.wanted);
        CHECK(result.hits <= best.hits);
        CHECK(result.bytes_read == (result.wanted - result.hits) * 1000);
        CHECK(result.seconds <= none.seconds * (1 + 1e-9));
        CHECK(result.tokens == 2 * 72);
        if (budget == 1.0) CHECK(result.hits == best.hits);
      }
    }
  }
}

TEST_CASE("A replay's clock adds up as by hand", "[replay]") {
  Trace trace = EmptyTrace({2, 4}, 2, 1000);
  AddVisit(trace, 0, {0, 1});
  AddVisit(trace, 1, {2, 3});
  EndStep(trace);
  AddVisit(trace, 0, {0, 2});
  AddVisit(trace, 1, {2, 3});
  EndStep(trace);
  ReplayOptions options;
  options.policy = "lru";
  options.budget = 1;
  options.disk_bytes_per_second = 1000;  // 1 s per expert
  options.disk_latency_seconds = 0.5;
  options.dense_seconds = 2;
  options.expert_seconds = 0.25;
  const ReplayResult all = MustReplay(trace, options);
  // Visit 1: gate at 2, landings at 3.5 and 4.5: stall 1.5, compute to 3.75, stall 0.75, to 4.75.
  // Visit 2: the same: stall 2.25, to 9.5. Visit 3: gate at 11.5, expert 0 to 11.75, expert 2 lands
  // at 13: stall 1.25, to 13.25. Visit 4: 15.25 and two hits: 15.75.
  CHECK(all.wanted == 8);
  CHECK(all.hits == 3);
  CHECK(all.bytes_read == 5000);
  CHECK(all.stall_seconds == Approx(1.5 + 0.75 + 2.25 + 1.25));
  CHECK(all.seconds == Approx(15.75));
  CHECK(all.tokens == 2);
  CHECK(all.bytes_per_token() == Approx(2500));

  options.warm_steps = 1;
  const ReplayResult warm = MustReplay(trace, options);
  CHECK(warm.wanted == 4);
  CHECK(warm.hits == 3);
  CHECK(warm.seconds == Approx(6.25));
  CHECK(warm.stall_seconds == Approx(1.25));
}

TEST_CASE("What is read ahead in time is a hit; late, it stalls for the rest only", "[replay]") {
  for (const double dense : {3.0, 0.5}) {
    Trace trace = EmptyTrace({2, 4}, 1, 1000);
    AddVisit(trace, 0, {0});
    AddPrediction(trace, 1, {{2, 0.9F}});
    AddVisit(trace, 1, {2});
    EndStep(trace);
    ReplayOptions options;
    options.policy = "lru";
    options.budget = 1;
    options.horizon = 1;
    options.disk_bytes_per_second = 1000;
    options.disk_latency_seconds = 0;
    options.dense_seconds = dense;
    options.expert_seconds = 0.25;
    const ReplayResult result = MustReplay(trace, options);
    CHECK(result.reads_ahead == 1);
    CHECK(result.useful_reads_ahead == 1);
    CHECK(result.bytes_read == 2000);
    // Gate of layer 0 at `dense`; its expert lands 1 s later, the predicted one 2 s later.
    CHECK(result.hits == (dense > 0.75 ? 1 : 0));
    CHECK(result.stall_seconds == Approx(dense > 0.75 ? 1.0 : 1.0 + 0.25));
    CHECK(result.seconds == Approx(dense > 0.75 ? dense + 1.25 + dense + 0.25 : dense + 2.25));

    options.horizon = 0;
    CHECK(MustReplay(trace, options).reads_ahead == 0);
  }
}

TEST_CASE("Predicted reads that were not started when their layer came are cancelled", "[replay]") {
  Trace trace = EmptyTrace({2, 4}, 1, 1000);
  AddVisit(trace, 0, {0});
  AddPrediction(trace, 1, {{1, 0.9F}, {2, 0.8F}, {3, 0.7F}});
  AddVisit(trace, 1, {0});
  EndStep(trace);
  ReplayOptions options;
  options.policy = "lru";
  options.budget = 1;
  options.horizon = 1;
  options.disk_bytes_per_second = 1000;
  options.disk_latency_seconds = 0;
  options.dense_seconds = 0.1;
  options.expert_seconds = 0.1;
  const ReplayResult result = MustReplay(trace, options);
  // Only expert 1 was started, and delays the demanded read by the rest of its second.
  CHECK(result.reads_ahead == 1);
  CHECK(result.useful_reads_ahead == 0);
  CHECK(result.bytes_read == 3000);
  CHECK(result.seconds == Approx(0.1 + 2 + 1 + 0.1));
}

TEST_CASE("The replay disk takes demanded reads first and the older of equals", "[replay]") {
  ReplayDisk disk(10, 0.5, 8);
  disk.Submit(1, 10, 5, 0);
  disk.Submit(2, 10, 5, 0);
  disk.Submit(3, 10, 4, 0);
  disk.Submit(4, 10, 0, 0.25);  // by then 1 was started
  CHECK(disk.landed_at(1) == Approx(1.5));
  CHECK_FALSE(disk.started(2));
  CHECK(disk.FinishTime(4) == Approx(2.5));
  disk.SetUrgency(2, 1);
  CHECK(disk.FinishTime(3) == Approx(4.5));
  CHECK(disk.landed_at(2) == Approx(3.5));
  CHECK_FALSE(disk.Cancel(3));
  disk.Submit(5, 10, 0, 4);
  disk.Submit(6, 10, 0, 4);
  CHECK(disk.Cancel(6));
  disk.Submit(7, 10, 0, 100);
  CHECK(disk.landed_at(7) == ReplayDisk::kNotYet);
  disk.AdvanceTo(100);
  CHECK(disk.landed_at(7) == Approx(101.5));
}

TEST_CASE("With mixed sizes the budget counts bytes", "[replay]") {
  Trace trace = EmptyTrace({1, 3}, 1);
  trace.model.expert_bytes = {100, 100, 200};
  for (const int e : {0, 1, 0, 1, 2, 2, 0}) {
    AddVisit(trace, 0, {e});
    EndStep(trace);
  }
  ReplayOptions options;
  options.policy = "lru";
  options.budget = 0.5;  // 200 bytes: the large one alone, or both small ones
  const ReplayResult result = MustReplay(trace, options);
  CHECK(result.hits == 3);
  CHECK(result.bytes_read == 100 + 100 + 200 + 100);
}

TEST_CASE("On repeated prompts larger than the cache LRU hits nothing, next-use nearly the optimum",
          "[replay]") {
  SyntheticTraceOptions options;
  options.model.space = {8, 16};
  options.model.experts_per_token = 4;
  options.documents = 20;
  options.prompt_tokens = 64;  // every expert is used
  options.decode_tokens = 0;
  const Trace trace = Synthetic(options);
  ReplayOptions replay;
  replay.budget = 0.5;
  replay.warm_steps = 3;
  replay.policy = "optimal";
  const double best = MustReplay(trace, replay).hit_rate();
  replay.policy = "lru";
  CHECK(MustReplay(trace, replay).hit_rate() == 0);
  replay.policy = "next-use";
  CHECK(MustReplay(trace, replay).hit_rate() > best - 0.03);
}

TEST_CASE("Synthetic traces are the same for the same seed and have the skew asked for",
          "[replay]") {
  SyntheticTraceOptions options;
  options.model.space = {3, 32};
  options.model.experts_per_token = 4;
  options.documents = 1;
  options.prompt_tokens = 0;
  options.decode_tokens = 800;
  const Trace uniform = Synthetic(options);
  CHECK(Synthetic(options).ids == uniform.ids);
  options.seed = 2;
  CHECK(Synthetic(options).ids != uniform.ids);
  options.skew = 1;
  const Trace skewed = Synthetic(options);
  const auto most = [](const Trace& trace) {
    const ExpertPrior prior = CountFrequency(trace);
    return *std::max_element(prior.frequency.begin(), prior.frequency.end());
  };
  CHECK(most(uniform) < 0.2F);  // 4 of 32
  CHECK(most(skewed) > 0.6F);
  options.recall = 1;
  options.horizon = 1;
  const Trace predicted = Synthetic(options);
  for (const Trace::Prediction& prediction : predicted.predictions) {
    CHECK(prediction.count == 4);
    CHECK(prediction.rest == 0);
  }
  options.locality = 2;
  CHECK(!WriteSyntheticTrace("/dev/null", options));
}

TEST_CASE("Replays refuse what they cannot do with a sentence", "[replay]") {
  Trace trace = EmptyTrace({1, 4}, 1);
  AddVisit(trace, 0, {1});
  EndStep(trace);
  ReplayOptions options;
  options.policy = "mru";
  CHECK(Replay(trace, options).error().message.find("mru") != std::string::npos);
  options = {};
  options.budget = 1.5;
  CHECK(!Replay(trace, options));
  options = {};
  options.predictor = "oracle";
  CHECK(!Replay(trace, options));
  options = {};
  options.disk_bytes_per_second = 0;
  CHECK(!Replay(trace, options));
}

}  // namespace sluice
