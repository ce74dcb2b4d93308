#include "engine/sampling/sampler.h"

#include <cmath>
#include <limits>
#include <random>

#include "tests/support/catch.h"
#include "tests/unit/sampling/reference_sampler.h"

namespace sluice {
namespace {

SamplingParams Greedy() {
  SamplingParams p;
  p.temperature = 0;
  return p;
}

int32_t SampleOnce(const SamplingParams& params, const std::vector<float>& logits, int index = 0) {
  const Sampler sampler(params, {}, 0, {});
  SamplerScratch scratch;
  const Result<int32_t> token = sampler.Sample(logits, index, &scratch);
  REQUIRE(token.has_value());
  return *token;
}

// Random parameters, contexts and rows, from one stream of numbers.
struct Fuzz {
  explicit Fuzz(uint32_t seed) : random(seed) {}
  int Below(int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); }
  float Unit() { return static_cast<float>(random() >> 8) * 0x1.0p-24f; }
  bool OneIn(int n) { return Below(n) == 0; }

  SamplingParams Params(int vocab) {
    SamplingParams p;
    if (OneIn(8)) p.temperature = 0;
    if (OneIn(2)) p.temperature = 0.2f + 2 * Unit();
    if (OneIn(2)) p.top_k = Below(vocab + 2);
    if (OneIn(2)) p.top_p = 0.05f + 0.95f * Unit();
    if (OneIn(3)) p.min_p = 0.3f * Unit();
    if (OneIn(3)) p.typical_p = 0.1f + 0.9f * Unit();
    if (OneIn(3)) p.repetition_penalty = 0.5f + 1.5f * Unit();
    if (OneIn(3)) p.presence_penalty = 4 * Unit() - 2;
    if (OneIn(3)) p.frequency_penalty = 4 * Unit() - 2;
    if (OneIn(3)) p.logit_bias = {{Below(vocab), 10 * Unit() - 5}, {Below(vocab), -2.0f}};
    p.seed = random();
    return p;
  }
  std::vector<float> Row(int vocab, bool quantized) {
    std::vector<float> row(static_cast<size_t>(vocab));
    for (float& x : row) {
      x = 8 * Unit() * Unit() - 2;
      if (quantized) x = std::round(2 * x) / 2;
    }
    return row;
  }
  ReferenceContext Context(int vocab) {
    ReferenceContext c;
    for (int n = Below(6); n > 0; --n) c.prompt.push_back(Below(vocab));
    for (int n = Below(6); n > 0; --n) c.output.push_back(Below(vocab));
    if (vocab > 3 && OneIn(3)) {
      c.ending_ids = {Below(vocab), Below(vocab)};
      c.min_tokens = Below(8);
    }
    return c;
  }

