// What tokens accept of their experts, and what a layer makes of it.
#include "engine/experts/quality.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "engine/experts/moe_layer.h"
#include "engine/tensor/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/scattered_values.h"

namespace sluice {
namespace {

using Bits = std::vector<int8_t>;
using Numbers = std::vector<float>;

constexpr QualityRules kRules = {
    .balanced = {.steps = {{{0, kAllBits}, {0.5f, 3}}}, .step_count = 2},
    .fast = {.steps = {{{0, 3}, {0.5f, 2}, {0.875f, kSkippable}}}, .step_count = 3},
};

Bits Grade(const QualitySettings& settings, const Numbers& weights) {
  Bits bits(weights.size(), 77);
  GradeExperts(settings, kRules, weights, bits);
  return bits;
}

// Gates, ups and downs of experts 0 .. kExperts - 1 in F32, by plain numbers.
constexpr int kHidden = 16;
constexpr int kExperts = 6;
constexpr int kPerToken = 3;

// Gives what it is told to, and remembers what was asked.
class PlannedSource final : public ExpertSource {
 public:
  void Begin(int /*layer*/, std::span<const ExpertDemand> wanted,
             const RoutedTokens& /*routed*/) override {
    demands.assign(wanted.begin(), wanted.end());
    ready_.clear();
    for (size_t i = 0; i < wanted.size(); ++i) {
      ReadyExpert ready = {static_cast<int>(i), &weights[wanted[i].expert]};
      if (skip && wanted[i].least_bits == kSkippable) ready.weights = nullptr;
      ready.degraded = degrade && ready.weights != nullptr && wanted[i].least_bits < kAllBits;
      ready_.push_back(ready);
    }
    given_ = false;
  }
  std::span<const ReadyExpert> Next(bool /*wait*/) override {
    if (std::exchange(given_, true)) return {};
    return ready_;
  }
  void End() override {}

  bool skip = false, degrade = false;
  ExpertWeights weights[kExperts];
  std::vector<ExpertDemand> demands;

 private:
  std::vector<ReadyExpert> ready_;
  bool given_ = false;
};

// One layer whose router and experts are random, and its outputs by hand.
struct Layer {
  explicit Layer(int max_tokens, bool renormalize)
      : backend(cpu::SelectOps(cpu::Isa::kAuto), 1, false), router(0) {
    config.hidden = kHidden;
    config.norm_eps = 1e-5;
    config.router = {kExperts, kPerToken, renormalize};
    config.expert_intermediate = kHidden;
    config.layers = {{.sparse = true}};
    WorkspaceLimits limits;
    limits.max_tokens = max_tokens;
    limits.max_cols = kHidden;
    MoeRunner::AddLimits(config, max_tokens, &limits);
    REQUIRE(backend.Prepare(limits).has_value());
    auto made = MoeRunner::Create(&backend, config, max_tokens);
    REQUIRE(made.has_value());
    runner.emplace(std::move(*made));
    runner->SetQualityRules(kRules);
    norm.assign(kHidden, 1.0f);
    moe.norm = norm.data();
    moe.router = Pack(kExperts, &router);
    for (float& value : router) value *= 4;  // uneven gates
    memory.pop_back();
    moe.router = PackValues(kExperts, router);
    for (int e = 0; e < kExperts; ++e) {
      Numbers unused;
      source.weights[e] = {Pack(kHidden, &unused), Pack(kHidden, &unused), Pack(kHidden, &unused)};
    }
  }
  PackedMatrix Pack(int rows, Numbers* values) {
    *values = ScatteredValues(static_cast<size_t>(rows) * kHidden, ++seed * 97);
    return PackValues(rows, *values);
  }
  PackedMatrix PackValues(int rows, const Numbers& values) {
    auto bytes = backend.Allocate(cpu::PackedMatrixBytes(DType::kF32, rows, kHidden), "a test");
    REQUIRE(bytes.has_value());
    backend.Pack(DType::kF32, values.data(), rows, kHidden, bytes->data());
    memory.push_back(std::move(*bytes));
    return {DType::kF32, memory.back().data(), rows, kHidden};
  }
  // The stream after the layer.
  Numbers Run(int tokens, const std::vector<QualitySettings>& quality) {
    Numbers hidden = ScatteredValues(static_cast<size_t>(tokens) * kHidden, 5);
    counts.assign(static_cast<size_t>(tokens), {});
    stats = {};
    runner->Run(0, moe, &source,
                {.count = tokens,
                 .quality = quality.empty() ? nullptr : quality.data(),
                 .counts = counts.data()},
                hidden.data(), &stats);
    return hidden;
  }
  static Numbers Row(const Numbers& hidden, int token) {
    return {hidden.begin() + token * kHidden, hidden.begin() + (token + 1) * kHidden};
  }

