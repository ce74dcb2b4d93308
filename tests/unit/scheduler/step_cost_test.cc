#include "engine/scheduler/step_cost.h"

#include <cmath>
#include <functional>

#include "engine/scheduler/scheduler.h"
#include "tests/support/catch.h"

namespace sluice {
namespace {

TEST_CASE("Work counts tokens and what they attend to, and turns back into tokens",
          "[scheduler][cost]") {
  const StepCost flat;
  CHECK(flat.Work(1000, 7) == 7);
  CHECK(flat.Tokens(1000, 7) == 7);
  const StepCost cost(0.01);
  CHECK(cost.Work(100, 1) == Approx(2));
  CHECK(cost.Work(0, 3) == Approx(3.03));  // 0, 1 and 2 tokens before
  for (int position : {0, 1, 17, 4000}) {
    for (int tokens : {1, 2, 5, 100, 5000}) {
      CHECK(cost.Tokens(position, cost.Work(position, tokens)) == tokens);
      CHECK(cost.Tokens(position, cost.Work(position, tokens) - 0.1) == tokens - 1);
    }
  }
}

TEST_CASE("Less than no work is no token", "[scheduler][cost]") {
  for (const double attention : {0.0, 0.005, 0.5, 5.0}) {
    const StepCost cost(attention);
    for (const double work : {0.0, -0.5, -1e3, -1e9}) {
      CHECK(cost.Tokens(0, work) == 0);
      CHECK(cost.Tokens(100000, work) == 0);
    }
  }
}

TEST_CASE("Before anything was seen a prompt gets one token beside decodes", "[scheduler][cost]") {
  const StepCost cost;
  CHECK(cost.PromptWork(1, 0.25, false) == 1);
}

TEST_CASE("Estimates stay between the sizes seen, in proportion above them", "[scheduler][cost]") {
  StepCost cost;
  for (int i = 0; i < 10; ++i) {
    cost.Observe(8, 0, 0.1);
    cost.Observe(128, 120, 0.4);
  }
  CHECK(cost.AtMost(8) == Approx(0.1));
  CHECK(cost.AtMost(128) == Approx(0.4));
  CHECK(cost.AtMost(256) == Approx(0.8));
  CHECK(cost.AtLeast(256) == Approx(0.4));
  CHECK(cost.AtMost(4) == Approx(0.1));
  CHECK(cost.AtLeast(4) == Approx(0.05));
  double before = 0;
  for (double work = 8; work <= 128; work += 4) {
    CHECK(cost.AtMost(work) >= before);
    CHECK(cost.AtMost(work) >= cost.AtLeast(work));
    CHECK(cost.AtMost(work) <= Approx(0.4));
    before = cost.AtMost(work);
  }
}

TEST_CASE("Reading grows as the experts that tokens touch, arithmetic in proportion",
          "[scheduler][cost]") {
  // Eight of 64 experts: four tokens touch 41% of them, 32 tokens 98.6%.
  StepCost cost(0, 0.125);
  const auto seconds = [](double n) { return 1.0 * (1 - std::pow(1 - 0.125, n)) + 0.004 * n; };
  for (int i = 0; i < 10; ++i) cost.Observe(4, 0, seconds(4));
  // Until arithmetic was seen alone all may be arithmetic.
  CHECK(cost.AtMost(32) == Approx(8 * seconds(4)));
  for (int i = 0; i < 3; ++i) cost.Observe(4000, 4000, seconds(4000));
  for (int i = 0; i < 3; ++i) cost.Observe(4, 0, seconds(4));
  CHECK(cost.AtMost(32) >= seconds(32));
  CHECK(cost.AtMost(32) < 1.1 * seconds(32));
  // Without experts reading, too, may grow in proportion.
  StepCost dense;
  for (int i = 0; i < 10; ++i) dense.Observe(4, 0, seconds(4));
  CHECK(dense.AtMost(32) == Approx(8 * seconds(4)));
}

TEST_CASE("More decodes than were seen together are no reason to starve prompts beside them",
          "[scheduler][cost]") {
  // Decodes went in groups of two. Eight together touch 2.8 times as many experts, and a prompt of
  // 14 tokens with them 1.4 times as many again.
  StepCost cost(0, 0.125);
  cost.Observe(4000, 4000, 8);
  for (int i = 0; i < 20; ++i) cost.Observe(2, 0, 0.2);
  CHECK(cost.Usual(2) == Approx(0.2));
  CHECK(cost.Usual(8) > 0.5);
  CHECK(cost.Usual(8) <= cost.AtMost(8));
  const double prompt = cost.PromptWork(8, 0.25, false);
  CHECK(prompt >= 10);
  CHECK(prompt <= 16);
  // Seen since: 8 take no longer than 2.
  for (int i = 0; i < 20; ++i) cost.Observe(8, 0, 0.2);
  CHECK(cost.Usual(8) == Approx(0.2));
}

TEST_CASE("One slow step says nothing of other sizes, three in a row do", "[scheduler][cost]") {
  StepCost cost;
  for (int i = 0; i < 10; ++i) {
    cost.Observe(64, 60, 0.4);
    cost.Observe(4, 0, 0.1);
  }
  cost.Observe(4, 0, 2);
  CHECK(cost.AtMost(64) == Approx(0.4));
  for (int i = 0; i < 30; ++i) cost.Observe(4, 0, 0.1);
  CHECK(cost.Usual(4) == Approx(0.1).margin(0.01));
  // A size that was never seen surprises nobody.
  for (int i = 0; i < 3; ++i) cost.Observe(1, 0, 5);
  CHECK(cost.AtMost(64) <= Approx(5.1));
  for (int i = 0; i < 30; ++i) cost.Observe(4, 0, 0.1);
  for (const double seconds : {1.0, 4.0, 16.0}) cost.Observe(4, 0, seconds);
  CHECK(cost.AtMost(64) > 0.4 * 2);
}

TEST_CASE("A slower step is believed at once, a faster one after some", "[scheduler][cost]") {
  StepCost cost;
  for (int i = 0; i < 20; ++i) cost.Observe(64, 60, 0.1);
  cost.Observe(64, 60, 0.5);
  CHECK(cost.AtMost(64) > 0.3);
  cost.Observe(64, 60, 0.1);
  CHECK(cost.AtMost(64) > 0.2);
  for (int i = 0; i < 30; ++i) cost.Observe(64, 60, 0.1);
  CHECK(cost.AtMost(64) < 0.11);
}

TEST_CASE("What was not seen for long is not believed any more", "[scheduler][cost]") {
  StepCost cost;
  cost.Observe(512, 512, 5);
  for (int i = 0; i < 255; ++i) cost.Observe(8, 0, 0.01);
  CHECK(cost.AtMost(512) == Approx(5));
  cost.Observe(8, 0, 0.01);
  CHECK(cost.AtMost(512) == Approx(0.64));
}

TEST_CASE("With doubling a prompt's work grows step by step", "[scheduler][cost]") {
  StepCost cost;
  for (int i = 0; i < 10; ++i) cost.Observe(4, 0, 0.001);
  double last = 0;
  for (double most : {8.0, 16.0, 32.0, 64.0}) {
    last = cost.PromptWork(4, 0.25, true);
    CHECK(last == most);
    cost.Observe(4 + last, last, 0.001);
  }
  CHECK(cost.PromptWork(4, 0.25, false) > 200);
  for (int i = 0; i < 300; ++i) cost.Observe(4, 0, 0.001);
  CHECK(cost.PromptWork(4, 0.25, true) == 8);
}

// A scheduler whose steps take as long as `seconds` says.
struct Timed {
  explicit Timed(std::function<double(int decodes, int prompt)> seconds, double bound)
      : cost(std::move(seconds)), scheduler([&] {
          SchedulerOptions o;
          o.kv_blocks = 16384;
          o.max_running = 64;
          o.max_batch_tokens = 512;
          o.prefill_chunk = 512;
          o.max_decode_stall_seconds = bound;
          return o;
        }()) {}