  std::mt19937 random;
};

void CompareWithReference(Fuzz* fuzz, int vocab, bool quantized) {
  const SamplingParams params = fuzz->Params(vocab);
  const ReferenceContext context = fuzz->Context(vocab);
  const std::vector<float> row = fuzz->Row(vocab, quantized);
  Sampler sampler(params, context.prompt, context.min_tokens, context.ending_ids);
  for (int32_t token : context.output) sampler.Accept(token);
  SamplerScratch scratch;
  const auto token = sampler.Sample(row, static_cast<int>(context.output.size()), &scratch);
  REQUIRE(token.has_value());
  REQUIRE(*token == ReferenceSample(row, params, context));
}

TEST_CASE("On small vocabularies the sampler is the plain reference", "[sampling]") {
  Fuzz fuzz(1);
  for (int i = 0; i < 20000; ++i) {
    INFO("trial " << i);
    CompareWithReference(&fuzz, 1 + fuzz.Below(40), false);
  }
}

TEST_CASE("On large vocabularies, where selection replaces sorting, it still is", "[sampling]") {
  Fuzz fuzz(2);
  for (int i = 0; i < 400; ++i) {
    INFO("trial " << i);
    CompareWithReference(&fuzz, 1000 + fuzz.Below(3000), false);
  }
}

TEST_CASE("With many equal logits, truncation keeps the lower ids", "[sampling]") {
  Fuzz fuzz(3);
  for (int i = 0; i < 3000; ++i) {
    INFO("trial " << i);
    const int vocab = 5 + fuzz.Below(60);
    SamplingParams params;
    params.top_k = 1 + fuzz.Below(vocab);
    params.seed = fuzz.random();
    const std::vector<float> row = fuzz.Row(vocab, true);
    REQUIRE(SampleOnce(params, row) == ReferenceSample(row, params, {}));
  }
}

TEST_CASE("Every filter keeps exactly the tokens that it should", "[sampling]") {
  // Probabilities 0.4, 0.3, 0.2, 0.1 at ids 2, 0, 3, 1.
  const std::vector<float> row = {std::log(0.3f), std::log(0.1f), std::log(0.4f), std::log(0.2f)};
  const auto survivors = [&row](SamplingParams params) {
    std::vector<bool> seen(4, false);
    for (uint64_t seed = 0; seed < 400; ++seed) {
      params.seed = seed;
      seen[static_cast<size_t>(SampleOnce(params, row))] = true;
    }
    return seen;
  };
  using Seen = std::vector<bool>;
  SamplingParams p;
  CHECK(survivors(p) == Seen{true, true, true, true});
  p.top_k = 1;
  CHECK(survivors(p) == Seen{false, false, true, false});
  p.top_k = 3;
  CHECK(survivors(p) == Seen{true, false, true, true});
  p = {};
  p.top_p = 0.39f;
  CHECK(survivors(p) == Seen{false, false, true, false});
  p.top_p = 0.5f;
  CHECK(survivors(p) == Seen{true, false, true, false});
  p.top_p = 0.75f;
  CHECK(survivors(p) == Seen{true, false, true, true});
  p.top_k = 2;  // renormalised to 4/7 and 3/7 before top_p
  p.top_p = 0.55f;
  CHECK(survivors(p) == Seen{false, false, true, false});
  p.top_p = 0.6f;
  CHECK(survivors(p) == Seen{true, false, true, false});
  p = {};
  p.min_p = 0.3f;
  CHECK(survivors(p) == Seen{true, false, true, true});
  p.min_p = 0.6f;
  CHECK(survivors(p) == Seen{true, false, true, false});
  p.min_p = 1.0f;
  CHECK(survivors(p) == Seen{false, false, true, false});
  p = {};
  // Entropy 1.280 nats; surprises 1.204 (0.3), 2.303 (0.1), 0.916 (0.4), 1.609 (0.2).
  p.typical_p = 0.2f;
  CHECK(survivors(p) == Seen{true, false, false, false});
  p.typical_p = 0.45f;
  CHECK(survivors(p) == Seen{true, false, false, true});
  p.typical_p = 0.8f;
  CHECK(survivors(p) == Seen{true, false, true, true});
}

TEST_CASE("Frequencies follow the probabilities, over seeds and over indices", "[sampling]") {
  const std::vector<double> probabilities = {0.05, 0.3, 0.15, 0.02, 0.2, 0.08, 0.1, 0.1};
  std::vector<float> row;
  for (double p : probabilities) row.push_back(static_cast<float>(std::log(p)) + 3.0f);
  constexpr int kDraws = 20000;
  const auto chi_square = [&](const std::vector<int>& counts) {
    double sum = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      const double expected = probabilities[i] * kDraws;
      sum += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    return sum;
  };
  SamplingParams params;
  SamplerScratch scratch;
  std::vector<int> by_index(8, 0), by_seed(8, 0), filtered(8, 0);
  const Sampler one(params, {}, 0, {});
  params.top_k = 8;
  params.top_p = 0.9999f;
  params.seed = 99;
  const Sampler through_filters(params, {}, 0, {});
  for (int i = 0; i < kDraws; ++i) {
    ++by_index[static_cast<size_t>(*one.Sample(row, i, &scratch))];
    ++filtered[static_cast<size_t>(*through_filters.Sample(row, i, &scratch))];
    SamplingParams seeded;
    seeded.seed = static_cast<uint64_t>(i);
    ++by_seed[static_cast<size_t>(*Sampler(seeded, {}, 0, {}).Sample(row, 0, &scratch))];
  }
  // 7 degrees of freedom: 18.5 is the 1% bound. The numbers are fixed, so this cannot flake.
  CHECK(chi_square(by_index) < 18.5);
  CHECK(chi_square(by_seed) < 18.5);
  CHECK(chi_square(filtered) < 18.5);
}

TEST_CASE("A draw depends on seed and index only, not on what was drawn before", "[sampling]") {
  Fuzz fuzz(5);
  const std::vector<float> row = fuzz.Row(500, false);
  SamplingParams params;
  params.seed = 42;
  const Sampler sampler(params, {}, 0, {});
  SamplerScratch used, fresh;
  std::vector<int32_t> forwards;
  for (int i = 0; i < 50; ++i) forwards.push_back(*sampler.Sample(row, i, &used));
  for (int i = 49; i >= 0; --i) {
    SamplerScratch other;
    CHECK(*sampler.Sample(row, i, &other) == forwards[static_cast<size_t>(i)]);
  }
}

TEST_CASE("Greedy takes the largest logit, the lowest id of equals", "[sampling]") {
  CHECK(SampleOnce(Greedy(), {1, 5, 5, 2}) == 1);
  CHECK(SampleOnce(Greedy(), {-3, -3, -3, -3, -3}) == 0);
  CHECK(SampleOnce(Greedy(), {0, -0.0f}) == 0);
  CHECK(SampleOnce(Greedy(), {7}) == 0);
}

TEST_CASE("A very small temperature is greedy in effect and stays finite", "[sampling]") {
  for (float temperature : {1e-3f, 1e-10f, 1e-38f, 1e-44f}) {
    SamplingParams params;
    params.temperature = temperature;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      params.seed = seed;
      CHECK(SampleOnce(params, {1, 2, 9, 3}) == 2);
    }
  }
  SamplingParams hot;
  hot.temperature = 3e38f;
  std::vector<bool> seen(3, false);
  for (uint64_t seed = 0; seed < 60; ++seed) {
    hot.seed = seed;
    seen[static_cast<size_t>(SampleOnce(hot, {-50, 0, 50}))] = true;
  }
  CHECK(seen == std::vector<bool>{true, true, true});
}

