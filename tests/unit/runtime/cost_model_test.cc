// The cost model on cases that can be reckoned by hand.
#include "engine/runtime/cost_model.h"

#include <cmath>

#include "tests/support/catch.h"

namespace sluice {
namespace {

// Two layers, attention of 4 heads of 8: 64 multiply-accumulates per token, layer and context
// token.
ModelConfig TwoLayers() {
  ModelConfig config;
  config.heads = 4;
  config.head_dim = 8;
  config.layers.resize(2);
  return config;
}

ModelFootprint Footprint() {
  ModelFootprint footprint;
  footprint.dense_bytes_per_token = 1000;
  footprint.expert_bytes = 100;
  footprint.kv_bytes_per_block = 16 * 32;  // 32 bytes per token
  footprint.dense_macs_per_token = 5000;
  footprint.expert_macs_per_token = 3000;
  footprint.logit_row_macs = 2000;
  return footprint;
}

Roofline Machine() {
  Roofline roofline;
  roofline.read_bytes_per_second = 1e4;
  roofline.typical_read_bytes_per_second = 5e3;
  roofline.macs_per_second = 1e5;
  roofline.attention_macs_per_second = 1e6;
  return roofline;
}

TEST_CASE("A step's bytes are its dense weights, its experts and the cache that it reads",
          "[plan]") {
  const CostModel model(Footprint(), TwoLayers(), Machine());
  const StepCost cost = model.Cost(
      {.tokens = 2, .unique_experts = 6, .logit_rows = 1, .kv_tokens = 10, .context = 5});
  CHECK(cost.bytes == Approx(1000 + 600 + 320));
  CHECK(cost.expert_bytes == Approx(600));
  // Both tokens up to the last layer's cache writes, one of them beyond.
  CHECK(cost.macs == Approx(2 * 6000 + 2000));
  CHECK(cost.attention_macs == Approx(64 * 5 * (2 + 1)));
  CHECK(model.MemorySeconds(cost) == Approx(0.192));
  CHECK(model.ArithmeticSeconds(cost) == Approx(0.14 + 960e-6));
}

// What one token takes with all four experts in memory: 1400 bytes, 8000 multiply-accumulates.
double Matrices() {
  const double memory = 1400 / 5e3, arithmetic = 0.08 / kArithmeticEfficiency;
  return std::pow(std::pow(memory, kOverlap) + std::pow(arithmetic, kOverlap), 1 / kOverlap);
}

TEST_CASE("With every expert in memory a step takes its matrices and what lies between them",
          "[plan]") {
  Roofline machine = Machine();
  machine.fork_seconds = 1e-3;
  ModelConfig config = TwoLayers();
  config.vocab = 1'000'000;
  config.hidden = 1'000'000;
  const CostModel model(Footprint(), config, machine);
  const StepLoad load = {.tokens = 1, .unique_experts = 4, .logit_rows = 1};
  const StepSeconds seconds = model.Seconds(load, {}, 1);
  const double between = 2 * 12e6 * kSecondsPerValue;
  CHECK(seconds.compute == Approx(Matrices() + 2 * kForksPerLayer * 1e-3 + between +
                                  1e6 * kSecondsPerLogit + kSecondsPerStep));
  CHECK(seconds.stall == 0);
  CHECK(seconds.total() == seconds.compute);
  // Two threads share what lies between matrices; more of them is no matter of bandwidth.
  CHECK(seconds.compute - model.Seconds(load, {}, 2).compute == Approx(between / 2));
  // More than the larger, less than the sum.
  CHECK(Matrices() > 0.28);
  CHECK(Matrices() < 0.28 + 0.08 / kArithmeticEfficiency);
}

TEST_CASE("A layer waits for its late experts but for what its others compute", "[plan]") {
  const CostModel model(Footprint(), TwoLayers(), Machine());
  const StepLoad load = {.tokens = 1, .unique_experts = 4, .logit_rows = 1};
  // Every other expert is missed: a layer has 0, 1 or 2 of them with odds 1 : 2 : 1.
  const auto stall_with = [&](double compute, double late) {
    const double own = compute * 400 / 1400 / 2;  // of one layer, in its two experts
    const double one = 100.0 / (500 * kDiskEfficiency);
    return 2 * (2 * late * (1 - late) * (one + 0.01 - own / 2) + late * late * (2 * one + 0.01));
  };
  StepReads reads = {.experts = 2, .bytes_per_second = 500, .latency_seconds = 0.01};
  const double compute = Matrices() + kSecondsPerStep;
  const double read = 200.0 / (500 * kDiskEfficiency);
  const auto slowed = [&](double late) {
    return compute * (1 + kDiskSlowsCompute * read / (compute + stall_with(compute, late)));
  };
  CHECK(model.Seconds(load, reads, 1).compute == Approx(slowed(0.5)));
  CHECK(model.Seconds(load, reads, 1).stall == Approx(stall_with(slowed(0.5), 0.5)));
  // Half of them asked for early enough: a quarter is late.
  reads.covered = 0.5;
  CHECK(model.Seconds(load, reads, 1).stall == Approx(stall_with(slowed(0.25), 0.25)));
}

TEST_CASE("A step is never faster than the disk reads what it misses", "[plan]") {
  const CostModel model(Footprint(), TwoLayers(), Machine());
  const StepLoad load = {.tokens = 1, .unique_experts = 4, .logit_rows = 1};
  const StepReads reads = {.experts = 4, .bytes_per_second = 100, .covered = 1};
  const StepSeconds seconds = model.Seconds(load, reads, 1);
  CHECK(seconds.read == Approx(4 / kDiskEfficiency));
  CHECK(seconds.total() == Approx(4 / kDiskEfficiency));
}

}  // namespace
}  // namespace sluice