  void Add(int prompt, int max_tokens) {
    SequenceSpec spec;
    spec.id = next++;
    spec.prompt.assign(static_cast<size_t>(prompt), 5);
    spec.max_tokens = max_tokens;
    scheduler.Add(spec);
  }
  // Of the step: its prompt tokens; `stall` is what they added to it.
  int Step() {
    const Batch& batch = scheduler.Schedule();
    const int prompt = batch.prompt_tokens, decodes = batch.tokens - prompt;
    const double took = cost(decodes, prompt);
    stall = decodes > 0 ? took - cost(decodes, 0) : 0;
    std::vector<ChunkResult> results(batch.chunks.size());
    for (ChunkResult& result : results) result.token = 1;
    std::vector<SequenceEnd> ends;
    scheduler.Commit(results, &ends);
    scheduler.ObserveStep(took);
    return prompt;
  }

  std::function<double(int, int)> cost;
  Scheduler scheduler;
  SequenceId next = 1;
  double stall = 0;
};

TEST_CASE("A long prompt among streams never holds them up for longer than the bound",
          "[scheduler][cost]") {
  // In memory: a fixed part and a part per token. From disk: experts, each read once.
  const auto resident = [](int d, int p) { return 0.004 + 0.001 * d + 0.0008 * p; };
  const auto disk = [](int d, int p) {
    const int n = d + p;
    return 0.002 * n + 2.0 * (1 - std::pow(1 - 1.0 / 24, n));
  };
  for (const bool offloaded : {false, true}) {
    INFO("offloaded " << offloaded);
    Timed t(offloaded ? std::function<double(int, int)>(disk) : resident, 0.25);
    t.scheduler.SetOffloaded(offloaded);
    for (int i = 0; i < 7; ++i) t.Add(20, 100000);
    for (int i = 0; i < 30; ++i) t.Step();
    t.Add(4096, 10);
    double worst = 0;
    int steps = 0, largest = 0;
    while (t.scheduler.Find(8)->generated() == 0) {
      largest = std::max(largest, t.Step());
      worst = std::max(worst, t.stall);
      REQUIRE(++steps < 4000);
    }
    CHECK(worst <= 0.25 * 1.02);
    CHECK(t.scheduler.stalls() <= 1);
    // The bound is used, too: at least half of what a seer would do.
    const int best = offloaded ? 5 : 312;
    CHECK(largest >= best / 2);
    CHECK(steps <= 2 * 4096 / best + 8);
  }
}

TEST_CASE("Chunks fill the step when nobody decodes, however slow it is", "[scheduler][cost]") {
  Timed t([](int, int p) { return 0.01 * p; }, 0.25);
  t.scheduler.SetOffloaded(true);
  t.Add(2000, 4);
  CHECK(t.Step() == 512);
  CHECK(t.Step() == 512);
  t.Add(700, 4);
  CHECK(t.Step() == 512);
}

TEST_CASE("A prompt goes on by a token a step where the bound is out of reach",
          "[scheduler][cost]") {
  Timed t([](int d, int p) { return 1.0 * d + 2.0 * p; }, 0.001);
  t.Add(4, 1000);
  for (int i = 0; i < 5; ++i) t.Step();
  t.Add(30, 4);
  for (int i = 0; i < 20; ++i) CHECK(t.Step() == 1);
}

TEST_CASE("Decodes that are slow now and then do not starve a prompt", "[scheduler][cost]") {
  // Groups of decodes that take turns: the first two steps of each read its experts.
  int step = 0;
  Timed t([&](int d, int p) { return (step % 12 < 2 ? 0.6 : 0.1) + 0.01 * d + 0.01 * p; }, 0.25);
  t.scheduler.SetOffloaded(true);
  for (int i = 0; i < 4; ++i) t.Add(20, 100000);
  for (; step < 100; ++step) t.Step();
  t.Add(600, 10);
  const int first = step;
  while (t.scheduler.Find(5)->generated() == 0) {
    t.Step();
    REQUIRE(++step < first + 600);
  }
  CHECK(step - first <= 2 * 600 / 25);
}

TEST_CASE("After the disk turned slow the bound is kept again in a few steps",
          "[scheduler][cost]") {
  double slow = 1;
  Timed t([&](int d, int p) { return slow * (0.002 * d + 0.001 * p); }, 0.1);
  t.Add(20, 100000);
  t.Add(100000 / 2, 10);
  t.scheduler.SetOffloaded(true);
  for (int i = 0; i < 60; ++i) t.Step();
  slow = 10;
  t.Step();
  CHECK(t.stall > 0.5);  // nobody could know
  int above = 0;
  for (int i = 0; i < 40; ++i) {
    t.Step();
    above += t.stall > 0.1;
  }
  CHECK(above <= 4);
  CHECK(t.scheduler.stalls() <= 6);
}

}  // namespace
}  // namespace sluice