TEST_CASE("Penalties count prompt and output as they should", "[sampling]") {
  SamplingParams p = Greedy();
  SamplerScratch scratch;
  const std::vector<float> row = {4.0f, 3.9f, -1.0f, 3.5f};
  const std::vector<int32_t> prompt = {0};
  SECTION("repetition divides positive logits of the prompt") {
    p.repetition_penalty = 1.1f;
    CHECK(*Sampler(p, prompt, 0, {}).Sample(row, 0, &scratch) == 1);
  }
  SECTION("repetition multiplies negative logits") {
    p.repetition_penalty = 3.0f;
    const std::vector<int32_t> both = {0, 1};
    CHECK(*Sampler(p, both, 0, {}).Sample(std::vector<float>{-1, -2, -2.5f}, 0, &scratch) == 2);
  }
  SECTION("presence and frequency leave the prompt alone") {
    p.presence_penalty = 2;
    p.frequency_penalty = 2;
    CHECK(*Sampler(p, prompt, 0, {}).Sample(row, 0, &scratch) == 0);
  }
  SECTION("presence counts once, frequency each time") {
    p.presence_penalty = 0.2f;
    Sampler presence(p, {}, 0, {});
    presence.Accept(0);
    CHECK(*presence.Sample(row, 1, &scratch) == 1);
    presence.Accept(1);
    CHECK(*presence.Sample(row, 2, &scratch) == 0);
    presence.Accept(0);
    CHECK(*presence.Sample(row, 3, &scratch) == 0);
    p.presence_penalty = 0;
    p.frequency_penalty = 0.2f;
    Sampler frequency(p, {}, 0, {});
    frequency.Accept(0);
    frequency.Accept(1);
    CHECK(*frequency.Sample(row, 2, &scratch) == 0);
    for (int i = 0; i < 3; ++i) frequency.Accept(0);
    frequency.Accept(1);
    frequency.Accept(1);
    CHECK(*frequency.Sample(row, 7, &scratch) == 3);
  }
  SECTION("a bias can force or ban a token") {
    p.logit_bias = {{2, 100.0f}};
    CHECK(*Sampler(p, {}, 0, {}).Sample(row, 0, &scratch) == 2);
    p.logit_bias = {{0, -100.0f}, {1, -100.0f}};
    CHECK(*Sampler(p, {}, 0, {}).Sample(row, 0, &scratch) == 3);
  }
}