  CpuBackend backend;
  ModelConfig config;
  std::optional<MoeRunner> runner;
  MoeWeights moe;
  PlannedSource source;
  Numbers norm, router;
  std::vector<DeviceBuffer> memory;
  std::vector<ExpertCounts> counts;
  MoeStats stats;
  uint32_t seed = 0;
};

constexpr QualitySettings kFast = {.quality = Quality::kFast};

}  // namespace

TEST_CASE("Names of qualities are those of settings and requests", "[quality]") {
  for (const char* name : {"exact", "balanced", "fast"}) {
    const auto quality = ParseQuality(name);
    REQUIRE(quality.has_value());
    CHECK(std::string_view(QualityName(*quality)) == name);
  }
  CHECK(!ParseQuality("Fast"));
  CHECK(!ParseQuality(""));
}

TEST_CASE("An exact token asks for all bits of every expert", "[quality]") {
  CHECK(QualitySettings{}.exact());
  CHECK(Grade({}, {0.9f, 0.05f, 0.0f, 0.0f}) == Bits{kAllBits, kAllBits, kAllBits, kAllBits});
}

TEST_CASE("Only sequences of the same settings have the same key", "[quality]") {
  const std::vector<QualitySettings> settings = {
      {},
      {.quality = Quality::kBalanced},
      {.quality = Quality::kFast},
      {.expert_mass = 0.9f},
      {.prune_ratio = 0.1f},
      {.quality = Quality::kFast, .expert_mass = 0.9f},
      {.quality = Quality::kFast, .expert_mass = 0.9001f},
      {.experts_per_token = 3}};
  for (size_t i = 0; i < settings.size(); ++i) {
    CHECK((QualityKey(settings[i]) == 0) == settings[i].exact());
    for (size_t j = 0; j < i; ++j) CHECK(QualityKey(settings[i]) != QualityKey(settings[j]));
  }
}

TEST_CASE("The share of gate weight that heavier experts have decides what is accepted",
          "[quality]") {
  CHECK(Grade({.quality = Quality::kBalanced}, {4, 2, 1, 1}) == Bits{kAllBits, 3, 3, 3});
  CHECK(Grade({.quality = Quality::kBalanced}, {3, 3, 1, 1}) == Bits{kAllBits, kAllBits, 3, 3});
  CHECK(Grade(kFast, {4, 2, 1, 1}) == Bits{3, 2, 2, kSkippable});
  // Weights that are not normalised are graded by their shares.
  CHECK(Grade(kFast, {0.04f, 0.02f, 0.01f, 0.01f}) == Bits{3, 2, 2, kSkippable});
}

TEST_CASE("A token's first expert is never skipped or dropped", "[quality]") {
  QualitySettings settings = {.expert_mass = 0.0f, .prune_ratio = 1.0f, .experts_per_token = 1};
  CHECK(Grade(settings, {1, 1}) == Bits{kAllBits, kDropped});
  CHECK(Grade(kFast, {1.0f}) == Bits{3});
}

TEST_CASE("Routing options drop experts at every quality", "[quality]") {
  // The fewest that have 75% together.
  CHECK(Grade({.expert_mass = 0.75f}, {4, 2, 1, 1}) ==
        Bits{kAllBits, kAllBits, kDropped, kDropped});
  CHECK(Grade({.prune_ratio = 0.3f}, {4, 2, 1, 1}) == Bits{kAllBits, kAllBits, kDropped, kDropped});
  CHECK(Grade({.experts_per_token = 3}, {4, 2, 1, 1}) ==
        Bits{kAllBits, kAllBits, kAllBits, kDropped});
  CHECK(Grade({.quality = Quality::kFast, .experts_per_token = 2}, {4, 2, 1, 1}) ==
        Bits{3, 2, kDropped, kDropped});
  // Off means off, even where weights vanish.
  CHECK(Grade({.expert_mass = 1, .prune_ratio = 0}, {1, 1e-30f, 0}) ==
        Bits{kAllBits, kAllBits, kAllBits});
}

TEST_CASE("The calibrated rules begin with what no token does without", "[quality]") {
  for (const QualityRule* rule : {&DefaultQualityRules().balanced, &DefaultQualityRules().fast}) {
    CHECK(rule->steps[0].from == 0);
    CHECK(rule->steps[0].bits > kSkippable);
    for (int i = 1; i < rule->step_count; ++i) {
      CHECK(rule->steps[i].from > rule->steps[i - 1].from);
      CHECK(rule->steps[i].bits < rule->steps[i - 1].bits);
    }
  }
}

TEST_CASE("A shared expert is asked for at the precision of its most demanding token",
          "[quality]") {
  constexpr int kTokens = 40;
  Layer layer(kTokens, true);
  std::vector<QualitySettings> quality(kTokens, kFast);
  layer.Run(kTokens, quality);
  int lenient = 0;
  for (const ExpertDemand& demand : layer.source.demands) lenient += demand.least_bits < kAllBits;
  CHECK(lenient == static_cast<int>(layer.source.demands.size()));

  quality[7] = {};
  layer.Run(kTokens, quality);
  int insisting = 0;
  for (const ExpertDemand& demand : layer.source.demands)
    insisting += demand.least_bits == kAllBits;
  CHECK(insisting == kPerToken);
}

TEST_CASE("With everything at hand, every quality gives the bytes of exact", "[quality]") {
  constexpr int kTokens = 9;
  for (const bool renormalize : {false, true}) {
    Layer layer(kTokens, renormalize);
    const Numbers expected = layer.Run(kTokens, {});
    std::vector<QualitySettings> quality(kTokens, kFast);
    quality[3].quality = Quality::kBalanced;
    CHECK(layer.Run(kTokens, quality) == expected);
    for (const ExpertCounts& counts : layer.counts) CHECK(counts == ExpertCounts{kPerToken, 0, 0});
  }
}

TEST_CASE("A skipped expert leaves its weight to the others where the router divides",
          "[quality]") {
  constexpr int kTokens = 3;
  for (const bool renormalize : {false, true}) {
    Layer layer(kTokens, renormalize);
    layer.source.skip = true;
    // Everything but the weightiest may be skipped.
    QualityRules rules = kRules;
    rules.fast = {.steps = {{{0, 3}, {1e-6f, kSkippable}}}, .step_count = 2};
    layer.runner->SetQualityRules(rules);
    const std::vector<QualitySettings> fast(kTokens, kFast);
    const Numbers skipped = layer.Run(kTokens, fast);
    const std::vector<ExpertCounts> counts = layer.counts;
    int64_t left_out = 0;
    for (const ExpertCounts& c : counts) left_out += c.skipped;
    CHECK(left_out > 0);
    CHECK(layer.stats.unique_experts < static_cast<int64_t>(layer.source.demands.size()));
    // The same tokens one at a time, with the same experts dropped by a routing option.
    layer.source.skip = false;
    for (int t = 0; t < kTokens; ++t) {
      if (counts[t].skipped != kPerToken - 1) continue;
      const std::vector<QualitySettings> one(kTokens, {.experts_per_token = 1});
      CHECK(Layer::Row(layer.Run(kTokens, one), t) == Layer::Row(skipped, t));
    }
  }
}

TEST_CASE("Exact tokens are the same bytes beside tokens that do without experts", "[quality]") {
  constexpr int kTokens = 6;
  for (const bool renormalize : {false, true}) {
    Layer layer(kTokens, renormalize);
    const Numbers expected = layer.Run(kTokens, {});
    layer.source.skip = layer.source.degrade = true;
    std::vector<QualitySettings> quality(kTokens);
    for (int t = 0; t < kTokens; ++t) {
      if (t % 3 == 1) quality[t] = kFast;
      if (t % 3 == 2) quality[t] = {.expert_mass = 0.4f, .prune_ratio = 0.9f};
    }
    const Numbers mixed = layer.Run(kTokens, quality);
    int64_t skipped = 0;
    for (int t = 0; t < kTokens; ++t) {
      if (t % 3 == 0) {
        CHECK(Layer::Row(mixed, t) == Layer::Row(expected, t));
        CHECK(layer.counts[t] == ExpertCounts{kPerToken, 0, 0});
      }
      skipped += layer.counts[t].skipped;
    }
    CHECK(skipped > 0);
    CHECK(mixed != expected);
  }
}

TEST_CASE("Top-p routing computes the share of experts that has the mass", "[quality]") {
  constexpr int kTokens = 12;
  Layer layer(kTokens, true);
  const Numbers all = layer.Run(kTokens, {});
  int64_t before = 0;
  for (const float mass : {1.0f, 0.9f, 0.6f, 0.0f}) {
    const std::vector<QualitySettings> quality(kTokens, QualitySettings{.expert_mass = mass});
    const Numbers hidden = layer.Run(kTokens, quality);
    int64_t skipped = 0;
    for (const ExpertCounts& c : layer.counts) skipped += c.skipped;
    CHECK((mass == 1.0f) == (hidden == all));
    CHECK(skipped >= before);
    before = skipped;
    if (mass == 0.0f) CHECK(skipped == int64_t{kTokens} * (kPerToken - 1));
    for (const float value : hidden) CHECK(std::isfinite(value));
  }
}

TEST_CASE("The experts that a prompt hardly uses are accepted at the tail's precision",
          "[quality]") {
  constexpr int kTokens = 40;
  Layer layer(kTokens, true);
  QualityRules rules = kRules;
  rules.fast = {.steps = {{{0, kAllBits}}}, .step_count = 1, .tail_share = 0.3f, .tail_bits = 2};
  layer.runner->SetQualityRules(rules);
  layer.Run(kTokens, std::vector<QualitySettings>(kTokens, kFast));
  float tail = 0, sum = 0, lightest_full = 1e9f, heaviest_low = 0;
  for (const ExpertDemand& demand : layer.source.demands) {
    sum += demand.weight;
    if (demand.least_bits == kAllBits) {
      lightest_full = std::min(lightest_full, demand.weight);
    } else {
      CHECK(demand.least_bits == 2);
      tail += demand.weight;
      heaviest_low = std::max(heaviest_low, demand.weight);
    }
  }
  CHECK(tail > 0);
  CHECK(tail <= 0.3f * sum);
  CHECK(heaviest_low <= lightest_full);
  // One exact token among them has its experts whole.
  std::vector<QualitySettings> mixed(kTokens, kFast);
  for (QualitySettings& settings : mixed) settings = {};
  layer.Run(kTokens, mixed);
  for (const ExpertDemand& demand : layer.source.demands) CHECK(demand.least_bits == kAllBits);
}

}  // namespace sluice