TEST_CASE("Ending tokens are masked for the first min_tokens tokens", "[sampling]") {
  SamplerScratch scratch;
  const std::vector<float> row = {1, 9, 8, 2};
  const Sampler sampler(Greedy(), {}, 2, {1, 2});
  CHECK(*sampler.Sample(row, 0, &scratch) == 3);
  CHECK(*sampler.Sample(row, 1, &scratch) == 3);
  CHECK(*sampler.Sample(row, 2, &scratch) == 1);
  SamplingParams params;
  const Sampler drawn(params, {}, 1, {1, 2});
  for (uint64_t seed = 0; seed < 50; ++seed) {
    params.seed = seed;
    const int32_t token = *Sampler(params, {}, 1, {1, 2}).Sample(row, 0, &scratch);
    CHECK((token == 0 || token == 3));
  }
}

TEST_CASE("Rows that are not finite, or wholly masked, are errors", "[sampling]") {
  SamplerScratch scratch;
  const Sampler sampler({}, {}, 1, {0, 1});
  for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity()}) {
    const auto token = sampler.Sample(std::vector<float>{1, 2, bad}, 5, &scratch);
    REQUIRE_FALSE(token.has_value());
    CHECK(token.error().code == ErrorCode::kInternal);
    CHECK(token.error().message.find("generated token 5") != std::string::npos);
  }
  const auto masked = sampler.Sample(std::vector<float>{1, 2}, 0, &scratch);
  REQUIRE_FALSE(masked.has_value());
  CHECK(masked.error().message.find("masked") != std::string::npos);
  CHECK(sampler.Sample(std::vector<float>{1, 2}, 1, &scratch).has_value());
}

TEST_CASE("Huge logits and penalties stay finite", "[sampling]") {
  SamplerScratch scratch;
  SamplingParams p;
  p.repetition_penalty = 1e-30f;
  p.logit_bias = {{0, 3e38f}, {1, -3e38f}};
  p.top_p = 0.5f;
  p.typical_p = 0.5f;
  const std::vector<int32_t> prompt = {0, 1, 2};
  const Sampler sampler(p, prompt, 0, {});
  for (int i = 0; i < 20; ++i) {
    const auto token = sampler.Sample(std::vector<float>{3e38f, -3e38f, 3e38f, 1}, i, &scratch);
    REQUIRE(token.has_value());
    CHECK((*token == 0 || *token == 2));
  }
}

TEST_CASE("Parameters out of range are refused by name", "[sampling]") {
  CHECK(ValidateSampling({}, 10).has_value());
  const auto refuses = [](const char* field, auto change) {
    SamplingParams p;
    change(&p);
    const Result<> result = ValidateSampling(p, 10);
    REQUIRE_FALSE(result.has_value());
    CHECK(result.error().code == ErrorCode::kInvalidArgument);
    CHECK(result.error().message.find(field) != std::string::npos);
  };
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  for (float x : {-0.1f, nan, infinity}) {
    refuses("temperature", [x](SamplingParams* p) { p->temperature = x; });
  }
  for (float x : {0.0f, -1.0f, 1.1f, nan}) {
    refuses("top_p", [x](SamplingParams* p) { p->top_p = x; });
    refuses("typical_p", [x](SamplingParams* p) { p->typical_p = x; });
  }
  refuses("top_k", [](SamplingParams* p) { p->top_k = -1; });
  for (float x : {-0.1f, 1.1f, nan}) refuses("min_p", [x](SamplingParams* p) { p->min_p = x; });
  for (float x : {0.0f, -1.0f, nan, infinity}) {
    refuses("repetition_penalty", [x](SamplingParams* p) { p->repetition_penalty = x; });
  }
  for (float x : {-2.1f, 2.1f, nan}) {
    refuses("presence_penalty", [x](SamplingParams* p) { p->presence_penalty = x; });
    refuses("frequency_penalty", [x](SamplingParams* p) { p->frequency_penalty = x; });
  }
  refuses("logit_bias", [](SamplingParams* p) { p->logit_bias = {{10, 1.0f}}; });
  refuses("logit_bias", [](SamplingParams* p) { p->logit_bias = {{-1, 1.0f}}; });
  refuses("logit_bias", [nan](SamplingParams* p) { p->logit_bias = {{1, nan}}; });
}

}  // namespace
}  // namespace sluice
